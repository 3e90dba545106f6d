"""What to compact next: pure policy over a version. Leveled, with level targets that follow the size of the
lowest level.

The lowest level holds about nine tenths of the data; each one above may hold a tenth of the one below, down
to the base level, which is where level 0 is compacted to. Levels between are empty. So a small engine has
level 0 and one more.
"""

from __future__ import annotations

from collections.abc import Collection
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


class KeyRange(NamedTuple):
    """The keys of [start, stop); without `stop` all from `start` on."""

    start: bytes
    stop: bytes | None

    def touches(self, table: TableMeta) -> bool:
        return table.largest >= self.start and (self.stop is None or table.smallest < self.stop)


EVERYTHING = KeyRange(b"", None)


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


def propose_range(version: Version, wanted: KeyRange) -> Proposal | None:
    """All tables with keys of a range into the last level: what `compact_range` does. None if that is how it
    is, with nothing to drop.

    What lies under a table that goes down must go with it, or it would come to hide what is newer: so the
    range grows from level to level by the tables that were chosen.
    """
    chosen = _closed_level0(version.levels[0], wanted)
    for level in version.levels[1:-1]:
        chosen += _touched(level, wanted, chosen)
    lower = tuple(_touched(version.levels[-1], wanted, chosen))
    if not chosen and not any(table.deletions or table.expiring for table in lower):
        return None
    return Proposal(0, LEVELS - 1, tuple(chosen), lower, False, 1.0)


def _touched(
    level: tuple[TableMeta, ...], wanted: KeyRange, chosen: Collection[TableMeta]
) -> list[TableMeta]:
    """The tables of a level with keys of a range, or between the keys of tables that are chosen already."""
    if not chosen:
        return [table for table in level if wanted.touches(table)]
    smallest, largest = key_range(chosen)
    return [table for table in level if wanted.touches(table) or table.overlaps(smallest, largest)]


def _closed_level0(level0: tuple[TableMeta, ...], wanted: KeyRange) -> list[TableMeta]:
    """The tables of level 0 with keys of a range, and all that overlap with them, and so on."""
    chosen: list[TableMeta] = []
    while True:
        more = _touched(level0, wanted, chosen)
        if len(more) == len(chosen):
            return chosen
        chosen = more


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
