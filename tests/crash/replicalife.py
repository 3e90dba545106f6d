"""The life of a replica's engine between two crashes: whatever the crash took, what is found is exactly the
content after as many entries as its state names, and at least as many as it had said were durable.

The log of the replica is the list `log` here: after a crash the rest of it is applied again, or, as by
another leader, something else.
"""

from __future__ import annotations

import os
import random
import tempfile
from functools import partial

import storenode.engine as engine_package
from storenode.engine import Options, ReplicaEngine, Shared
from storenode.engine.vfs import Vfs
from storenode.snapshotfiles import remove_tree
from tests.crash.crashlife import (
    ENGINE_ID,
    FIRST_MS,
    State,
    after,
    differences,
    encode,
    random_operation,
    random_options,
    random_range_deletion,
)
from tests.crash.oracle import Life
from tests.property.test_engine_model import Operation
from tests.unit.storenode.engine.replica_counter import count_of, send

Entry = tuple[int, list[list[Operation]]]
"""(time, the operations of each write)."""


class Expected:
    """`states[n]`: after n entries of `log`. Any n from `promised` on may be found."""

    def __init__(self, log: list[Entry], states: list[State], promised: int) -> None:
        self.log = list(log)
        self.states = list(states)
        self.promised = promised


def nothing_yet() -> Expected:
    return Expected([], [State({}, 1, 0)], 0)


def state_of(count: int) -> bytes:
    """What a replica records after `count` entries: now and then larger than a page of the manifest."""
    return count.to_bytes(8, "big") + b"s" * (count * 977 % 9000)


def is_state_of(state: bytes, count: int) -> bool:
    """There is none as long as nothing was recorded."""
    return state == state_of(count) or (count == 0 and state == b"")


