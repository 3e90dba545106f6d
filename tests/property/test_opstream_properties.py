"""The native op stream against readable Python: same verdicts on any bytes, same slices, same merges."""

from __future__ import annotations

import random
from typing import Any

import msgpack
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvclient import protocol
from kvclient.errors import KVError, ProtocolError, from_status
from shared import hashing_py, opstream
from shared.opstream import Limits

VALUE_MAX = 300
LIMITS = Limits(VALUE_MAX, ops_max=40)

keys = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.builds(
        lambda tag, rest: b"{%b}%b" % (tag, rest), st.sampled_from([b"a", b"b"]), st.binary(max_size=5)
    ),
)
values = st.binary(max_size=VALUE_MAX)
ttls = st.none() | st.integers(1, protocol.TTL_MS_MAX)
conditions = st.one_of(
    st.none(),
    st.just(protocol.absent()),
    st.just(protocol.present()),
    st.builds(protocol.version_equals, st.integers(0, (1 << 64) - 1)),
    st.builds(protocol.value_equals, values),
)
single_ops = st.one_of(
    st.builds(protocol.encode_get, keys),
    st.builds(protocol.encode_put, keys, values, ttls, conditions),
    st.builds(protocol.encode_delete, keys, conditions),
    st.builds(protocol.encode_exists, keys),
    st.builds(protocol.encode_increment, keys, st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(protocol.encode_touch, keys, ttls),
)
streams = st.lists(single_ops, max_size=40)
inner_ops = st.one_of(
    st.builds(protocol.encode_get, keys),
    st.builds(protocol.encode_put, keys, values, ttls),
    st.builds(protocol.encode_delete, keys),
    st.builds(protocol.encode_increment, keys, st.integers(-3, 3)),
    st.builds(protocol.encode_touch, keys, ttls),
)
# Also such as write a key twice, or have keys of several partitions: the oracle knows.
transactions = st.builds(
    protocol.encode_txn,
    st.lists(st.tuples(keys, conditions), max_size=3),
    st.lists(inner_ops, max_size=4),
    st.lists(inner_ops, max_size=4),
)
scans = st.builds(
    protocol.encode_scan,
    st.binary(max_size=9),
    st.none() | st.binary(max_size=9),
    st.integers(1, 10_000),
    st.integers(0, 7),
)


WRITING = (2, 3, 5, 6, 8)


def parse(ops: bytes) -> list[list[Any]] | None:
    """The ops of a stream, or None if it is not a sequence of whole MessagePack values."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=0)
    unpacker.feed(ops)
    parsed = []
    try:
        while unpacker.tell() < len(ops):
            parsed.append(unpacker.unpack())
    except Exception:  # noqa: BLE001 - the oracle only asks whether it can be read
        return None
    return parsed


def is_integer(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def is_bin(value: object, least: int, most: int) -> bool:
    return type(value) is bytes and least <= len(value) <= most


def is_condition(value: object) -> bool:
    if value is None:
        return True
    if type(value) is not list or not value or type(value[0]) is not int:
        return False
    if len(value) == 1:
        return value[0] in (1, 2)
    if len(value) != 2:
        return False
    return (value[0] == 3 and is_integer(value[1], 0, (1 << 64) - 1)) or (
        value[0] == 4 and is_bin(value[1], 0, VALUE_MAX)
    )


def is_ttl(value: object) -> bool:
    return value is None or is_integer(value, 1, protocol.TTL_MS_MAX)


CHECKS: dict[int, tuple[int, tuple[Any, ...]]] = {
    1: (1, ()),
    2: (2, (lambda value: is_bin(value, 0, VALUE_MAX), is_ttl, is_condition)),
    3: (1, (is_condition,)),
    4: (1, ()),
    5: (2, (lambda value: is_integer(value, -(1 << 63), (1 << 63) - 1),)),
    6: (1, (is_ttl,)),
}


def is_op(op: object) -> bool:
    """docs/protocol.md section 2, for one op."""
    if type(op) is not list or not op or type(op[0]) is not int:
        return False
    if op[0] == 8:
        return is_transaction(op)
    if op[0] == 7:
        return (
            len(op) == 5
            and is_bin(op[1], 0, 4096)
            and (op[2] is None or is_bin(op[2], 0, 4096))
            and is_integer(op[3], 1, 10_000)
            and is_integer(op[4], 0, 7)
        )
    if op[0] not in CHECKS:
        return False
    needed, checks = CHECKS[op[0]]
    rest = op[2:]
    return (
        needed <= len(op) - 1 <= 1 + len(checks)
        and is_bin(op[1], 1, 4096)
        and all(check(value) for check, value in zip(checks, rest, strict=False))
    )


def is_transaction(op: list[Any]) -> bool:
    if len(op) != 4 or any(type(part) is not list for part in op[1:]):
        return False
    if not 1 <= weight(op) <= protocol.TXN_PARTS_MAX:
        return False
    _, compares, *branches = op
    for compare in compares:
        if type(compare) is not list or len(compare) != 2 or not is_bin(compare[0], 1, 4096):
            return False
        if compare[1] is None or not is_condition(compare[1]):
            return False
    return all(map(is_branch, branches))


def is_branch(ops: list[Any]) -> bool:
    for op in ops:
        if not is_op(op) or op[0] in (7, 8):
            return False
        condition = {2: 4, 3: 2}.get(op[0])
        if condition is not None and len(op) > condition and op[condition] is not None:
            return False
    written = [op[1] for op in ops if op[0] in WRITING]
    return len(written) == len(set(written))


def weight(op: list[Any]) -> int:
    return sum(map(len, op[1:])) if op[0] == 8 else 1


def partitions(op: list[Any]) -> set[int]:
    """Those of a checked op, of 16."""
    found = [op[1]] if op[0] != 8 else [part[0] for part in op[1]] + [o[1] for b in op[2:] for o in b]
    return {hashing_py.partition_of(key, 4) for key in found}


def verdict(ops: bytes) -> tuple[int, bool, bool] | None:
    """What inspect() should say; None for a refusal."""
    parsed = parse(ops)
    if parsed is None or not all(map(is_op, parsed)) or sum(map(weight, parsed)) > LIMITS.ops_max:
        return None
    codes = [op[0] for op in parsed]
    if 7 in codes and len(codes) > 1:
        return None
    return len(codes), any(code in WRITING for code in codes), 7 in codes


def check_against_the_oracle(ops: bytes) -> None:
    expected = verdict(ops)
    try:
        shape = opstream.inspect(ops, LIMITS)
    except KVError:
        assert expected is None
    else:
        assert (shape.count, shape.writes, shape.scan) == expected
    if expected is not None and any(op[0] == 8 and len(partitions(op)) > 1 for op in parse(ops) or ()):
        expected = None
    try:
        split = opstream.split(ops, 4, LIMITS)
    except KVError:
        assert expected is None
    else:
        assert (split.count, split.writes, split.scan) == expected


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few random edits: flipped, inserted, deleted, repeated and cut bytes, and headers that lie."""
    mutated = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(mutated) + 1)
        edit = source.randrange(6)
        if edit == 0 and at < len(mutated):
            mutated[at] = source.randrange(256)
        elif edit == 1:
            mutated[at:at] = source.randbytes(source.randint(1, 5))
        elif edit == 2:
            del mutated[at : at + source.randint(1, 5)]
        elif edit == 3:
            del mutated[at:]
        elif edit == 4:
            mutated[at:at] = mutated[at : at + 20]
        elif at < len(mutated):
            mutated[at : at + 1] = bytes([source.randint(0xC0, 0xDF)])
    return bytes(mutated)


