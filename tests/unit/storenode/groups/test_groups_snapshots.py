"""storenode/groups.py: a snapshot takes the place of a replica: engine, log and Raft in this order."""

from __future__ import annotations

from typing import Any

import pytest

from storenode.engine.errors import EngineFailed
from storenode.engine.replica_engine import ReplicaEngine
from storenode.groups import Arrived
from storenode.raft import Role
from storenode.raft.messages import Kind, Message
from tests.unit.storenode.groups.writes import fill, first_index, propose
from tests.unit.storenode.replicaworld import World


class Behind:
    """Store 3 has missed so much that the leader has cut it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leader, self.store = world.stores[1], world.stores[3]
        self.replica = self.store.groups.replicas[3]
        self.wanted: list[Any] = []
        self.outcomes: list[Exception | None] = []
        self.store.groups.on_wanted = self.wanted.append
        world.cut = {3}
        fill(world, 3, 30)
        self.leader.engines[3].flush()
        self.leader.groups.maintain()
        world.settle()
        assert first_index(self.leader, 3) > 10
        world.cut = set()

    def hear(self) -> None:
        for _ in range(40):
            self.world.tick()
            if self.wanted:
                return
        raise AssertionError("nobody told the follower")

    def snapshot(self) -> Any:
        directory = str(self.store.path / f"snapshot{len(self.outcomes)}")
        self.leader.engines[3].checkpoint(directory)
        return self.store.engines[3].examine(directory)

    def install(self, examined: Any) -> None:
        self.store.groups.install(Arrived(self.replica, examined, self.outcomes.append))


def test_who_needs_what_was_cut_is_told_so_and_goes_on_from_a_snapshot(world: World) -> None:
    behind = Behind(world)
    behind.hear()
    assert behind.wanted[0] is behind.replica
    behind.install(behind.snapshot())
    world.settle()
    assert behind.outcomes == [None]
    assert first_index(behind.store, 3) > 10
    fill(world, 3, 2)
    world.tick()
    assert behind.replica.raft.snapshot_wanted is None
    assert behind.replica.machine.dump() == behind.leader.groups.replicas[3].machine.dump()
    restarted = world.restart(3)
    assert restarted.groups.replicas[3].machine.position.index > 10


def test_a_snapshot_is_installed_engine_first_then_the_log_then_raft(world: World) -> None:
    behind = Behind(world)
    behind.hear()
    store, raft = behind.store, behind.replica.raft
    world.settle()
    store.writer.held = True
    propose(store, 7, 1, b"")
    store.groups.dirty(store.groups.replicas[7])
    before = raft.applied_index
    examined = behind.snapshot()
    behind.install(examined)
    store.turn()
    index = behind.replica.machine.position.index
    assert index > before
    assert (raft.applied_index, behind.outcomes) == (before, [])
    cuts = [record for record in store.writer.batches[-1] if record.cut]
    assert [(record.group, record.cut) for record in cuts] == [
        (3, (index, behind.replica.machine.position.term))
    ]
    store.writer.write()
    assert (raft.applied_index, behind.outcomes) == (index, [None])
    assert store.log.group(3).first_index == index + 1
    store.writer.held = False


def test_a_snapshot_waits_for_the_log_write_under_way(world: World) -> None:
    behind = Behind(world)
    behind.hear()
    store = behind.store
    store.writer.held = True
    store.groups.replicas[7].raft.term += 1  # something to write
    store.groups.dirty(store.groups.replicas[7])
    store.turn()
    assert store.writer.busy
    before = behind.replica.machine.position
    behind.install(behind.snapshot())
    store.turn(2)
    assert behind.replica.machine.position == before
    store.writer.held = False
    store.writer.write()
    store.turn(2)
    assert behind.outcomes == [None]
    assert behind.replica.machine.position.index > before.index


def test_a_replica_that_is_being_installed_says_and_writes_nothing(world: World) -> None:
    behind = Behind(world)
    behind.hear()
    store = behind.store
    store.writer.held = True
    behind.install(behind.snapshot())
    store.turn()
    batches = len(store.writer.batches)
    world.carry()
    heartbeat = Message(3, 1, Kind.HEARTBEAT, behind.replica.raft.term)
    store.groups.on_messages(
        1, [(3, heartbeat), (7, heartbeat._replace(term=store.groups.replicas[7].raft.term))]
    )
    store.turn(2)
    assert [message.kind for group, message in store.sent if group == 7] == [Kind.HEARTBEAT_REPLY]
    assert [message for group, message in store.sent if group == 3] == []
    assert len(store.writer.batches) == batches
    store.writer.held = False
    store.writer.write()
    world.settle()
    world.tick(2)
    assert behind.replica.machine.dump() == behind.leader.groups.replicas[3].machine.dump()


def test_a_snapshot_that_is_older_by_now_is_refused_and_nothing_has_changed(world: World) -> None:
    """Engine and log went back, and Raft did not."""
    store, leader = world.stores[3], world.stores[1]
    fill(world, 3, 2)
    world.tick()
    leader.engines[3].checkpoint(str(store.path / "old"))
    examined = store.engines[3].examine(str(store.path / "old"))
    propose(leader, 3, 50, b"")
    world.settle()
    world.tick()
    leader.taken()
    replica = store.groups.replicas[3]
    before, first = replica.machine.dump(), first_index(store, 3)
    outcomes: list[Exception | None] = []
    for _ in range(2):
        store.groups.install(Arrived(replica, examined, outcomes.append))
    store.turn(2)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
    assert "not newer" in str(outcomes[0])
    assert (replica.machine.dump(), first_index(store, 3)) == (before, first)
    fill(world, 3, 1)


def test_the_same_snapshot_twice_is_installed_once(world: World) -> None:
    behind = Behind(world)
    behind.hear()
    examined = behind.snapshot()
    behind.install(examined)
    behind.install(examined)
    world.settle()
    assert [type(outcome) for outcome in behind.outcomes] == [ValueError, type(None)]
    assert behind.replica.failure is None


def test_who_leads_or_could_win_installs_nothing(world: World) -> None:
    """The log would be cut under a leader, and Raft refuses that behind the back of the engine."""
    outcomes: list[Exception | None] = []
    leader, follower = world.stores[1], world.stores[2]
    follower.groups.replicas[3].raft.role = Role.CANDIDATE
    for store in (leader, follower):
        before = store.groups.replicas[3].machine.dump()
        store.groups.install(Arrived(store.groups.replicas[3], None, outcomes.append))
        store.turn()
        assert store.groups.replicas[3].machine.dump() == before
        assert store.groups.replicas[3].failure is None
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
    follower.groups.replicas[3].raft.role = Role.FOLLOWER


def test_an_engine_that_fails_to_install_ends_its_replica(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the old or the new, nobody knows: it was taken for the old one."""
    behind = Behind(world)
    behind.hear()

    def fail(engine: ReplicaEngine, examined: object) -> None:
        raise EngineFailed("manifest: commit failed")

    monkeypatch.setattr(ReplicaEngine, "install", fail)
    behind.install(behind.snapshot())
    behind.store.turn(2)
    assert [type(outcome) for outcome in behind.outcomes] == [EngineFailed]
    assert "commit failed" in str(behind.replica.failure)
