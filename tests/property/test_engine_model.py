"""The engine against a sorted dict: random streams, flushes, compactions, reopenings, snapshots, times to
live, scans both ways.

Memtables, blocks and tables are tiny, so that a few hundred ops go through every part. The model is the
protocol's text, written down the plain way; both get the same bytes and their answers must be equal.
"""

from __future__ import annotations

import shutil
import tempfile
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, Options, Shared, Snapshot, TableWriter
from storenode.engine.deletions import encode_delete_range

KEYS = st.one_of(
    st.sampled_from([b"a", b"b", b"ab", b"abc", b"a\x00", b"\xff", b"\xff\xff", b"counter"]),
    st.binary(min_size=1, max_size=3),
    st.integers(0, 300).map(lambda n: b"key-%04d" % n),
)
VALUES = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"0", b"-5", b"9223372036854775807", b"x" * 300, b"y" * 5000])
)
TTLS = st.one_of(st.none(), st.integers(1, 50))
STEPS = st.sampled_from([0, 1, 5, 60])


class Stored(NamedTuple):
    """A key in the model."""

    value: bytes
    version: int
    deadline: int | None


Model = dict[bytes, Stored]
Operation = tuple[Any, ...]


def conditions() -> st.SearchStrategy[tuple[Any, ...] | None]:
    return st.one_of(
        st.none(),
        st.just((1,)),
        st.just((2,)),
        st.tuples(st.just(3), st.integers(0, 200)),
        st.tuples(st.just(4), VALUES),
    )


def operations(condition: st.SearchStrategy[tuple[Any, ...] | None]) -> st.SearchStrategy[Operation]:
    return st.one_of(
        st.tuples(st.just("put"), KEYS, VALUES, TTLS, condition),
        st.tuples(st.just("put"), KEYS, VALUES, st.none(), st.none()),
        st.tuples(st.just("delete"), KEYS, condition),
        st.tuples(st.just("increment"), KEYS, st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("touch"), KEYS, TTLS),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("exists"), KEYS),
    )


def writable(operations: list[Operation]) -> list[Operation]:
    """Without the writes to keys that are written before: a branch of a transaction."""
    written: set[bytes] = set()
    kept = []
    for operation in operations:
        if operation[0] in ("get", "exists") or operation[1] not in written:
            kept.append(operation)
        if operation[0] not in ("get", "exists"):
            written.add(operation[1])
    return kept


@st.composite
def transactions(draw: st.DrawFn) -> Operation:
    conditioned = st.tuples(KEYS, conditions().filter(lambda condition: condition is not None))
    compares = draw(st.lists(conditioned, max_size=3))
    then, otherwise = (
        writable(draw(st.lists(operations(st.none()), min_size=least, max_size=8))) for least in (1, 0)
    )
    return ("txn", compares, then, otherwise)


WRITES = st.one_of(operations(conditions()), transactions())


def encode_txn(compares: list[Any], then: list[Operation], otherwise: list[Operation]) -> bytes:
    branches = [[ENCODERS[name](*rest) for name, *rest in branch] for branch in (then, otherwise)]
    return protocol.encode_txn(compares, *branches)


ENCODERS = {
    "txn": encode_txn,
    "put": protocol.encode_put,
    "delete": protocol.encode_delete,
    "increment": protocol.encode_increment,
    "touch": protocol.encode_touch,
    "get": protocol.encode_get,
    "exists": protocol.encode_exists,
    "delete_range": encode_delete_range,
}


def live(model: Model, key: bytes, now: int) -> Stored | None:
    stored = model.get(key)
    return None if stored is None or (stored.deadline is not None and stored.deadline <= now) else stored


def holds(condition: Operation | None, stored: Stored | None) -> bool:
    if condition is None:
        return True
    if condition[0] == 1:
        return stored is None
    if stored is None:
        return False
    return {2: True, 3: stored.version == condition[-1], 4: stored.value == condition[-1]}[condition[0]]


def integer(value: bytes) -> int | None:
    text = value.decode("latin-1")
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text and -(2**63) <= number < 2**63 else None


def execute(model: Model, operation: Operation, sequence: int, now: int) -> list[Any]:
    """The protocol's meaning of one op: changes the model and returns the result, without the text of an
    error."""
    name, key, *rest = operation
    if name == "txn":
        return execute_transaction(model, operation, sequence, now)
    if name == "delete_range":
        for one in [one for one in model if one >= key and (rest[0] is None or one < rest[0])]:
            del model[one]
        return [0, sequence]
    stored = live(model, key, now)
    if name == "get":
        if stored is None:
            return [1]
        return [0, stored.value, stored.version] + (
            [] if stored.deadline is None else [stored.deadline - now]
        )
    if name == "exists":
        return [1] if stored is None else [0, stored.version]
    if name == "put":
        value, ttl, condition = rest
        if not holds(condition, stored):
            return [2, stored.version if stored else 0]
        model[key] = Stored(value, sequence, None if ttl is None else now + ttl)
        return [0, sequence]
    if name == "delete":
        if not holds(rest[0], stored):
            return [2, stored.version if stored else 0]
        if stored is None:
            return [1]
        del model[key]
        return [0, sequence]
    if name == "touch":
        if stored is None:
            return [1]
        model[key] = Stored(stored.value, sequence, None if rest[0] is None else now + rest[0])
        return [0, sequence]
    base = integer(stored.value) if stored else 0
    if base is None or not -(2**63) <= base + rest[0] < 2**63:
        return [3]
    total = base + rest[0]
    model[key] = Stored(b"%d" % total, sequence, stored.deadline if stored else None)
    return [0, total, sequence]


