"""Reads of storenode/replica/replica.py: when they may be served, and that each is answered once."""

from __future__ import annotations

import pytest

from kvclient import protocol
from kvclient.errors import Status
from storenode.engine.replica_engine import ReplicaEngine
from storenode.raft.messages import Kind, Message
from storenode.replica.replica import LEASE, READS_MAX
from tests.unit.storenode.replicaworld import PARTITION, Answer, Store, World, increment

SECOND = 1000


def put(world: World, store: Store, value: bytes) -> None:
    store.propose(1000, protocol.encode_put(b"k", value))
    world.settle()
    assert store.statuses() == [(1000, Status.OK)]


def found(answer: Answer) -> bytes:
    assert answer[2] == Status.OK, answer
    value = protocol.decode_results(answer[3])[0][1]
    assert isinstance(value, bytes)
    return value


def release(world: World) -> None:
    for store in world.stores.values():
        store.writer.held = False
        store.writer.write()


def test_a_linearizable_read_waits_for_a_quorum_that_heard_of_it(world: World) -> None:
    leader = world.lead()
    put(world, leader, b"v")
    leader.read(1, b"k")
    leader.turn()
    assert leader.taken() == []
    assert not leader.replica.idle
    world.settle()
    (answer,) = leader.taken()
    assert found(answer) == b"v"


def test_all_reads_of_a_turn_share_one_round_and_keep_their_order(world: World) -> None:
    leader = world.lead()
    for token in range(50):
        leader.read(token, b"k")
    leader.turn()
    assert [message.kind for _, message in leader.sent] == [Kind.HEARTBEAT]
    world.settle()
    assert [token for token, _ in leader.statuses()] == list(range(50))


def test_a_leader_that_lost_the_others_serves_no_linearizable_read(world: World) -> None:
    leader = world.lead()
    world.cut = {leader.node}
    leader.read(1, b"k")
    world.settle()
    assert leader.taken() == []
    world.tick(25)
    assert leader.statuses() == [(1, Status.NOT_LEADER)]


def test_a_read_that_was_confirmed_waits_until_that_index_is_applied(world: World) -> None:
    """Two others have committed what this leader's own disk has not written yet."""
    leader = world.lead()
    leader.writer.held = True
    leader.propose(1, protocol.encode_put(b"k", b"new"), 1)
    world.settle()
    assert leader.replica.raft.commit > leader.replica.machine.position.index
    leader.read(2, b"k")
    world.settle()
    assert leader.taken() == []
    release(world)
    world.settle()
    write, read = leader.taken()
    assert write[1:3] == (1, Status.OK)
    assert found(read) == b"new"


def test_a_confirmed_read_whose_index_is_never_applied_here_ends_at_its_deadline(world: World) -> None:
    """It waited for ever: nobody looked at its deadline."""
    leader = world.lead()
    leader.writer.held = True
    leader.propose(1, protocol.encode_put(b"k", b"new"))
    world.settle()
    leader.read(2, b"k", timeout=3.0)
    world.settle()
    world.cut = {leader.node}
    world.tick(28, nodes=[leader.node])
    assert leader.statuses() == [(1, Status.OUTCOME_UNKNOWN)]
    world.tick(4, nodes=[leader.node])
    assert leader.statuses() == [(2, Status.TIMEOUT)]
    release(world)


def test_a_read_whose_deadline_passed_while_it_waited_is_late(world: World) -> None:
    leader = world.lead()
    leader.read(1, b"k", timeout=1.0)
    leader.turn()
    world.carry()
    for store in world.others(leader):
        store.turn()
    world.carry()
    world.clock.advance(1.0)
    leader.turn()
    assert leader.statuses() == [(1, Status.TIMEOUT)]


def test_a_lease_serves_at_once_without_a_message(world: World) -> None:
    leader = world.lead()
    put(world, leader, b"v")
    world.tick()
    assert leader.sent == []
    leader.read(1, b"k", LEASE)
    (answer,) = leader.taken()
    assert found(answer) == b"v"
    leader.turn()
    assert leader.sent == []


def test_a_lease_that_has_run_out_needs_a_quorum(world: World) -> None:
    leader = world.lead()
    world.clock.advance(2.0)
    leader.read(1, b"k", LEASE)
    assert leader.taken() == []
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_a_lease_is_looked_at_again_after_the_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process stood still while it read: somebody else may have led and written meanwhile."""
    leader = world.lead()
    world.tick()
    read = ReplicaEngine.read

    def slow(engine: ReplicaEngine, ops: bytes, now_ms: int) -> bytes:
        results = read(engine, ops, now_ms)
        world.clock.advance(5.0)
        return results

    with monkeypatch.context() as patched:
        patched.setattr(ReplicaEngine, "read", slow)
        leader.read(1, b"k", LEASE)
    assert leader.taken() == []
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_a_lease_read_sees_what_is_committed_and_was_perhaps_answered_elsewhere(world: World) -> None:
    """A follower that had applied a write answered its retry, while the leader's own disk was behind."""
    leader = world.lead()
    put(world, leader, b"old")
    leader.writer.held = True
    leader.propose(1, protocol.encode_put(b"k", b"new"), 1)
    world.settle()
    world.tick()
    follower = world.others(leader)[0]
    follower.propose(2, protocol.encode_put(b"k", b"new"), 1, retry=True)
    assert follower.statuses() == [(2, Status.OK)]
    assert leader.value(b"k") == b"old"
    leader.read(3, b"k", LEASE)
    assert leader.taken() == []
    release(world)
    world.settle()
    assert [found(answer) for answer in leader.taken() if answer[1] == 3] == [b"new"]


