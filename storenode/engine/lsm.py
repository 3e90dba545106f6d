"""The engine: an ordered store of versions, logged, in memtables and tables.

Threads. Any number may `put`, `delete`, `write`, `delete_range` and `flush`: they wait for each other. One
applies, compacts, ingests, makes checkpoints and closes (a store's loop; the same one for all engines of a
Shared); another may `append` meanwhile. Two `append` or two `apply` at once raise RuntimeError; who uses them
writes by nothing else. Workers flush and compact. Any thread may read, scan, take and use snapshots, and ask
for `stats` and `pressure`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence

from kvclient.errors import Corruption, Status
from kvclient.protocol import decode_results, encode_delete
from storenode.engine import ingest, statistics
from storenode.engine.background import COMPACTION, FLUSH
from storenode.engine.base import EngineBase, now_ms
from storenode.engine.batch import WriteBatch
from storenode.engine.deletions import encode_delete_range
from storenode.engine.errors import EngineClosed, EngineFailed
from storenode.engine.ingest import Prepared
from storenode.engine.options import Options
from storenode.engine.recovery import SEQUENCE_MAX, recover
from storenode.engine.shared import Shared
from storenode.engine.view import View
from storenode.engine.wal import Entry, LogWriter


class Engine(EngineBase):
    """See `open` (opening.py)."""

    def __init__(
        self, path: str, options: Options, shared: Shared, engine_id: int, *, owns_shared: bool
    ) -> None:
        recovered = recover(shared, os.path.abspath(path), engine_id, options)
        super().__init__(options, shared, recovered, owns_shared=owns_shared)
        self._applied_log = recovered.last_log[0]
        self._logs = set(recovered.logs)
        self._log = LogWriter(
            shared.vfs,
            self.directory,
            engine_id,
            options.memtable_bytes,
            self.tree.take_number,
            recovered.last_log,
            self,
            self.tree.sync_directory,
        )
        self.tree.sync_log_name = self._log.sync_name
        self._append_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._appended = self._applied = 0  # entries, without short puts, which are both at once
        if self.tree.wants_flush:
            self.retire_memtable()
        shared.register(self)
        shared.wake()

    # Logging and applying

    def append(self, entries: Sequence[Entry]) -> int:
        """Log entries (first_sequence, now_ms, op stream): one write and one fdatasync for all. Returns the
        log's number for `apply`.

        EngineReadOnly: nothing was logged, a later try may succeed. EngineFailed: from now on for good;
        whether these entries are durable is unknown.
        """
        return self._append(entries, sync=True)

    def apply(self, ops: bytes, first_sequence: int, now_ms: int, wal: int) -> bytes:
        """Execute a logged stream; op i has sequence `first_sequence + i`. Returns the results of
        docs/protocol.md section 3.

        Entries must be applied in the order in which they were logged. InvalidRequest: the stream is
        malformed, nothing was executed.
        """
        view = self._view()
        if self.applying:
            raise RuntimeError("two threads apply to one engine")
        if self._broken:
            raise EngineFailed(self._broken)
        if wal != self._applied_log:
            self._change_log(wal)
            view = self._view()
        if not self.next_sequence <= first_sequence <= SEQUENCE_MAX - len(ops):
            raise ValueError(f"first_sequence is {first_sequence}, the next one is {self.next_sequence}")
        self._applied += 1
        self.applying = True
        try:
            if now_ms < self.now_ms:
                now_ms = self.now_ms
            results, count, damage = self.tree.apply(ops, first_sequence, now_ms)
        except MemoryError:
            self.ends = True  # nor is anything put
            self._broken = "out of memory in the middle of an entry; open the engine anew"
            self.background.stop()  # half an entry must not get into a table
            raise
        finally:
            self.applying = False
        self.now_ms = now_ms
        self.next_sequence = first_sequence + count  # last: from here on others read what was applied
        if damage is not None and self.damage is None:
            self.damage = damage
        if view.active.memory_bytes != self._active_bytes_seen:
            self._on_growth(view)
        if self.tree.wants_flush:
            self.retire_memtable()
        return results

    def write(self, batch: WriteBatch | bytes, sync: bool = False) -> bytes:
        """Log and apply a batch, or an op stream, as one entry; with `sync` it is durable on return. Returns
        the results as `apply` does. Waits while the engine is told to stop by its own backlog."""
        ops = batch.ops if isinstance(batch, WriteBatch) else batch
        if self.pressure() == 2:
            self._wait_for_room()
        with self._write_lock:
            self.writing = True
            try:
                sequence, stamp = self.next_sequence, now_ms()
                return self.apply(ops, sequence, stamp, self._append(((sequence, stamp, ops),), sync=sync))
            finally:
                self.writing = False

    def delete(self, key: bytes, sync: bool = False) -> None:
        """Corruption: the block that tells whether the key is there is damaged; nothing was deleted."""
        ((status, *rest),) = decode_results(self.write(encode_delete(key), sync))
        if status == Status.CORRUPTION:
            raise Corruption(rest[0])

    def delete_range(self, start: bytes, stop: bytes | None, sync: bool = False) -> None:
        """Delete all keys in [start, stop), None: all from `start` on, in a time that does not depend on how
        many there are. ValueError if the range is empty."""
        self.write(encode_delete_range(start, stop), sync)

    # Maintenance

    def flush(self, wait: bool = True) -> None:
        super().flush(wait)
        if wait:
            self._log.sync()  # what changed nothing is in no table

    def ingest(self, paths: Iterable[str], *, move: bool = False) -> None:
        """Take in prepared tables (TableWriter): all of them or none, durably, as one write that is newer
        than everything before. Their files get second names, or are copied from another file system, and
        must not be changed any more; with `move` the old names are removed afterwards, where that can be.

        Each file is read and checked first. Everything applied is flushed. RuntimeError if an entry was
        logged that is not applied yet, for that needs the next sequence, too; nor may anybody append
        meanwhile. ValueError: two tables share keys, or one is no prepared table.
        Corruption, OSError: a file is damaged or cannot be read. EngineReadOnly, EngineFailed: as `flush`;
        after EngineFailed the tables may be found or not when the engine is opened anew.
        """
        self._view()
        prepared = ingest.examine(self.shared, paths)
        if not prepared:
            return
        if not self._append_lock.acquire(blocking=False):
            raise RuntimeError("tables cannot be ingested while another thread appends")
        try:
            with self._taking_in():
                self._take_in(prepared)
        finally:
            self._append_lock.release()
        self.counters.ingested_tables += len(prepared)
        self.counters.ingested_bytes += sum(one.meta.size for one in prepared)
        self.shared.wake()  # level 0 may be full now
        if move:
            ingest.forget(self.shared.vfs, prepared)

    def close(self) -> None:
        """Stop the jobs, end the log, give up the files. Snapshots stay usable. Closing twice is fine.
        RuntimeError while another thread appends."""
        if self._closed:
            return
        if not self._append_lock.acquire(blocking=False):
            raise RuntimeError("the engine cannot be closed while another thread appends to it")
        self._closed = True
        self._append_lock.release()
        self.end_jobs()
        self._log.close()
        self._end_files()

    # For Shared

    def retire_memtable(self) -> None:
        """End the memtable; the next one shares its log until `append` begins a new one. Only the applying
        thread."""
        if self.applying or not (self.tree.active.count or self.tree.active_range_deletions):
            return
        self.tree.retire(self._applied_log, self.next_sequence - 1, self.now_ms)
        self._log.want_new_file()
        self.shared.wake()

    # Inside

    def _retire_for_flush(self) -> None:
        with self._write_lock:
            self.retire_memtable()

    def _before_flush(self) -> None:
        self._log.sync()

    def _take_in(self, prepared: list[Prepared]) -> None:
        if self._appended != self._applied:
            raise RuntimeError("tables cannot be ingested while entries are logged but not applied")
        failure = self._broken or self.background.broken or self._log.failure
        if failure:
            raise EngineFailed(failure)
        self.flush()
        sequence = self.next_sequence
        if sequence >= SEQUENCE_MAX:
            raise ValueError(f"there is no sequence {sequence}")
        self._log.want_new_file()
        self.next_sequence = sequence + 1  # first: no view with the tables is read at an older one
        try:
            ingest.take_in(self.tree, prepared, sequence, self.now_ms, self.options)
        except BaseException:
            self.next_sequence = sequence
            raise

    def _append(self, entries: Sequence[Entry], *, sync: bool) -> int:
        if not self._append_lock.acquire(blocking=False):
            raise RuntimeError("two threads append to one engine")
        try:
            if self._closed:
                raise EngineClosed(f"{self.directory}: the engine is closed")
            failure = self._broken or self.background.broken
            if failure:
                raise EngineFailed(failure)
            self.appending = True
            number = self._log.append(entries, sync=sync)
            self._appended += len(entries)
            self._logs.add(number)
            return number
        finally:
            self.appending = False
            self._append_lock.release()

    def _change_log(self, wal: int) -> None:
        if wal < self._applied_log or wal not in self._logs:
            raise ValueError(f"log {wal} is not the newest, or append never returned it")
        self._applied_log = wal
        self._active_bytes_seen = 0
        if self.tree.retire(wal, self.next_sequence - 1, self.now_ms):
            self.shared.wake()

    def _on_growth(self, view: View) -> None:
        """The memtable took memory: seldom enough to look at the budgets."""
        self._active_bytes_seen = view.active.memory_bytes
        if view.active.memory_bytes >= self.options.memtable_bytes:
            self._log.want_new_file()
        self.shared.enforce_memtable_budget()

    def _after_flush(self) -> None:
        """Remove the logs whose entries are all in tables."""
        for number in sorted(number for number in set(self._logs) if number < self.tree.log_number):
            self._logs.discard(number)
            self.shared.discard(os.path.join(self.directory, f"{number:06d}.wal"))

    def _log_figures(self) -> statistics.LogFigures:
        log = self._log
        return statistics.LogFigures(log.number, log.length, log.bytes_written, log.syncs, log.failure)

    def _wait_for_room(self) -> None:
        started = time.monotonic()
        self._wait_until(lambda: self.pressure() < 2, FLUSH, COMPACTION)
        self.counters.stalls += 1
        self.counters.stall_seconds += time.monotonic() - started
