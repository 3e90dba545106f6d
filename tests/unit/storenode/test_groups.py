"""storenode/groups.py: all replicas of a node in one turn, one log write, and the order of things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient import protocol
from kvclient.errors import Status
from storenode.engine.errors import EngineFailed
from storenode.engine.replica_engine import ReplicaEngine
from storenode.groups import APPLY_BYTES_MAX, Arrived
from storenode.raft import Role
from storenode.raft.messages import EVERYBODY, Kind, Message
from storenode.raftlog import LogFailed
from tests.unit.storenode.replicaworld import Store, World, increment

PARTITIONS = [3, 7, 9]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, partitions=PARTITIONS, segment_bytes=1 << 16, log_bytes_max=1 << 17)
    made.lead()
    made.tick()
    yield made
    made.close()


def propose(store: Store, group: int, token: int, ops: bytes, sequence: int = 0) -> None:
    now = store.clock.monotonic()
    store.groups.replicas[group].propose((b"router", token), 5, sequence, 0, 0, ops, now + 60, now)


def large(number: int) -> bytes:
    return protocol.encode_put(b"k%d" % number, bytes(20_000))


def fill(world: World, group: int, count: int) -> None:
    leader = world.stores[1]
    for number in range(count):
        propose(leader, group, number, large(number))
        world.settle()
    assert leader.statuses() == [(number, Status.OK) for number in range(count)]


def first_index(store: Store, group: int) -> int:
    return store.log.group(group).first_index


# -- one write at a time


def test_what_all_groups_have_to_say_is_one_log_write(world: World) -> None:
    leader = world.stores[1]
    before = len(leader.writer.batches)
    for group in PARTITIONS:
        propose(leader, group, group, increment())
    leader.turn()
    assert [[record.group for record in batch] for batch in leader.writer.batches[before:]] == [PARTITIONS]


def test_while_a_write_is_under_way_no_other_begins_and_nothing_is_lost(world: World) -> None:
    leader = world.stores[1]
    leader.writer.held = True
    before = len(leader.writer.batches)
    propose(leader, 3, 1, increment())
    leader.turn()
    for token in range(2, 6):
        propose(leader, 7, token, increment())
        propose(leader, 9, 10 + token, increment())
        leader.turn()
    assert len(leader.writer.batches) == before + 1
    leader.writer.write()
    leader.turn()
    gathered = leader.writer.batches[before + 1]
    assert {record.group: len(record.entries or ()) for record in gathered} == {7: 4, 9: 4}
    leader.writer.held = False
    leader.writer.write()
    world.settle()
    assert sorted(token for token, status in leader.statuses() if status == 0) == [
        1,
        2,
        3,
        4,
        5,
        12,
        13,
        14,
        15,
    ]


def test_nothing_is_acknowledged_before_it_is_written(world: World) -> None:
    leader, follower = world.stores[1], world.stores[2]
    for store in world.others(leader):
        store.writer.held = True
    propose(leader, 3, 1, increment())
    world.settle()
    assert leader.taken() == []
    follower.writer.write()
    replies = [message for group, message in follower.sent if message.kind == Kind.APPEND_REPLY]
    assert replies == [], "made, and sent at the end of the turn"
    follower.turn()
    world.carry()
    leader.turn()
    assert leader.statuses() == [(1, Status.OK)]
    for store in world.stores.values():
        store.writer.held = False
        store.writer.write()
    world.settle()


def test_a_leader_sends_entries_before_its_own_disk_has_them_and_a_quorum_of_others_commits(
    world: World,
) -> None:
    leader = world.stores[1]
    leader.writer.held = True
    propose(leader, 3, 1, increment())
    leader.turn()
    appends = [message for group, message in leader.sent if message.kind == Kind.APPEND]
    assert [message.to for message in appends] == [EVERYBODY]
    world.settle()
    assert leader.groups.replicas[3].raft.commit == leader.groups.replicas[3].raft.last_index
    assert leader.taken() == [], "applied only what is durable here: a restart would go back behind it"
    leader.writer.held = False
    leader.writer.write()
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_an_answer_that_waits_for_no_write_leaves_in_its_turn(world: World) -> None:
    """`take_unstable` lets it go: a replica with nothing to write is asked, too."""
    leader, follower = world.stores[1], world.stores[2]
    raft = follower.groups.replicas[3].raft
    empty = Message(2, 1, Kind.APPEND, raft.term, raft.last_index, raft.log.last_term, raft.commit)
    follower.groups.on_messages(1, [(3, empty)])
    follower.turn()
    assert [message.kind for group, message in follower.sent if group == 3] == [Kind.APPEND_REPLY]
    assert leader.groups.strangers == 0


def test_messages_of_groups_that_are_not_here_are_counted_and_ignored(world: World) -> None:
    store = world.stores[1]
    message = Message(1, 2, Kind.HEARTBEAT, 99)
    store.groups.on_messages(2, [(1234, message), (3, Message(1, 2, Kind.HEARTBEAT_REPLY, 0))])
    assert store.groups.strangers == 1


def test_an_idle_turn_does_nothing(world: World) -> None:
    store = world.stores[1]
    world.settle()
    before = len(store.writer.batches)
    assert store.groups.end_turn() is False
    assert (len(store.writer.batches), store.sent) == (before, [])


def test_what_is_left_to_apply_asks_for_a_further_turn_and_is_applied_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for the next tick: nobody had said that the replica had more."""
    leader = world.stores[1]
    fill(world, 3, 10)
    world.tick()
    applied = leader.groups.replicas[3].machine.position.index
    store = world.restart(1)
    monkeypatch.setattr("storenode.groups.APPLY_BYTES_MAX", 30_000)
    replica = store.groups.replicas[3]
    store.groups.tick()
    turns = 0
    while store.groups.end_turn():
        turns += 1
        store.writer.write()
    assert replica.machine.position.index >= applied - 1
    assert turns >= 5
    assert APPLY_BYTES_MAX == 8 << 20


