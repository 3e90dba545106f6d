"""Writes of storenode/replica/replica.py when leadership moves: what the old leader answers, what the next
one must know before it goes on, and who applies what.
"""

from __future__ import annotations

import pytest

from kvclient import protocol
from kvclient.errors import Status
from storenode.raft import Role
from storenode.raft.messages import Entry, EntryKind, Kind, Message
from storenode.replica import commands
from storenode.replica.replica import HOLD_S
from tests.unit.storenode.replicaworld import PARTITION, Store, World, increment


def test_who_does_not_lead_says_who_does(world: World) -> None:
    leader = world.lead()
    world.tick()
    follower = world.others(leader)[0]
    follower.propose(1, increment(), 1)
    ((_, token, status, body),) = follower.taken()
    assert (token, status) == (1, Status.NOT_LEADER)
    assert protocol.decode_error(body)["leader"] == leader.node
    assert follower.budget.used == 0


def test_a_write_that_waits_when_leadership_is_lost_goes_to_the_next_leader(world: World) -> None:
    """Nothing of it is in a log: the answer says so, and who leads."""
    leader = world.lead()
    follower = world.others(leader)[0]
    leader.propose(1, increment(), 1)
    term = leader.replica.raft.term + 1
    heartbeat = Message(leader.node, follower.node, Kind.HEARTBEAT, term)
    leader.groups.on_messages(follower.node, [(PARTITION, heartbeat)])
    leader.turn()
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (1, Status.NOT_LEADER)
    assert protocol.decode_error(body)["leader"] == follower.node


def test_a_new_leader_holds_writes_until_it_has_applied_what_was_before(world: World) -> None:
    """Nobody knows the partition's time before."""
    leader = world.elected()
    leader.propose(1, increment(), 1)
    leader.turn()
    assert leader.taken() == []
    assert not leader.replica.idle
    world.settle()
    assert leader.statuses() == [(1, Status.OK)]


def test_a_write_that_waits_for_a_leaders_first_entry_has_a_deadline_too(world: World) -> None:
    leader = world.elected()
    world.cut = {leader.node}
    leader.propose(1, increment(), 1, timeout=0.15)
    leader.turn()
    assert leader.taken() == []
    world.tick(2, nodes=[leader.node])
    assert leader.statuses() == [(1, Status.TIMEOUT)]


def test_the_partitions_time_never_goes_back_while_a_new_leader_still_applies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on from the entry that it has come to, and later ones are in the log already."""
    leader = world.lead()
    world.deaf = {leader.node}
    for number in range(8):
        leader.propose(number, increment(), number + 1)
        world.tick()
    world.cut, world.deaf = {leader.node}, set()
    monkeypatch.setattr("storenode.groups.APPLY_BYTES_MAX", 1)
    others = world.others(leader)
    for number in range(600):
        if number % 10 == 0:
            world.clock.advance(0.1)
            for store in others:
                store.groups.tick()
        for store in others:
            if store.leads:
                store.propose(number, increment())
        world.turn()
    logged = [commands.decode(entry.data) for entry in world.lead().entries() if entry.data]
    assert len(logged) > 20
    assert [one.stamp_ms for one in logged] == sorted(one.stamp_ms for one in logged)
    assert [one.session_ms for one in logged] == sorted(one.session_ms for one in logged)


def test_the_next_leaders_stamps_and_session_time_go_on_from_the_last_ones(world: World) -> None:
    leader = world.lead()
    world.tick(20)
    world.clock.jump_wall_ms(+3_600_000)
    leader.propose(1, increment(), 1)
    world.settle()
    world.clock.jump_wall_ms(-3_600_000)
    before = leader.replica.machine
    new = world.depose(leader)
    new.propose(2, increment(), 2)
    world.settle()
    after = new.replica.machine
    assert after.stamp_ms == before.stamp_ms
    assert 1900 <= before.session_ms <= 2200
    assert before.session_ms <= after.session_ms <= before.session_ms + 100


def test_what_a_lost_leader_had_proposed_has_an_unknown_outcome_and_is_asked_for_again(world: World) -> None:
    leader = world.lead()
    world.cut = {leader.node}
    leader.propose(1, increment(), 1)
    world.settle()
    world.tick(25)
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (1, Status.OUTCOME_UNKNOWN)
    assert protocol.decode_error(body)["retry_after_ms"] > 0
    assert leader.replica.raft.role is not Role.LEADER
    world.cut.clear()
    again = world.lead()
    again.propose(2, increment(), 1, retry=True)
    world.settle()
    assert again.statuses() == [(2, Status.OK)]
    assert again.value(b"n") == b"1"


def test_a_write_of_unknown_outcome_that_did_run_is_answered_by_the_next_leader(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    leader.turn()
    world.carry()
    new = world.depose(leader)
    assert leader.statuses() == []
    new.propose(2, increment(), 1, retry=True)
    world.settle()
    assert new.statuses() == [(2, Status.OK)]
    assert new.value(b"n") == b"1"
    world.cut.clear()
    world.tick(3)
    assert leader.statuses() in ([(1, Status.OUTCOME_UNKNOWN)], [(1, Status.OK)])
    assert leader.value(b"n") == b"1"


def test_another_leaders_entry_in_the_place_says_that_nothing_was_applied(world: World) -> None:
    """A turn may bring all at once: the other's entry, its commit, and the end of the log write."""
    leader = world.lead()
    follower = world.others(leader)[0]
    raft = leader.replica.raft
    world.cut = {leader.node}
    last, last_term = raft.last_index, raft.log.last_term
    leader.propose(1, increment(), 1)
    leader.turn()
    leader.taken()
    term = raft.term + 1
    entry = Entry(term, EntryKind.NORMAL, b"")
    replica, now = leader.replica, world.clock.monotonic()
    replica.step(
        Message(leader.node, follower.node, Kind.APPEND, term, last, last_term, last + 1, entries=[entry]),
        now,
    )
    unstable = raft.take_unstable()
    assert unstable is not None
    leader.writer.submit(
        [leader.writer.batches[-1][0]._replace(hard=unstable.hard, first_index=last + 1, entries=[entry])],
        lambda written: leader.log.installed(written),  # type: ignore[arg-type]
    )
    leader.writer.write()
    raft.persisted(unstable)
    replica.apply(now, 1 << 20)
    assert leader.statuses() == [(1, Status.NOT_LEADER)]
    # The others know nothing of that term: this one is brought in line by their next leader.
    world.restart(leader.node)
    assert follower.value(b"n") is None


