"""storenode/groups.py: all replicas of a node in one turn, one log write, and the order of things."""

from __future__ import annotations

import pytest

from kvclient.errors import Status
from storenode.groups import APPLY_BYTES_MAX
from storenode.raft.messages import EVERYBODY, Kind, Message
from storenode.raftlog import LogFailed
from tests.unit.storenode.groups.writes import PARTITIONS, fill, propose
from tests.unit.storenode.replicaworld import World, increment


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
