"""A flush or compaction (native/job.h)."""

from typing import TypedDict

from storenode.engine.memtable import Memtable
from storenode.engine.ranges import Ranges
from storenode.engine.table import Table

class FinishedTable(TypedDict):
    """What a job knows of a table that it has written."""

    number: int
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

class Job:
    """Merges memtables and runs (all newest first) into tables of about `table_bytes`.

    `below`: what is older than the output, as runs; a deletion is dropped where none of it can hold the key.
    `overlaps`: the tables that the output will be compacted into one day; an output ends before it overlaps
    more than `overlap_bytes_max` of them. `compression`: the block type of docs/formats.md section 3.
    `pause_bytes`: a step ends after about so many bytes were read and written; 0: not for that.
    `ranges`: what they make absent is dropped; each output remembers all of them as its property.
    """

    def __init__(
        self,
        directory: str,
        memtables: tuple[Memtable, ...],
        runs: tuple[tuple[Table, ...], ...],
        below: tuple[tuple[Table, ...], ...],
        overlaps: tuple[Table, ...],
        *,
        now_ms: int,
        table_bytes: int,
        overlap_bytes_max: int,
        block_bytes: int,
        bits_per_key: int,
        restart_interval: int = 16,
        compression: int = 0,
        pause_bytes: int = 0,
        ranges: Ranges | None = None,
    ) -> None: ...
    def step(self) -> int:
        """Run on: 0 done; 1 needs a file (call open_table); 2 a table is complete (see finished; not yet
        synced); 3 pauses.

        Raises Corruption, OSError, MemoryError, or Cancelled.
        """
    def open_table(self, fd: int, number: int, file_id: int, created_ms: int) -> None: ...
    def finished(self) -> FinishedTable: ...
    @property
    def bytes_moved(self) -> int:
        """Read from and written to files so far."""
    def counts(self) -> dict[str, int]:
        """entries_in, entries_out, dropped_shadowed, dropped_absent, dropped_deleted; block_bytes and
        block_bytes_stored: of the data blocks that were written, before and after compression."""
    def cancel(self) -> None:
        """Make a running step raise Cancelled soon. Any thread."""