def test_a_write_during_a_transfer_that_comes_to_nothing_is_executed_after_it(world: World) -> None:
    leader = world.lead()
    behind = world.others(leader)[0]
    world.cut = {behind.node}
    leader.propose(1, increment(), 1)
    world.settle()
    leader.taken()
    leader.replica.raft.transfer(behind.node)
    leader.propose(2, increment(), 2)
    world.settle()
    assert leader.taken() == []
    world.tick(12)
    assert leader.statuses() == [(2, Status.OK)]
    assert leader.value(b"n") == b"2"


def test_a_write_during_a_transfer_is_told_who_leads_then(world: World) -> None:
    """It was told that nobody did, and its router began to guess."""
    leader = world.lead()
    successor = world.others(leader)[1]
    leader.replica.raft.transfer(successor.node)
    leader.propose(1, increment(), 1)
    world.settle()
    ((_, token, status, body),) = leader.taken()
    assert (token, status) == (1, Status.NOT_LEADER)
    assert protocol.decode_error(body)["leader"] == successor.node
    assert leader.budget.used == 0


def leaderless(world: World) -> Store:
    """A follower that has not heard of its leader for long, as little as the third one, nor of that."""
    leader = world.lead()
    followers = world.others(leader)
    world.deaf = {store.node for store in followers}
    world.tick(25, nodes=world.deaf)
    assert not any(store.replica.raft.leader for store in followers)
    return followers[0]


def test_a_write_that_meets_an_election_is_executed_by_whom_it_met_if_that_one_wins(world: World) -> None:
    follower = leaderless(world)
    follower.propose(1, increment(), 1)
    follower.turn()
    assert follower.taken() == []
    world.deaf.clear()
    follower.replica.raft.campaign()
    follower.groups.dirty(follower.replica)
    world.settle()
    assert follower.leads
    assert follower.statuses() == [(1, Status.OK)]


def test_a_write_that_finds_nobody_leading_is_refused_after_a_moment(world: World) -> None:
    """Somebody else may know more."""
    follower = leaderless(world)
    follower.propose(1, increment(), 1)
    world.clock.advance(HOLD_S * 0.9)
    follower.groups.tick()
    follower.turn()
    assert follower.taken() == []
    world.clock.advance(HOLD_S * 0.2)
    follower.groups.tick()
    follower.turn()
    assert follower.statuses() == [(1, Status.NOT_LEADER)]
    assert follower.budget.used == 0


def test_who_can_neither_vote_nor_lead_keeps_no_writes_for_an_election(world: World) -> None:
    follower = leaderless(world)
    raft = follower.replica.raft
    raft.configuration = raft.configuration._replace(voters=raft.configuration.voters - {follower.node})
    follower.propose(1, increment(), 1)
    assert follower.statuses() == [(1, Status.NOT_LEADER)]
