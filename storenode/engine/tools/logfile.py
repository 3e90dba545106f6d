"""A write-ahead log as bytes: every record that is sound, also behind a damaged one (docs/formats.md
section 2).

Never changes the file. One log is in memory at a time, as when an engine opens: logs end at the memtable's
size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from kvclient.errors import Corruption
from kvclient.protocol import Op
from storenode.engine import codec
from storenode.engine.deletions import CODE
from storenode.engine.log_chain import is_zeros, read_chain
from storenode.engine.tools.tablefile import Damage, context, mask
from storenode.engine.vfs import Vfs
from storenode.engine.wal import HEADER_BYTES, MAGIC, VERSIONS

_HEAD = struct.Struct("<IIQQQ")
_HEADER = struct.Struct("<8sIIQQQI")

NAMES = {op.value: op.name.lower() for op in Op} | {CODE: "delete_range"}

LOG_BYTES_MAX = 4 << 30
"""A longer file is no log: a log ends soon after 16 MiB, with the entry that crosses it."""


class Record(NamedTuple):
    """A sound record; `first_sequence` 0 is a mark."""

    offset: int
    first_sequence: int
    now_ms: int
    ops: bytes
    synced: int
    following: int


class Operation(NamedTuple):
    """An op of an entry on one key, with the sequence it has. `key`: of a range deletion, where it starts. A
    transaction is one for each key that it names: the log does not say which branch was executed.
    """

    sequence: int
    code: int
    key: bytes
    value: bytes | None

    @property
    def name(self) -> str:
        return NAMES.get(self.code, f"op-{self.code}")


class LogFile:
    """One log, read as a whole. `previous` is None if the header cannot tell."""

    def __init__(self, vfs: Vfs, path: str, number: int, engine_id: int) -> None:
        if vfs.size(path) > LOG_BYTES_MAX:
            raise Damage(path, LOG_BYTES_MAX, "too large for a log")
        self.path = path
        self.number = number
        self.content = vfs.read(path)
        self.file_id = engine_id << 48 | number
        self.damage: Damage | None = None
        """The first damage of header or records; a torn tail is one too."""
        self.previous: tuple[int, int] | None = None
        self.records: list[Record] = []
        """The sound records in front of the first damage."""
        self.sound_end = 0
        try:
            self.previous = self._header(engine_id)
            self.sound_end = HEADER_BYTES
        except Damage as damage:
            self.damage = damage
        at = HEADER_BYTES
        while (record := self.record_at(at)) is not None:
            self.records.append(record)
            at = record.following
        self.records_end = at
        if self.damage is None:
            self.sound_end = at
            if not is_zeros(self.content, at):
                self.damage = Damage(path, at, "damaged record")

    def is_torn(self) -> bool:
        """Whether the damage is a tail that nobody ever knew to be durable: what a crash may leave at the
        end of the last log."""
        if self.damage is None:
            return False
        if self.previous is None:
            headless = len(self.content) < HEADER_BYTES or "damaged log header" in self.damage.what
            return headless and not self.records and not codec.wal_proof(self.content, self.file_id, 0)
        return not codec.wal_proof(self.content, self.file_id, self.sound_end)

    def record_at(self, offset: int) -> Record | None:
        content = self.content
        if offset + _HEAD.size > len(content):
            return None
        crc, length, first_sequence, now_ms, synced = _HEAD.unpack_from(content, offset)
        end = offset + _HEAD.size + length
        following = end + 7 & ~7
        if following > len(content) or synced > offset:
            return None
        if mask(codec.crc32c(content[offset + 4 : end], context(self.file_id, offset))) != crc:
            return None
        if any(content[end:following]):
            return None
        return Record(offset, first_sequence, now_ms, content[offset + _HEAD.size : end], synced, following)

    def records_behind(self) -> Iterator[Record]:
        """The sound records behind the first damaged one, however many more are damaged."""
        at = self.records_end
        while at + _HEAD.size <= len(self.content):
            record = self.record_at(at)
            if record is None:
                at += 8
            else:
                yield record
                at = record.following

    def last_sequence(self) -> int:
        """The last sequence that a sound record in front of the damage takes; 0 if there is none."""
        for record in reversed(self.records):
            if record.first_sequence:
                return last_sequence(record)
        return 0

    def first_sequence(self) -> int | None:
        return next((record.first_sequence for record in self.records if record.first_sequence), None)

    def _header(self, engine_id: int) -> tuple[int, int]:
        if len(self.content) < HEADER_BYTES:
            raise Damage(self.path, 0, f"{len(self.content)} bytes are too short for a log header")
        stored = int.from_bytes(self.content[HEADER_BYTES - 4 : HEADER_BYTES], "little")
        if codec.masked_crc32c(self.content[: HEADER_BYTES - 4]) != stored:
            raise Damage(self.path, 0, "damaged log header")
        magic, version, engine, number, previous, length, _ = _HEADER.unpack_from(self.content)
        if magic != MAGIC:
            raise Damage(self.path, 0, "not a log")
        if version not in VERSIONS:
            raise Damage(self.path, 8, f"unknown log version {version}")
        if (engine, number) != (engine_id, self.number):
            raise Damage(self.path, 12, f"the log of engine {engine}, number {number}")
        return previous, length


class Torn(NamedTuple):
    """What opening does with logs that a crash left torn: `ends` may be cut, `removed` were begun behind
    what is missing."""

    ends: frozenset[int]
    removed: frozenset[int]


def torn_logs(vfs: Vfs, directory: str, engine_id: int, needed: list[int], log_number: int) -> Torn:
    """Numbers among `needed`, which are those from the manifest's log number on. If opening refuses the logs,
    only the newest may be torn, as far as it can tell itself."""
    try:
        chain = read_chain(vfs, directory, engine_id, needed, log_number)
    except (Corruption, OSError):
        return Torn(frozenset(needed[-1:]), frozenset())
    ends = [log.number for log in (*chain.logs[-1:], *chain.torn)]
    return Torn(frozenset(ends), frozenset(log.number for log in chain.torn))


def operations(record: Record) -> tuple[list[Operation], bool]:
    """The ops of an entry up to the first that is none, and whether all are sound."""
    unpacker = msgpack.Unpacker(raw=True, max_buffer_size=0, strict_map_key=False)
    unpacker.feed(record.ops)
    found: list[Operation] = []
    sequence = record.first_sequence
    while unpacker.tell() < len(record.ops):
        try:
            op = unpacker.unpack()
            code = op[0]
            keys = _keys_of_transaction(op) if code == Op.TXN else [op[1]]
            value = op[2] if len(op) > 2 else None
        except (ValueError, IndexError, TypeError, KeyError, msgpack.UnpackException):
            return found, False
        if not isinstance(code, int) or not keys or not all(isinstance(key, bytes) for key in keys):
            return found, False
        shown = value if code == Op.PUT and isinstance(value, bytes) else None
        found += [Operation(sequence, code, key, shown) for key in keys]
        sequence += 1
    return found, True


def last_sequence(record: Record) -> int:
    """Of the ops up to the first that is none; that of the entry itself if there is none at all."""
    found, _ = operations(record)
    return found[-1].sequence if found else record.first_sequence


def _keys_of_transaction(op: list[Any]) -> list[Any]:
    """Each once, in their order; what may be wrong with them is for the caller to see."""
    _, compares, then, otherwise = op
    keys = [compare[0] for compare in compares] + [inner[1] for inner in (*then, *otherwise)]
    return list(dict.fromkeys(keys))
