"""The manifest as records, each judged by itself (docs/formats.md section 5).

The file is read as one (lmdb_file.py), not with LMDB, which may end the process over a damaged one. Records
in front of the damage are kept.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.deletions import RangeDeletion
from storenode.engine.lmdb_file import LmdbFile
from storenode.engine.manifest import (
    FORMAT_KEY,
    RANGE_TAG,
    REPLICA_TAG,
    STATE_TAG,
    TABLE_TAG,
    VERSION,
    State,
)
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

KINDS = {STATE_TAG: "state", TABLE_TAG: "table", RANGE_TAG: "range", REPLICA_TAG: "replica"}
_KEY = struct.Struct(">IBQ")
_STATE = struct.Struct("<IQQQQQQ")
_TABLE = struct.Struct("<IBQQQQQQQQQQQ")
_RANGE = struct.Struct("<IB")
_U32 = struct.Struct("<I")


class StateRecord(NamedTuple):
    """An engine's state, with what it says of its other records."""

    state: State
    records: int
    digest: int


class ReplicaState(NamedTuple):
    """What belongs to the tables of a replica's engine."""

    state: bytes


class Record(NamedTuple):
    """One record. `problem`: why it does not count, None if it is sound; `content` is None then, or for the
    format record."""

    key: bytes
    value: bytes
    engine_id: int | None
    kind: str
    content: StateRecord | TableMeta | RangeDeletion | ReplicaState | None
    problem: str | None


class EngineRecords(NamedTuple):
    """What the manifest has of one engine, as far as it is sound."""

    state: StateRecord | None
    tables: dict[int, TableMeta]
    range_deletions: tuple[RangeDeletion, ...]
    """Also in `state`, if there is one."""
    problems: list[str]


class Manifest(NamedTuple):
    """`problem`: the environment itself could not be read to its end, or is not there."""

    path: str
    exists: bool
    problem: str | None
    records: list[Record]

    def engines(self) -> list[int]:
        found = {record.engine_id for record in self.records if record.engine_id is not None}
        return sorted(found)

    def of(self, engine_id: int) -> EngineRecords:
        """The engine's sound records, and everything wrong with its share of the manifest."""
        mine = [record for record in self.records if record.engine_id == engine_id]
        problems = [f"record {record.key.hex()}: {record.problem}" for record in mine if record.problem]
        state: StateRecord | None = None
        tables: dict[int, TableMeta] = {}
        range_deletions: tuple[RangeDeletion, ...] = ()
        replica: bytes | None = None
        digest = 0
        for record in mine:
            if isinstance(record.content, StateRecord):
                state = record.content
            elif isinstance(record.content, TableMeta):
                tables[record.content.number] = record.content
                digest += codec.hash64(record.key + record.value)
            elif isinstance(record.content, RangeDeletion):
                range_deletions = (*range_deletions, record.content)
                digest += codec.hash64(record.key + record.value)
            elif isinstance(record.content, ReplicaState):
                replica = record.content.state
                digest += codec.hash64(record.key + record.value)
        count = len(tables) + len(range_deletions) + (replica is not None)
        if state is None and count:
            problems.append("records but no state record")
        if state is not None:
            told = state.state._replace(range_deletions=range_deletions, replica=replica)
            state = state._replace(state=told)
            if (state.records, state.digest) != (count, digest & (1 << 64) - 1):
                problems.append(f"the state record is not of these {count} other records")
        return EngineRecords(state, tables, range_deletions, problems)

    def general_problems(self) -> list[str]:
        """What is wrong and of no one engine."""
        found = [self.problem] if self.problem else []
        found += [
            f"record {record.key.hex()[:80]}: {record.problem}"
            for record in self.records
            if record.problem and record.engine_id is None
        ]
        if self.exists and not self.problem and not any(r.kind == "format" for r in self.records):
            found.append("no format record")
        return found


def read_manifest(vfs: Vfs, directory: str) -> Manifest:
    """Every record of an environment, in key order. Raises nothing for damage."""
    path = os.path.join(directory, "data.mdb")
    try:
        size = vfs.size(path)
    except (FileNotFoundError, NotADirectoryError):
        return Manifest(path, False, "the manifest is missing", [])
    if size == 0:
        return Manifest(path, True, "the manifest is empty", [])
    records: list[Record] = []
    try:
        file = LmdbFile(path, vfs.read(path))
        for key, value in file.records():
            records.append(decode(key, value))
        file.check()
    except Corruption as error:
        return Manifest(path, True, f"damaged after {len(records)} records: {error}", records)
    return Manifest(path, True, None, records)


def decode(key: bytes, value: bytes) -> Record:
    """One record, judged."""
    if len(key) != _KEY.size:
        return Record(key, value, None, "unknown", None, "not a key of a manifest")
    engine_id, tag, number = _KEY.unpack(key)
    kind = KINDS.get(tag, "unknown")
    engine: int | None = engine_id
    if key == FORMAT_KEY:
        kind, engine = "format", None
    payload = value[:-4]
    if len(value) < 4 or codec.masked_crc32c(key + payload) != int.from_bytes(value[-4:], "little"):
        return Record(key, value, engine, kind, None, "checksum mismatch")
    try:
        (version,) = _U32.unpack_from(payload)
        if version != VERSION:
            return Record(key, value, engine, kind, None, f"unknown version {version}")
        if kind == "format":
            return Record(key, value, engine, kind, None, None)
        if kind == "state":
            _, *numbers, count, digest = _STATE.unpack(payload)
            return Record(key, value, engine, kind, StateRecord(State(*numbers), count, digest), None)
        if kind == "table":
            return Record(key, value, engine, kind, _table(number, payload), None)
        if kind == "range":
            return Record(key, value, engine, kind, _range(number, payload), None)
        if kind == "replica":
            return Record(key, value, engine, kind, ReplicaState(payload[_U32.size :]), None)
    except (struct.error, ValueError) as error:
        return Record(key, value, engine, kind, None, f"malformed: {error}")
    return Record(key, value, engine, kind, None, f"unknown tag {tag}")


def _table(number: int, payload: bytes) -> TableMeta:
    _, level, *numbers, cleaned_sequence = _TABLE.unpack_from(payload)
    smallest, largest = _two_keys(payload, _TABLE.size)
    return TableMeta._make((number, level, *numbers, smallest, largest, cleaned_sequence))


def _range(number: int, payload: bytes) -> RangeDeletion:
    _, has_stop = _RANGE.unpack_from(payload)
    start, stop = _two_keys(payload, _RANGE.size)
    if has_stop > 1 or (has_stop and start >= stop) or (not has_stop and stop):
        raise ValueError("a range that ends before it begins")
    return RangeDeletion(start, stop if has_stop else None, number)


def _two_keys(payload: bytes, at: int) -> tuple[bytes, bytes]:
    first, at = _take(payload, at)
    second, at = _take(payload, at)
    if at != len(payload):
        raise ValueError(f"{len(payload) - at} bytes too many")
    return first, second


def _take(payload: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _U32.unpack_from(payload, at)
    at += _U32.size
    if at + length > len(payload):
        raise ValueError("a key ends behind its record")
    return payload[at : at + length], at + length
