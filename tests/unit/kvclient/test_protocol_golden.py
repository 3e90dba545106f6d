"""The wire as bytes: the worked examples of docs/protocol.md section 7, round trips, and hostile frames."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from kvclient.protocol import Entry, Kind, Request, Response

U64 = (1 << 64) - 1


def test_worked_examples_of_the_protocol_page() -> None:
    put = bytes.fromhex("93 02 c4 05 68656c6c6f c4 05 776f726c64")
    assert protocol.encode_put(b"hello", b"world") == put
    request = Request(Kind.OPS, 7, 5000, 0, 0, 1, 1, 1, put)
    frame = bytes.fromhex("9a 01 01 07 cd1388 00 00 01 01 01 c4 10") + put
    assert protocol.encode_request(request) == frame
    assert protocol.decode_request(frame) == request
    answer = bytes.fromhex("95 01 01 07 00 c4 03 92 00 01")
    assert protocol.encode_response(Kind.OPS, 7, Status.OK, b"\x92\x00\x01") == answer
    assert protocol.decode_response(answer) == Response(Kind.OPS, 7, Status.OK, b"\x92\x00\x01")
    assert protocol.decode_results(b"\x92\x00\x01") == [[0, 1]]

    assert protocol.encode_get(b"hello") == bytes.fromhex("92 01 c4 05 68656c6c6f")
    assert protocol.decode_results(bytes.fromhex("93 00 c4 05 776f726c64 01")) == [[0, b"world", 1]]
    assert protocol.decode_results(bytes.fromhex("91 01")) == [[1]]
    put_if_absent = protocol.encode_put(b"k", b"v", None, protocol.absent())
    assert put_if_absent == bytes.fromhex("95 02 c4 01 6b c4 01 76 c0 91 01")
    assert protocol.decode_results(bytes.fromhex("92 02 07")) == [[2, 7]]
    assert protocol.encode_scan(b"", None, 2) == bytes.fromhex("95 07 c4 00 c0 02 00")

    txn = protocol.encode_txn(
        [(b"{7}n", protocol.value_equals(b"1"))],
        [protocol.encode_put(b"{7}n", b"2"), protocol.encode_get(b"{7}m")],
        [protocol.encode_get(b"{7}n")],
    )
    assert txn == bytes.fromhex(
        "94 08 91 92 c4 04 7b377d6e 92 04 c4 01 31"
        "92 93 02 c4 04 7b377d6e c4 01 32 92 01 c4 04 7b377d6d"
        "91 92 01 c4 04 7b377d6e"
    )
    assert len(txn) == 44
    held = bytes.fromhex("93 00 01 92 92 00 09 91 01")
    assert protocol.decode_results(held) == [[0, 1, [[0, 9], [1]]]]
    failed = bytes.fromhex("93 00 00 91 93 00 c4 01 35 04")
    assert protocol.decode_results(failed) == [[0, 0, [[0, b"5", 4]]]]


@pytest.mark.parametrize(
    ("op", "golden"),
    [
        (protocol.encode_put(b"k", b"v", 1000), "94 02 c4 01 6b c4 01 76 cd03e8"),
        (
            protocol.encode_put(b"k", b"v", 1000, protocol.present()),
            "95 02 c4 01 6b c4 01 76 cd03e8 91 02",
        ),
        (
            protocol.encode_put(b"k", b"", None, protocol.value_equals(b"")),
            "95 02 c4 01 6b c4 00 c0 92 04 c4 00",
        ),
        (protocol.encode_delete(b"k"), "92 03 c4 01 6b"),
        (protocol.encode_delete(b"k", protocol.version_equals(7)), "93 03 c4 01 6b 92 03 07"),
        (protocol.encode_exists(b"k"), "92 04 c4 01 6b"),
        (protocol.encode_increment(b"k", 1), "93 05 c4 01 6b 01"),
        (protocol.encode_increment(b"k", -(1 << 63)), "93 05 c4 01 6b d3 8000000000000000"),
        (protocol.encode_touch(b"k", None), "92 06 c4 01 6b"),
        (protocol.encode_touch(b"k", 5), "93 06 c4 01 6b 05"),
        (protocol.encode_scan(b"a", b"b", 10_000, 7), "95 07 c4 01 61 c4 01 62 cd2710 07"),
        (protocol.encode_txn([], [], [protocol.encode_delete(b"k")]), "94 08 90 90 91 92 03 c4 01 6b"),
        (protocol.encode_txn([(b"k", protocol.absent())], [], []), "94 08 91 92 c4 01 6b 91 01 90 90"),
        (
            protocol.encode_txn([], [protocol.encode_get(b"k")] * 16, []),
            "94 08 90 dc0010" + "92 01 c4 01 6b" * 16 + "90",
        ),
        (protocol.encode_admin("status"), "91 a6 737461747573"),
        (protocol.encode_admin("route", b"k"), "92 a5 726f757465 c4 01 6b"),
    ],
)
def test_golden_ops(op: bytes, golden: str) -> None:
    assert op == bytes.fromhex(golden)


def test_numbers_never_change() -> None:
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("OPS", 1),
        ("ADMIN", 2),
        ("PING", 3),
        ("MAP", 4),
        ("WATCH", 5),
    ]
    assert " ".join(op.name for op in sorted(protocol.Op)) == (
        "GET PUT DELETE EXISTS INCREMENT TOUCH SCAN TXN"
    )
    assert sorted(protocol.Op) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (protocol.SCAN_REVERSE, protocol.SCAN_KEYS_ONLY, protocol.SCAN_COUNT) == (1, 2, 4)
    assert (protocol.FLAG_RETRY, protocol.FLAG_BARRIER) == (1, 2)
    assert (protocol.LINEARIZABLE, protocol.LEASE) == (0, 1)
    assert protocol.TTL_MS_MAX == 315_360_000_000
    assert (protocol.KEY_BYTES_MAX, protocol.REQUEST_BYTES_MAX) == (4096, 16_777_216)


u64 = st.integers(0, U64)
u32 = st.integers(0, (1 << 32) - 1)
requests = st.builds(Request, u32, u64, u32, u32, u32, u64, u64, u64, st.binary(max_size=300))


@given(requests)
@settings(max_examples=100, deadline=None)
def test_requests_round_trip(request: Request) -> None:
    decoded = protocol.decode_request(protocol.encode_request(request))
    assert decoded == request
    assert type(decoded) is Request


@pytest.mark.parametrize("size", [65_000, 65_536, 1 << 20, protocol.REQUEST_BYTES_MAX])
def test_large_requests_round_trip(size: int) -> None:
    request = Request(1, U64, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, U64, U64, U64, b"\x93" * size)
    assert protocol.decode_request(protocol.encode_request(request)) == request


@given(u32, u64, st.integers(0, 255), st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_responses_round_trip(kind: int, request_id: int, status: int, body: bytes) -> None:
    frame = protocol.encode_response(kind, request_id, status, body)
    assert protocol.decode_response(frame) == Response(kind, request_id, status, body)


def test_errors_round_trip() -> None:
    body = protocol.encode_error("no", retry_after_ms=5, limit=1, size=2, node="store1", index=0, leader=3)
    assert protocol.decode_error(body) == {
        "message": "no",
        "retry_after_ms": 5,
        "limit": 1,
        "size": 2,
        "node": "store1",
        "index": 0,
        "leader": 3,
    }
    assert protocol.decode_error(protocol.encode_error("no")) == {"message": "no"}
    assert protocol.encode_error("no") == bytes.fromhex("81 a7 6d657373616765 a2 6e6f")


def test_unknown_error_fields_of_a_later_version_are_ignored() -> None:
    assert protocol.decode_error(msgpack.packb({"message": "no", "shade": 3, 7: 8})) == {"message": "no"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"message": b"no"}),
        msgpack.packb({"message": "no", "limit": "1"}),
        msgpack.packb({"message": "no", "retry_after_ms": None}),
        msgpack.packb({"message": "no", "node": 1}),
        msgpack.packb({"message": "no", "index": True}),
    ],
    ids=bytes.hex,
)
def test_malformed_error_bodies(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_error(body)


GOOD: list[Any] = [1, 1, 7, 5000, 0, 0, 1, 1, 1, b"ops"]


@pytest.mark.parametrize("position", range(1, 10))
@pytest.mark.parametrize("value", [-1, 1.0, None, True, "1", [], 1 << 32, U64])
def test_every_field_of_a_request_is_checked(position: int, value: Any) -> None:
    """The last two values fit the 64-bit fields only."""
    fields = GOOD.copy()
    fields[position] = value
    frame = msgpack.packb(fields)
    if value in (1 << 32, U64) and position in (2, 6, 7, 8):
        assert protocol.decode_request(frame) == Request(*fields[1:])
        return
    with pytest.raises(ProtocolError, match=f"request field {Request._fields[position - 1]} must") as caught:
        protocol.decode_request(frame)
    assert caught.value.code == Status.INVALID_REQUEST
    assert caught.value.request_id == (0 if position == 2 else 7)


@pytest.mark.parametrize(
    "fields",
    [[2, *GOOD[1:]], [0, *GOOD[1:]], [-1, *GOOD[1:]], [2], [2, 1, 7], [2, *GOOD[1:], "new field"]],
    ids=str,
)
def test_other_versions_are_named_even_with_another_shape(fields: list[Any]) -> None:
    with pytest.raises(
        ProtocolError, match=f"version {fields[0]} is not understood, this side speaks 1"
    ) as caught:
        protocol.decode_request(msgpack.packb(fields))
    assert caught.value.code == Status.VERSION_MISMATCH
    assert caught.value.request_id == (7 if len(fields) > 2 else 0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "request",
        b"request",
        {},
        [],
        GOOD[:9],
        [*GOOD, 0],
        [True, *GOOD[1:]],
        [1.0, *GOOD[1:]],
        ["1"],
    ],
    ids=str,
)
def test_other_shapes_are_no_request(value: Any) -> None:
    with pytest.raises(ProtocolError, match="a request is an array of 10") as caught:
        protocol.decode_request(msgpack.packb(value))
    assert (caught.value.code, caught.value.request_id) == (Status.INVALID_REQUEST, 0)


LARGE = b"x" * 70_000


@pytest.mark.parametrize(
    "frame",
    [
        LARGE,
        b"\xc1" + LARGE,
        b"\x9a" * 70_000,
        b"\xdd\x00\x01\x11\x70" + b"\x90" * 70_000,
        b"\x9a" + b"\x01" * 9 + b"\xdd\x00\x01\x11\x70" + b"\x90" * 70_000,
        b"\x9a" + b"\x01" * 9 + b"\xc6\x00\x01\x11\x71" + LARGE,
        b"\x9a" + b"\x01" * 9 + b"\xc6\x00\x01\x11\x6f" + LARGE,
        b"\x9a" + b"\x01" * 8 + b"\x90" + b"\xc6\x00\x01\x11\x70" + LARGE,
        b"\x9b" + b"\x01" * 10 + b"\xc6\x00\x01\x11\x70" + LARGE,
        b"\x90" + LARGE,
    ],
    ids=lambda frame: frame[:16].hex(),
)
def test_large_frames_that_are_no_request(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(frame)


def test_large_request_of_another_version_is_named() -> None:
    with pytest.raises(ProtocolError, match="version 2") as caught:
        protocol.decode_request(msgpack.packb([2, *GOOD[1:9], LARGE]))
    assert (caught.value.code, caught.value.request_id) == (Status.VERSION_MISMATCH, 7)


def test_a_hostile_frame_does_not_grow_in_memory() -> None:
    """Sixteen MiB of empty arrays would be a gigabyte of lists."""
    frame = b"\x9a" + b"\x01" * 9 + b"\xdd\x00\xff\xff\x00" + b"\x90" * 0xFFFF00
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            protocol.decode_request(frame)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(frame)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb([1, 1, 7, 0]),
        msgpack.packb([1, 1, 7, 0, b"", 0]),
        msgpack.packb([1, "1", 7, 0, b""]),
        msgpack.packb([1, 1, None, 0, b""]),
        msgpack.packb([1, 1, 7, True, b""]),
        msgpack.packb([1, 1, 7, 0, ""]),
        msgpack.packb({}),
    ],
    ids=bytes.hex,
)
def test_malformed_responses(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_response(frame)


def test_response_of_another_version() -> None:
    with pytest.raises(ProtocolError, match=r"version 2 .* speaks 1") as caught:
        protocol.decode_response(msgpack.packb([2, 1, 7, 0, b""]))
    assert caught.value.code == Status.VERSION_MISMATCH


def test_results_are_split() -> None:
    body = b"\x92\x00\x01" + b"\x91\x01" + msgpack.packb([23, "gone", 5])
    assert protocol.decode_results(body) == [[0, 1], [1], [23, "gone", 5]]
    assert protocol.decode_results(b"") == []


@pytest.mark.parametrize(
    "body",
    [
        b"\x91",
        b"\x91\x01\x92\x00",
        b"\x91\x01\xc4\x05a",
        b"\x90",
        b"\x01",
        b"\xc0",
        b"\x91\xa0",
        b"\x91\xc3",
        b"\xc1",
    ],
    ids=bytes.hex,
)
def test_malformed_results(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_results(body)


def test_entries_are_threes() -> None:
    entries = b"\xc4\x01a\xc4\x01v\x07" + b"\xc4\x01b\xc0\x08"
    assert list(protocol.decode_entries(entries)) == [Entry(b"a", b"v", 7), Entry(b"b", None, 8)]
    assert list(protocol.decode_entries(b"")) == []


@pytest.mark.parametrize(
    "entries",
    [
        b"\xc4\x01a",
        b"\xc4\x01a\xc0",
        b"\xc4\x01a\xc0\xc4",
        b"\xc4\x01a\xc0\x01\xc4\x05",
        b"\xa1a\xc0\x01",
        b"\xc4\x01a\xa0\x01",
        b"\xc4\x01a\xc0\xc0",
        b"\xc1",
        b"\x01\x02\x03",
    ],
    ids=bytes.hex,
)
def test_malformed_entries(entries: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_entries(entries)


def test_an_encoder_that_failed_does_not_spoil_the_next_message() -> None:
    with pytest.raises(OverflowError):
        protocol.encode_increment(b"k", 1 << 70)
    assert protocol.encode_get(b"k") == bytes.fromhex("92 01 c4 01 6b")


DECODERS = (
    protocol.decode_request,
    protocol.decode_response,
    protocol.decode_error,
    protocol.decode_results,
    protocol.decode_entries,
    protocol.unpack,
)


def check_only_protocol_errors(frame: bytes) -> None:
    for decode in DECODERS:
        try:
            decode(frame)
        except ProtocolError as refusal:
            error = refusal
        else:
            continue
        assert error.code in (Status.INVALID_REQUEST, Status.VERSION_MISMATCH)
        assert 0 <= error.request_id <= U64


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_frames_raise_protocol_errors_only(frame: bytes) -> None:
    check_only_protocol_errors(frame)


def test_mutated_frames_raise_protocol_errors_only() -> None:
    seeds = [
        protocol.encode_request(Request(1, 7, 5000, 0, 0, 1, 1, 1, protocol.encode_put(b"k", b"v"))),
        protocol.encode_response(1, 7, 0, b"\x93\x00\xc4\x01v\x07"),
        protocol.encode_error("no", limit=3, node="store1"),
        b"\x93\x00\xc4\x01v\x07" * 3,
        b"\xc4\x01a\xc4\x01v\x07" * 3,
    ]
    source = random.Random(7)
    for _ in range(5000):
        frame = bytearray(source.choice(seeds))
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(frame) + 1)
            frame[at : at + source.randint(0, 3)] = source.randbytes(source.randint(0, 3))
        check_only_protocol_errors(bytes(frame))


@pytest.mark.parametrize(
    "frame",
    [
        b"\x91" * 5000,
        b"\x81" * 5000,
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\x05",
        b"\xa1\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=lambda frame: frame[:6].hex(),
)
def test_frames_that_make_decoders_stumble(frame: bytes) -> None:
    check_only_protocol_errors(frame)
    with pytest.raises(ProtocolError):
        protocol.decode_request(frame)
