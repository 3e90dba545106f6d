"""The engine: an ordered store of versions, logged, in memtables and tables.

Threads. Any number may `put`, `delete`, `write`, `delete_range` and `flush`: they wait for each other. One
applies, compacts, ingests, makes checkpoints and closes (a store's loop; the same one for all engines of a
Shared); another may `append` meanwhile. Two `append` or two `apply` at once raise RuntimeError; who uses them
writes by nothing else. Workers flush and compact. Any thread may read, scan, take and use snapshots, and ask
for `stats` and `pressure`.

A read takes the view and the sequence at once (`moment`): all that it may see is then in the view, and
nothing that it needs has been merged away; nor can it see what came after a range deletion but not the
deletion, which only a newer view has. It sees entries as wholes, those whose `apply` has returned, and a
range deletion from the moment when `apply` gave it to the tree.

Time. The engine's clock is the highest `now_ms` it was given with an entry; an earlier one counts as that. So
what has expired stays expired, and what an entry does depends on the log alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from kvclient.errors import Corruption, Status
from kvclient.protocol import decode_results, encode_delete
from storenode.engine import checkpoint, ingest, statistics
from storenode.engine.background import COMPACTION, FLUSH, Background
from storenode.engine.batch import WriteBatch
from storenode.engine.compaction import KeyRange
from storenode.engine.core import Core
from storenode.engine.deletions import encode_delete_range
from storenode.engine.errors import NO_ROOM, EngineClosed, EngineFailed, EngineReadOnly
from storenode.engine.iterator import Iterator
from storenode.engine.options import Options
from storenode.engine.recovery import SEQUENCE_MAX, recover
from storenode.engine.shared import Shared
from storenode.engine.snapshot import UNLIMITED, Snapshot
from storenode.engine.stalls import MEMTABLES_SLOW, MEMTABLES_STOP, Measure, Stalls
from storenode.engine.tree import RANGES_SLOW, RANGES_STOP
from storenode.engine.view import View
from storenode.engine.wal import Entry, LogWriter


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Engine(Core):
    """See `open` (opening.py)."""

    def __init__(
        self, path: str, options: Options, shared: Shared, engine_id: int, *, owns_shared: bool
    ) -> None:
        super().__init__()
        self.directory = os.path.abspath(path)
        self.engine_id = engine_id
        self.options = options
        self.shared = shared
        self._owns_shared = owns_shared
        recovered = recover(shared, self.directory, engine_id, options)
        self.tree = recovered.tree
        self.next_sequence, self.now_ms = recovered.next_sequence, recovered.now_ms
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
        self._append_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._appended = self._applied = 0  # entries, without short puts, which are both at once
        self._active_bytes_seen = 0
        self._broken: str | None = None
        self._closed = False
        self.damage: Corruption | None = None
        """The first damaged block that a write op met, if any: this copy of the data should be rebuilt."""
        self.counters = statistics.Counters()
        self.stalls = Stalls()
        self.background = Background(self.tree, options, self.counters, self._log.sync, self._drop_logs)
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

    # Reading

    def read(self, ops: bytes, now_ms: int) -> bytes:
        """Results of a stream of GET, EXISTS and SCAN, of one moment. Corruption if a block fails its
        checksum."""
        view, sequence = self.moment()
        return view.read(ops, sequence, max(now_ms, self.now_ms))

    def multi_get(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values of many keys, in their order, in one native call."""
        view, sequence = self.moment()
        return view.multi_get(keys, sequence, max(now_ms(), self.now_ms))

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The first `limit` pairs (all without one) of [start, stop), ascending or descending, of one
        moment."""
        return list(self.iterate(start, stop, limit, reverse))

    def iterate(
        self, start: bytes = b"", stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator:
        """The same pairs one by one, however many there are; it holds what a snapshot of this moment would,
        until it is at its end or closed."""
        bound = UNLIMITED if limit is None else limit
        view, sequence = self.moment()
        return Iterator(view, start, stop, bound, reverse, sequence, self.now_ms)

    def snapshot(self) -> Snapshot:
        """The state of now, for as long as it is open; it keeps replaced tables on the disk and memtables
        in memory meanwhile."""
        view, sequence = self.moment()
        return Snapshot(view, sequence, self.now_ms)

    # Maintenance

    def flush(self, wait: bool = True) -> None:
        """Have everything applied so far written to tables; with `wait`, return when it is. EngineReadOnly
        if the disk refuses."""
        self._view()
        with self._write_lock:
            self.retire_memtable()
        if wait:
            self._wait_until(lambda: not self.tree.retired, FLUSH)

    def compact_range(self, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Merge everything in [start, stop) into one level, dropping all of it that can be dropped: shadowed
        versions, deletions, what has expired. None: no bound. Returns when done. Whole tables are merged,
        with what they hold beside the range; that needs room for a second copy. Flushes go on meanwhile,
        other compactions of this engine after it."""
        for bound in (start, stop):
            if bound is not None and not isinstance(bound, bytes):
                raise TypeError(f"a bound is bytes or None, not {type(bound).__name__}")
        wanted = KeyRange(b"" if start is None else start, stop)
        self.flush()
        if stop is not None and stop <= wanted.start:
            return
        self.background.wanted = wanted
        try:
            self._wait_until(lambda: self.background.wanted is None, COMPACTION)
        finally:
            self.background.wanted = None  # smaller compactions may do what this one could not

    def compact(self) -> None:
        """compact_range of all keys."""
        self.compact_range()

    def checkpoint(self, directory: str) -> None:
        """Make a complete engine of this moment in `directory`, which must not exist or be empty: hard links
        of the tables, copies on another file system, and a manifest of its own. Durable on return.

        Its engine_id is this engine's, since its tables have it; `open` finds it there and need not be told.
        What is applied later, flushed or compacted does not show in it. OSError: nothing is left of it.
        EngineReadOnly, EngineFailed: as `flush`.
        """
        self._view()
        target = os.path.abspath(directory)
        if os.path.commonpath((target, self.directory)) == self.directory:
            raise ValueError(f"{target}: a checkpoint must lie outside of the engine's own directory")
        checkpoint.refuse_used(self.shared.vfs, target)
        self.flush()
        state, tables, view = self.tree.freeze()
        state = state._replace(log_number=0, flushed_sequence=self.next_sequence - 1, now_ms=self.now_ms)
        checkpoint.write(self.shared.vfs, self.directory, target, self.engine_id, state, tables)
        del view  # until here it kept the tables from being removed

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
        except EngineFailed as error:
            self.background.broken = str(error)
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise EngineReadOnly(str(error)) from error
            raise
        finally:
            self._append_lock.release()
        self.counters.ingested_tables += len(prepared)
        self.counters.ingested_bytes += sum(one.meta.size for one in prepared)
        self.shared.wake()  # level 0 may be full now
        if move:
            ingest.forget(self.shared.vfs, prepared)

    def verify(self) -> list[str]:
        """Check every block of every table, and the manifest against what is in use: what is wrong, if
        anything."""
        return self.tree.verify(self._view())

    def stats(self) -> dict[str, Any]:
        """Figures as plain numbers, strings, lists and dicts; names in statistics.py."""
        return statistics.collect(self, self._log)

    def pressure(self) -> int:
        """0: fine. 1: whoever proposes writes should slow down. 2: should stop until it is less. `apply`
        works all the same."""
        waiting = len(self.tree.retired)
        level0 = len(self.tree.version.levels[0])
        memory = self.shared.memtable_bytes() if waiting else 0
        options, budget = self.options, self.shared.memtable_bytes_max
        ranges = len(self.tree.range_deletions)
        measured: tuple[Measure, ...] = (
            (waiting, MEMTABLES_SLOW, MEMTABLES_STOP, "memtables"),
            (level0, options.level0_slow, options.level0_stop, "level0"),
            (memory, budget + budget // 2, 2 * budget, "memory"),
            (ranges, RANGES_SLOW, RANGES_STOP, "range_deletions"),
        )
        return self.stalls.weigh(measured)

    def close(self) -> None:
        """Stop the jobs, end the log, give up the files. Snapshots stay usable. Closing twice is fine.
        RuntimeError while another thread appends."""
        if self._closed:
            return
        if not self._append_lock.acquire(blocking=False):
            raise RuntimeError("the engine cannot be closed while another thread appends to it")
        self._closed = True
        self._append_lock.release()
        self.background.stop()
        self.shared.forget(self)
        self._log.close()
        self.tree.close()
        self.shared.release(self.engine_id)
        if self._owns_shared:
            self.shared.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For Shared

    @property
    def active_bytes(self) -> int:
        return self.tree.active.memory_bytes

    @property
    def memtable_bytes(self) -> int:
        return self.tree.memtable_bytes()

    def retire_memtable(self) -> None:
        """End the memtable; the next one shares its log until `append` begins a new one. Only the applying
        thread."""
        if self.applying or not (self.tree.active.count or self.tree.active_range_deletions):
            return
        self.tree.retire(self._applied_log, self.next_sequence - 1, self.now_ms)
        self._log.want_new_file()
        self.shared.wake()

    # Inside

    def _view(self) -> View:
        view = self.tree.view
        if view is None:
            raise EngineClosed(f"{self.directory}: the engine is closed")
        return view

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

    def _drop_logs(self) -> None:
        """Remove the logs whose entries are all in tables. Called by a worker after each flush."""
        for number in sorted(number for number in set(self._logs) if number < self.tree.log_number):
            self._logs.discard(number)
            self.shared.discard(os.path.join(self.directory, f"{number:06d}.wal"))

    def _wait_for_room(self) -> None:
        started = time.monotonic()
        self._wait_until(lambda: self.pressure() < 2, FLUSH, COMPACTION)
        self.counters.stalls += 1
        self.counters.stall_seconds += time.monotonic() - started

    def _wait_until(self, done: Callable[[], bool], *kinds: str) -> None:
        """Wait for the workers to do jobs of these kinds; raise what keeps them from it."""
        background = self.background
        background.retry_now()
        self.shared.wake()

        def broken() -> str | None:
            return self._broken or background.broken

        def failures() -> list[Exception]:
            return [failure.error for kind, failure in background.failures.copy().items() if kind in kinds]

        self.shared.wait_for(lambda: done() or self._closed or bool(broken() or failures()))
        if done():
            return
        reason = broken()
        if reason:
            raise EngineFailed(reason)
        for error in failures():
            if isinstance(error, OSError):
                raise EngineReadOnly(str(error)) from error
            raise error
        raise EngineClosed(f"{self.directory}: the engine was closed")
