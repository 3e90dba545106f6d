"""storenode/statekey.py: the key of the control partition, in real groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.errors import Status
from kvclient.protocol import encode_error
from storenode.statekey import ABSENT, Conflict, Found, NotDone, Outcome, StateKey, Written
from tests.unit.storenode.replicaworld import Store, World


class Keyed:
    """A key of each store of a world, whose replicas answer to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys = {node: StateKey(world.clock) for node in world.stores}
        self.outcomes: list[Outcome] = []

    def settle(self) -> list[Outcome]:
        """What has come."""
        self.world.settle()
        for node, store in self.world.stores.items():
            for answer in store.taken():
                self.keys[node].on_answer(*answer)
            self.keys[node].end_turn()
        outcomes = self.outcomes.copy()
        self.outcomes.clear()
        return outcomes

    def write(self, store: Store, value: bytes, version: int) -> None:
        self.keys[store.node].write(store.replica, value, version, self.outcomes.append)

    def read(self, store: Store) -> list[Outcome]:
        self.keys[store.node].read(store.replica, self.outcomes.append)
        return self.settle()


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Keyed]:
    world = World(tmp_path)
    yield Keyed(world)
    world.close()


def test_it_is_written_where_it_has_the_version_that_was_read(keyed: Keyed) -> None:
    leader = keyed.world.lead()
    assert keyed.read(leader) == [Found(b"", ABSENT)]
    keyed.write(leader, b"one", ABSENT)
    (first,) = keyed.settle()
    assert isinstance(first, Written)
    assert keyed.read(leader) == [Found(b"one", first.version)]
    keyed.write(leader, b"two", first.version)
    (second,) = keyed.settle()
    assert isinstance(second, Written)
    assert second.version > first.version
    keyed.write(leader, b"three", first.version)
    assert keyed.settle() == [Conflict(second.version)]
    keyed.write(leader, b"three", ABSENT)
    assert keyed.settle() == [Conflict(second.version)]
    assert keyed.read(leader) == [Found(b"two", second.version)]


def test_outcomes_come_at_the_end_of_a_turn_and_one_call_at_a_time(keyed: Keyed) -> None:
    leader = keyed.world.lead()
    key = keyed.keys[leader.node]
    assert not key.end_turn()
    key.read(leader.replica, keyed.outcomes.append)
    keyed.world.settle()
    for answer in leader.taken():
        key.on_answer(*answer)
    assert key.busy
    assert not keyed.outcomes
    with pytest.raises(AssertionError):
        keyed.write(leader, b"", ABSENT)
    assert key.end_turn()
    assert not key.busy
    assert len(keyed.outcomes) == 1


def test_who_does_not_lead_neither_reads_nor_writes(keyed: Keyed) -> None:
    leader = keyed.world.lead()
    follower = keyed.world.others(leader)[0]
    (read,) = keyed.read(follower)
    keyed.write(follower, b"x", ABSENT)
    (written,) = keyed.settle()
    assert isinstance(read, NotDone)
    assert isinstance(written, NotDone)
    assert read.status == written.status == Status.NOT_LEADER


def test_a_write_that_its_leader_lost_sight_of_is_unknown(keyed: Keyed) -> None:
    leader = keyed.world.lead()
    keyed.world.cut = {leader.node}
    keyed.write(leader, b"lost", ABSENT)
    assert keyed.settle() == []
    keyed.world.tick(30)
    (outcome,) = keyed.settle()
    assert isinstance(outcome, NotDone)
    assert outcome.status == Status.OUTCOME_UNKNOWN


def test_answers_to_earlier_calls_and_nonsense_are_no_outcomes(keyed: Keyed) -> None:
    leader = keyed.world.lead()
    keyed.read(leader)
    key = keyed.keys[leader.node]
    key.read(leader.replica, keyed.outcomes.append)
    key.on_answer(b"", 1, Status.OK, b"\x91\x00")
    assert not key.end_turn()
    key.on_answer(b"", 2, Status.OK, b"\xc1")
    assert key.end_turn()
    (outcome,) = keyed.outcomes
    assert isinstance(outcome, NotDone)
    assert outcome.status == Status.INTERNAL
    key.read(leader.replica, keyed.outcomes.append)
    key.on_answer(b"", 3, Status.BUSY, encode_error("busy"))
    key.end_turn()
    assert keyed.outcomes[-1] == NotDone(Status.BUSY, encode_error("busy"))
