"""Bytes of headers and batches, and what is refused among them (docs/raft.md section 4)."""

from __future__ import annotations

import struct

import msgpack
import pytest

from storenode.engine import codec
from storenode.raft.messages import Entry, HardState
from storenode.raftlog import records, segment
from storenode.raftlog.records import Payload, Record, Summary

HEADER = bytes.fromhex(
    "726b762d7261667401000000070000000300000000000000290000000000000000000000000000000000000000000000"
    "000000000000000000000000d596935c"
)
BATCH = bytes.fromhex(
    "a85c1cc23200000029000000000000002800000000000000930291950593030108920702099292080292090392950593"
    "0402099208020a92930400c4026162930401c4009506c0c000c0000000000000"
)
PAYLOAD = Payload(
    2,
    [Summary(5, HardState(3, 1, 8), (7, 2), 9, [(8, 2), (9, 3)])],
    [
        Record(5, HardState(4, 2, 9), (8, 2), 10, [Entry(4, 0, b"ab"), Entry(4, 1, b"")]),
        Record(6, None, None, 0, None),
    ],
)


def packed(payload: Payload) -> bytes:
    data: bytes = msgpack.packb(payload)
    return data


def test_a_header_has_these_bytes() -> None:
    assert segment.encode_header(node=7, segment=3, first_batch=41) == HEADER
    assert len(HEADER) == segment.HEADER_BYTES
    assert segment.decode_header(HEADER + b"more", 3) == (1, 7, 3, 41)


def test_a_batch_has_these_bytes() -> None:
    assert segment.encode_batch(3, 64, 41, 40, packed(PAYLOAD)) == BATCH
    batch = segment.decode_batch(bytes(64) + BATCH, 3, 64)
    assert batch is not None
    assert batch[:3] == (64, 41, 40)
    assert batch.following == 64 + len(BATCH)
    assert len(BATCH) % 8 == 0
    assert records.decode(batch.payload) == PAYLOAD


def test_the_checksum_of_a_batch_is_made_as_the_page_says() -> None:
    covered = struct.pack("<QQ", 3, 64) + BATCH[4:24] + packed(PAYLOAD)
    assert struct.unpack_from("<I", BATCH)[0] == codec.masked_crc32c(covered)


@pytest.mark.parametrize(("number", "offset"), [(4, 64), (3, 72)])
def test_a_batch_of_another_segment_or_place_never_passes(number: int, offset: int) -> None:
    batch = segment.encode_batch(3, 64, 41, 40, packed(PAYLOAD))
    assert segment.decode_batch(bytes(64) + batch, 3, 64) is not None
    assert segment.decode_batch(bytes(offset) + batch, number, offset) is None


def test_no_flipped_bit_passes() -> None:
    size = segment.BATCH_HEAD_BYTES + len(packed(PAYLOAD))
    for bit in range(size * 8):
        damaged = bytearray(BATCH)
        damaged[bit // 8] ^= 1 << bit % 8
        assert segment.decode_batch(bytes(64) + bytes(damaged), 3, 64) is None
    for bit in range(len(HEADER) * 8):
        damaged = bytearray(HEADER)
        damaged[bit // 8] ^= 1 << bit % 8
        assert segment.decode_header(bytes(damaged), 3) is None


def test_no_shortened_batch_or_header_passes() -> None:
    size = segment.BATCH_HEAD_BYTES + len(packed(PAYLOAD))
    for length in range(size):
        assert segment.decode_batch(bytes(64) + BATCH[:length], 3, 64) is None
    for length in range(len(HEADER)):
        assert segment.decode_header(HEADER[:length], 3) is None


def test_the_header_of_a_recycled_segment_does_not_pass() -> None:
    assert segment.decode_header(HEADER, 4) is None


def test_zeros_are_no_batch() -> None:
    assert list(segment.batches(HEADER + bytes(1000), 3, 41)) == []
    assert list(segment.strays(HEADER + bytes(1000), 3, 64, 1)) == []


def test_batches_end_where_a_number_is_missing() -> None:
    first = segment.encode_batch(3, 64, 41, 40, b"one")
    second = segment.encode_batch(3, 64 + len(first), 43, 42, b"two")
    content = HEADER + first + second
    assert [batch.number for batch in segment.batches(content, 3, 41)] == [41]
    assert list(segment.batches(content, 3, 40)) == []


@pytest.mark.parametrize("rest", [0, 1, 7, 5000])
def test_a_later_batch_is_found_wherever_it_begins(rest: int) -> None:
    for place in range(64, 400, 8):
        stray = segment.encode_batch(3, place, 43, 42, b"12345")
        content = HEADER.ljust(place, b"\xff") + stray + bytes(rest)
        assert [batch.offset for batch in segment.strays(content, 3, 64, 42)] == [place]
        assert list(segment.strays(content, 3, 64, 44)) == []
        assert list(segment.strays(content, 3, place + 8, 42)) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        {},
        [],
        [1, []],
        [1, [], [], []],
        [-1, [], []],
        [True, [], []],
        [1, 2, []],
        [1, [], 2],
        [1, [], [[1, None, None, 0]]],
        [1, [], [[0x10000, None, None, 0, []]]],
        [1, [], [[-1, None, None, 0, []]]],
        [1, [], [[1, [1, 2], None, 0, []]]],
        [1, [], [[1, None, [1], 0, []]]],
        [1, [], [[1, None, [1, 2, 3], 0, []]]],
        [1, [], [[1, None, None, -1, []]]],
        [1, [], [[1, None, None, 1.0, []]]],
        [1, [], [[1, None, None, 1, [[1, 0]]]]],
        [1, [], [[1, None, None, 1, [[1, 0, "text"]]]]],
        [1, [], [[1, None, None, 1, [[-1, 0, b""]]]]],
        [1, [[1, None, [0, 0], 0, []]], []],
        [1, [[1, [0, 0, 0], [0, 0], 0, [[1]]]], []],
    ],
)
def test_a_payload_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="holds no records"):
        records.decode(msgpack.packb(value))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x90", b"\x93\x01\x90\x90\x00", b"\x91" * 5000])
def test_a_payload_that_is_no_messagepack_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="holds no records"):
        records.decode(data)
