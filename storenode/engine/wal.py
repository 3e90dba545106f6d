"""Writing the write-ahead log of one engine (docs/formats.md section 2); log_chain.py reads it back.

Invariants: what `append` returned for with sync is durable. Logs become durable in their order, and nothing
of a log counts as durable before it has its name. Who appends without sync does not wait for the disk's
syncs, nor does it when that begins a log, up to a bound. A failed write leaves the file as it was; a failed
sync ends all writing, since nobody can say then what is on the disk. `append` is called by one thread at a
time; `sync` and `want_new_file` by any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from storenode.engine import codec
from storenode.engine.core import Core
from storenode.engine.errors import NO_ROOM, EngineFailed, EngineReadOnly, sync_failed
from storenode.engine.stalls import MEMTABLES_STOP
from storenode.engine.vfs import File, Vfs

Entry = tuple[int, int, bytes]
"""(first_sequence, now_ms, op stream)."""

HEADER_BYTES = 48
PAGE_BYTES = 4096

RESERVE_BYTES_MAX = 256 << 10
"""Zeros are written ahead of the records, as many as there are records, up to this: then a sync need not
make a new size durable each time, and short puts have something to map. A log of more than a page is at most
twice as long as its records."""

RESERVE_RECORD_BYTES_MAX = RESERVE_BYTES_MAX // 16
"""For larger records the zeros would cost more than they spare."""

_ZEROS = bytes(RESERVE_BYTES_MAX)
MAGIC = b"rkv-wal\n"
VERSIONS = (1, 2)

ENDED_MAX = MEMTABLES_STOP
"""Logs that ended and are not synced: with each of them a memtable ended, and waits for its flush, which
begins with the sync."""

UNSYNCED_BYTES_MAX = (1 << 32) - 1
"""What the header of the next log can tell."""


def wal_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:06d}.wal")


class LogWriter:
    """Appends entries to the newest log, and begins a new one when it is full or when asked to."""

    def __init__(
        self,
        vfs: Vfs,
        directory: str,
        engine_id: int,
        file_bytes: int,
        take_number: Callable[[], int],
        last: tuple[int, int],
        core: Core,
        sync_directory: Callable[[], None],
    ) -> None:
        """`last`: number and length of the log that recovery ended with, (0, 0) if there is none. The log's
        part of `core` is written here, and by nobody else but short puts.
        """
        self._vfs = vfs
        self._directory = directory
        self._engine_id = engine_id
        self._take_number = take_number
        self._sync_directory = sync_directory
        self._file: File | None = None
        self._ended: list[File] = []
        """Logs before the newest that need not be durable, oldest first; without them `core.synced` is 0."""
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()  # taken before the other, and held while the disk is at work
        self._core = core
        self.number, core.length = last
        core.synced = core.reserved = core.length
        core.limit = file_bytes
        self.syncs = 0
        self.failure: str | None = None

    @property
    def length(self) -> int:
        return self._core.length

    @property
    def bytes_written(self) -> int:
        return self._core.bytes_written

    def want_new_file(self) -> None:
        self._core.ends = True

    def append(self, entries: Sequence[Entry], *, sync: bool) -> int:
        """Write all entries with one call; the number of the log they are in."""
        if self._must_sync_before(sync):
            self.sync()
        with self._lock:
            if self.failure is not None:
                raise EngineFailed(self.failure)
            core = self._core
            if self._file is None or self._is_full():
                self._begin(entries)
            else:
                data = codec.wal_records(entries, core.file_id, core.length, core.synced)
                self._write(self._file, data)
            number = self.number
        if sync:
            self.sync()
        return number

    def sync(self) -> None:
        """Make all that was appended durable. EngineFailed also if that failed once before.

        Meanwhile others may append, and begin logs; of what they do nothing counts as durable.
        """
        with self._sync_lock:
            with self._lock:
                file, number, length = self._file, self.number, self._core.length
                ended = tuple(self._ended)
                if file is None or self._core.synced == length:
                    return
                if self.failure is not None:
                    raise EngineFailed(self.failure)
                is_new = self._core.synced == 0
            for one in (*ended, file):
                self._sync_file(one)
            if is_new:
                self._sync_names(file.path)
            self.syncs += 1
            with self._lock:
                del self._ended[: len(ended)]
                if self.number == number:
                    self._core.synced = length
        for one in ended:
            one.close()

    def sync_name(self) -> None:
        """See that no log which was begun can vanish any more."""
        if self._core.synced == 0:
            self.sync()

    def close(self) -> None:
        """End the log with a mark that says that all of it is durable, as far as the disk lets us."""
        if self._file is None:
            return
        try:
            if self._core.length > HEADER_BYTES:
                self._end(self._file)
        except (EngineReadOnly, EngineFailed):
            pass  # without the mark the log is as good as after a crash
        finally:
            self._core.leave_window()
            self._core.fd = -1
            for file in (*self._ended, self._file):
                file.close()
            self._ended.clear()
            self._file = None

    def _end(self, file: File) -> None:
        if self.failure is not None:
            raise EngineFailed(self.failure)
        self.sync()
        core = self._core
        self._write(file, codec.wal_records([(0, 0, b"")], core.file_id, core.length, core.synced))
        core.leave_window()
        file.truncate(core.length)
        self.sync()

    def _is_full(self) -> bool:
        return self._core.ends or self._core.length >= self._core.limit

    def _must_sync_before(self, sync: bool) -> bool:
        """Whether other logs must be durable before more is written. What will be acknowledged as durable
        has to prove that they were, or damage in them could cost it: with its log's header or with its own
        record."""
        if not self._is_full():
            return sync and bool(self._ended)
        unsynced = self._core.length - self._core.synced
        return sync or len(self._ended) >= ENDED_MAX or unsynced > UNSYNCED_BYTES_MAX

    def _sync_file(self, file: File) -> None:
        try:
            file.sync()
        except OSError as error:
            self._fail(file.path, "sync", error)

    def _sync_names(self, path: str) -> None:
        try:
            self._sync_directory()
        except OSError as error:
            self._fail(path, "sync", error)

    def _write(self, file: File, data: bytes) -> None:
        core = self._core
        try:
            file.write_at(core.length, data)
        except OSError as error:
            core.leave_window()
            core.reserved = core.length
            try:
                file.truncate(core.length)
                file.sync()  # or a crash could bring back, whole, an entry that was refused
            except OSError as second:
                self._fail(file.path, "truncate", second)
            if error.errno in NO_ROOM:
                raise EngineReadOnly(f"{file.path}: {error.strerror}") from error
            self._fail(file.path, "write", error)
        core.length += len(data)
        core.bytes_written += len(data)
        core.begin_writeback()
        if core.length > core.reserved and len(data) <= RESERVE_RECORD_BYTES_MAX:
            self._reserve(file)

    def _reserve(self, file: File) -> None:
        """Write zeros behind the records. Whoever does not get them writes record by record."""
        core = self._core
        ahead = min(max(core.length, PAGE_BYTES), RESERVE_BYTES_MAX)
        end = core.length + ahead & ~(PAGE_BYTES - 1)
        core.reserved = core.length
        try:
            file.write_at(core.length, _ZEROS[: end - core.length])
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._fail(file.path, "write", error)
        else:
            core.reserved = end

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Begin a new log with these entries; on any failure to write it the old one stays the current
        one."""
        number = self._take_number()
        path = wal_path(self._directory, number)
        unsynced = self._core.length - self._core.synced
        header = codec.wal_header(self._engine_id, number, self.number, self._core.length, unsynced)
        file_id = self._engine_id << 48 | number
        data = header + codec.wal_records(entries, file_id, HEADER_BYTES, 0)
        try:
            file = self._vfs.create(path)
        except OSError as error:
            raise EngineReadOnly(f"{path}: {error.strerror}") from error
        try:
            file.write_at(0, data)
        except OSError as error:
            file.close()
            try:
                self._vfs.unlink(path)
                self._sync_directory()  # for the same reason as in _write
            except OSError as second:
                self._fail(path, "removal", second)
            if error.errno in NO_ROOM:
                raise EngineReadOnly(f"{path}: {error.strerror}") from error
            self._fail(path, "write", error)
        if self._file is not None and unsynced:
            self._ended.append(self._file)
        elif self._file is not None:
            self._file.close()
        self._file = file
        self.number = number
        core = self._core
        core.leave_window()
        core.fd = file.fd if file.mappable else -1
        core.file_id = file_id
        core.length = core.reserved = len(data)
        core.synced = 0
        core.ends = False
        core.bytes_written += len(data)

    def _fail(self, path: str, what: str, error: OSError) -> None:
        self._core.ends = True  # nothing is put there any more
        failure = sync_failed(path, error, what)
        self.failure = str(failure)
        raise failure from error