@given(st.lists(transactions | single_ops, max_size=6))
@settings(max_examples=300, deadline=None)
def test_streams_with_transactions(ops: list[bytes]) -> None:
    check_against_the_oracle(b"".join(ops))


@given(streams | scans.map(lambda scan: [scan]))
@settings(max_examples=200, deadline=None)
def test_valid_streams_are_accepted(ops: list[bytes]) -> None:
    stream = b"".join(ops)
    assert verdict(stream) is not None
    check_against_the_oracle(stream)


@given(st.binary(max_size=200))
@example(b"\x93\x02\xc4\x01k\xc6\xff\xff\xff\xff")
@example(b"\xdd\xff\xff\xff\xff" * 3)
@example(b"\xdf\xff\xff\xff\xff\x01")
@example(b"\x91" * 190)
@settings(max_examples=300, deadline=None)
def test_random_bytes(data: bytes) -> None:
    check_against_the_oracle(data)


@given(st.lists(single_ops | scans | transactions, min_size=1, max_size=6), st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_mutated_streams(ops: list[bytes], seed: int) -> None:
    source = random.Random(seed)
    for _ in range(20):
        check_against_the_oracle(mutate(b"".join(ops), source))


@given(streams, st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_split_groups_by_partition_and_merge_undoes_it(ops: list[bytes], bits: int) -> None:
    split = opstream.split(b"".join(ops), bits, LIMITS)
    parts: dict[int, list[int]] = {}
    for index, op in enumerate(ops):
        key = msgpack.unpackb(op)[1]
        parts.setdefault(hashing_py.partition_of(key, bits), []).append(index)
    assert split.parts == [(p, b"".join(ops[index] for index in part)) for p, part in parts.items()]
    results = [msgpack.packb([0, b"r" * index, index]) for index in range(len(ops))]
    by_part = [b"".join(results[index] for index in part) for part in parts.values()]
    assert split.merge(by_part) == b"".join(results)


def count_values(data: bytes) -> int:
    """How many whole MessagePack values there are; fails if there is anything else."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    count = 0
    while unpacker.tell() < len(data):
        unpacker.skip()
        count += 1
    return count


@given(st.lists(single_ops, min_size=2, max_size=8), st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_merge_of_hostile_results(ops: list[bytes], seed: int) -> None:
    """Only ProtocolError, and what is accepted are as many whole results as there are ops."""
    split = opstream.split(b"".join(ops), 4, LIMITS)
    source = random.Random(seed)
    for _ in range(20):
        results = [mutate(b"\x93\x00\xc4\x03val\x07" * count_values(part), source) for _, part in split.parts]
        try:
            merged = split.merge(results)
        except ProtocolError:
            continue
        assert count_values(merged) == len(ops)


Data = dict[bytes, tuple[bytes, int]]
datasets = st.dictionaries(
    st.binary(min_size=1, max_size=3), st.tuples(st.binary(max_size=4), st.integers(1, 99)), max_size=60
)


def scan_partition(
    data: Data, start: bytes, stop: bytes | None, reverse: bool, limit: int, looked: int
) -> bytes:
    """One partition's page by the rules of docs/protocol.md section 3; it looks at most at `looked` keys."""
    inside = sorted((k for k in data if k >= start and (stop is None or k < stop)), reverse=reverse)
    taken = inside[: min(limit, looked)]
    entries = b"".join(
        msgpack.packb(key) + msgpack.packb(data[key][0]) + msgpack.packb(data[key][1]) for key in taken
    )
    result: list[Any] = [0, len(taken), entries]
    if len(taken) < len(inside):
        result.append(taken[-1] if reverse else inside[len(taken)])
    return msgpack.packb(result)  # type: ignore[no-any-return]


@given(
    datasets,
    st.integers(0, 3),
    st.booleans(),
    st.integers(1, 20),
    st.integers(0, 1 << 32),
    st.binary(max_size=2),
    st.none() | st.binary(max_size=2),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_paging_through_merged_scans_sees_every_key_once_in_order(
    data: Data, bits: int, reverse: bool, limit: int, seed: int, start: bytes, stop: bytes | None
) -> None:
    source = random.Random(seed)
    partitions: list[Data] = [{} for _ in range(1 << bits)]
    for key, value in data.items():
        partitions[hashing_py.partition_of(key, bits)][key] = value
    expected = sorted((k for k in data if k >= start and (stop is None or k < stop)), reverse=reverse)
    seen: list[protocol.Entry] = []
    for _ in range(len(data) + 2):
        results = [
            scan_partition(part, start, stop, reverse, limit, source.randint(1, limit)) for part in partitions
        ]
        merged = opstream.merge_scans(results, limit, protocol.SCAN_REVERSE if reverse else 0)
        ((_, count, entries, *resume),) = protocol.decode_results(merged)
        page = list(protocol.decode_entries(entries))
        assert len(page) == count <= limit
        seen += page
        if not resume:
            break
        assert page, "a page with something to resume made progress"
        if reverse:
            stop = resume[0]
        else:
            start = resume[0]
    else:
        raise AssertionError("the scan does not end")
    assert seen == [protocol.Entry(key, *data[key]) for key in expected]


@given(datasets, st.integers(0, 1 << 32), st.integers(1, 20), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_merge_of_hostile_scan_results(data: Data, seed: int, limit: int, flags: int) -> None:
    """Only ProtocolError, and what is accepted is one whole result."""
    source = random.Random(seed)
    good = scan_partition(data, b"", None, bool(flags & 1), limit, limit)
    for _ in range(20):
        try:
            merged = opstream.merge_scans([good, mutate(good, source)], limit, flags)
        except ProtocolError:
            continue
        assert count_values(merged) == 1


@given(
    st.sampled_from([20, 23, 31, 41]),
    st.text(max_size=400),
    st.none() | st.integers(0, 10**6),
    st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_repeated_errors_decode(status: int, message: str, retry_after_ms: int | None, count: int) -> None:
    results = protocol.decode_results(opstream.repeat_error(status, message, retry_after_ms, count))
    assert len(results) == count
    for result in results:
        error = from_status(result[0], result[1])
        assert (error.status, error.message) == (status, message[:300])
        assert result[2:] == ([] if retry_after_ms is None else [retry_after_ms])
