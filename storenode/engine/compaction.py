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
from storenode.engine.ranges import Ranges
from storenode.engine.version import TableMeta, Version, key_range, unapplied

OVERLAP_TABLES_MAX = 10
"""An output ends before it overlaps ten tables of the level below it: that bounds what compacting it will
cost."""


RANGES_AT_REST = 64
"""So many intervals of range deletions cost a read less than a table more would. Beyond, tables are rewritten
only to be rid of them, the more urgently the more there are."""

NO_RANGES = Ranges()

DROP_SCORE = 100.0
"""Of dropping tables unread: over all merging, it costs one commit and frees what others would rewrite."""


class Proposal(NamedTuple):
    """A compaction: merge `upper` (of `level`) and `lower` (of `output_level`) into `output_level`.

    `move`: nothing to merge, the one table only changes its level. `upper` of level 0 is newest first.
    `drop`: the tables go, all that is in them was deleted. A level may be its own output: then its one table
    is rewritten.
    """

    level: int
    output_level: int
    upper: tuple[TableMeta, ...]
    lower: tuple[TableMeta, ...]
    move: bool
    score: float
    drop: bool = False


class KeyRange(NamedTuple):
    """The keys of [start, stop); without `stop` all from `start` on."""

    start: bytes
    stop: bytes | None

    def touches(self, table: TableMeta) -> bool:
        return table.largest >= self.start and (self.stop is None or table.smallest < self.stop)


EVERYTHING = KeyRange(b"", None)


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


def propose(version: Version, options: Options, ranges: Ranges = NO_RANGES) -> Proposal | None:
    """The most urgent compaction, None if nothing is due. `ranges`: the range deletions that the manifest
    has."""
    dropped = _deleted(version, ranges)
    if dropped:
        return Proposal(dropped[0].level, dropped[0].level, dropped, (), False, DROP_SCORE, drop=True)
    ranked = scores(version, options)
    level = max(range(LEVELS), key=lambda number: ranked[number])
    clutter = len(ranges.intervals) / RANGES_AT_REST
    if clutter > max(1.0, ranked[level]):
        cleaning = _propose_cleaning(version, options, ranges, clutter)
        if cleaning is not None:
            return cleaning
    if ranked[level] < 1:
        return None
    if level == 0:
        return _propose_level0(version, targets(version, options).base_level, ranked[0])
    return _propose_level(version, level, ranked[level])


def propose_range(version: Version, wanted: KeyRange, ranges: Ranges = NO_RANGES) -> Proposal | None:
    """All tables with keys of a range into the last level: what `compact_range` does. None if that is how it
    is, with nothing to drop.

    What lies under a table that goes down must go with it, or it would come to hide what is newer: so the
    range grows from level to level by the tables that were chosen.
    """
    chosen = _closed_level0(version.levels[0], wanted)
    for level in version.levels[1:-1]:
        chosen += _touched(level, wanted, chosen)
    lower = tuple(_touched(version.levels[-1], wanted, chosen))
    clean = not any(table.deletions or table.expiring for table in lower) and not unapplied(ranges, lower)
    if not chosen and clean:
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


def _deleted(version: Version, ranges: Ranges) -> tuple[TableMeta, ...]:
    """The tables of which every version was deleted by ranges."""
    if not ranges.intervals:
        return ()
    return tuple(
        table
        for table in version.tables()
        if ranges.lowest_over(table.smallest, table.largest) > table.max_sequence
    )


def _propose_cleaning(version: Version, options: Options, ranges: Ranges, score: float) -> Proposal | None:
    """Rewrite the table that was not for longest, of those that range deletions wait for."""
    waiting = unapplied(ranges, version.tables())
    tables = [table for table in version.tables() if table.number in waiting]
    if not tables:
        return None
    oldest = min(tables, key=lambda table: (table.cleaned_sequence, table.number))
    if oldest.level == 0:  # in place it would need the order of level 0; this comes to the same
        return _propose_level0(version, targets(version, options).base_level, score)
    return Proposal(oldest.level, oldest.level, (oldest,), (), False, score)


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