class ReplicaLife(Life[Expected]):
    """One engine from opening to closing."""

    def __init__(
        self, vfs: Vfs, directory: str, options: Options, expected: Expected, dice: random.Random
    ) -> None:
        super().__init__(vfs, directory, dice)
        self.incoming = os.path.join(directory, "incoming")
        self.options = options
        self.log = list(expected.log)
        self.states = list(expected.states)
        self.promised = expected.promised
        self.applied = 0
        self.engine: ReplicaEngine | None = None

    def expected(self) -> Expected:
        said = self.promised if self.engine is None else count_of(self.engine.flushed_state)
        return Expected(self.log, self.states, max(self.promised, said))

    def open(self) -> None:
        """Recover, and find the content that the state names."""
        self.shared = Shared(
            self.directory, vfs=self.vfs, workers=self.dice.choice((1, 2)), memtable_bytes=1 << 20
        )
        engine = engine_package.open_replica(
            os.path.join(self.directory, "engine"),
            options=self.options,
            shared=self.shared,
            engine_id=ENGINE_ID,
        )
        self.applied = count_of(engine.state)
        assert self.promised <= self.applied < len(self.states), (self.promised, self.applied)
        assert is_state_of(engine.state, self.applied)
        engine.on_retire = lambda: state_of(self.applied)
        self.engine = engine
        self.look()
        assert engine.verify() == []
        self.promised = self.applied

    def look(self) -> None:
        """The engine is at its count of entries, and at nothing else."""
        assert self.engine is not None
        state = self.states[self.applied]
        assert (self.engine.next_sequence, self.engine.now_ms) == (state.next_sequence, state.now_ms)
        assert differences(self.engine, state) == []

    def close(self) -> None:
        """Afterwards the manifest and the files agree both ways; what was not flushed is lost."""
        assert self.engine is not None
        self.engine.close()
        self.shared.close()
        self.promised = count_of(self.engine.tree.flushed_replica or b"")
        names = os.listdir(os.path.join(self.directory, "engine"))
        assert sorted(names) == sorted(f"{t.number:06d}.sst" for t in self.engine.tree.version.tables())

    def act(self, steps: int) -> None:
        """Entries, flushes, compactions, installations and looks."""
        for _ in range(steps):
            roll = self.dice.random()
            if roll < 0.75:
                self.entry()
            else:
                self.maintain(roll)
            if self.dice.random() < 0.02:
                self.install()

    def catch_up(self) -> None:
        """Apply what the log still has."""
        while self.applied < len(self.log):
            self.entry()
        self.look()

    def maintain(self, roll: float) -> None:
        assert self.engine is not None
        if roll < 0.85:
            self.engine.flush(wait=False)
        elif roll < 0.92:
            self.flush()
        elif roll < 0.96:
            self.engine.compact()
            self.promised = self.applied
        else:
            self.look()

    def flush(self) -> None:
        assert self.engine is not None
        self.engine.flush()
        assert is_state_of(self.engine.flushed_state, self.applied)
        self.promised = self.applied

    def install(self, more: int | None = None) -> None:
        """What another node sends, which is so many entries ahead."""
        self.take_over(self.receive(more))

    def receive(self, more: int | None = None) -> int:
        """Have a checkpoint in `incoming`; the count of its entries."""
        remove_tree(self.vfs, self.incoming)
        ahead = self.applied + (self.dice.choice((0, 1, 5, 20)) if more is None else more)
        while len(self.log) < ahead:
            self.log_one()
        with tempfile.TemporaryDirectory(dir=os.path.dirname(self.directory)) as place:
            sent = self.checkpoint_of(ahead, place)
            send(sent, self.incoming, self.vfs, piece_bytes=1 << 14)
        return ahead

    def take_over(self, ahead: int) -> None:
        """Install what was received."""
        assert self.engine is not None
        self.engine.install(self.incoming)
        self.applied = self.promised = ahead
        assert is_state_of(self.engine.state, ahead)
        assert self.engine.flushed_state == self.engine.state
        self.look()
        if self.dice.random() < 0.7:
            remove_tree(self.vfs, self.incoming)

    def checkpoint_of(self, count: int, place: str) -> str:
        """By another node, of the state after so many entries of the log."""
        options = random_options(self.dice)
        path = os.path.join(place, "node")
        with engine_package.open_replica(path, options=options, engine_id=ENGINE_ID) as other:
            for done, (now_ms, writes) in enumerate(self.log[:count], start=1):
                if writes:
                    other.apply([encode(operations) for operations in writes], other.next_sequence, now_ms)
                other.on_retire = partial(state_of, done)
                other.end_entry()
            other.checkpoint(os.path.join(place, "sent"))
        return os.path.join(place, "sent")

    def forget_rest(self) -> None:
        """Another leader: what was not applied yet is replaced."""
        del self.log[self.applied :]
        del self.states[self.applied + 1 :]

    def entry(self) -> None:
        """Apply the next entry of the log, which gets one if there is none."""
        assert self.engine is not None
        if self.applied == len(self.log):
            self.log_one()
        now_ms, writes = self.log[self.applied]
        if writes:
            streams = [encode(operations) for operations in writes]
            self.engine.apply(streams, self.engine.next_sequence, now_ms)
        self.applied += 1
        self.engine.end_entry()
        if self.dice.random() < 0.05:
            self.look()

    def log_one(self) -> None:
        """An entry that the replica will apply: of several writes, of one, or of none."""
        last = self.states[-1]
        now_ms = max(last.now_ms, FIRST_MS) + self.dice.choice((-3, 0, 1, 7))
        writes = [self.operations(now_ms) for _ in range(self.dice.choice((0, 1, 1, 2, 4)))]
        for operations in writes:
            last = after(last, operations, now_ms)
        self.log.append((now_ms, writes))
        self.states.append(last)

    def operations(self, now_ms: int) -> list[Operation]:
        if self.dice.random() < 0.1:
            return [random_range_deletion(self.dice)]
        return [random_operation(self.dice, now_ms) for _ in range(self.dice.choice((1, 2, 5, 12)))]
