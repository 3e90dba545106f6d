"""The manifest: which tables an engine consists of and from where its log counts, in LMDB (docs/formats.md
section 5).

One environment for all engines of a Shared. One thread of its own does all transactions, which LMDB wants and
which makes growing the map safe. A commit is one transaction and durable when it returns. Each value has a
checksum of its own, and each engine's state a digest of its other records: LMDB has neither. Open it after
any fork.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import lmdb

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.deletions import RangeDeletion
from storenode.engine.errors import EngineClosed, EngineFailed
from storenode.engine.lmdb_file import LmdbFile
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

VERSION = 1
MAP_BYTES_FIRST = 16 << 20
"""Address space, not memory or disk; it doubles whenever it is full."""

RESERVED_PAGES = 16
"""What a commit may need beside the pages of its records: the paths to them, and the list of free pages."""

FORMAT_KEY = b"\xff\xff\xff\xff\x00" + bytes(8)
STATE_TAG = 1
TABLE_TAG = 2
RANGE_TAG = 3
REPLICA_TAG = 4
_KEY = struct.Struct(">IBQ")
_STATE = struct.Struct("<IQQQQQQ")
_TABLE = struct.Struct("<IBQQQQQQQQQQQ")
_RANGE = struct.Struct("<IB")
_LENGTH = struct.Struct("<I")
_DIGEST_MASK = (1 << 64) - 1

DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, struct.error)
"""What is said of pages that cannot be right: by LMDB, which does not notice all, and by our records."""

Result = TypeVar("Result")


class State(NamedTuple):
    """An engine's own record, without what the manifest adds to it."""

    next_file: int
    log_number: int
    flushed_sequence: int
    now_ms: int
    range_deletions: tuple[RangeDeletion, ...] = ()
    """Those that tables may still hold versions of, in the order of their sequences; each is a record."""
    replica: bytes | None = None
    """The replica state that belongs to what is in tables, a record of its own; None: the engine has a log of
    its own instead."""


