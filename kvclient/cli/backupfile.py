"""One partition's file of a backup: written block by block, read with suspicion (docs/formats.md section 7).

Owns the bytes. Knows no cluster and no click.

Invariant: every byte of a file is under a checksum that also covers where it stands and whose file it is, so
whatever was flipped, cut, swapped or appended is found, and named by file and offset.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgpack

from kvclient.protocol import KEY_BYTES_MAX

MAGIC: Final = b"ringkvB\n"
VERSION: Final = 1

_HEADER: Final = struct.Struct("<8sII16sQQQ")
_HEAD: Final = struct.Struct("<BBHIQI")
_PLACE: Final = struct.Struct("<IQ")
_CRC: Final = struct.Struct("<I")

HEADER_BYTES: Final = _HEADER.size + _CRC.size
HEAD_BYTES: Final = _HEAD.size + _CRC.size

PLAIN: Final = 1
TIMED: Final = 2
_TRAILER: Final = 3

_STORED: Final = 0
_ZLIB: Final = 1

RECORDS_BYTES_MAX: Final = 16 << 20
"""Of a block: a page is 4 MiB or one record, which is 8 MiB and a little at most."""

_LEVEL: Final = 1
"""Of zlib. Higher ones cost several times the time for some percent."""


class BadBackup(Exception):
    """A backup is damaged: `path`, `offset` of the header, block or trailer, and what is wrong."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(f"{path}: offset {offset}: {what}")
        self.path = path
        self.offset = offset
        self.what = what


@dataclass(frozen=True)
class Cut:
    """What a file is of: a partition of a cluster behind entry `index` of `term`."""

    partition: int
    cluster: str
    index: int
    term: int
    taken_ms: int


class Record(NamedTuple):
    """`expires_ms` counts from 1970; 0: never."""

    key: bytes
    value: bytes
    version: int
    expires_ms: int


class Block(NamedTuple):
    """`offset` is where it begins, `end` where the next one does."""

    offset: int
    end: int
    records: list[Record]


def decode_records(timed: bool, records: bytes, count: int) -> list[Record]:
    """The records of a page or a block. ValueError says what is wrong."""
    unpacker = msgpack.Unpacker(
        raw=False, max_ext_len=0, max_array_len=0, max_map_len=0, max_str_len=0, max_buffer_size=0
    )
    unpacker.feed(records)
    try:
        flat = list(unpacker)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise ValueError(f"malformed records: {type(error).__name__}") from None
    width = 4 if timed else 3
    if len(flat) != count * width or unpacker.tell() != len(records):
        raise ValueError(f"{count} records of {width} fields were announced")
    keys, values = flat[0::width], flat[1::width]
    versions, expiries = flat[2::width], flat[3::width] if timed else [0] * count
    if not (set(map(type, keys + values)) <= {bytes} and set(map(type, versions + expiries)) <= {int}):
        raise ValueError("a record has fields of wrong types")
    if not all(0 < len(key) <= KEY_BYTES_MAX for key in keys):
        raise ValueError(f"a key is not of 1 to {KEY_BYTES_MAX} bytes")
    if not all(before < after for before, after in pairwise(keys)):
        raise ValueError("keys are out of order")
    return list(map(Record, keys, values, versions, expiries))


class PartitionWriter:
    """Writes the file of a partition at `path`, which it replaces. What it has written is a file only after
    `finish`.
    """

    def __init__(self, path: Path, cut: Cut) -> None:
        self.records = 0
        self.raw_bytes = 0
        self.size = 0
        self._blocks = 0
        self._last = b""
        self._digest = hashlib.sha256()
        header = _HEADER.pack(
            MAGIC, VERSION, cut.partition, cut.cluster.encode(), cut.index, cut.term, cut.taken_ms
        )
        self._file_crc = zlib.crc32(header)
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        try:
            self._put(header + _CRC.pack(self._file_crc))
        except BaseException:
            self.close()
            raise

    def add(self, timed: bool, records: bytes, count: int) -> None:
        """Add a page. ValueError: it is none, or does not follow the one before; nothing is written."""
        decoded = decode_records(timed, records, count)
        if not decoded:
            return
        if decoded[0].key <= self._last:
            raise ValueError("keys are out of order")
        packed = zlib.compress(records, _LEVEL)
        codec, payload = (_ZLIB, packed) if len(packed) < len(records) else (_STORED, records)
        self._put_head(TIMED if timed else PLAIN, codec, count, len(records), payload)
        self._last = decoded[-1].key
        self._blocks += 1
        self.records += count
        self.raw_bytes += len(records)

    def finish(self) -> str:
        """Write the trailer; durable on return. The SHA-256 of the file, in hexadecimal."""
        self._put_head(_TRAILER, _STORED, self._blocks, self.records, b"")
        sync(self._file)
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()

    def _put_head(self, kind: int, codec: int, count: int, size: int, payload: bytes) -> None:
        head = _HEAD.pack(kind, codec, 0, count, size, len(payload))
        crc = _block_crc(self._file_crc, self.size, head, payload)
        self._put(head + _CRC.pack(crc))
        self._put(payload)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def sync(file: BinaryIO) -> None:
    """Make what was written durable."""
    file.flush()
    os.fsync(file.fileno())


