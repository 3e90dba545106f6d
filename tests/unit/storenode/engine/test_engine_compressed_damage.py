"""Compressed blocks made by hand: those that the format allows are read, hostile ones whose checksums are
right are corruption and nothing worse."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from kvclient.errors import Corruption
from storenode.engine import codec
from tests.unit.storenode.engine.compressed_tables import (
    LENGTH_MAX,
    LZ4,
    PLAIN,
    PUT,
    ZSTD,
    data_blocks,
    handmade_table,
    open_table,
    u32,
    u64,
    varint,
    write_table,
)

VALUE = b"z" * 200
BLOCK = bytes([0, 9]) + varint(len(VALUE)) + b"k" + u64(7 << 8 | PUT) + VALUE + u32(0) + u32(1)


def lz4_literals(content: bytes, *, last: bool = True) -> bytes:
    """A sequence of literals, without a match if it is the last."""
    short = min(len(content), 15)
    more = len(content) - 15
    lengths = b"" if short < 15 else b"\xff" * (more // 255) + bytes([more % 255])
    return bytes([short << 4 | (0 if last else 15)]) + lengths + content


def zstd_frame(*parts: bytes, size: int) -> bytes:
    """RFC 8878: one segment, 8 bytes of content size, then blocks (see `raw` and `rle`), the last marked."""
    last = bytes([parts[-1][0] | 1]) + parts[-1][1:]
    return bytes.fromhex("28b52ffd") + b"\xe0" + u64(size) + b"".join((*parts[:-1], last))


def raw(content: bytes) -> bytes:
    return (len(content) << 3).to_bytes(3, "little") + content


def rle(byte: bytes, count: int) -> bytes:
    return (count << 3 | 2).to_bytes(3, "little") + byte


HEAD, TAIL = BLOCK[: -8 - len(VALUE)], BLOCK[-8:]
LZ4_PAYLOAD = (
    lz4_literals(HEAD + b"z", last=False)  # then a match: 199 bytes from one byte back
    + b"\1\0" + bytes([199 - 4 - 15])
    + lz4_literals(TAIL)
)  # fmt: skip
ZSTD_PAYLOAD = zstd_frame(raw(HEAD), rle(b"z", len(VALUE)), raw(TAIL), size=len(BLOCK))
PAYLOADS = {LZ4: LZ4_PAYLOAD, ZSTD: ZSTD_PAYLOAD}


@pytest.mark.parametrize("kind", [LZ4, ZSTD])
def test_blocks_made_by_the_book_are_read(tmp_path: Path, kind: int) -> None:
    table = open_table(handmade_table(tmp_path / "t", varint(len(BLOCK)) + PAYLOADS[kind], kind, kind))
    assert table.compression == kind
    assert table.verify() == 1
    assert table.entries() == [(b"k", 7, PUT, VALUE, 0)]
    assert codec.unpacked_block(kind, varint(len(BLOCK)) + PAYLOADS[kind]) == BLOCK
    plain = open_table(handmade_table(tmp_path / "plain", BLOCK, PLAIN, kind))
    assert plain.entries() == table.entries()


def mutations(kind: int) -> list[tuple[str, bytes]]:
    payload, length = PAYLOADS[kind], len(BLOCK)
    cases = [
        ("empty", b""),
        ("no payload", varint(length)),
        ("length 0", varint(0) + payload),
        ("length without an end", b"\xff" * 12 + payload),
        ("length cut off", b"\x80"),
        ("length above the bound", varint(LENGTH_MAX + 1) + payload),
        ("length of a terabyte", varint(1 << 40) + payload),
        ("length of 2^64 - 1", varint((1 << 64) - 1) + payload),
        ("one byte too long", varint(length + 1) + payload),
        ("one byte too short", varint(length - 1) + payload),
        ("length at the bound", varint(LENGTH_MAX) + payload),
        ("something behind it", varint(length) + payload + b"\0"),
        ("twice", varint(length) + payload + payload),
        *((f"cut to {size}", varint(length) + payload[:size]) for size in range(len(payload))),
    ]
    if kind == LZ4:
        cases += [
            ("a match before the block", varint(length) + payload.replace(b"\1\0", b"\xff\xff")),
            ("a match from nowhere", varint(100) + b"\x1f" + b"a\0\0" + b"\x50" + bytes(8)),
            ("bomb", varint(8) + b"\x1fa\1\0" + b"\xff" * 60_000 + b"\0\x50zzzzz"),
        ]
    else:
        bomb = zstd_frame(*[rle(b"z", 128 << 10)] * 1000, size=128_000 << 10)
        skippable = bytes.fromhex("502a4d18") + u32(1) + b"x"
        cases += [
            ("bomb", varint(length) + bomb),
            ("bomb at the bound", varint(LENGTH_MAX) + bomb),
            ("frame of another size", varint(length) + zstd_frame(raw(BLOCK), size=length + 1)),
            ("more than the frame says", varint(length) + zstd_frame(raw(BLOCK), rle(b"z", 9), size=length)),
            ("skippable frame", varint(length) + skippable + payload),
            ("frame without a size", varint(length) + payload[:4] + b"\0\x48" + payload[13:]),
            ("frame with a dictionary", varint(length) + payload[:4] + b"\xe1\7" + payload[5:]),
            ("window of a terabyte", varint(length) + payload[:4] + b"\xc0\xf8" + payload[5:]),
            *(
                (f"version 0.{version}", varint(length) + bytes([0x20 + version]) + payload[1:])
                for version in range(1, 8)
            ),
        ]
    return cases


@pytest.mark.parametrize("kind", [LZ4, ZSTD])
def test_what_does_not_fit_its_length_is_corruption(tmp_path: Path, kind: int) -> None:
    sound = open_table(handmade_table(tmp_path / "sound", varint(len(BLOCK)) + PAYLOADS[kind], kind, kind))
    for name, stored in mutations(kind):
        sound.verify()  # leaves whole payloads where truncated ones are read to
        table = open_table(handmade_table(tmp_path / "t", stored, kind, kind))
        for use in (table.verify, table.entries):
            with pytest.raises(Corruption, match=r"compressed block.* \(offset 0\)"):
                pytest.fail(f"{name}: {use()}")
        with pytest.raises(ValueError, match="compressed block"):
            codec.unpacked_block(kind, stored)


@pytest.mark.parametrize("kind", [LZ4, ZSTD])
def test_flipped_bits_under_a_right_checksum_harm_nobody(tmp_path: Path, kind: int) -> None:
    path = write_table(tmp_path, [(b"%05d" % at, 1 + at, PUT, b"v%d" % at * 9, 0) for at in range(80)], kind)
    ((stored_as, stored),) = data_blocks(path)
    assert stored_as == kind
    source = random.Random(kind)
    outcomes = set()
    for bit in [*range(160), *source.sample(range(8 * len(stored)), 600)]:
        damaged = bytearray(stored)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        table = open_table(handmade_table(tmp_path / "t", bytes(damaged), kind, kind))
        try:
            outcomes.add(len(table.entries()))
        except Corruption as error:
            outcomes.add(str(error).partition(": ")[2].partition(" (")[0])
    assert {"malformed compressed block", "malformed block entry"} < outcomes


@pytest.mark.parametrize(
    ("kind", "compression", "kinds"),
    [
        (3, ZSTD, (0, 0, 0)),
        (255, ZSTD, (0, 0, 0)),
        (LZ4, ZSTD, (0, 0, 0)),
        (ZSTD, LZ4, (0, 0, 0)),
        (LZ4, PLAIN, (0, 0, 0)),
        (LZ4, LZ4, (LZ4, 0, 0)),
        (LZ4, LZ4, (0, LZ4, 0)),
        (LZ4, LZ4, (0, 0, LZ4)),
    ],
)
def test_types_where_they_may_not_be(tmp_path: Path, kind: int, compression: int, kinds: Any) -> None:
    stored = varint(len(BLOCK)) + PAYLOADS.get(kind, LZ4_PAYLOAD)
    table = open_table(handmade_table(tmp_path / "t", stored, kind, compression, kinds))
    with pytest.raises(Corruption, match="unknown block type"):
        table.verify()


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Corruption, match="unknown compression"):
        open_table(handmade_table(tmp_path / "t", BLOCK, PLAIN, 3))