def execute_transaction(model: Model, operation: Operation, sequence: int, now: int) -> list[Any]:
    """On a copy, which becomes the model if all has gone well."""
    _, compares, then, otherwise = operation
    held = all(holds(condition, live(model, key, now)) for key, condition in compares)
    changed = dict(model)
    results = [execute(changed, inner, sequence, now) for inner in (then if held else otherwise)]
    for result in results:
        if result[0] > 1:
            return result
    model.clear()
    model.update(changed)
    return [0, int(held), results]


def expected_scan(
    model: Model, now: int, start: bytes, stop: bytes | None, reverse: bool
) -> list[tuple[bytes, Stored]]:
    return [
        (key, stored)
        for key, stored in sorted(model.items(), reverse=reverse)
        if key >= start and (stop is None or key < stop) and live(model, key, now)
    ]


class EngineMachine(RuleBasedStateMachine):
    """One engine that sees everything happen to it."""

    @initialize(
        memtable=st.sampled_from([1, 1 << 13, 1 << 15]),
        block=st.sampled_from([1, 64, 4096]),
        table=st.sampled_from([1, 4096, 1 << 16]),
        cache=st.sampled_from([0, 4096, 1 << 20]),
        base=st.sampled_from([1, 1 << 13, 1 << 16]),
        trigger=st.sampled_from([1, 2, 4]),
    )
    def start(self, memtable: int, block: int, table: int, cache: int, base: int, trigger: int) -> None:
        self.directory = tempfile.mkdtemp(prefix="engine-model-")
        self.options = Options(
            memtable_bytes=memtable,
            block_bytes=block,
            table_bytes=table,
            base_bytes=base,
            level0_trigger=trigger,
            level_ratio=2,
        )
        self.cache = cache
        self.model: Model = {}
        self.now = 1000
        self.snapshots: list[tuple[Snapshot, Model, int]] = []
        self.engine: Engine | None = None
        self.open()

    def open(self) -> None:
        self.shared = Shared(self.directory, cache_bytes=self.cache, memtable_bytes=1 << 20)
        self.engine = engine_package.open(
            self.directory, options=self.options, shared=self.shared, engine_id=3
        )

    def close(self) -> None:
        assert self.engine is not None
        self.engine.close()
        self.shared.close()
        self.engine = None

    def apply(self, operations: list[Operation]) -> None:
        engine = self.engine
        assert engine is not None
        ops = b"".join(ENCODERS[name](*rest) for name, *rest in operations)
        first = engine.next_sequence
        wal = engine.append([(first, self.now, ops)])
        results = protocol.decode_results(engine.apply(ops, first, self.now, wal))
        assert len(results) == len(operations)
        for position, (operation, result) in enumerate(zip(operations, results, strict=True)):
            expected = execute(self.model, operation, first + position, self.now)
            assert (result[:1] if expected == [3] else result) == expected, operation
        assert engine.next_sequence == first + len(operations)

    @rule(operations=st.lists(WRITES, max_size=12), step=STEPS)
    def stream(self, operations: list[Operation], step: int) -> None:
        self.now += step
        self.apply(operations)

    @rule(
        first=st.integers(0, 250),
        count=st.integers(1, 60),
        size=st.sampled_from([0, 10, 400]),
        delete=st.booleans(),
    )
    def run_of_keys(self, first: int, count: int, size: int, delete: bool) -> None:
        keys = [b"key-%04d" % number for number in range(first, first + count)]
        if delete:
            self.apply([("delete", key, None) for key in keys])
        else:
            self.apply([("put", key, b"%d" % self.now * (size // 4), None, None) for key in keys])

    @rule(start=st.one_of(st.just(b""), KEYS), stop=st.one_of(st.none(), KEYS), again=st.integers(1, 3))
    def delete_range(self, start: bytes, stop: bytes | None, again: int) -> None:
        """Also several of which each begins behind the one before, so that they overlap."""
        for number in range(again):
            begin = start + b"\0" * number
            if stop is None or begin < stop:
                self.apply([("delete_range", begin, stop)])

    @rule()
    def flush(self) -> None:
        assert self.engine is not None
        self.engine.flush()
        assert not self.engine.tree.retired

    @rule(
        tables=st.dictionaries(KEYS, st.tuples(st.one_of(st.none(), VALUES), TTLS), min_size=1, max_size=20),
        cut=st.integers(0, 20),
    )
    def ingest(self, tables: dict[bytes, tuple[bytes | None, int | None]], cut: int) -> None:
        assert self.engine is not None
        sequence, keys, paths = self.engine.next_sequence, sorted(tables), []
        for part in filter(None, (keys[:cut], keys[cut:])):
            paths.append(f"{self.directory}/prepared-{len(paths)}")
            with TableWriter(paths[-1], options=self.options) as table:
                for key in part:
                    value, ttl = tables[key]
                    deadline = None if ttl is None else self.now + ttl
                    if value is None:
                        table.delete(key)
                        self.model.pop(key, None)
                    else:
                        table.add(key, value, deadline)
                        self.model[key] = Stored(value, sequence, deadline)
        self.engine.ingest(paths, move=True)
        assert self.engine.next_sequence == sequence + 1

    @rule()
    def compact(self) -> None:
        assert self.engine is not None
        self.engine.compact()
        levels = self.engine.stats()["levels"]
        assert all(level["tables"] == 0 for level in levels[:-1])
        # A time to live that ends between two flushes may still be there as an entry; deletions may not.
        assert self.engine.stats()["table_deletions"] == 0
        assert self.engine.stats()["range_deletions"] == 0

    @rule(keep_snapshots=st.booleans())
    def reopen(self, keep_snapshots: bool) -> None:
        assert self.engine is not None
        if not keep_snapshots:
            self.drop_snapshots()
        self.close()
        self.check_snapshots()
        self.open()

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def take_snapshot(self) -> None:
        assert self.engine is not None
        self.snapshots.append((self.engine.snapshot(), dict(self.model), self.engine.snapshot().now_ms))

    @rule()
    def check_snapshots(self) -> None:
        for snapshot, model, now in self.snapshots:
            expected = [(key, stored.value) for key, stored in expected_scan(model, now, b"", None, False)]
            assert snapshot.scan() == expected
            assert snapshot.scan(reverse=True) == expected[::-1]

    def drop_snapshots(self) -> None:
        for snapshot, _, _ in self.snapshots:
            snapshot.close()
        self.snapshots.clear()

    @rule(
        start=st.one_of(st.just(b""), KEYS),
        stop=st.one_of(st.none(), KEYS),
        limit=st.integers(1, 40),
        flags=st.integers(0, 7),
    )
    def scan_pages(self, start: bytes, stop: bytes | None, limit: int, flags: int) -> None:
        assert self.engine is not None
        now = max(self.now, self.engine.now_ms)
        reverse = bool(flags & protocol.SCAN_REVERSE)
        expected = expected_scan(self.model, now, start, stop, reverse)
        count, entries = 0, []
        for _ in range(len(self.model) + 1000):
            op = protocol.encode_scan(start, stop, limit, flags)
            ((status, found, page, *resume),) = protocol.decode_results(self.engine.read(op, self.now))
            assert status == 0
            assert found <= limit
            count += found
            entries += protocol.decode_entries(page)
            if not resume:
                break
            if reverse:
                stop = resume[0]
            else:
                start = resume[0]
        else:
            raise AssertionError("the scan did not end")
        assert count == len(expected)
        if not flags & protocol.SCAN_COUNT:
            values = not flags & protocol.SCAN_KEYS_ONLY
            assert entries == [
                protocol.Entry(key, stored.value if values else None, stored.version)
                for key, stored in expected
            ]
        else:
            assert entries == []

    @rule(keys=st.lists(KEYS, min_size=1, max_size=20))
    def read_keys(self, keys: list[bytes]) -> None:
        assert self.engine is not None
        now = max(self.now, self.engine.now_ms)
        ops = b"".join(protocol.encode_get(key) + protocol.encode_exists(key) for key in keys)
        results = protocol.decode_results(self.engine.read(ops, self.now))
        for position, key in enumerate(keys):
            assert results[2 * position] == execute(self.model, ("get", key), 0, now)
            assert results[2 * position + 1] == execute(self.model, ("exists", key), 0, now)

    @invariant()
    def no_failure(self) -> None:
        engine = getattr(self, "engine", None)
        if engine is not None:
            stats = engine.stats()
            assert stats["failures"] == {}
            assert stats["broken"] is None
            assert stats["damage"] is None

    def teardown(self) -> None:
        if getattr(self, "engine", None) is not None:
            self.check_snapshots()
            assert self.engine is not None
            self.engine.flush()
            assert self.engine.verify() == []
            self.drop_snapshots()
            self.close()
            shutil.rmtree(self.directory)


EngineMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestEngineModel = EngineMachine.TestCase
