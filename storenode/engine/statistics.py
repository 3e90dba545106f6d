"""An engine's figures: counters that the work keeps, and one dict of all there is to know.

Counters are written by one thread each (loop, log thread, worker) or under the interpreter's lock; nothing
here is exact to the last unit while jobs run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storenode.engine.compaction import scores

if TYPE_CHECKING:
    from storenode.engine.jobs import JobResult
    from storenode.engine.lsm import Engine
    from storenode.engine.wal import LogWriter


class Counters:
    """What the jobs of one engine have done since it was opened."""

    def __init__(self) -> None:
        self.flushes = 0
        self.flush_bytes = 0
        self.flush_seconds = 0.0
        self.compactions = 0
        self.compaction_moves = 0
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
        self._compressed(result)

    def compacted(self, result: JobResult, seconds: float) -> None:
        self.compactions += not result.moved
        self.compaction_moves += result.moved
        self.compaction_bytes_read += result.bytes_read
        self.compaction_bytes_written += result.bytes_written
        self.compaction_seconds += seconds
        self._compressed(result)

    def _compressed(self, result: JobResult) -> None:
        self.block_bytes += result.block_bytes
        self.block_bytes_stored += result.block_bytes_stored

    @property
    def write_amplification(self) -> float:
        """Bytes written to tables per byte that a flush brought in."""
        return (
            (self.flush_bytes + self.compaction_bytes_written) / self.flush_bytes if self.flush_bytes else 0.0
        )


def collect(engine: Engine, log: LogWriter) -> dict[str, Any]:
    """Everything, with units in the names.

    A level's `bytes` are those of its files, `raw_bytes` those of the keys and values in them.
    `block_bytes` and `block_bytes_stored` are of the data blocks written since the engine was opened, before
    and after compression.
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
        "levels": [
            {
                "tables": len(level),
                "bytes": version.bytes_of(number),
                "raw_bytes": sum(table.raw_key_bytes + table.raw_value_bytes for table in level),
                "score": round(full[number], 3),
            }
            for number, level in enumerate(version.levels)
        ],
        **vars(counters),
        "write_amplification": round(counters.write_amplification, 2),
        "cache": engine.shared.cache.stats(),
        "failures": {
            kind: {"error": str(failure.error), "pause_seconds": failure.pause}
            for kind, failure in list(background.failures.items())
        },
        "broken": background.broken or log.failure,
        "damage": str(engine.damage) if engine.damage else None,
    }
