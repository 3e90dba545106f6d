"""TXN in an op stream: its grammar, its limits, and that it goes to one partition as a whole."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import InvalidRequest, KeyTooLong, TooManyOps, Unsupported, ValueTooLarge
from shared import hashing_py, opstream
from shared.hashing import partition_of
from shared.opstream import Limits

LIMITS = Limits(1000)

GET = [1, b"k"]
PUT = [2, b"k", b"v"]


def txn(compares: Any = (), then: Any = (), otherwise: Any = ()) -> bytes:
    return msgpack.packb([8, compares, then, otherwise])  # type: ignore[no-any-return]


VALID = [
    txn(then=[GET]),
    txn(otherwise=[GET]),
    txn(compares=[[b"k", [1]]]),
    txn(compares=[[b"k", [2]], [b"k", [3, (1 << 64) - 1]], [b"k", [4, b"v" * 1000]]]),
    txn(then=[PUT], otherwise=[PUT]),
    txn(then=[[2, b"k", b"v", 5], [3, b"l"], [4, b"k"], [5, b"m", -1], [6, b"n"], [6, b"o", 7], GET]),
    txn(then=[PUT, GET, GET, [4, b"k"]]),
    txn(then=[[2, b"k", b"v", None, None], [3, b"l", None]]),
    txn(then=[[1, b"%d" % number] for number in range(128)]),
    txn([[b"k", [1]]] * 42, [GET] * 43, [GET] * 43),
    # Any width MessagePack allows, shortest or not.
    b"\xdd\x00\x00\x00\x04\xcc\x08\xdc\x00\x00\xdd\x00\x00\x00\x01\xdc\x00\x02\xcd\x00\x01\xc6\x00\x00\x00\x01k\x90",
]

MALFORMED = [
    (txn(), "a compare or an op"),
    (msgpack.packb([8]), "number of elements"),
    (msgpack.packb([8, [], [GET]]), "number of elements"),
    (msgpack.packb([8, [], [GET], [], []]), "number of elements"),
    (txn(compares=None, then=[GET]), "must be arrays"),
    (txn(then=b"x"), "must be arrays"),
    (txn(then=[GET], otherwise={}), "must be arrays"),
    (txn(compares=[GET[1]]), "a key and a condition"),
    (txn(compares=[[b"k"]]), "a key and a condition"),
    (txn(compares=[[b"k", [1], 1]]), "a key and a condition"),
    (txn(compares=[[b"k", None]]), "must have a condition"),
    (txn(compares=[[b"k", [5]]]), "condition"),
    (txn(compares=[[b"k", [4, "v"]]]), "value must be bin"),
    (txn(compares=[["k", [1]]]), "key must be bin"),
    (txn(compares=[[b"", [1]]]), "must not be empty"),
    (txn(then=[1]), "array"),
    (txn(then=[[]]), "array"),
    (txn(then=[[1, "k"]]), "key must be bin"),
    (txn(then=[[1, b""]]), "must not be empty"),
    (txn(then=[[1, b"k", b"v"]]), "number of elements"),
    (txn(then=[[2, b"k", b"v", 0]]), "ttl_ms"),
    (txn(then=[[2, b"k", b"v", None, [1]]]), "no condition"),
    (txn(otherwise=[[3, b"k", [2]]]), "no condition"),
    (txn(then=[[7, b"", None, 1, 0]]), "no SCAN"),
    (txn(then=[[8, [], [GET], []]]), "no other TXN"),
    (txn(then=[PUT, GET, PUT]), "write a key only once"),
    (txn(then=[[3, b"k"], [5, b"k", 1]]), "write a key only once"),
    (txn(otherwise=[[6, b"k", 1], [2, b"l", b""], PUT]), "write a key only once"),
    (txn(then=[GET] * 129), "at most 128"),
    (txn([[b"k", [1]]] * 43, [GET] * 43, [GET] * 43), "at most 128"),
    (txn([[b"k", [1]]] * 128, [GET]), "at most 128"),
]


@pytest.mark.parametrize("ops", VALID, ids=range(len(VALID)))
def test_a_transaction_is_one_op_that_writes(ops: bytes) -> None:
    shape = opstream.inspect(ops, LIMITS)
    assert (shape.count, shape.writes, shape.scan) == (1, True, False)
    split = opstream.split(ops, 0, LIMITS)
    assert split.parts == [(0, ops)]
    assert split.parts[0][1] is ops
    assert split.merge([b"\x93\x00\x01\x91\x92\x00\x07"]) == b"\x93\x00\x01\x91\x92\x00\x07"


@pytest.mark.parametrize(("ops", "text"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_transaction_is_refused_and_named(ops: bytes, text: str) -> None:
    good = txn(then=[GET])
    for check in (lambda ops: opstream.inspect(ops, LIMITS), lambda ops: opstream.split(ops, 4, LIMITS)):
        with pytest.raises(InvalidRequest, match=f"op 0: .*{text}") as caught:
            check(ops)
        assert type(caught.value) is InvalidRequest
        with pytest.raises(InvalidRequest, match=f"op 1: .*{text}") as caught:
            check(good + ops)
        assert caught.value.index == 1


@pytest.mark.parametrize("ops", VALID, ids=range(len(VALID)))
def test_every_truncation_of_a_transaction_is_refused(ops: bytes) -> None:
    for end in range(1, len(ops)):
        with pytest.raises(InvalidRequest):
            opstream.inspect(ops[:end], LIMITS)


def test_limits_of_keys_and_values_hold_inside() -> None:
    for ops in (txn(compares=[[b"k" * 4097, [1]]]), txn(otherwise=[[1, b"k" * 4097]])):
        with pytest.raises(KeyTooLong) as caught:
            opstream.inspect(ops, LIMITS)
        assert (caught.value.limit, caught.value.size, caught.value.index) == (4096, 4097, 0)
    for ops in (txn(compares=[[b"k", [4, b"v" * 1001]]]), txn(then=[[2, b"k", b"v" * 1001]])):
        with pytest.raises(ValueTooLarge) as large:
            opstream.inspect(ops, LIMITS)
        assert (large.value.limit, large.value.size, large.value.index) == (1000, 1001, 0)


@pytest.mark.parametrize("code", [0, 9, 99])
def test_unknown_op_codes_inside_are_unsupported(code: int) -> None:
    with pytest.raises(Unsupported, match=f"op 0: unknown op code {code}"):
        opstream.inspect(txn(then=[[code, b"k"]]), LIMITS)


def test_a_transaction_counts_as_its_parts() -> None:
    limits = Limits(1000, ops_max=10)
    of_four = txn([[b"k", [1]]], [PUT, GET], [GET])
    opstream.inspect(of_four * 2 + msgpack.packb(GET) * 2, limits)
    assert opstream.split(of_four * 2 + msgpack.packb(GET) * 2, 4, limits).count == 4
    for ops, size in (
        (of_four * 2 + msgpack.packb(GET) * 3, 11),
        (of_four * 3, 12),
        (txn(then=[GET] * 11), 11),
        (of_four * 2 + msgpack.packb(GET) + of_four, 13),
    ):
        for check in (lambda ops: opstream.inspect(ops, limits), lambda ops: opstream.split(ops, 4, limits)):
            with pytest.raises(TooManyOps) as caught:
                check(ops)
            assert (caught.value.limit, caught.value.size) == (10, size)


def test_a_transaction_goes_where_all_its_keys_are() -> None:
    first, second = (
        txn([[b"{%c}1" % tag, [1]]], [[2, b"{%c}2" % tag, b"v"]], [[1, b"{%c}3" % tag]]) for tag in b"ab"
    )
    get = msgpack.packb([1, b"{a}4"])
    split = opstream.split(first + second + get, 12, LIMITS)
    assert split.parts == [(partition_of(b"a", 12), first + get), (partition_of(b"b", 12), second)]
    results = [b"\x93\x00\x01\x91\x92\x00\x05\x91\x01", b"\x93\x00\x00\x91\x91\x01"]
    assert split.merge(results) == (b"\x93\x00\x01\x91\x92\x00\x05\x93\x00\x00\x91\x91\x01\x91\x01")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("leading", [b"", msgpack.packb([1, b"{x}"]), msgpack.packb([1, b"x"])])
def test_keys_of_several_partitions_are_refused_with_advice(place: int, leading: bytes) -> None:
    parts: list[Any] = [[[b"{a}1", [1]]], [[1, b"{a}2"]], [[3, b"{a}3"]]]
    parts[place] = [*parts[place], [b"{b}", [2]] if place == 0 else [1, b"{b}"]]
    ops = leading + txn(*parts)
    assert opstream.split(ops, 0, LIMITS).count == opstream.inspect(ops, LIMITS).count
    with pytest.raises(InvalidRequest, match=r"one partition.*same hash tag, as in \{user:7\}name") as caught:
        opstream.split(ops, 12, LIMITS)
    assert caught.value.index == (1 if leading else 0)


@pytest.mark.parametrize(
    "key", [b"k", b"{a}k", b"x{a}", b"{}a", b"}{a", b"{a", b"a}", b"{{a}}", b"{a}{b}", b"{"]
)
def test_the_sdk_sees_the_same_hash_tags(key: bytes) -> None:
    assert protocol.hashed_part(key) == hashing_py.hashed_part(key)


def test_as_many_parts_as_the_page_allows() -> None:
    assert protocol.TXN_PARTS_MAX == 128
