"""TXN in an engine: compares, branches, all or nothing, one version, and the same again from the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest, Status
from kvclient.protocol import (
    absent,
    encode_delete,
    encode_exists,
    encode_get,
    encode_increment,
    encode_put,
    encode_touch,
    encode_txn,
    present,
    value_equals,
    version_equals,
)
from storenode.engine import Engine

BIG = bytes(range(256)) * 40


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path)) as opened:
        yield opened


def run(engine: Engine, ops: bytes) -> list[Any]:
    return protocol.decode_results(engine.write(ops))


def test_the_worked_example_of_the_protocol_page(engine: Engine) -> None:
    txn = encode_txn(
        [(b"{7}n", value_equals(b"1"))],
        [encode_put(b"{7}n", b"2"), encode_get(b"{7}m")],
        [encode_get(b"{7}n")],
    )
    engine.write(encode_put(b"{7}n", b"5") * 4)
    assert engine.write(txn) == bytes.fromhex("93 00 00 91 93 00 c4 01 35 04")
    engine.write(encode_put(b"{7}n", b"1") * 3)
    assert engine.write(txn) == bytes.fromhex("93 00 01 92 92 00 09 91 01")
    assert engine.scan() == [(b"{7}n", b"2")]


@pytest.mark.parametrize(
    ("compares", "held"),
    [
        ([], 1),
        ([(b"k", present())], 1),
        ([(b"k", absent())], 0),
        ([(b"no", absent())], 1),
        ([(b"no", present())], 0),
        ([(b"k", version_equals(1))], 1),
        ([(b"k", version_equals(2))], 0),
        ([(b"no", version_equals(0))], 0),
        ([(b"k", value_equals(b"v"))], 1),
        ([(b"k", value_equals(b""))], 0),
        ([(b"k", present()), (b"k", version_equals(1)), (b"no", absent())], 1),
        ([(b"k", present()), (b"k", version_equals(9)), (b"no", absent())], 0),
    ],
)
def test_all_compares_decide(engine: Engine, compares: Any, held: int) -> None:
    engine.put(b"k", b"v")
    txn = encode_txn(compares, [encode_put(b"then", b"")], [encode_put(b"else", b"")])
    assert run(engine, txn) == [[0, held, [[0, 2]]]]
    assert engine.get(b"then" if held else b"else") == b""
    assert engine.get(b"else" if held else b"then") is None


def test_ops_see_what_those_before_them_wrote_and_compares_do_not(engine: Engine) -> None:
    engine.write(encode_put(b"a", b"old") + encode_put(b"n", b"5") + encode_put(b"gone", b"x"))
    txn = encode_txn(
        [(b"a", value_equals(b"old")), (b"new", absent())],
        [
            encode_get(b"a"),
            encode_put(b"a", BIG, 1000),
            encode_get(b"a"),
            encode_exists(b"new"),
            encode_put(b"new", b""),
            encode_exists(b"new"),
            encode_get(b"n"),
            encode_increment(b"n", -7),
            encode_get(b"n"),
            encode_delete(b"gone"),
            encode_get(b"gone"),
            encode_delete(b"never"),
            encode_touch(b"nor this", 5),
        ],
        [],
    )
    assert run(engine, txn) == [
        [
            0,
            1,
            [
                [0, b"old", 1],
                [0, 4],
                [0, BIG, 4, 1000],
                [1],
                [0, 4],
                [0, 4],
                [0, b"5", 2],
                [0, -2, 4],
                [0, b"-2", 4],
                [0, 4],
                [1],
                [1],
                [1],
            ],
        ]
    ]


def test_all_that_it_writes_has_one_version_and_the_next_op_has_the_next(engine: Engine) -> None:
    txn = encode_txn([], [encode_put(b"a", b""), encode_increment(b"b", 1)], [])
    results = run(engine, encode_put(b"x", b"") + txn + encode_put(b"a", b"later") + encode_get(b"b"))
    assert results == [[0, 1], [0, 1, [[0, 2], [0, 1, 2]]], [0, 3], [0, b"1", 2]]
    assert engine.next_sequence == 5


@pytest.mark.parametrize("flushed", [False, True])
def test_one_op_that_cannot_be_executed_leaves_everything_as_it_was(engine: Engine, flushed: bool) -> None:
    engine.write(encode_put(b"a", b"1") + encode_put(b"text", BIG) + encode_put(b"t", BIG, 10**9))
    if flushed:
        engine.flush()
    versions = b"".join(map(encode_exists, (b"a", b"t", b"text")))
    before = engine.scan(), engine.read(versions, 0)
    writes = [
        encode_put(b"a", b"2"),
        encode_put(b"new", b""),
        encode_touch(b"t", None),
        encode_delete(b"text"),
    ]
    run(engine, encode_increment(b"n", 2**63 - 1))
    failing = encode_txn([], [*writes, encode_increment(b"n", 1), encode_get(b"a")], [])
    ((status, message),) = run(engine, failing)
    assert status == Status.NOT_AN_INTEGER
    assert message == "op 4 of the branch: the sum does not fit into 64 bits"
    text = encode_txn([(b"a", absent())], [], [encode_put(b"a", b"2"), encode_increment(b"text", 1)])
    ((status, message),) = run(engine, encode_get(b"a") + text)[1:]
    assert (status, message) == (3, "op 1 of the branch: the value is not a decimal 64-bit integer")
    assert ([pair for pair in engine.scan() if pair[0] != b"n"], engine.read(versions, 0)) == before
    assert run(engine, encode_put(b"z", b"")) == [[0, engine.next_sequence - 1]]


def test_values_are_the_same_after_a_touch_in_a_transaction(tmp_path: Path) -> None:
    """From a table, from the memtable before, and from this one; short enough to be copied, and not."""
    keys = [b"%s-%d" % (place, size) for place in (b"table", b"memtable") for size in (0, 24, 25, 10_000)]
    values = {key: key[:1] * int(key.split(b"-")[1]) for key in keys}
    touch = encode_txn([], [encode_touch(key, 10**9) for key in keys], [])
    with engine_package.open(str(tmp_path)) as engine:
        for key in keys[:4]:
            engine.put(key, values[key])
        engine.flush()
        for key in keys[4:]:
            engine.put(key, values[key])
        assert run(engine, touch) == [[0, 1, [[0, 9]] * 8]]
        engine.flush()
        assert dict(engine.scan()) == values
        assert engine.verify() == []
    with engine_package.open(str(tmp_path)) as engine:
        assert dict(engine.scan()) == values


def test_the_log_says_the_same_again(tmp_path: Path) -> None:
    swap = encode_txn(
        [(b"a", value_equals(b"0"))],
        [encode_put(b"a", b"1"), encode_increment(b"n", 1)],
        [encode_put(b"a", b"0", 10**9), encode_delete(b"n"), encode_increment(b"{m}", 1)],
    )
    with engine_package.open(str(tmp_path)) as engine:
        results = [engine.write(swap) for _ in range(7)]
        assert len(set(results)) == 7
        state, following = engine.scan(), engine.next_sequence
    with engine_package.open(str(tmp_path)) as engine:
        assert (engine.scan(), engine.next_sequence) == (state, following)
        assert dict(state)[b"{m}"] == b"4"


def test_a_get_beyond_64_mib_of_results_fails_the_whole(engine: Engine) -> None:
    engine.put(b"k", bytes(1 << 20))
    gets = [encode_get(b"k")] * 65
    txn = encode_txn([], [encode_put(b"a", b""), *gets], [])
    ((status, message),) = run(engine, txn)
    assert status == Status.REQUEST_TOO_LARGE
    assert message.startswith("op 65 of the branch: the results before this one are over 64 MiB")
    assert engine.get(b"a") is None
    ((_, held, results),) = run(engine, encode_txn([], [encode_put(b"a", b""), *gets[:64]], []))
    assert (held, len(results)) == (1, 65)
    assert engine.get(b"a") == b""


def test_a_damaged_block_fails_the_whole(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path)) as engine:
        engine.put(b"k", b"1" * 100)
        engine.flush()
    (table,) = tmp_path.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[20] ^= 1
    table.write_bytes(content)
    with engine_package.open(str(tmp_path)) as engine:
        for txn, where in (
            (encode_txn([], [encode_put(b"a", b""), encode_get(b"k")], []), "op 1 of the branch: table "),
            (encode_txn([(b"k", present())], [encode_put(b"a", b"")], [encode_put(b"b", b"")]), "table "),
        ):
            ((status, message), following) = run(engine, txn + encode_get(b"a"))
            assert status == Status.CORRUPTION
            assert message.startswith(where)
            assert following == [Status.NOT_FOUND]
        assert engine.damage is not None
        assert engine.get(b"b") is None


def test_as_many_parts_as_there_may_be(engine: Engine) -> None:
    puts = [encode_put(b"%03d" % number, b"v") for number in range(128)]
    ((status, held, results),) = run(engine, encode_txn([], puts, []))
    assert (status, held, results) == (0, 1, [[0, 1]] * 128)
    assert len(engine.scan()) == 128
    with pytest.raises(InvalidRequest):
        engine.write(encode_txn([(b"k", absent())], puts, []))


GET = [1, b"k"]
PUT = [2, b"k", b"v"]


@pytest.mark.parametrize(
    "fields",
    [
        [8],
        [8, [], [GET]],
        [8, [], [GET], [], []],
        [8, [], [], []],
        [8, None, [GET], []],
        [8, [], [GET], b""],
        [8, [GET], [], []],
        [8, [[b"k", None]], [GET], []],
        [8, [[b"k", [5]]], [GET], []],
        [8, [[b"", [1]]], [], []],
        [8, [[b"k"]], [GET], []],
        [8, [], [[2, b"k", b"v", None, [1]]], []],
        [8, [], [], [[3, b"k", [2]]]],
        [8, [], [[7, b"", None, 1, 0]], []],
        [8, [], [[8, [], [GET], []]], []],
        [8, [], [[9, b"a", b"b"]], []],
        [8, [], [PUT, PUT], []],
        [8, [], [], [PUT, GET, [5, b"k", 1]]],
        [8, [], [GET] * 129, []],
        [8, [[b"k", [1]]] * 64, [GET] * 32, [GET] * 33],
    ],
    ids=str,
)
def test_what_is_no_transaction_is_refused_before_anything_is_executed(
    engine: Engine, fields: list[Any]
) -> None:
    with pytest.raises(InvalidRequest):
        engine.write(encode_put(b"first", b"") + msgpack.packb(fields))
    assert engine.scan() == []


def test_it_is_no_read(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="only GET"):
        engine.read(encode_txn([], [encode_get(b"k")], []), 0)
