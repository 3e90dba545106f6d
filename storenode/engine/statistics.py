"""An engine's figures: counters that the work keeps, and one dict of all there is to know.

Counters are written by one thread each (loop, log thread, worker) or under the interpreter's lock; nothing
here is exact to the last unit while jobs run. All of them begin when the engine, or the Shared, is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from storenode.engine.compaction import scores
from storenode.engine.options import LEVELS

if TYPE_CHECKING:
    from storenode.engine.base import EngineBase
    from storenode.engine.jobs import JobResult

TABLE_BYTES = 1700
"""What an open table takes in memory beside its blocks and its keys: the object, its path and its row of the
manifest, with what malloc adds (measured: how much a process grows that opens 6,000 of them)."""


class LogFigures(NamedTuple):
    """Of an engine's own log."""

    number: int
    length: int
    bytes_written: int
    syncs: int
    failure: str | None


NO_LOG = LogFigures(0, 0, 0, 0, None)


class LevelCounters:
    """What was written into one level."""

    def __init__(self) -> None:
        self.bytes_from_above = 0
        self.bytes_read = 0
        self.bytes_written = 0

    def add(self, result: JobResult) -> None:
        self.bytes_from_above += result.bytes_from_above
        self.bytes_read += result.bytes_read
        self.bytes_written += result.bytes_written

    def stats(self) -> dict[str, float]:
        return {
            **vars(self),
            "write_amplification": _ratio(self.bytes_written, self.bytes_from_above),
        }


class Counters:
    """What the jobs of one engine have done since it was opened."""

    def __init__(self) -> None:
        self.levels = [LevelCounters() for _ in range(LEVELS)]
        self.flushes = 0
        self.flush_bytes = 0
        self.flush_seconds = 0.0
        self.compactions = 0
        self.compaction_moves = 0
        self.tables_dropped = 0
        self.compaction_bytes_read = 0
        self.compaction_bytes_written = 0
        self.compaction_seconds = 0.0
        self.block_bytes = 0
        self.block_bytes_stored = 0
        self.ingested_tables = 0
        self.ingested_bytes = 0
        self.jobs_failed = 0
        self.stalls = 0
        self.stall_seconds = 0.0

    def flushed(self, result: JobResult, seconds: float) -> None:
        self.flushes += 1
        self.flush_bytes += result.bytes_written
        self.flush_seconds += seconds
        self.levels[0].add(result)
        self._compressed(result)

    def compacted(self, result: JobResult, seconds: float) -> None:
        self.compactions += not result.moved and not result.tables_dropped
        self.tables_dropped += result.tables_dropped
        self.compaction_moves += result.moved
        self.compaction_bytes_read += result.bytes_read
        self.compaction_bytes_written += result.bytes_written
        self.compaction_seconds += seconds
        self.levels[result.level].add(result)
        self._compressed(result)

    def _compressed(self, result: JobResult) -> None:
        self.block_bytes += result.block_bytes
        self.block_bytes_stored += result.block_bytes_stored

    def stats(self) -> dict[str, Any]:
        """All but the levels."""
        return {name: value for name, value in vars(self).items() if name != "levels"}


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 3) if whole else 0.0


def memory(engine: EngineBase) -> dict[str, int]:
    """What one engine holds in memory, by what it is for; the block cache is of all (Shared.stats). Memtables
    count all that they reserved, of which the system gives what is written."""
    tables = list(engine.tree.version.tables())
    keys = sum(len(table.smallest) + len(table.largest) for table in tables)
    return {
        "memtables": engine.memtable_bytes,
        "tables": len(tables) * TABLE_BYTES + keys,
        "log_window": engine.window_bytes,
    }


def reads_of(engine: EngineBase) -> dict[str, float]:
    """What lookups cost. A filter is `useful` if it spared a table, `misled` if it let through a key that the
    table had not. Tables and blocks `per_lookup` are the read amplification, memtables not counted."""
    reads = engine.tree.reads
    probed = reads.filtered + reads.searched
    return {
        "lookups": reads.lookups,
        "filters_useful": reads.filtered,
        "filters_misled": reads.misled,
        "filter_false_positive_rate": _ratio(reads.misled, reads.filtered + reads.misled),
        "tables_per_lookup": _ratio(probed, reads.lookups),
        "blocks_per_lookup": _ratio(reads.blocks_searched, reads.lookups),
    }


def collect(engine: EngineBase, log: LogFigures) -> dict[str, Any]:
    """Everything, with units in the names.

    A level's `bytes` are those of its files, `raw_bytes` those of the keys and values in them; what jobs
    read for it and wrote into it, and its write amplification: bytes written per byte that came from above.
    The total `write_amplification` is of bytes written to tables per byte logged. `block_bytes` and
    `block_bytes_stored` are of the data blocks written, before and after compression. `stalls` counts the
    waits of `write`, `backlog` how often and long writers were asked to slow down or stop (stalls.py).
    """
    tree, background, counters = engine.tree, engine.background, engine.counters
    version = tree.version
    tables = list(version.tables())
    full = scores(version, engine.options)
    return {
        "next_sequence": engine.next_sequence,
        "flushed_sequence": tree.flushed_sequence,
        "pressure": engine.pressure(),
        "memtable_bytes": tree.active.memory_bytes,
        "memtable_entries": tree.active.count,
        "memtables_retired": len(tree.retired),
        "memtables_retired_bytes": sum(one.memtable.memory_bytes for one in tree.retired),
        "log_number": log.number,
        "log_bytes": log.length,
        "log_bytes_written": log.bytes_written,
        "log_syncs": log.syncs,
        "tables": len(tables),
        "table_bytes": sum(table.size for table in tables),
        "table_entries": sum(table.entries for table in tables),
        "table_deletions": sum(table.deletions for table in tables),
        "range_deletions": len(tree.range_deletions),
        "levels": [
            {
                "tables": len(level),
                "entries": sum(table.entries for table in level),
                "bytes": version.bytes_of(number),
                "raw_bytes": sum(table.raw_key_bytes + table.raw_value_bytes for table in level),
                "score": round(full[number], 3),
                **counters.levels[number].stats(),
            }
            for number, level in enumerate(version.levels)
        ],
        **counters.stats(),
        "write_amplification": _ratio(
            counters.flush_bytes + counters.compaction_bytes_written, log.bytes_written
        ),
        "backlog": engine.stalls.stats(),
        "reads": reads_of(engine),
        "memory": memory(engine),
        "cache": engine.shared.cache.stats(),
        "failures": {
            kind: {"error": str(failure.error), "pause_seconds": failure.pause}
            for kind, failure in list(background.failures.items())
        },
        "broken": background.broken or log.failure,
        "damage": str(engine.damage) if engine.damage else None,
    }
