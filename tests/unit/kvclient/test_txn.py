"""A transaction in the SDK: its bytes under a prefix and a codec, what is refused before it is sent, and what
its result means."""

from __future__ import annotations

from typing import Any

import pytest

import kvclient
from kvclient import Compare, TxnResult, ops, protocol
from kvclient.calls import Calls
from kvclient.codec import resolve
from kvclient.errors import InvalidRequest, KeyTooLong, NotAnInteger, ProtocolError, ValueTooLarge
from kvclient.txn import txn

BYTES: Calls[bytes] = Calls(b"", resolve("bytes"))
JSON: Calls[Any] = Calls(b"app:", resolve("json"))


def test_compares_and_ops_become_the_ops_of_the_wire() -> None:
    call = txn(
        JSON,
        [
            Compare.absent("{a}1"),
            Compare.present(b"{a}2"),
            Compare.version("{a}3", 7),
            Compare.value("{a}4", {"x": 1}),
            Compare.value("{a}5", None),
        ],
        [
            ops.put("{a}k", [1], ttl=1.5),
            ops.delete("{a}l"),
            ops.increment("{a}n"),
            ops.touch("{a}t", 2),
            ops.get("{a}k"),
        ],
        [ops.exists("{a}k"), ops.increment("{a}n", -5), ops.touch("{a}t", None), ops.put("{a}k", "v")],
    )
    assert call.op == protocol.encode_txn(
        [
            (b"app:{a}1", protocol.absent()),
            (b"app:{a}2", protocol.present()),
            (b"app:{a}3", protocol.version_equals(7)),
            (b"app:{a}4", protocol.value_equals(JSON.value({"x": 1}))),
            (b"app:{a}5", protocol.value_equals(b"null")),
        ],
        [
            protocol.encode_put(b"app:{a}k", b"[1]", 1500),
            protocol.encode_delete(b"app:{a}l"),
            protocol.encode_increment(b"app:{a}n", 1),
            protocol.encode_touch(b"app:{a}t", 2000),
            protocol.encode_get(b"app:{a}k"),
        ],
        [
            protocol.encode_exists(b"app:{a}k"),
            protocol.encode_increment(b"app:{a}n", -5),
            protocol.encode_touch(b"app:{a}t", None),
            protocol.encode_put(b"app:{a}k", b'"v"'),
        ],
    )
    assert call.writes
    assert call.key == b"app:{a}1"


def test_results_are_those_of_the_branch_that_was_executed() -> None:
    then = [ops.put("k", 1), ops.get("k"), ops.get("k", default="none"), ops.increment("n"), ops.delete("l")]
    else_ = [ops.exists("k"), ops.touch("k", 1)]
    call = txn(Calls(b"{tag}", resolve("json")), [Compare.present("k")], then, else_)
    held = [0, 1, [[0, 5], [0, b'{"a": 2}', 5], [1], [0, 3, 5], [1]]]
    assert call.decode(held) == TxnResult(True, [5, {"a": 2}, "none", 3, False])
    assert call.decode([0, 0, [[0, 9], [1]]]) == TxnResult(False, [True, False])


def test_a_read_alone_is_a_write_all_the_same() -> None:
    assert txn(BYTES, [], [ops.get(b"k")], []).writes


def test_what_fails_inside_fails_the_whole() -> None:
    call = txn(BYTES, [], [ops.increment(b"k")], [])
    with pytest.raises(NotAnInteger, match="op 0 of the branch"):
        call.decode([3, "op 0 of the branch: the value is not a decimal 64-bit integer"])


@pytest.mark.parametrize(
    "result",
    [
        [0],
        [0, 1],
        [0, 1, b""],
        [0, 1, []],
        [0, 2, [[0, 1]]],
        [0, True, [[0, 1]], 0],
        [0, 0, [[0, 1]]],
        [0, 1, [[0, 1], [0, 1]]],
        [0, 1, [0]],
        [0, 1, [[]]],
        [0, 1, [["x"]]],
        [0, 1, [[0]]],
    ],
    ids=str,
)
def test_malformed_results_are_refused(result: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        txn(BYTES, [], [ops.put(b"k", b"v")], []).decode(result)


def test_keys_need_one_hash_tag() -> None:
    for keys in (("a", "b"), ("{a}1", "{b}1"), ("{a}", "b"), ("{a}1", "a1")):
        with pytest.raises(InvalidRequest, match=r"same hash tag, as in \{user:7\}name"):
            txn(BYTES, [Compare.absent(keys[0])], [ops.get(keys[1])], [])
    txn(BYTES, [Compare.absent("{a}1")], [ops.get("a")], [ops.get("x{a}")])
    txn(Calls(b"{app}", resolve("bytes")), [Compare.absent("a")], [ops.get("b")], [])
    with pytest.raises(InvalidRequest, match="same hash tag"):
        txn(Calls(b"app:", resolve("bytes")), [Compare.absent("a")], [ops.get("b")], [])


def test_a_branch_writes_a_key_only_once() -> None:
    put = ops.put("k", b"")
    for second in (put, ops.delete(b"k"), ops.increment("k"), ops.touch("k", 1)):
        for branches in (([put, second], []), ([], [put, ops.get("k"), second])):
            with pytest.raises(InvalidRequest, match="writes b'k' twice"):
                txn(BYTES, [], *branches)
    txn(BYTES, [], [put, ops.get("k"), ops.exists("k")], [put])


def test_one_to_128_parts() -> None:
    with pytest.raises(InvalidRequest, match="1 to 128 compares and ops together, not 0"):
        txn(BYTES, [], [], [])
    gets = [ops.get("k")] * 64
    txn(BYTES, [Compare.absent("k")] * 32, gets, gets[:32])
    with pytest.raises(InvalidRequest, match="not 129"):
        txn(BYTES, [Compare.absent("k")] * 32, gets, gets[:33])


def test_other_wrong_arguments() -> None:
    with pytest.raises(KeyTooLong):
        txn(BYTES, [Compare.absent(b"k" * 4097)], [], [])
    with pytest.raises(ValueTooLarge):
        txn(BYTES, [], [ops.put(b"k", bytes((8 << 20) + 1))], [])
    with pytest.raises(InvalidRequest, match="ttl"):
        txn(BYTES, [], [ops.put(b"k", b"", ttl=0)], [])
    with pytest.raises(InvalidRequest, match="a version from 1 on"):
        txn(BYTES, [Compare.version("k", 0)], [], [])
    with pytest.raises(InvalidRequest, match="has a condition"):
        txn(BYTES, [Compare("k")], [], [])
    with pytest.raises(TypeError, match=r"Compare\.value"):
        txn(BYTES, [("k", "v")], [], [])  # type: ignore[list-item]
    for wrong in (("get", ("k",)), ops.Op("key", ("k",)), b"", None):
        with pytest.raises(TypeError, match=r"ops\.put"):
            txn(BYTES, [], [wrong], [])  # type: ignore[list-item]


def test_the_package_has_all_it_takes() -> None:
    assert kvclient.ops is ops
    assert {"Compare", "TxnResult", "ops"} <= set(kvclient.__all__)
