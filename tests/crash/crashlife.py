"""The life of an engine between two crashes, and what must be found after each: a prefix of what was applied,
with everything in it that was promised to be durable.

An `EngineLife` opens the engine of a directory, compares it with the `Expected` states, goes on with a random
workload and ends with a clean close.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Engine, Options, Shared, TableWriter, lsm
from storenode.engine.vfs import Vfs
from tests.crash.oracle import Life
from tests.property.test_engine_model import ENCODERS, Model, Operation, Stored, execute, live

ENGINE_ID = 3
FIRST_MS = 1000
VALUES = (b"0", b"-5", b"9223372036854775807", b"x" * 40, b"y" * 700, b"z" * 2500)
"""Integers for increments; the last ones lie in several sectors, so that a crash can tear them."""


@attrs.define
class State:
    """An engine's content after some number of entries."""

    model: Model
    next_sequence: int
    now_ms: int


class Expected:
    """`states[n]`: after n entries. Any n from `promised` on may be found. `checkpoints`: of these n there is
    one; there may be others."""

    def __init__(self, states: list[State], promised: int, checkpoints: frozenset[int] = frozenset()) -> None:
        self.states = states
        self.promised = promised
        self.checkpoints = checkpoints


def nothing_yet() -> Expected:
    return Expected([State({}, 1, 0)], 0)


def random_options(dice: random.Random) -> Options:
    """Everything tiny, so that flushes and compactions run all the time."""
    return Options(
        memtable_bytes=dice.choice((1, 1 << 13, 1 << 14, 1 << 16)),
        block_bytes=dice.choice((64, 1024, 4096)),
        table_bytes=dice.choice((1, 1 << 12, 1 << 14)),
        base_bytes=dice.choice((1, 1 << 13, 1 << 15)),
        level_ratio=2,
        level0_trigger=dice.choice((1, 2, 4)),
    )


