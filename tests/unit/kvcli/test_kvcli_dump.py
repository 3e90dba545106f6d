"""The dump format: golden bytes, and damage of every kind is noticed, named and contained."""

from __future__ import annotations

import io
import struct
import zlib

import pytest

from kvclient.cli import dumpfile
from kvclient.cli.dumpfile import DumpReader, DumpWriter
from kvclient.cli.records import FormatError, Item, Reject


def read(data: bytes) -> list[Item]:
    return list(DumpReader(io.BytesIO(data), {}))


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, list[bytes], bytes]:
    """Header, four blocks of ten records, trailer."""
    monkeypatch.setattr(dumpfile, "BLOCK_BYTES", 1)
    writer = DumpWriter()
    parts = []
    for block in range(4):
        monkeypatch.setattr(dumpfile, "BLOCK_BYTES", 1 << 20)
        parts.append(writer.page([(b"k%d%d" % (block, n), b"v" * n) for n in range(10)])[0])
    return writer.head(), parts, writer.tail()


def test_golden() -> None:
    writer = DumpWriter()
    body, _ = writer.page([(b"hello", b"world"), (b"k", b"")])
    header = b"ringkvD\n" + struct.pack("<HH", 1, 0)
    payload = struct.pack("<HI", 5, 5) + b"helloworld" + struct.pack("<HI", 1, 0) + b"k"
    block = b"B" + struct.pack("<III", 2, len(payload), zlib.crc32(payload))
    trailer = b"E" + struct.pack("<QI", 2, zlib.crc32(struct.pack("<I", zlib.crc32(payload))))
    expected = [part + struct.pack("<I", zlib.crc32(part)) for part in (header, block, trailer)]
    expected.insert(2, payload)
    assert writer.head() + body + writer.tail() == b"".join(expected)


def test_large_pages_become_several_blocks() -> None:
    writer = DumpWriter()
    entries = [(b"%06d" % number, b"x" * 1000) for number in range(1000)]
    body, _ = writer.page(entries)
    assert read(writer.head() + body + writer.tail()) == entries
    assert len(body) > 3 * dumpfile.BLOCK_BYTES


def test_every_cut_is_noticed(blocks: tuple[bytes, list[bytes], bytes]) -> None:
    head, parts, tail = blocks
    data = head + b"".join(parts) + tail
    assert len(read(data)) == 40
    for size in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:size])


def test_every_flipped_bit_is_noticed(blocks: tuple[bytes, list[bytes], bytes]) -> None:
    head, parts, tail = blocks
    data = head + b"".join(parts[:2])
    whole = bytearray(head + b"".join(parts) + tail)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        try:
            items = read(bytes(damaged))
        except FormatError:
            continue
        # Only damage inside a payload is survived, and costs exactly that block.
        assert sum(isinstance(item, Reject) for item in items) == 1
        assert len(items) == 31
        assert position > len(head)
    assert len(data) < len(whole)


def test_a_damaged_block_costs_only_itself(blocks: tuple[bytes, list[bytes], bytes]) -> None:
    head, parts, tail = blocks
    broken = bytearray(parts[1])
    broken[-1] ^= 1
    items = read(head + parts[0] + bytes(broken) + parts[2] + parts[3] + tail)
    assert [item.reason for item in items if isinstance(item, Reject)] == [
        f"the block at byte {len(head) + len(parts[0])} failed its checksum, 10 records lost"
    ]
    assert items[11] == (b"k20", b"")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1, 3), (0, 1, 2, 3, 3)])
def test_lost_swapped_and_doubled_blocks_are_noticed(
    blocks: tuple[bytes, list[bytes], bytes], order: tuple[int, ...]
) -> None:
    head, parts, tail = blocks
    with pytest.raises(FormatError, match="missing or swapped"):
        read(head + b"".join(parts[number] for number in order) + tail)


def test_other_files_are_refused() -> None:
    with pytest.raises(FormatError, match="no dump file"):
        read(b'{"key": "a"}\n')
    with pytest.raises(FormatError, match="no dump file"):
        read(b"")
    newer = b"ringkvD\n" + struct.pack("<HH", 2, 0)
    with pytest.raises(FormatError, match="version 2"):
        read(newer + struct.pack("<I", zlib.crc32(newer)))


def test_something_behind_the_trailer_is_noticed(blocks: tuple[bytes, list[bytes], bytes]) -> None:
    head, parts, tail = blocks
    with pytest.raises(FormatError, match="behind the trailer"):
        read(head + b"".join(parts) + tail + b"x")


def test_a_writer_goes_on_where_another_was(blocks: tuple[bytes, list[bytes], bytes]) -> None:
    first = DumpWriter()
    begin = first.head() + first.page([(b"a", b"1")])[0]
    second = DumpWriter()
    second.restore(first.state())
    assert read(begin + second.page([(b"b", b"2")])[0] + second.tail()) == [(b"a", b"1"), (b"b", b"2")]


def test_lying_payloads_are_refused() -> None:
    payload = struct.pack("<HI", 5, 500) + b"hello"
    for count in (1, 2):
        head = b"B" + struct.pack("<III", count, len(payload), zlib.crc32(payload))
        block = head + struct.pack("<I", zlib.crc32(head)) + payload
        with pytest.raises(FormatError, match=r"beyond its end|fewer records"):
            read(DumpWriter().head() + block)
