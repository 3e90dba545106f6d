"""What to compact next: pure policy over a version. Leveled, with level targets that follow the size of the
lowest level.

The lowest level holds about nine tenths of the data; each one above may hold a tenth of the one below, down
to the base level, which is where level 0 is compacted to. Levels between are empty. So a small engine has
level 0 and one more.
"""

from __future__ import annotations

from typing import NamedTuple

from storenode.engine.options import LEVELS, Options
from storenode.engine.version import TableMeta, Version, key_range

OVERLAP_TABLES_MAX = 10
"""An output ends before it overlaps ten tables of the level below it: that bounds what compacting it will
cost."""


class Proposal(NamedTuple):
    """A compaction: merge `upper` (of `level`) and `lower` (of `output_level`) into `output_level`.

    `move`: nothing to merge, the one table only changes its level. `upper` of level 0 is newest first.
    """

    level: int
    output_level: int
    upper: tuple[TableMeta, ...]
    lower: tuple[TableMeta, ...]
    move: bool
    score: float


Reserved = tuple[int, bytes, bytes]
"""Level, smallest and largest key of what a compaction that is under way will put there."""


class Targets(NamedTuple):
    """Where level 0 goes, and how many bytes each level may hold."""

    base_level: int
    bytes_max: tuple[int, ...]


def targets(version: Version, options: Options) -> Targets:
    """The level targets that fit the version's largest level."""
    sizes = [version.bytes_of(level) for level in range(LEVELS)]
    size = max(sizes[1:])
    base = LEVELS - 1
    while base > 1 and size > options.base_bytes:
        base -= 1
        size //= options.level_ratio
    for level in range(1, base):
        if sizes[level]:  # data that an earlier, larger tree left higher up
            base = level
            break
    limits = [0] * LEVELS
    for level in range(base, LEVELS):
        limits[level] = max(size, options.base_bytes)
        size *= options.level_ratio
    return Targets(base, tuple(limits))


def scores(version: Version, options: Options) -> list[float]:
    """How full each level is; 1 and more wants a compaction. The last level is never too full."""
    limits = targets(version, options)
    result = [0.0] * LEVELS
    result[0] = len(version.levels[0]) / options.level0_trigger
    for level in range(limits.base_level, LEVELS - 1):
        result[level] = version.bytes_of(level) / limits.bytes_max[level]
    return result


def propose(version: Version, options: Options) -> Proposal | None:
    """The most urgent compaction, None if nothing is due."""
    ranked = scores(version, options)
    level = max(range(LEVELS), key=lambda number: ranked[number])
    if ranked[level] < 1:
        return None
    if level == 0:
        return _propose_level0(version, targets(version, options).base_level, ranked[0])
    return _propose_level(version, level, ranked[level])


def propose_everything(version: Version) -> Proposal | None:
    """All tables into the last level: what `compact()` does. None if that is how it is, with nothing to
    drop."""
    upper = tuple(table for level in version.levels[:-1] for table in level)
    lower = version.levels[-1]
    if not upper and not any(table.deletions or table.expiring for table in lower):
        return None
    return Proposal(0, LEVELS - 1, upper, lower, False, 1.0)


def level_for(version: Version, options: Options, table: TableMeta, reserved: Reserved | None) -> int:
    """Where a table goes that is newer than all others: the lowest level that, with all above it, has no key
    in the table's range; level 0 if there is none.

    Levels that the tree leaves empty stay so, and what is `reserved` is kept clear: an output may span keys
    that none of its inputs has.
    """
    base = targets(version, options).base_level
    found = 0
    for level in range(LEVELS):
        if version.overlapping(level, table.smallest, table.largest):
            break
        if level >= base and not _is_reserved(reserved, level, table):
            found = level
    return found


def _is_reserved(reserved: Reserved | None, level: int, table: TableMeta) -> bool:
    if reserved is None or reserved[0] != level:
        return False
    return table.overlaps(*reserved[1:])


def _propose_level0(version: Version, base: int, score: float) -> Proposal:
    oldest = version.levels[0][-1]
    others = version.levels[0][:-1]
    alone = not any(table.overlaps(oldest.smallest, oldest.largest) for table in others)
    if alone and _can_move(version, oldest, base):
        return Proposal(0, base, (oldest,), (), True, score)
    upper = version.levels[0]
    lower = version.overlapping(base, *key_range(upper))
    return Proposal(0, base, upper, lower, False, score)


def _propose_level(version: Version, level: int, score: float) -> Proposal:
    """The table that drags the fewest bytes along per byte of its own; the oldest of equals."""

    def cost(table: TableMeta) -> tuple[float, int]:
        lower = version.overlapping(level + 1, table.smallest, table.largest)
        return sum(other.size for other in lower) / table.size, table.number

    chosen = min(version.levels[level], key=cost)
    if _can_move(version, chosen, level + 1):
        return Proposal(level, level + 1, (chosen,), (), True, score)
    lower = version.overlapping(level + 1, chosen.smallest, chosen.largest)
    return Proposal(level, level + 1, (chosen,), lower, False, score)


def _can_move(version: Version, table: TableMeta, output_level: int) -> bool:
    """Nothing to merge with, cheap to compact later, and no deletions that a merge could drop."""
    if version.overlapping(output_level, table.smallest, table.largest):
        return False
    if output_level + 1 >= LEVELS:
        return not table.deletions
    below = version.overlapping(output_level + 1, table.smallest, table.largest)
    if table.deletions and not below:
        return False
    return sum(other.size for other in below) <= OVERLAP_TABLES_MAX * table.size
