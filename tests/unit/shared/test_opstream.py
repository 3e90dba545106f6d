"""The op stream: every rule of docs/protocol.md sections 2 and 5, slicing and merging."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import (
    InvalidRequest,
    KeyTooLong,
    ProtocolError,
    RequestTooLarge,
    Status,
    TooManyOps,
    Unsupported,
    ValueTooLarge,
)
from shared import opstream
from shared.hashing import partition_of
from shared.opstream import Limits

LIMITS = Limits(1000)


def op(*fields: Any) -> bytes:
    return msgpack.packb(fields)  # type: ignore[no-any-return]


VALID = [
    op(1, b"k"),
    op(2, b"k", b""),
    op(2, b"k", b"v" * 1000),
    op(2, b"k", b"v", None),
    op(2, b"k", b"v", 1),
    op(2, b"k", b"v", protocol.TTL_MS_MAX),
    op(2, b"k", b"v", None, None),
    op(2, b"k", b"v", None, [1]),
    op(2, b"k", b"v", 5, [2]),
    op(2, b"k", b"v", None, [3, 0]),
    op(2, b"k", b"v", None, [3, (1 << 64) - 1]),
    op(2, b"k", b"v", None, [4, b""]),
    op(2, b"k", b"v", None, [4, b"v" * 1000]),
    op(3, b"k"),
    op(3, b"k", None),
    op(3, b"k", [1]),
    op(4, b"k" * 4096),
    op(5, b"k", 0),
    op(5, b"k", -(1 << 63)),
    op(5, b"k", (1 << 63) - 1),
    op(6, b"k"),
    op(6, b"k", None),
    op(6, b"k", 1),
    op(7, b"", None, 1, 0),
    op(7, b"", b"", 10_000, 7),
    op(7, b"a" * 4096, b"b" * 4096, 10, 1),
    # Any width MessagePack allows, shortest or not.
    b"\xdc\x00\x02\xcc\x01\xc5\x00\x01k",
    b"\xdd\x00\x00\x00\x02\xcd\x00\x01\xc6\x00\x00\x00\x01k",
    b"\x92\xce\x00\x00\x00\x01\xc4\x01k",
    b"\x92\xcf\x00\x00\x00\x00\x00\x00\x00\x01\xc4\x01k",
    b"\x92\xd0\x01\xc4\x01k",
    b"\x93\x05\xc4\x01k\xd1\xff\xff",
    b"\x93\x05\xc4\x01k\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x93\x05\xc4\x01k\xcf\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x93\x06\xc4\x01k\xd2\x00\x00\x00\x01",
]

MALFORMED = [
    (b"\x00", "array"),
    (b"\xc0", "array"),
    (b"\x90", "array"),
    (b"\xc1", "array"),
    (b"\x80", "array"),
    (b"\xa1k", "array"),
    (op(-1, b"k"), "code"),
    (op(1.0, b"k"), "code"),
    (op(None, b"k"), "code"),
    (op(True, b"k"), "code"),
    (op("1", b"k"), "code"),
    (op([1], b"k"), "code"),
    (op(1), "number of elements"),
    (op(1, b"k", None), "number of elements"),
    (op(2, b"k"), "number of elements"),
    (op(2, b"k", b"v", None, None, None), "number of elements"),
    (op(3, b"k", None, None), "number of elements"),
    (op(4, b"k", 1), "number of elements"),
    (op(5, b"k"), "number of elements"),
    (op(5, b"k", 1, 1), "number of elements"),
    (op(6, b"k", 1, 1), "number of elements"),
    (op(7, b"", None, 1), "number of elements"),
    (op(7, b"", None, 1, 0, 0), "number of elements"),
    (op(1, "k"), "key must be bin"),
    (op(1, None), "key must be bin"),
    (op(1, 7), "key must be bin"),
    (op(1, [b"k"]), "key must be bin"),
    (op(1, b""), "must not be empty"),
    (op(2, b"k", "v"), "value must be bin"),
    (op(2, b"k", None), "value must be bin"),
    (op(2, b"k", b"v", 0), "ttl_ms"),
    (op(2, b"k", b"v", -1), "ttl_ms"),
    (op(2, b"k", b"v", protocol.TTL_MS_MAX + 1), "ttl_ms"),
    (op(2, b"k", b"v", 1.5), "ttl_ms"),
    (op(2, b"k", b"v", True), "ttl_ms"),
    (op(6, b"k", 0), "ttl_ms"),
    (op(2, b"k", b"v", None, 1), "condition"),
    (op(2, b"k", b"v", None, []), "condition"),
    (op(2, b"k", b"v", None, [1, 2, 3]), "condition"),
    (op(2, b"k", b"v", None, [0]), "condition"),
    (op(2, b"k", b"v", None, [5]), "condition"),
    (op(2, b"k", b"v", None, [-1]), "condition"),
    (op(2, b"k", b"v", None, [b"1"]), "condition"),
    (op(2, b"k", b"v", None, [1, 2]), "condition"),
    (op(3, b"k", [3]), "condition"),
    (op(3, b"k", [3, -1]), "version"),
    (op(3, b"k", [3, b"1"]), "version"),
    (op(3, b"k", [4, "v"]), "value must be bin"),
    (op(5, b"k", 1 << 63), "delta"),
    (op(5, b"k", 1.0), "delta"),
    (op(5, b"k", b"1"), "delta"),
    (op(7, None, None, 1, 0), "start"),
    (op(7, "", None, 1, 0), "start"),
    (op(7, b"", "", 1, 0), "stop"),
    (op(7, b"", None, 0, 0), "limit"),
    (op(7, b"", None, 10_001, 0), "limit"),
    (op(7, b"", None, -1, 0), "limit"),
    (op(7, b"", None, None, 0), "limit"),
    (op(7, b"", None, 1, 8), "flags"),
    (op(7, b"", None, 1, -1), "flags"),
    (op(7, b"", None, 1, None), "flags"),
    (op(7, b"", None, 1, 0) + op(1, b"k"), "SCAN"),
    (op(1, b"k") + op(7, b"", None, 1, 0), "SCAN"),
    (op(1, b"k") + b"\x00", "array"),
    (op(1, b"k") + b"\xc0", "array"),
]


@pytest.mark.parametrize("ops", VALID, ids=bytes.hex)
def test_valid_ops_pass(ops: bytes) -> None:
    shape = opstream.inspect(ops, LIMITS)
    code = msgpack.unpackb(ops)[0]
    assert (shape.count, shape.writes, shape.scan) == (1, code in (2, 3, 5, 6), code == 7)
    split = opstream.split(ops, 4, LIMITS)
    assert (split.count, split.writes, split.scan) == (1, shape.writes, shape.scan)
    if not split.scan:
        ((partition, part),) = split.parts
        assert part is ops
        assert partition == partition_of(msgpack.unpackb(ops)[1], 4)


@pytest.mark.parametrize(
    ("ops", "text"), MALFORMED, ids=lambda value: value.hex() if type(value) is bytes else ""
)
def test_malformed_ops_are_refused_and_named(ops: bytes, text: str) -> None:
    for check in (lambda: opstream.inspect(ops, LIMITS), lambda: opstream.split(ops, 4, LIMITS)):
        with pytest.raises(InvalidRequest, match=text) as caught:
            check()
        assert type(caught.value) is InvalidRequest
        assert caught.value.index == (1 if ops.startswith((op(1, b"k"), op(7, b"", None, 1, 0))) else 0)


@pytest.mark.parametrize("ops", VALID, ids=bytes.hex)
def test_every_truncation_is_refused(ops: bytes) -> None:
    for end in range(1, len(ops)):
        with pytest.raises(InvalidRequest):
            opstream.inspect(ops[:end], LIMITS)
        with pytest.raises(InvalidRequest, match="op 1"):
            opstream.split(op(1, b"k") + ops[:end], 0, LIMITS)


def test_empty_stream_is_valid() -> None:
    shape = opstream.inspect(b"", LIMITS)
    assert (shape.count, shape.writes, shape.scan) == (0, False, False)
    split = opstream.split(b"", 4, LIMITS)
    assert split.parts == []
    assert split.merge([]) == b""


@pytest.mark.parametrize("code", [0, 9, 10, 200, 1 << 40])
def test_unknown_op_codes_are_unsupported(code: int) -> None:
    with pytest.raises(Unsupported, match=f"op 1: unknown op code {code}") as caught:
        opstream.inspect(op(1, b"k") + op(code, b"k"), LIMITS)
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "ops",
    [op(1, b"k" * 4097), op(7, b"k" * 4097, None, 1, 0), op(7, b"", b"k" * 4097, 1, 0)],
    ids=["key", "start", "stop"],
)
def test_long_keys_are_named_with_limit_and_size(ops: bytes) -> None:
    with pytest.raises(KeyTooLong) as caught:
        opstream.inspect(ops, LIMITS)
    assert (caught.value.limit, caught.value.size, caught.value.index) == (4096, 4097, 0)


@pytest.mark.parametrize(
    "ops", [op(2, b"k", b"v" * 1001), op(3, b"k", [4, b"v" * 1001])], ids=["value", "condition"]
)
def test_large_values_are_named_with_limit_and_size(ops: bytes) -> None:
    with pytest.raises(ValueTooLarge) as caught:
        opstream.split(op(1, b"k") + ops, 4, LIMITS)
    assert (caught.value.limit, caught.value.size, caught.value.index) == (1000, 1001, 1)


def test_too_many_ops_are_counted() -> None:
    limits = Limits(1000, ops_max=3)
    opstream.inspect(op(1, b"k") * 3, limits)
    for check in (opstream.inspect, lambda ops, limits: opstream.split(ops, 4, limits)):
        with pytest.raises(TooManyOps) as caught:
            check(b"".join(op(1, b"k%d" % index) for index in range(10)), limits)
        assert (caught.value.limit, caught.value.size, caught.value.index) == (3, 10, None)


def test_default_limits_are_those_of_the_protocol() -> None:
    assert (LIMITS.ops_max, LIMITS.request_bytes_max) == (protocol.OPS_MAX, protocol.REQUEST_BYTES_MAX)
    with pytest.raises(ValueError, match="negative"):
        Limits(-1)


def test_too_large_a_stream_is_refused_whatever_it_holds() -> None:
    limits = Limits(1000, request_bytes_max=10)
    with pytest.raises(RequestTooLarge) as caught:
        opstream.inspect(b"\xc1" * 11, limits)
    assert (caught.value.limit, caught.value.size) == (10, 11)


def test_writes_of_a_mixed_stream() -> None:
    assert not opstream.inspect(op(1, b"a") + op(4, b"b"), LIMITS).writes
    assert opstream.inspect(op(1, b"a") + op(6, b"b") + op(1, b"c"), LIMITS).writes


def test_split_keeps_the_order_within_a_part_and_parts_in_first_seen_order() -> None:
    keys = [b"{a}1", b"{a}2", b"{b}1", b"{c}1", b"{a}3", b"{b}2"]
    ops = [op(2, key, b"value of " + key) for key in keys]
    split = opstream.split(b"".join(ops), 12, LIMITS)
    assert split.parts == [
        (partition_of(b"a", 12), ops[0] + ops[1] + ops[4]),
        (partition_of(b"b", 12), ops[2] + ops[5]),
        (partition_of(b"c", 12), ops[3]),
    ]
    assert split.merge([b"\x92\x00\x01\x92\x00\x02\x92\x00\x05", b"\x92\x00\x03\x91\x01", b"\x91\x01"]) == (
        b"\x92\x00\x01\x92\x00\x02\x92\x00\x03\x91\x01\x92\x00\x05\x91\x01"
    )


def test_one_partition_is_passed_on_without_a_copy() -> None:
    ops = b"".join(op(1, b"{tag}%d" % index) for index in range(50))
    ((_, part),) = opstream.split(ops, 12, LIMITS).parts
    assert part is ops
    ((_, part),) = opstream.split(op(1, b"a") + op(1, b"b"), 0, LIMITS).parts
    assert part == op(1, b"a") + op(1, b"b")


def test_all_partitions_of_the_largest_cluster() -> None:
    ops = [op(1, b"key %d" % index) for index in range(10_000)]
    split = opstream.split(b"".join(ops), 12, LIMITS)
    parts: dict[int, list[bytes]] = {}
    for index, one in enumerate(ops):
        parts.setdefault(partition_of(b"key %d" % index, 12), []).append(one)
    assert split.parts == [(partition, b"".join(part)) for partition, part in parts.items()]
    numbered = {partition: [] for partition in parts}
    for index in range(10_000):
        numbered[partition_of(b"key %d" % index, 12)].append(msgpack.packb([0, index]))
    expected = b"".join(msgpack.packb([0, index]) for index in range(10_000))
    assert split.merge([b"".join(numbered[partition]) for partition, _ in split.parts]) == expected


def test_split_can_be_merged_again_and_made_only_by_split() -> None:
    split = opstream.split(op(1, b"{a}") + op(1, b"{b}"), 12, LIMITS)
    assert split.merge([b"\x91\x01", b"\x91\x02"]) == split.merge([b"\x91\x01", b"\x91\x02"])
    with pytest.raises(TypeError):
        opstream.Split()
    with pytest.raises(TypeError):
        opstream.Shape()


def test_a_failed_call_leaves_nothing_behind() -> None:
    good = op(1, b"{a}") + op(1, b"{b}") + op(1, b"{c}")
    expected = opstream.split(good, 12, LIMITS).parts
    with pytest.raises(InvalidRequest):
        opstream.split(op(1, b"{c}") + op(1, b"{b}") + op(1, b"{a}") + b"\x00", 12, LIMITS)
    assert opstream.split(good, 12, LIMITS).parts == expected


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([b"\x91\x01\x91\x01"], "1 results for 2 parts"),
        ([b"\x91\x01", b"\x91\x01", b"\x91\x01"], "3 results for 2 parts"),
        ([b"\x91\x01", b"\x91\x01"], "too few"),
        ([b"\x91\x01\x91\x01", b""], "too few"),
        ([b"\x91\x01\x91\x01\x91\x01", b"\x91\x01"], "too many"),
        ([b"\x91\x01\x91\x01", b"\x91\x01\x00"], "too many"),
        ([b"\x91\x01\x91", b"\x91\x01"], "too few"),
        ([b"\x91\x01\x92\x00\xc1", b"\x91\x01"], "too few"),
        ([b"\x91\x01\x90", b"\x91\x01"], "begins with its status"),
        ([b"\x91\x01\x01", b"\x91\x01"], "begins with its status"),
        ([b"\x91\x01\x91\xff", b"\x91\x01"], "begins with its status"),
        ([b"\x91\x01\x91\xa0", b"\x91\x01"], "begins with its status"),
    ],
)
def test_wrong_results_of_parts_are_refused(results: list[bytes], text: str) -> None:
    split = opstream.split(op(1, b"{a}1") + op(1, b"{b}") + op(1, b"{a}2"), 12, LIMITS)
    with pytest.raises(ProtocolError, match=text):
        split.merge(results)


@pytest.mark.parametrize("results", [b"", b"\x91\x01", b"\x91\x01" * 3, b"\x91\x01\x91", b"\x91\x01\x90"])
def test_wrong_results_of_a_single_part_are_refused(results: bytes) -> None:
    split = opstream.split(op(1, b"{a}1") + op(1, b"{a}2"), 12, LIMITS)
    results_of_two = b"\x91\x01\x93\x00\xc4\x01v\x01"
    assert split.merge([results_of_two]) is results_of_two
    with pytest.raises(ProtocolError):
        split.merge([results])


def test_only_bytes_are_taken() -> None:
    split = opstream.split(op(1, b"{a}"), 12, LIMITS)
    for wrong in (None, "x", bytearray(b"\x91\x01")):
        with pytest.raises(TypeError):
            split.merge([wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            opstream.inspect(wrong, LIMITS)  # type: ignore[arg-type]


def test_repeat_error_is_one_error_per_op() -> None:
    body = opstream.repeat_error(Status.BUSY, "later", 250, 3)
    assert protocol.decode_results(body) == [[20, "later", 250]] * 3
    body = opstream.repeat_error(Status.UNAVAILABLE, "gone", None, 2)
    assert protocol.decode_results(body) == [[23, "gone"]] * 2
    assert opstream.repeat_error(Status.UNAVAILABLE, "gone", None, 0) == b""
    assert len(protocol.decode_results(opstream.repeat_error(41, "x" * 10_000, None, 1))[0][1]) == 300
