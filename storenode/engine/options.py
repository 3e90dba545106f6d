"""What an engine can be told, once, when it is opened."""

from __future__ import annotations

from typing import Literal, get_args

import attrs

KIB = 1 << 10
MIB = 1 << 20

LEVELS = 7
"""Level 0 and six below: with dynamic targets the upper ones stay empty until there is 64 GiB and more."""

Compression = Literal["auto", "none", "lz4", "zstd"]


@attrs.frozen(kw_only=True)
class Options:
    """Budgets and shapes. The defaults suit a partition of up to some tens of GiB."""

    memtable_bytes: int = 16 * MIB
    """A log is ended, and with it its memtable, at this size. More: fewer and larger flushes, longer
    recovery."""

    block_bytes: int = 4 * KIB
    """Data blocks are cut here: what one read fetches and one checksum covers."""

    restart_interval: int = 16
    """Entries between two places where a search in a block can begin: more make smaller blocks and slower
    reads."""

    compression: Compression = "auto"
    """Of data blocks, in tables written from now on. `lz4` about halves what can be
    compressed at next to no cost, and is what `auto` means; `zstd` stores the last level, most of the data,
    another 15 to 30 % smaller, but a read past the cache takes nearly three times as long if the file is in
    memory."""

    bits_per_key: int = 10
    """Of the filter: 10 lets about 1 % of absent keys through."""

    table_bytes: int = 16 * MIB
    """Tables below level 0 end at this size; it is what a compaction moves at least."""

    level0_trigger: int = 4
    """Tables in level 0 that start a compaction."""

    level0_slow: int = 12
    """From here `pressure()` is 1: every further table costs each read a lookup."""

    level0_stop: int = 20
    """From here `pressure()` is 2."""

    base_bytes: int = 64 * MIB
    """The smallest level below level 0 may hold this much, each one below it `level_ratio` times more."""

    level_ratio: int = 10

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Options):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression must be one of {', '.join(get_args(Compression))}")
        if not self.level0_trigger <= self.level0_slow <= self.level0_stop:
            raise ValueError("level0_trigger <= level0_slow <= level0_stop must hold")
        if self.level_ratio < 2:
            raise ValueError("level_ratio must be at least 2")
