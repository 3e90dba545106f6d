"""storenode/replica/replica.py when something breaks: the replica goes out of service alone, and everybody
who waits is answered once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvclient import protocol
from kvclient.errors import Status
from tests.unit.storenode.replicaworld import PARTITION, Store, World, increment, reason


def damage(world: World, store: Store) -> None:
    """`n` is 5 everywhere; the block that has it is damaged on this store's disk."""
    store.propose(100, protocol.encode_put(b"n", b"5"))
    world.settle()
    assert store.statuses() == [(100, Status.OK)]
    store.engines[PARTITION].flush()
    (table,) = (store.path / str(PARTITION)).glob("*.sst")
    with table.open("r+b") as file:
        block = file.read(6)
        file.seek(5)
        file.write(bytes([block[5] ^ 0x40]))


def test_damage_stops_the_replica_and_everybody_who_waits_is_answered_once(world: World) -> None:
    leader = world.lead()
    damage(world, leader)
    leader.propose(1, increment(b"other"), 1)
    for token in (2, 3):
        leader.propose(token, increment(), token)
    leader.turn()
    leader.propose(4, increment(), 4)
    leader.read(5, b"n")
    leader.read(6, b"n")
    world.carry()
    for store in world.others(leader):
        store.turn(2)
    world.carry()
    leader.propose(7, increment(), 7)
    leader.replica.read((b"router", 8), protocol.encode_get(b"n"), 0, 1e9, world.clock.monotonic())
    leader.turn(3)
    found = dict(leader.statuses())
    assert found.keys() == set(range(1, 9))
    assert {found[token] for token in (1, 2, 3, 4, 7)} == {Status.OUTCOME_UNKNOWN}
    assert {found[token] for token in (5, 6, 8)} == {Status.NOT_LEADER}
    assert leader.replica.failure is not None
    assert "checksum" in leader.replica.failure
    assert leader.replica.idle
    leader.propose(9, increment(), 9)
    leader.read(10, b"n")
    refused = leader.taken()
    assert [answer[1:3] for answer in refused] == [(9, Status.NOT_LEADER), (10, Status.NOT_LEADER)]
    assert "out of service" in reason(refused[0][3])


def test_a_replica_that_has_failed_says_nothing_more_and_the_others_go_on(world: World) -> None:
    leader = world.lead()
    damage(world, leader)
    leader.propose(1, increment(), 1)
    world.settle()
    leader.turn()
    assert leader.replica.failure
    leader.sent.clear()
    leader.groups.tick()
    leader.turn()
    assert leader.sent == []
    for _ in range(40):
        world.tick()
    new = world.lead()
    assert new is not leader
    assert not leader.groups.leading
    new.propose(2, increment(), 1, retry=True)
    world.settle()
    assert new.statuses() == [(2, Status.OK)]
    assert new.value(b"n") == b"6"


@pytest.mark.parametrize("method", ["step", "tick", "flush", "take_committed"])
def test_whatever_cannot_happen_in_raft_ends_this_replica_alone(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came out of the turn: others lost theirs, and log writes that were taken were never done."""
    world = World(tmp_path, partitions=[3, 7])
    world.lead()
    store = world.stores[1]

    def contradiction(*arguments: object) -> None:
        raise RuntimeError("entry 5 conflicts with the leader's, but 7 is committed")

    monkeypatch.setattr(store.groups.replicas[3].raft, method, contradiction)
    failed, sound = store.groups.replicas[3], store.groups.replicas[7]
    now = world.clock.monotonic()
    failed.read((b"router", 1), protocol.encode_get(b"n"), 0, now + 5, now)
    failed.propose((b"router", 2), 5, 1, 0, 0, increment(), now + 5, now)
    world.tick(2)
    assert failed.failure is not None
    assert "conflicts" in failed.failure
    assert {token for token, _ in store.statuses()} == {1, 2}
    sound.propose((b"router", 3), 5, 1, 0, 0, increment(), now + 5, now)
    world.settle()
    assert store.statuses() == [(3, Status.OK)]
    assert store.budget.used == 0
    world.close()


def test_an_answer_that_fails_leaves_no_write_without_answer(world: World) -> None:
    """Writes of the same entry were never answered, and their bytes stayed taken."""
    leader = world.lead()
    answer = leader.replica._answer

    def failing(router: bytes, token: int, status: int, body: bytes) -> None:
        answer(router, token, status, body)
        if token == 1:
            raise OSError("the outbox is broken")

    leader.replica._answer = failing
    for token in (1, 2, 3):
        leader.propose(token, increment(), token)
    world.settle()
    assert leader.statuses() == [(1, 0), (2, Status.OUTCOME_UNKNOWN), (3, Status.OUTCOME_UNKNOWN)]
    assert leader.budget.used == 0
