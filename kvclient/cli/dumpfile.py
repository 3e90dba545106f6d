"""The binary dump format, version 1: any bytes, checksums on everything. The layout is in docs/cli.md;
integers are little-endian.

    file    := header block* trailer
    header  := "ringkvD\\n" version:u16 flags:u16 crc:u32                      crc of the 12 bytes before it
    block   := "B" records:u32 size:u32 payload_crc:u32 crc:u32 payload        crc of the 13 bytes before it
    payload := (key_size:u16 value_size:u32 key value)*
    trailer := "E" records:u64 blocks_crc:u32 crc:u32                          crc of the 13 bytes before it

`blocks_crc` chains the payload checksums in order, so that a lost, doubled or swapped block is noticed. A
damaged payload costs that block only; a damaged block head ends the reading, as nobody knows where the next
one begins.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from kvclient.cli.records import (
    RECORD_BYTES_MAX,
    FormatError,
    Item,
    Mark,
    Reader,
    Reject,
    Writer,
    problem_with,
)

MAGIC = b"ringkvD\n"
VERSION = 1

_HEADER = struct.Struct("<8sHHI")
_BLOCK = struct.Struct("<cIIII")
_TRAILER = struct.Struct("<cQII")
_RECORD = struct.Struct("<HI")
_CRC = struct.Struct("<I")

# Large enough that heads cost nothing, small enough that a damaged block costs little.
BLOCK_BYTES = 256 << 10


def _sealed(head: bytes) -> bytes:
    return head + _CRC.pack(zlib.crc32(head))


def _is_sealed(head: bytes) -> bool:
    return head[-4:] == _CRC.pack(zlib.crc32(head[:-4]))


class DumpReader(Reader):
    """Records of a dump. A mark is a block's offset and how many of its records are done; `line` counts
    records.
    """

    def __init__(self, file: BinaryIO, mark: Mark) -> None:
        super().__init__(file, mark)
        self._records = mark.get("records", 0)
        self._blocks_crc = mark.get("blocks_crc", 0)
        self._block_offset = self.offset
        self._in_block = mark.get("skip", 0)

    def mark(self) -> Mark:
        mark = {"offset": self._block_offset, "line": self.line, "skip": self._in_block}
        return mark | {"records": self._records, "blocks_crc": self._blocks_crc}

    def __iter__(self) -> Iterator[Item]:
        if self.offset == 0:
            self._read_header()
        while True:
            tag = self._exactly(1, "the next block")
            if tag == b"E":
                self._read_trailer(tag)
                return
            yield from self._read_block(tag)

    def _exactly(self, size: int, what: str) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise FormatError(
                f"the file ends at byte {self.offset + len(data)} in the middle of {what}: it is cut off"
            )
        self.offset += size
        return data

    def _read_header(self) -> None:
        header = self.file.read(_HEADER.size)
        self.offset = len(header)
        if len(header) < _HEADER.size or not header.startswith(MAGIC) or not _is_sealed(header):
            raise FormatError("this is no dump file: its header is not that of one")
        version = _HEADER.unpack(header)[1]
        if version != VERSION:
            raise FormatError(f"dump version {version} is not understood, this kvcli reads {VERSION}")
        self._block_offset = self.offset

    def _read_block(self, tag: bytes) -> Iterator[Item]:
        where = self._block_offset
        head = tag + self._exactly(_BLOCK.size - 1, "a block head")
        _, count, size, payload_crc, _ = _BLOCK.unpack(head)
        if tag != b"B" or not _is_sealed(head) or size > RECORD_BYTES_MAX:
            raise FormatError(f"the block head at byte {where} is damaged: what follows cannot be read")
        payload = self._exactly(size, "a block")
        if zlib.crc32(payload) != payload_crc:
            self.line += count - self._in_block
            self._finish_block(count, payload_crc)
            yield Reject(
                self.line, f"the block at byte {where} failed its checksum, {count} records lost", b""
            )
            return
        skip = self._in_block
        for item in list(self._parse(payload, count, where))[skip:]:
            self._in_block += 1
            self.line += 1
            if self._in_block == count:
                self._finish_block(count, payload_crc)
            yield item

    def _finish_block(self, count: int, payload_crc: int) -> None:
        self._records += count
        self._blocks_crc = zlib.crc32(_CRC.pack(payload_crc), self._blocks_crc)
        self._block_offset = self.offset
        self._in_block = 0

    def _parse(self, payload: bytes, count: int, where: int) -> Iterator[Item]:
        position = 0
        for number in range(count):
            if position + _RECORD.size > len(payload):
                raise FormatError(f"the block at byte {where} holds fewer records than it says")
            key_size, value_size = _RECORD.unpack_from(payload, position)
            key_end = position + _RECORD.size + key_size
            key = payload[position + _RECORD.size : key_end]
            position = key_end + value_size
            value = payload[key_end:position]
            if position > len(payload):
                raise FormatError(f"record {number} of the block at byte {where} reaches beyond its end")
            reason = problem_with(key, value)
            line = self.line - self._in_block + number + 1
            yield (key, value) if reason is None else Reject(line, reason, key)

    def _read_trailer(self, tag: bytes) -> None:
        trailer = tag + self._exactly(_TRAILER.size - 1, "the trailer")
        _, records, blocks_crc, _ = _TRAILER.unpack(trailer)
        if not _is_sealed(trailer):
            raise FormatError(f"the trailer at byte {self._block_offset} is damaged")
        if (records, blocks_crc) != (self._records, self._blocks_crc):
            raise FormatError(
                f"the trailer speaks of {records} records, {self._records} were found: "
                "blocks are missing or swapped"
            )
        if self.file.read(1):
            raise FormatError(f"there is something behind the trailer at byte {self._block_offset}")


class DumpWriter(Writer):
    """Every page becomes whole blocks, so a resumed export goes on at a block boundary."""

    def __init__(self) -> None:
        self._records = 0
        self._blocks_crc = 0

    def head(self) -> bytes:
        return _sealed(_HEADER.pack(MAGIC, VERSION, 0, 0)[:-4])

    def page(self, entries: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, list[Reject]]:
        blocks: list[bytes] = []
        parts: list[bytes] = []
        size = 0
        for key, value in entries:
            parts.append(_RECORD.pack(len(key), len(value)) + key + value)
            size += len(parts[-1])
            if size >= BLOCK_BYTES:
                blocks.append(self._block(parts))
                parts = []
                size = 0
        if parts:
            blocks.append(self._block(parts))
        return b"".join(blocks), []

    def _block(self, parts: list[bytes]) -> bytes:
        payload = b"".join(parts)
        payload_crc = zlib.crc32(payload)
        self._records += len(parts)
        self._blocks_crc = zlib.crc32(_CRC.pack(payload_crc), self._blocks_crc)
        return _sealed(_BLOCK.pack(b"B", len(parts), len(payload), payload_crc, 0)[:-4]) + payload

    def tail(self) -> bytes:
        return _sealed(_TRAILER.pack(b"E", self._records, self._blocks_crc, 0)[:-4])

    def state(self) -> Mark:
        return {"records": self._records, "blocks_crc": self._blocks_crc}

    def restore(self, state: Mark) -> None:
        self._records = state["records"]
        self._blocks_crc = state["blocks_crc"]
