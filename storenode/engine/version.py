"""Which tables there are, by level. Pure and immutable: a change makes a new version, and checks it.

Level 0 holds flushed memtables, newest first; they may overlap. The tables of a level below are in key order
and do not. What lies deeper is older.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

from storenode.engine.options import LEVELS
from storenode.engine.ranges import Ranges

PREPARED_ID = 0xFFFF
"""In the place of the engine's id in the file id of a table that was written outside of any engine; no engine
has it."""


def is_prepared(file_id: int) -> bool:
    return file_id >> 48 == PREPARED_ID


class TableMeta(NamedTuple):
    """A table as the manifest knows it (docs/formats.md section 5)."""

    number: int
    level: int
    file_id: int
    size: int
    entries: int
    deletions: int
    expiring: int
    min_sequence: int
    max_sequence: int
    raw_key_bytes: int
    raw_value_bytes: int
    created_ms: int
    smallest: bytes
    largest: bytes
    cleaned_sequence: int = 0
    """No version in the table is made absent by a range deletion of a sequence up to this one."""

    @property
    def given_sequence(self) -> int:
        """The sequence that all entries of a prepared table were given; 0: they have their own."""
        return self.max_sequence if is_prepared(self.file_id) else 0

    def overlaps(self, smallest: bytes, largest: bytes) -> bool:
        return self.smallest <= largest and smallest <= self.largest


class Version:
    """The tables of all levels."""

    __slots__ = ("levels",)

    def __init__(self, levels: tuple[tuple[TableMeta, ...], ...] = ((),) * LEVELS) -> None:
        self.levels = levels

    @classmethod
    def of(cls, tables: Iterable[TableMeta]) -> Version:
        return cls().change(tuple(tables), frozenset())

    def change(self, added: Iterable[TableMeta], removed: Collection[int]) -> Version:
        """The version with `removed` numbers gone and `added` tables in. ValueError if a level would
        overlap."""
        levels: list[list[TableMeta]] = [
            [t for t in level if t.number not in removed] for level in self.levels
        ]
        for table in added:
            levels[table.level].append(table)
        levels[0].sort(key=lambda table: (-table.max_sequence, -table.number))
        for number, level in enumerate(levels[1:], start=1):
            level.sort(key=lambda table: table.smallest)
            for left, right in pairwise(level):
                if left.largest >= right.smallest:
                    raise ValueError(f"tables {left.number} and {right.number} overlap in level {number}")
        return Version(tuple(map(tuple, levels)))

    def tables(self) -> Iterable[TableMeta]:
        for level in self.levels:
            yield from level

    def overlapping(self, level: int, smallest: bytes, largest: bytes) -> tuple[TableMeta, ...]:
        """The tables of a level that share keys with [smallest, largest]."""
        return tuple(table for table in self.levels[level] if table.overlaps(smallest, largest))

    def bytes_of(self, level: int) -> int:
        return sum(table.size for table in self.levels[level])


def unapplied(ranges: Ranges, tables: Iterable[TableMeta]) -> dict[int, set[int]]:
    """Sequences of the range deletions that some of the tables may still hold covered versions of, by the
    table's number."""
    found: dict[int, set[int]] = {}
    for table in tables:
        sequences = {
            interval.sequence
            for interval in ranges.overlapping(table.smallest, table.largest)
            if interval.sequence > max(table.min_sequence, table.cleaned_sequence)
        }
        if sequences:
            found[table.number] = sequences
    return found


def key_range(tables: Collection[TableMeta]) -> tuple[bytes, bytes]:
    """The smallest and the largest key of some tables, at least one."""
    return min(table.smallest for table in tables), max(table.largest for table in tables)