class EngineLife(Life[Expected]):
    """One engine from opening to closing."""

    def __init__(self, vfs: Vfs, directory: str, options: Options, expected: Expected, dice: random.Random):
        super().__init__(vfs, directory, dice)
        self.options = options
        self.states = list(expected.states)
        self.promised = expected.promised
        self.checkpoints = expected.checkpoints

    def expected(self) -> Expected:
        return Expected(list(self.states), self.promised, self.checkpoints)

    def open(self) -> None:
        """Recover, and find the state that is expected."""
        self.shared = Shared(
            self.directory, vfs=self.vfs, workers=self.dice.choice((1, 2)), memtable_bytes=1 << 20
        )
        self.engine = engine_package.open(
            os.path.join(self.directory, "engine"),
            options=self.options,
            shared=self.shared,
            engine_id=ENGINE_ID,
        )
        found = find(self.engine, self.states, self.promised)
        del self.states[found + 1 :]
        for _, expected in self.crashes:  # a crash while it was recovered must not find more
            del expected.states[found + 1 :]
            expected.promised = min(expected.promised, found)
        self.promised = found
        assert self.engine.verify() == []
        self.look_at_checkpoints()

    def close(self) -> None:
        """End cleanly; afterwards the manifest and the files agree both ways."""
        self.engine.close()
        self.shared.close()
        self.promised = len(self.states) - 1
        tree = self.engine.tree
        names = os.listdir(os.path.join(self.directory, "engine"))
        tables = {int(name[:-4]) for name in names if name.endswith(".sst")}
        logs = {int(name[:-4]) for name in names if name.endswith(".wal")}
        assert tables == {table.number for table in tree.version.tables()}
        assert len(names) == len(tables) + len(logs)
        assert all(number >= tree.log_number for number in logs)

    def act(self, steps: int) -> None:
        """Random writes, flushes, compactions and looks."""
        for _ in range(steps):
            roll = self.dice.random()
            if roll < 0.1:
                for _ in range(self.dice.randint(1, 8)):
                    self.put()
                if self.dice.random() < 0.5:
                    self.engine.flush(wait=False)  # of what was not synced
            elif roll < 0.55:
                self.log_and_apply([self.operations()])
            elif roll < 0.65:
                self.log_and_apply([self.operations() for _ in range(self.dice.randint(2, 5))])
            elif roll < 0.85:
                self.write(self.operations(), sync=self.dice.random() < 0.3)
            elif roll < 0.87:
                self.refuse()
            elif roll < 0.92:
                self.engine.flush(wait=self.dice.random() < 0.3)
            elif roll < 0.94:
                self.engine.flush()
                self.promised = len(self.states) - 1
            elif roll < 0.95:
                start, stop = (self.dice.choice((None, random_key(self.dice))) for _ in range(2))
                self.engine.compact_range(start, stop)
                self.promised = len(self.states) - 1
            elif roll < 0.965:
                self.ingest()
            elif roll < 0.97:
                self.checkpoint()
            else:
                assert differences(self.engine, self.states[-1]) == []

    def operations(self) -> list[Operation]:
        if self.dice.random() < 0.12:
            return [random_range_deletion(self.dice)]
        return [random_operation(self.dice, self.now()) for _ in range(self.dice.choice((0, 1, 1, 2, 5, 12)))]

    def now(self) -> int:
        return max(self.states[-1].now_ms, FIRST_MS)

    def log_and_apply(self, streams: list[list[Operation]]) -> None:
        """Several entries, durable with one sync, then applied."""
        entries = [(*self.expect(operations), encode(operations)) for operations in streams]
        wal = self.engine.append(entries)
        self.promised = len(self.states) - 1
        for first, now_ms, ops in entries:
            self.engine.apply(ops, first, now_ms, wal)

    def write(self, operations: list[Operation], *, sync: bool) -> None:
        """As a library is used: time comes from the clock, which is ours here."""
        _, now_ms = self.expect(operations)
        with clock_at(now_ms):
            self.engine.write(encode(operations), sync=sync)
        if sync:
            self.promised = len(self.states) - 1

    def put(self) -> None:
        """The engine's short way takes the time from the machine's clock, so it is known only afterwards."""
        last = self.states[-1]
        key, value = random_key(self.dice), self.dice.choice(VALUES)
        model = {**last.model, key: Stored(value, last.next_sequence, None)}
        state = State(model, last.next_sequence + 1, self.now() + 1)
        self.states.append(state)
        with clock_at(state.now_ms):
            self.engine.put(key, value)
        with self.engine.snapshot() as snapshot:
            state.now_ms = snapshot.now_ms

    def ingest(self) -> None:
        """Tables with distinct keys, of which some have expired, or will."""
        last = self.states[-1]
        model = dict(last.model)
        keys = sorted({random_key(self.dice) for _ in range(self.dice.randint(1, 30))})
        cut = self.dice.randint(0, len(keys))
        paths = []
        for part in filter(None, (keys[:cut], keys[cut:])):
            paths.append(os.path.join(self.directory, f"{self.dice.getrandbits(64):016x}.sst"))
            with TableWriter(paths[-1], options=self.options, vfs=self.vfs) as table:
                for key in part:
                    prepare(table, model, key, self.dice, last.next_sequence, last.now_ms)
        self.states.append(State(model, last.next_sequence + 1, last.now_ms))
        self.engine.ingest(paths, move=self.dice.random() < 0.5)
        self.promised = len(self.states) - 1

    def checkpoint(self) -> None:
        """Of the state after n entries, in a directory that says so."""
        number = len(self.states) - 1
        path = os.path.join(self.directory, f"checkpoint-{number}")
        if number in self.checkpoints or os.path.exists(path):
            return
        self.engine.checkpoint(path)
        self.promised = number
        self.checkpoints |= {number}

    def look_at_checkpoints(self) -> None:
        """A directory that has the name of a checkpoint is one, of its state; those that were promised are
        there."""
        found = set()
        for name in os.listdir(self.directory):
            if name.startswith("checkpoint-") and name.removeprefix("checkpoint-").isdecimal():
                number = int(name.removeprefix("checkpoint-"))
                found.add(number)
                look_at_checkpoint(os.path.join(self.directory, name), self.states[number])
        assert self.checkpoints <= found

    def refuse(self) -> None:
        """A stream that is none: logged, and without effect."""
        last = self.states[-1]
        entry = (last.next_sequence, self.now() + 5, b"\x93nonsense")
        self.states.append(last)
        wal = self.engine.append([entry])
        self.promised = len(self.states) - 1
        with pytest.raises(InvalidRequest):
            self.engine.apply(entry[2], entry[0], entry[1], wal)

    def expect(self, operations: list[Operation]) -> tuple[int, int]:
        """Add the state after this entry; the entry's sequence and time."""
        last = self.states[-1]
        now_ms = self.now() + self.dice.choice((-3, 0, 1, 7))
        self.states.append(after(last, operations, now_ms))
        return last.next_sequence, now_ms