def _block_crc(file_crc: int, offset: int, head: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(head, zlib.crc32(_PLACE.pack(file_crc, offset))))


class PartitionReader:
    """Reads the file of a partition, of which `cut` and `size` are known. BadBackup at the first byte that is
    wrong. OSError as it comes.
    """

    def __init__(self, path: Path, cut: Cut, size: int) -> None:
        self.digest = hashlib.sha256()
        """Of what was read so far; of the whole file when `blocks` has come to its end from the beginning."""
        self._path = path
        self._cut = cut
        self._size = size
        self._at = 0

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """All blocks, or those from the one at offset `start` on; then the end of the file is checked."""
        with open(self._path, "rb") as file:
            file_crc = self._read_header(file)
            if start:
                file.seek(start)
                self._at = start
            blocks = records = 0
            last = b""
            while True:
                offset = self._at
                kind, count, size, payload = self._read_block(file, file_crc)
                if kind == _TRAILER:
                    if not start and (count, size) != (blocks, records):
                        what = f"{blocks} blocks and {records} records of {count} and {size}"
                        raise BadBackup(self._path, offset, what)
                    self._end(file)
                    return
                try:
                    found = decode_records(kind == TIMED, payload, count)
                except ValueError as error:
                    raise BadBackup(self._path, offset, str(error)) from None
                if not found or found[0].key <= last:
                    raise BadBackup(self._path, offset, "a block is empty or out of order")
                blocks += 1
                records += count
                last = found[-1].key
                yield Block(offset, self._at, found)

    def _read_header(self, file: BinaryIO) -> int:
        data = self._exactly(file, HEADER_BYTES, 0, "the header")
        head, (crc,) = data[: _HEADER.size], _CRC.unpack(data[_HEADER.size :])
        magic, version, partition, cluster, *rest = _HEADER.unpack(head)
        if magic != MAGIC or zlib.crc32(head) != crc:
            raise BadBackup(self._path, 0, "the header fails its checksum")
        if version != VERSION:
            raise BadBackup(self._path, 0, f"version {version}; this kvcli reads version {VERSION}")
        if Cut(partition, cluster.rstrip(b"\0").decode(errors="replace"), *rest) != self._cut:
            raise BadBackup(self._path, 0, "the file is of another partition or backup")
        return int(crc)

    def _read_block(self, file: BinaryIO, file_crc: int) -> tuple[int, int, int, bytes]:
        """Kind, count and bytes as the head has them, and the records."""
        offset = self._at
        data = self._exactly(file, HEAD_BYTES, offset, "a block's head")
        head, (crc,) = data[: _HEAD.size], _CRC.unpack(data[_HEAD.size :])
        kind, codec, zero, count, size, stored = _HEAD.unpack(head)
        if stored > RECORDS_BYTES_MAX:
            raise BadBackup(self._path, offset, "a block's head is damaged")
        payload = self._exactly(file, stored, offset, "a block")
        if _block_crc(file_crc, offset, head, payload) != crc:
            raise BadBackup(self._path, offset, "a block fails its checksum")
        if kind == _TRAILER:
            return kind, count, size, b""
        if kind not in (PLAIN, TIMED) or codec not in (_STORED, _ZLIB) or zero or size > RECORDS_BYTES_MAX:
            raise BadBackup(self._path, offset, f"a block of kind {kind}, codec {codec}, {size} bytes")
        if codec == _ZLIB:
            payload = self._inflate(payload, size, offset)
        if len(payload) != size:
            raise BadBackup(self._path, offset, f"a block has {len(payload)} bytes of {size}")
        return kind, count, size, payload

    def _inflate(self, payload: bytes, size: int, offset: int) -> bytes:
        inflater = zlib.decompressobj()
        try:
            return inflater.decompress(payload, size + 1)
        except zlib.error as error:
            raise BadBackup(self._path, offset, f"a block cannot be decompressed: {error}") from None

    def _end(self, file: BinaryIO) -> None:
        if self._at != self._size or file.read(1):
            what = f"the file should end at {self._size}, its trailer ends here"
            raise BadBackup(self._path, self._at, what)

    def _exactly(self, file: BinaryIO, size: int, offset: int, what: str) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise BadBackup(self._path, offset, f"the file ends in the middle of {what}")
        self.digest.update(data)
        self._at += size
        return data
