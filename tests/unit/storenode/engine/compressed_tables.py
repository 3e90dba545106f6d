"""Tables for the tests of compressed blocks: written by a job, or made by hand down to their checksums."""

from __future__ import annotations

from pathlib import Path

from storenode.engine import codec
from storenode.engine.job import Job
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache, Table
from storenode.engine.vfs import Vfs

PLAIN, LZ4, ZSTD = 0, 1, 2
PUT = 1
FILE_ID = 5 << 48 | 1
LENGTH_MAX = 1 << 24
Versions = list[tuple[bytes, int, int, bytes, int]]


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def with_trailer(stored: bytes, kind: int, offset: int) -> bytes:
    content = stored + bytes([kind])
    return content + u32(codec.masked_crc32c(u64(FILE_ID) + u64(offset) + content))


def open_table(
    path: Path, smallest: bytes = b"k", largest: bytes = b"k", cache_bytes: int = 1 << 20
) -> Table:
    size = path.stat().st_size
    return Table(Cache(cache_bytes), Vfs().open(str(path)), 1, FILE_ID, size, smallest, largest)


def write_table(directory: Path, versions: Versions, compression: int, block_bytes: int = 4096) -> Path:
    memtable = Memtable()
    for version in versions:
        memtable.add(*version)
    job = Job(
        str(directory),
        (memtable,),
        (),
        (),
        (),
        now_ms=0,
        table_bytes=1 << 40,
        overlap_bytes_max=1 << 40,
        block_bytes=block_bytes,
        bits_per_key=10,
        compression=compression,
    )
    assert job.step() == 1
    path = directory / "000001.sst"
    file = Vfs().create(str(path))
    job.open_table(file.fd, 1, FILE_ID, 1)
    assert job.step() == 2
    file.close()
    return path


def handmade_table(
    path: Path, stored: bytes, kind: int, compression: int, kinds: tuple[int, int, int] = (0, 0, 0)
) -> Path:
    """A table of one data block of one entry. `kinds`: types of filter, index and properties."""
    content = with_trailer(stored, kind, 0)
    index = b"\0\1" + bytes([1 + len(varint(len(stored)))]) + b"\xff" + varint(0) + varint(len(stored))
    properties = bytes([0, 7, 1]) + b"entries\1"
    footer = b""
    blocks = (u32(0) + bytes([6, 0, 0, 0]), index + u32(0) + u32(1), properties + u32(0) + u32(1))
    for block, other in zip(blocks, kinds, strict=True):
        footer += u64(len(content)) + u32(len(block))
        content += with_trailer(block, other, len(content))
    footer += u64(FILE_ID) + u32(1) + u32(compression)
    path.write_bytes(content + footer + u32(codec.masked_crc32c(footer)) + b"rkv-sst\n")
    return path


def data_blocks(path: Path) -> list[tuple[int, bytes]]:
    """Type and stored form of each data block, found by their checksums' places in the index."""
    content = path.read_bytes()
    footer = content[-64:]
    at, size = int.from_bytes(footer[12:20], "little"), int.from_bytes(footer[20:24], "little")
    index = content[at : at + size]
    count = int.from_bytes(index[-4:], "little")
    found = []
    for number in range(count):
        entry = int.from_bytes(index[-4 - 4 * (count - number) :][:4], "little")
        numbers = index[entry + 3 + index[entry + 1] :]
        offset, numbers = read_varint(numbers)
        size, _ = read_varint(numbers)
        found.append((content[offset + size], content[offset : offset + size]))
    return found


def read_varint(data: bytes) -> tuple[int, bytes]:
    number = shift = 0
    for at, byte in enumerate(data):
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, data[at + 1 :]
    raise AssertionError("a number without an end")