class Manifest:
    """The open environment. Any thread may call; `close` when nobody does any more."""

    def __init__(self, directory: str, vfs: Vfs | None = None) -> None:
        self._directory = directory
        self._vfs = Vfs() if vfs is None else vfs
        self._path = os.path.join(directory, "data.mdb")
        self._digests: dict[int, dict[bytes, int]] = {}
        self._replicas: dict[int, bytes | None] = {}
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifest")
        with self._vfs.transaction(self._path):
            self._env: lmdb.Environment = self._run(self._open)
        try:
            self._vfs.sync_directory(directory)  # LMDB does not: its file could vanish, all commits with it
        except BaseException:
            self.close()
            raise

    def load(self, engine_id: int) -> tuple[State | None, list[TableMeta]]:
        """What was committed last for an engine; (None, []) for one that never flushed. Corruption names
        the record."""
        return self._run(lambda: self._load(engine_id))

    def engines(self) -> list[int]:
        """The ids of the engines that have records, ascending."""
        return self._run(self._engines)

    def commit(
        self, engine_id: int, state: State, added: Iterable[TableMeta], removed: Iterable[int]
    ) -> None:
        """Make one change durable. OSError: there is no room, nothing changed. EngineFailed: nobody knows
        what is durable."""
        self._run(lambda: self._commit(engine_id, state, tuple(added), tuple(removed)))

    def forget(self, engine_id: int) -> None:
        """Remove all records of an engine that is not open, durably. Errors as of `commit`."""
        self._run(lambda: self._forget(engine_id))

    def stats(self) -> dict[str, int]:
        """Bytes of the map, and of it in use."""
        info = self._run(self._env.info)
        page = self._run(self._env.stat)["psize"]
        return {"map_bytes": info["map_size"], "used_bytes": (info["last_pgno"] + 1) * page}

    def close(self) -> None:
        if not self._closed:
            self._run(self._env.close)
            self._closed = True
            self._thread.shutdown()

    def _run(self, task: Callable[[], Result]) -> Result:
        if self._closed:
            raise EngineClosed("the manifest is closed")
        return self._thread.submit(task).result()

    def _open(self) -> lmdb.Environment:
        self._forget_unborn()
        self._check_pages()
        try:
            env = lmdb.open(
                self._directory,
                map_size=MAP_BYTES_FIRST,
                subdir=True,
                sync=True,
                metasync=True,
                writemap=False,
                lock=False,  # one thread; and a full disk under that file would end the process by a signal
                max_spare_txns=1,
            )
        except lmdb.DiskError as error:
            raise OSError(errno.ENOSPC, str(error), self._directory) from error
        except lmdb.ReadonlyError as error:
            raise OSError(errno.EACCES, str(error), self._directory) from error
        except lmdb.Error as error:
            raise Corruption(f"{self._path}: {error}") from error
        try:
            with env.begin() as transaction:
                stored = transaction.get(FORMAT_KEY)
            if stored is None:
                with env.begin(write=True) as transaction:
                    transaction.put(FORMAT_KEY, _seal(FORMAT_KEY, _LENGTH.pack(VERSION)))
            elif (found := _LENGTH.unpack(self._unseal(FORMAT_KEY, stored))[0]) != VERSION:
                raise Corruption(
                    f"{self._directory}: manifest version {found}, this software reads {VERSION}"
                )
            env.sync(True)  # a process that was killed may have left its last commit to the page cache
        except DAMAGE as error:
            env.close()
            raise Corruption(f"{self._path}: {error}") from error
        except lmdb.Error as error:
            env.close()
            number = errno.ENOSPC if isinstance(error, lmdb.DiskError) else errno.EIO
            raise OSError(number, str(error), self._path) from error
        except BaseException:
            env.close()
            raise
        return env

    def _forget_unborn(self) -> None:
        """Empty a file that a crash cut off at its first commit: one of the two headers is missing, and it
        has no more pages than that commit writes. LMDB would refuse it for ever."""
        if not os.path.exists(self._path):
            return
        with contextlib.closing(self._vfs.open(self._path, writable=True)) as file:
            pages = os.pread(file.fd, 4 * mmap.PAGESIZE, 0)
            headers = pages[: mmap.PAGESIZE], pages[mmap.PAGESIZE : 2 * mmap.PAGESIZE]
            if len(pages) <= 3 * mmap.PAGESIZE and not all(any(header) for header in headers):
                file.truncate(0)

    def _check_pages(self) -> None:
        """Corruption for a file that LMDB must not see: damaged pages end the process that it runs in."""
        if os.path.exists(self._path) and self._vfs.size(self._path):
            LmdbFile(self._path, self._vfs.read(self._path)).check()

    def _load(self, engine_id: int) -> tuple[State | None, list[TableMeta]]:
        prefix = engine_id.to_bytes(4, "big")
        state: tuple[int, ...] | None = None
        tables: list[TableMeta] = []
        range_deletions: list[RangeDeletion] = []
        replica: bytes | None = None
        digests: dict[bytes, int] = {}
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                found = cursor.set_range(prefix)
                while found and cursor.key().startswith(prefix) and cursor.key() != FORMAT_KEY:
                    key, value = bytes(cursor.key()), bytes(cursor.value())
                    payload = self._unseal(key, value)
                    _, tag, number = _KEY.unpack(key)
                    if tag == STATE_TAG:
                        state = _STATE.unpack(payload)
                    elif tag == TABLE_TAG:
                        tables.append(self._table(number, payload))
                        digests[key] = codec.hash64(key + value)
                    elif tag == RANGE_TAG:
                        range_deletions.append(self._range(number, payload))
                        digests[key] = codec.hash64(key + value)
                    elif tag == REPLICA_TAG:
                        replica = self._replica(payload)
                        digests[key] = codec.hash64(key + value)
                    else:
                        raise Corruption(f"{self._directory}: unknown record {key.hex()}")
                    found = cursor.next()
        except DAMAGE as error:
            raise Corruption(f"{self._directory}: engine {engine_id}: {error}") from error
        if state is None:
            if digests:
                raise Corruption(f"{self._directory}: engine {engine_id} has records but no state")
            self._digests[engine_id] = digests
            return None, []
        version, next_file, log_number, flushed_sequence, now_ms, count, digest = state
        if version != VERSION:
            raise Corruption(
                f"{self._directory}: engine {engine_id}: state version {version}, known is {VERSION}"
            )
        if (count, digest) != (len(digests), sum(digests.values()) & _DIGEST_MASK):
            raise Corruption(f"{self._directory}: engine {engine_id}: records are missing or foreign")
        self._digests[engine_id] = digests  # not earlier: a later commit must not vouch for damage
        self._replicas[engine_id] = replica
        found_state = State(next_file, log_number, flushed_sequence, now_ms, tuple(range_deletions), replica)
        return found_state, tables

    def _engines(self) -> list[int]:
        found: list[int] = []
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                while cursor.set_range((found[-1] + 1 if found else 0).to_bytes(4, "big")):
                    if cursor.key() == FORMAT_KEY:
                        break
                    found.append(int.from_bytes(cursor.key()[:4], "big"))
        except DAMAGE as error:
            raise Corruption(f"{self._directory}: {error}") from error
        return found

    def _commit(
        self, engine_id: int, state: State, added: tuple[TableMeta, ...], removed: tuple[int, ...]
    ) -> None:
        digests = dict(self._digests.get(engine_id, {}))
        changes: list[tuple[bytes, bytes | None]] = []
        put = [(_KEY.pack(engine_id, TABLE_TAG, table.number), _encode_table(table)) for table in added]
        gone = [_KEY.pack(engine_id, TABLE_TAG, number) for number in removed]
        wanted = {_KEY.pack(engine_id, RANGE_TAG, one.sequence): one for one in state.range_deletions}
        there = {key for key in digests if key[4] == RANGE_TAG}
        put += [(key, _encode_range(one)) for key, one in wanted.items() if key not in there]
        gone += sorted(there - wanted.keys())
        key = _KEY.pack(engine_id, REPLICA_TAG, 0)
        if state.replica is None:
            gone += [key] if key in digests else []
        elif key not in digests or state.replica != self._replicas.get(engine_id):
            put.append((key, _LENGTH.pack(VERSION) + state.replica))
        for key in gone:
            del digests[key]
            changes.append((key, None))
        for key, payload in put:
            value = _seal(key, payload)
            digests[key] = codec.hash64(key + value)
            changes.append((key, value))
        key = _KEY.pack(engine_id, STATE_TAG, 0)
        digest = sum(digests.values()) & _DIGEST_MASK
        changes.append((key, _seal(key, _STATE.pack(VERSION, *state[:4], len(digests), digest))))
        self._write_all(changes)
        self._digests[engine_id] = digests
        self._replicas[engine_id] = state.replica

    def _forget(self, engine_id: int) -> None:
        prefix = engine_id.to_bytes(4, "big")
        changes: list[tuple[bytes, bytes | None]] = []
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                found = cursor.set_range(prefix)
                while found and cursor.key().startswith(prefix) and cursor.key() != FORMAT_KEY:
                    changes.append((bytes(cursor.key()), None))
                    found = cursor.next()
        except DAMAGE as error:
            raise Corruption(f"{self._directory}: engine {engine_id}: {error}") from error
        if changes:
            self._write_all(changes)
        self._digests.pop(engine_id, None)
        self._replicas.pop(engine_id, None)

    def _write_all(self, changes: list[tuple[bytes, bytes | None]]) -> None:
        """One transaction; the map grows as needed."""
        while not self._write(changes):
            self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def _write(self, changes: list[tuple[bytes, bytes | None]]) -> bool:
        """One transaction; False if the map is too small for it."""
        try:
            with self._vfs.transaction(self._path):
                self._reserve(changes)
                with self._env.begin(write=True) as transaction:
                    for key, value in changes:
                        if value is None:
                            transaction.delete(key)
                        else:
                            transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        except lmdb.DiskError as error:
            raise OSError(errno.ENOSPC, str(error), self._directory) from error
        except lmdb.Error as error:
            raise EngineFailed(f"{self._directory}: manifest commit failed: {error}") from error
        return True

    def _reserve(self, changes: list[tuple[bytes, bytes | None]]) -> None:
        """Have room on the disk before the commit begins: LMDB calls a write that the end of the disk cut
        short an I/O error, and that would be final."""
        page = self._env.stat()["psize"]
        used = self._env.info()["last_pgno"] + 1
        more = sum(2 + 2 * len(value or b"") // page for _, value in changes)
        with contextlib.closing(self._vfs.open(self._path, writable=True)) as file:
            file.reserve((used + RESERVED_PAGES + more) * page)

    def _table(self, number: int, payload: bytes) -> TableMeta:
        version, level, *numbers, cleaned_sequence = _TABLE.unpack_from(payload)
        if version != VERSION:
            raise Corruption(
                f"{self._directory}: table {number}: record version {version}, known is {VERSION}"
            )
        smallest, at = _take(payload, _TABLE.size)
        largest, _ = _take(payload, at)
        return TableMeta._make((number, level, *numbers, smallest, largest, cleaned_sequence))

    def _range(self, number: int, payload: bytes) -> RangeDeletion:
        version, has_stop = _RANGE.unpack_from(payload)
        if version != VERSION:
            raise Corruption(
                f"{self._directory}: range deletion {number}: record version {version}, known is {VERSION}"
            )
        start, at = _take(payload, _RANGE.size)
        stop, _ = _take(payload, at)
        return RangeDeletion(start, stop if has_stop else None, number)

    def _replica(self, payload: bytes) -> bytes:
        (version,) = _LENGTH.unpack_from(payload)
        if version != VERSION:
            raise Corruption(f"{self._directory}: replica state version {version}, known is {VERSION}")
        return payload[_LENGTH.size :]

    def _unseal(self, key: bytes, value: bytes) -> bytes:
        payload, checksum = value[:-4], value[-4:]
        if len(value) < 4 or codec.masked_crc32c(key + payload) != int.from_bytes(checksum, "little"):
            raise Corruption(f"{self._directory}: checksum mismatch in record {key.hex()}")
        return payload


def _seal(key: bytes, payload: bytes) -> bytes:
    return payload + _LENGTH.pack(codec.masked_crc32c(key + payload))


def _encode_table(table: TableMeta) -> bytes:
    numbers = _TABLE.pack(
        VERSION,
        table.level,
        table.file_id,
        table.size,
        table.entries,
        table.deletions,
        table.expiring,
        table.min_sequence,
        table.max_sequence,
        table.raw_key_bytes,
        table.raw_value_bytes,
        table.created_ms,
        table.cleaned_sequence,
    )
    return numbers + _with_length(table.smallest) + _with_length(table.largest)


def _encode_range(deletion: RangeDeletion) -> bytes:
    head = _RANGE.pack(VERSION, deletion.stop is not None)
    return head + _with_length(deletion.start) + _with_length(deletion.stop or b"")


def _with_length(key: bytes) -> bytes:
    return _LENGTH.pack(len(key)) + key


def _take(payload: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    if at + length > len(payload):
        raise struct.error("a key ends behind its record")
    return payload[at : at + length], at + length