def test_the_groups_of_a_turn_share_what_is_applied_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took the whole of it: a node with many groups that replayed its log heard nobody for seconds."""
    for group in PARTITIONS:
        fill(world, group, 6)
    world.tick()
    store = world.restart(2)
    before = {group: store.groups.replicas[group].machine.position.index for group in PARTITIONS}
    monkeypatch.setattr("storenode.groups.APPLY_BYTES_MAX", 3 * 45_000)
    store.groups.tick()
    store.groups.end_turn()
    done = {
        group: store.groups.replicas[group].machine.position.index - before[group] for group in PARTITIONS
    }
    assert all(1 <= count <= 4 for count in done.values()), done


# -- the log fails


def test_after_a_log_failure_nothing_more_is_said_to_anybody(world: World) -> None:
    leader = world.stores[1]
    propose(leader, 3, 1, increment())
    leader.writer.failure = LogFailed("fdatasync failed")
    leader.turn()
    world.carry()
    for store in world.others(leader):
        store.turn(2)
    world.carry()
    leader.groups.tick()
    propose(leader, 7, 2, increment())
    batches = len(leader.writer.batches)
    leader.turn(3)
    assert leader.sent == []
    assert leader.taken() == []
    assert len(leader.writer.batches) == batches
    assert [str(error) for error in leader.fatal] == ["fdatasync failed"]


# -- the log is cut


def test_the_log_is_cut_behind_what_the_engine_has_in_tables_and_no_further(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 3)
    store.engines[3].flush()
    flushed = store.groups.replicas[3].machine.durable().index
    fill(world, 3, 12)
    world.tick()
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == flushed + 1
    assert store.log.group(3).term(flushed) == store.groups.replicas[3].raft.term


def test_a_short_log_is_left_alone(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 2)
    store.engines[3].flush()
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 2


def test_who_pins_a_long_log_is_flushed_and_then_cut(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 15)
    held = store.log.bytes_held
    world.tick()
    for number in range(8):
        store.groups.maintain()
        for opened in store.engines.values():
            opened.flush()  # waits for what `maintain` has begun, beside its own
        propose(store, 7, number, increment())  # a batch must say that a segment is free
        world.settle()
    assert first_index(store, 3) > 2
    assert store.log.bytes_held < held


def test_the_log_stays_from_a_snapshot_on_that_is_being_pulled(world: World) -> None:
    store = world.stores[1]
    fill(world, 3, 15)
    store.engines[3].flush()
    world.tick()
    store.groups.pinned = lambda group: 6 if group == 3 else None
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 7
    store.groups.pinned = lambda group: 5
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) == 7


def test_the_log_stays_for_a_follower_that_is_away_as_long_as_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of a node cost a snapshot of each of its partitions. And whoever waited for it was flushed
    every second, for nothing."""
    store = world.stores[1]
    fill(world, 3, 2)
    world.tick()
    match = store.groups.replicas[3].raft.progress[2].match
    world.cut = {2}
    fill(world, 3, 8)
    world.tick(12, nodes=[1, 3])
    store.engines[3].flush()
    flushes: list[ReplicaEngine] = []
    with monkeypatch.context() as patched:
        patched.setattr(ReplicaEngine, "flush", lambda engine, wait=True: flushes.append(engine))
        for _ in range(3):
            store.groups.maintain()
            world.settle()
    assert store.groups.replicas[3].raft.role is Role.LEADER
    assert first_index(store, 3) == match + 1
    assert store.engines[3] not in flushes
    fill(world, 3, 16)
    store.engines[3].flush()
    assert store.log.bytes_held > 2 * world.log_bytes_max
    store.groups.maintain()
    world.settle()
    assert first_index(store, 3) > match + 1