def prepare(
    table: TableWriter, model: Model, key: bytes, dice: random.Random, sequence: int, now_ms: int
) -> None:
    """One entry of a prepared table, and what it means."""
    value = dice.choice(VALUES)
    deadline = dice.choice((None, None, max(now_ms + dice.choice((-1, 0, 5, 1000)), 0)))
    if dice.random() < 0.3:
        table.delete(key)
        model.pop(key, None)
    else:
        table.add(key, value, deadline)
        model[key] = Stored(value, sequence, deadline)


def look_at_checkpoint(path: str, state: State) -> None:
    """It is complete, and of this state. Done on a copy: opening an engine writes to its directory."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.dirname(path))) as place:
        copy = os.path.join(place, "copy")
        shutil.copytree(path, copy)
        with engine_package.open(copy) as engine:
            assert engine.engine_id == ENGINE_ID
            assert find(engine, [state], 0) == 0
            assert engine.verify() == []


@contextlib.contextmanager
def clock_at(now_ms: int) -> Iterator[None]:
    """The engine's clock, where it is Python's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lsm, "now_ms", lambda: now_ms)
        yield


def after(state: State, operations: list[Operation], now_ms: int) -> State:
    now_ms = max(now_ms, state.now_ms)
    model = dict(state.model)
    for position, operation in enumerate(operations):
        execute(model, operation, state.next_sequence + position, now_ms)
    return State(model, state.next_sequence + len(operations), now_ms)


def random_key(dice: random.Random) -> bytes:
    """Few, so that versions pile up."""
    return dice.choice((b"counter", b"key-%03d" % dice.randrange(20), b"key-%03d" % dice.randrange(150)))


def random_operation(dice: random.Random, now_ms: int) -> Operation:
    """Conditions hold about as often as not."""
    key = random_key(dice)
    ttl = dice.choice((None, None, None, 1, 10, 1000))
    conditions = (None, None, None, (1,), (2,), (3, dice.randrange(1, 200)), (4, dice.choice(VALUES)))
    value = dice.choice((*VALUES, b"value-%d" % now_ms))
    return dice.choice(
        (
            ("put", key, value, ttl, None),
            ("put", key, value, ttl, dice.choice(conditions)),
            ("delete", key, dice.choice(conditions)),
            ("increment", dice.choice((key, b"counter")), dice.randrange(-9, 9)),
            ("touch", key, ttl),
            ("get", key),
        )
    )


def random_range_deletion(dice: random.Random) -> Operation:
    """Mostly of some neighbours; of all there is now and then."""
    if dice.random() < 0.1:
        return ("delete_range", dice.choice((b"", b"key-")), None)
    first = dice.randrange(150)
    return ("delete_range", b"key-%03d" % first, b"key-%03d" % (first + dice.choice((1, 3, 20, 100))))


def encode(operations: list[Operation]) -> bytes:
    return b"".join(ENCODERS[name](*rest) for name, *rest in operations)


def find(engine: Engine, states: list[State], promised: int) -> int:
    """Which of the states the engine is in: the last that fits, not before the promised one."""
    with engine.snapshot() as snapshot:
        where = (engine.next_sequence, snapshot.now_ms)
    for number in range(len(states) - 1, promised - 1, -1):
        if (states[number].next_sequence, states[number].now_ms) == where:
            wrong = differences(engine, states[number])
            assert not wrong, f"after {number} of {len(states) - 1} entries: {wrong[:5]}"
            return number
    steps = [(state.next_sequence, state.now_ms) for state in states]
    raise AssertionError(f"at (next sequence, time) {where}, promised {steps[promised]}, written {steps}")


def differences(engine: Engine, state: State) -> list[Any]:
    """What the engine says otherwise than the model, by scans both ways and by single reads."""
    model, now = state.model, state.now_ms
    expected = [
        protocol.Entry(key, stored.value, stored.version)
        for key, stored in sorted(model.items())
        if live(model, key, now)
    ]
    wrong: list[Any] = []
    for reverse in (0, protocol.SCAN_REVERSE):
        op = protocol.encode_scan(b"", None, 10_000, reverse)
        ((_, _, page, *resume),) = protocol.decode_results(engine.read(op, now))
        found = list(protocol.decode_entries(page))
        wanted = expected[::-1] if reverse else expected
        if found != wanted or resume:
            wrong += [("scan", reverse, one) for one in set(found) ^ set(wanted)] or ["order", reverse]
    keys = sorted(model)
    results = protocol.decode_results(engine.read(b"".join(map(protocol.encode_get, keys)), now))
    for key, result in zip(keys, results, strict=True):
        wanted_result = execute(model, ("get", key), 0, now)
        if result != wanted_result:
            wrong.append(("get", key, result, wanted_result))
    return wrong