def test_a_follower_serves_a_stale_read_while_it_hears_the_leader(world: World) -> None:
    leader = world.lead()
    put(world, leader, b"v")
    world.tick(2)
    follower = world.others(leader)[0]
    follower.read(1, b"k", SECOND)
    (answer,) = follower.taken()
    assert found(answer) == b"v"
    world.cut = {follower.node}
    world.clock.advance(1.001)
    follower.read(2, b"k", SECOND)
    assert follower.statuses() == [(2, Status.NOT_LEADER)]
    follower.read(3, b"k", 5 * SECOND)
    assert follower.statuses() == [(3, Status.OK)]


def test_a_follower_that_hears_the_leader_and_misses_entries_is_not_fresh(world: World) -> None:
    """Its own commit index was taken for the leader's: heartbeats alone made old data pass for new."""
    leader = world.lead()
    put(world, leader, b"old")
    world.tick(2)
    follower = world.others(leader)[0]
    world.cut = {follower.node}
    put(world, leader, b"new")
    world.clock.advance(2.0)
    raft = leader.replica.raft
    for kind in (Kind.HEARTBEAT, Kind.APPEND):
        fields = (raft.commit, raft.term, 0 if kind == Kind.HEARTBEAT else raft.commit)
        message = Message(follower.node, leader.node, kind, raft.term, *fields)
        follower.groups.on_messages(leader.node, [(PARTITION, message)])
    follower.turn()
    follower.read(1, b"k", SECOND)
    assert follower.statuses() == [(1, Status.NOT_LEADER)]


def test_a_leader_that_has_committed_nothing_of_its_term_makes_nobody_fresh(world: World) -> None:
    """What it knows to be committed may be older than what a leader before it has answered."""
    leader = world.lead()
    put(world, leader, b"v")
    world.tick(2)
    follower = world.others(leader)[0]
    raft = follower.replica.raft
    world.clock.advance(2.0)
    elect = Message(
        follower.node, world.others(leader)[1].node, Kind.HEARTBEAT, raft.term + 1, raft.commit, raft.term
    )
    follower.groups.on_messages(elect.sender, [(PARTITION, elect)])
    follower.turn()
    follower.read(1, b"k", SECOND)
    assert follower.statuses() == [(1, Status.NOT_LEADER)]
    world.tick(30)


def test_under_steady_writes_a_follower_stays_fresh(world: World) -> None:
    """The newest commit index heard of is always a little ahead of what is applied."""
    leader = world.lead()
    world.tick()
    follower = world.others(leader)[0]
    for number in range(40):
        follower.writer.held = True
        leader.propose(number, increment())
        world.turn()
        world.turn()
        leader.propose(1000 + number, increment())
        world.clock.advance(0.05)
        follower.writer.held = False
        follower.writer.write()
        world.turn()
        if number > 3:
            follower.read(1, b"n", SECOND // 2)
            assert follower.statuses() == [(1, Status.OK)], number
    world.settle()


def test_reads_that_wait_are_bounded(world: World) -> None:
    """A leader without its quorum kept every read that came in, as many as there were."""
    leader = world.lead()
    world.cut = {leader.node}
    for token in range(READS_MAX + 2):
        leader.read(token, b"k")
        if token % 100 == 0:
            leader.turn()
    busy = leader.taken()
    assert [answer[1:3] for answer in busy] == [(READS_MAX, Status.BUSY), (READS_MAX + 1, Status.BUSY)]
    assert protocol.decode_error(busy[0][3])["retry_after_ms"] > 0
    world.tick(25)
    assert leader.statuses() == [(token, Status.NOT_LEADER) for token in range(READS_MAX)]
    world.cut.clear()
    again = world.lead()
    again.read(1, b"k")
    world.settle()
    assert again.statuses() == [(1, Status.OK)]


def test_a_read_that_the_disk_refuses_costs_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came out of the turn: the reads behind it were never answered."""
    leader = world.lead()
    put(world, leader, b"v")
    read = ReplicaEngine.read

    def refusing(engine: ReplicaEngine, ops: bytes, now_ms: int) -> bytes:
        if ops == protocol.encode_get(b"bad"):
            raise OSError(5, "Input/output error")
        return read(engine, ops, now_ms)

    monkeypatch.setattr(ReplicaEngine, "read", refusing)
    leader.read(1, b"k")
    leader.read(2, b"bad")
    leader.read(3, b"k")
    world.settle()
    assert leader.statuses() == [(1, Status.OK), (2, Status.INTERNAL), (3, Status.OK)]
    assert leader.replica.failure is None


def test_a_follower_refuses_linearizable_and_lease_reads_and_names_the_leader(world: World) -> None:
    leader = world.lead()
    world.tick()
    follower = world.others(leader)[0]
    follower.read(1, b"k")
    follower.read(2, b"k", LEASE)
    for _, _, status, body in follower.taken():
        assert status == Status.NOT_LEADER
        assert protocol.decode_error(body)["leader"] == leader.node