def test_a_log_that_cannot_be_collected_is_fatal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.stores[1]

    def refuse() -> int:
        raise LogFailed("00000001.log: no permission")

    monkeypatch.setattr(store.log, "collect", refuse)
    store.groups.maintain()
    assert [str(error) for error in store.fatal] == ["00000001.log: no permission"]


# -- snapshots


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


# -- leadership


def leaders(world: World) -> dict[int, int]:
    return {
        group: store.node
        for group in PARTITIONS
        for store in world.stores.values()
        if store.groups.replicas[group].raft.role is Role.LEADER
    }


def test_a_node_that_stops_gives_all_its_groups_away_and_loses_no_write(world: World) -> None:
    leader = world.stores[1]
    assert leader.groups.leading
    for group in PARTITIONS:
        propose(leader, group, group, increment())
    leader.turn()
    leader.groups.hand_over()
    world.settle()
    assert not leader.groups.leading
    assert leader.groups.idle
    assert set(leaders(world).values()) <= {2, 3}
    assert leaders(world).keys() == set(PARTITIONS)
    assert {status for _, status in leader.statuses()} <= {Status.OK, Status.OUTCOME_UNKNOWN}


def test_what_could_not_be_given_away_at_once_is_given_with_a_later_tick(world: World) -> None:
    """Right after a check of the quorum nobody counts as active, and nothing was ever tried again."""
    leader = world.stores[1]
    for replica in leader.groups.replicas.values():
        for progress in replica.raft.progress.values():
            progress.recent_active = False
    leader.groups.hand_over()
    world.settle()
    assert leader.groups.leading
    world.tick(2)
    assert not leader.groups.leading


def test_leadership_goes_back_to_whom_the_map_prefers_once_that_one_has_everything(world: World) -> None:
    first = world.stores[1]
    first.groups.hand_over()
    world.settle()
    first.groups._handing_over = False
    assert 1 not in leaders(world).values()
    world.tick(2)
    for store in world.stores.values():
        store.groups.maintain()
    world.settle()
    assert leaders(world) == dict.fromkeys(PARTITIONS, 1)


def test_a_node_that_hands_over_does_not_hand_back(world: World) -> None:
    first, second = world.stores[1], world.stores[2]
    first.groups.hand_over()
    world.settle()
    for store in (second, world.stores[3]):
        store.groups._handing_over = True
        store.groups.maintain()
    world.settle()
    assert 1 not in leaders(world).values()
