"""The write-ahead log of one engine: writing it, and reading it back (docs/formats.md section 2).

Invariants: what `append` returned for with sync is durable. A log is complete and durable before the next one
is begun. A failed write leaves the file as it was; a failed sync ends all writing, since nobody can say then
what is on the disk. `append` is called by one thread at a time; `sync` and `want_new_file` by any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.core import Core
from storenode.engine.errors import NO_ROOM, EngineFailed, EngineReadOnly, sync_failed
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
VERSION = 1


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
        self._lock = threading.Lock()
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
        with self._lock:
            if self.failure is not None:
                raise EngineFailed(self.failure)
            core = self._core
            if self._file is None or core.length >= core.limit or core.ends:
                self._begin(entries)
            else:
                data = codec.wal_records(entries, core.file_id, core.length, core.synced)
                self._write(self._file, data)
            if sync:
                self._sync()
            return self.number

    def sync(self) -> None:
        """Make all that was appended durable. EngineFailed also if that failed once before."""
        with self._lock:
            self._sync()

    def _sync(self) -> None:
        length = self._core.length  # of now: more may be put while the disk is at work
        if self._file is None or self._core.synced == length:
            return
        if self.failure is not None:
            raise EngineFailed(self.failure)
        try:
            self._file.sync()
        except OSError as error:
            self._fail(self._file.path, "sync", error)
        self.syncs += 1
        self._core.synced = length

    def close(self) -> None:
        """End the log with a mark that says that all of it is durable, as far as the disk lets us."""
        with self._lock:
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
                self._file.close()
                self._file = None

    def _end(self, file: File) -> None:
        if self.failure is not None:
            raise EngineFailed(self.failure)
        self._sync()
        core = self._core
        self._write(file, codec.wal_records([(0, 0, b"")], core.file_id, core.length, core.synced))
        core.leave_window()
        file.truncate(core.length)
        self._sync()

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
            core.synced = core.length
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
        self._sync()
        number = self._take_number()
        path = wal_path(self._directory, number)
        header = codec.wal_header(self._engine_id, number, self.number, self._core.length)
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
        try:
            # Also for entries that need not be durable: nothing is ever applied from a log that could vanish
            # as a whole.
            file.sync()
            self._sync_directory()
        except OSError as error:
            file.close()
            self._fail(path, "sync", error)
        if self._file is not None:
            self._file.close()
        self._file = file
        self.number = number
        self.syncs += 1
        core = self._core
        core.leave_window()
        core.fd = file.fd if file.mappable else -1
        core.file_id = file_id
        core.length = core.synced = core.reserved = len(data)
        core.ends = False
        core.bytes_written += len(data)

    def _fail(self, path: str, what: str, error: OSError) -> None:
        self._core.ends = True  # nothing is put there any more
        failure = sync_failed(path, error, what)
        self.failure = str(failure)
        raise failure from error


class Log(NamedTuple):
    """A log as it was read: entries in order, and where its sound part ends. `length` 0: not even the
    header was whole."""

    number: int
    path: str
    entries: list[Entry]
    length: int
    previous: int
    previous_length: int


def read_log(vfs: Vfs, directory: str, engine_id: int, number: int, *, is_last: bool) -> Log:
    """Read and check one log. A torn tail of the last one is cut off, on the disk too. Corruption names
    file and offset."""
    path = wal_path(directory, number)
    content = vfs.read(path)
    file_id = engine_id << 48 | number
    if not _header_is_sound(path, content, engine_id, number):
        behind, end = codec.wal_scan(content, file_id, HEADER_BYTES)
        if not is_last or behind or codec.wal_proof(content, file_id, 0):
            raise Corruption(f"{path}: damaged log header (offset 0)")
        _cut(vfs, path, 0)
        return Log(number, path, [], 0, 0, 0)
    entries, end = codec.wal_scan(content, file_id, HEADER_BYTES)
    if not is_zeros(content, end):
        proof = codec.wal_proof(content, file_id, end)
        if proof:
            raise Corruption(
                f"{path}: damaged record (offset {end}); the record at {proof} proves that it was durable"
            )
        if not is_last:
            raise Corruption(f"{path}: damaged record (offset {end}) in a log that was complete")
    if is_last:
        # Also makes durable what only the page cache still held: the next log will vouch for it.
        _cut(vfs, path, end)
    previous = int.from_bytes(content[24:32], "little")
    return Log(number, path, entries, end, previous, int.from_bytes(content[32:40], "little"))


def is_zeros(content: bytes, start: int) -> bool:
    """Whether nothing but zeros follows: room that was reserved and not used."""
    return content.count(0, start) == len(content) - start


def _header_is_sound(path: str, content: bytes, engine_id: int, number: int) -> bool:
    if len(content) < HEADER_BYTES:
        return False
    if codec.masked_crc32c(content[:44]) != int.from_bytes(content[44:48], "little"):
        return False
    if content[:8] != MAGIC:
        raise Corruption(f"{path}: not a log (offset 0)")
    if int.from_bytes(content[8:12], "little") != VERSION:
        raise Corruption(f"{path}: unknown log version (offset 8)")
    if content[12:16] != engine_id.to_bytes(4, "little") or content[16:24] != number.to_bytes(8, "little"):
        raise Corruption(f"{path}: the log of another engine or number (offset 12)")
    return True


def _cut(vfs: Vfs, path: str, length: int) -> None:
    file = vfs.open(path, writable=True)
    try:
        file.truncate(length)
        file.sync()
    finally:
        file.close()
