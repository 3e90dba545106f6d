"""Members that are behind: where logs meet, which rejections count, snapshots."""

from __future__ import annotations

import pytest

from storenode.raft import ProgressState, Settings
from storenode.raft.messages import (
    EVERYBODY,
    Change,
    HardState,
    Kind,
    Message,
    Operation,
    Transition,
)
from tests.unit.storenode.raft.harness import (
    Cluster,
    configuration,
    led,
    lose_all,
    lose_none,
    normal,
    of_kind,
)

E = Settings().election_ticks


# finding where logs meet


def diverged(tail: list[int], head: list[int]) -> Cluster:
    """Node 1 leads with terms `head` from index 2 on, node 2 has `tail`; node 3 is as node 1."""
    cluster = Cluster(3)
    for number, terms in ((1, head), (2, tail), (3, head)):
        cluster.disks[number].log = [normal(term, b"%d" % term) for term in terms]
        cluster.disks[number].hard_state = HardState(max(terms, default=0), 0, 1)
        cluster.boot(number)
    cluster.drop = lambda to, message: to == 2 and message.kind in (Kind.PRE_VOTE, Kind.VOTE)
    cluster.elect(1)
    return cluster


@pytest.mark.parametrize(
    ("tail", "head"),
    [
        ([1] * 3 + [4] * 2 + [5] * 2, [1] * 3 + [4] * 2 + [5] * 2 + [6] * 3),
        ([1] * 3 + [4], [1] * 3 + [4] * 2 + [5] * 2 + [6] * 3),
        ([1] * 3 + [4] * 2 + [5] * 2 + [6] * 4, [1] * 3 + [4] * 2 + [5] * 2 + [6] * 3),
        ([1] * 3 + [4] * 4, [1] * 3 + [4] * 2 + [5] * 2 + [6] * 3),
        ([1] * 3 + [2] * 3 + [3] * 5, [1] * 3 + [4] * 2 + [5] * 2 + [6] * 3),
        ([1] + [2] * 500, [1] + [3] * 500),
        ([1] + [3] * 300, [1] + [2] * 300 + [5]),
        ([1] * 5 + [2] * 300 + [4] * 300, [1] * 5 + [3] * 300 + [5] * 400),
    ],
)
def test_a_divergent_tail_is_found_in_few_round_trips(tail: list[int], head: list[int]) -> None:
    """Figure 7 of the Raft paper, and long tails: by terms, not by entries."""
    cluster = diverged(tail, head)
    cluster.tick(times=6)
    assert cluster.log(2) == cluster.log(1)
    rejections = [message for message in of_kind(cluster.sent, Kind.APPEND_REPLY) if message.flag]
    assert len(rejections) <= 1 + len(set(tail) | set(head))
    assert len(rejections) <= 5


def test_a_stale_rejection_is_ignored() -> None:
    cluster = led()
    cluster.propose(1, b"a", b"b")
    raft = cluster[1]
    member = raft.progress[2]
    next_index = member.next
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, member.match, 1, 0, flag=1))
    assert (member.state, member.next) == (ProgressState.REPLICATE, next_index)
    raft.unreachable(2)
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, member.match - 1, 1, 0, flag=1))
    assert member.next == member.match + 1
    cluster = diverged([1] * 9, [1] * 9)
    lose_all(cluster)
    raft = cluster.elect(1)
    member = raft.progress[2]
    member.match, member.next, member.state = 0, 10, ProgressState.PROBE
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, 5, 4, 1, flag=1))
    assert member.next == 10
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, 9, 4, 1, flag=1))
    assert member.next == 5


def test_a_late_acknowledgement_of_before_an_erase_does_not_keep_a_member_without_its_log() -> None:
    cluster = led()
    cluster.propose(1, b"a", b"b")
    (late,) = [
        message
        for message in of_kind(cluster.sent, Kind.APPEND_REPLY)
        if message.sender == 3 and message.a == cluster[1].last_index
    ]
    cluster.change(1, Change(Transition.AUTO, ((Operation.REMOVE, 3),)))
    promised = HardState(cluster[3].term, cluster[3].vote, 0)
    cluster.add(3).disk.hard_state = promised  # erased, and hosted again
    cluster.boot(3)
    cluster[1].propose_change(Change(Transition.AUTO, ((Operation.ADD_LEARNER, 3),)))
    for _ in range(10):  # the new member's first answer is still on its way
        if 3 in cluster[1].progress:
            break
        cluster.turn(1, 2)
        cluster.sync(1, 2)
        cluster.deliver()
    cluster[1].step(late)
    assert cluster[1].progress[3].match == late.a
    cluster.tick(times=3)
    assert cluster.nodes[3].machine.data == [b"a", b"b"]
    assert cluster[1].progress[3].match == cluster[1].last_index


def test_a_reply_beyond_the_end_of_the_log_is_ignored() -> None:
    cluster = led()
    raft = cluster[1]
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, raft.last_index + 5))
    assert raft.progress[2].match == raft.last_index


def test_a_probe_that_is_not_answered_is_not_repeated_before_a_heartbeat_is() -> None:
    cluster = led()
    lose_all(cluster)
    cluster[1].unreachable(2)
    cluster.sent.clear()
    for _ in range(5):
        cluster[1].propose(b"a")
        cluster.settle()
    assert len([message for message in of_kind(cluster.sent, Kind.APPEND) if message.to == 2]) == 1
    cluster.drop = lambda to, message: message.kind == Kind.APPEND
    cluster.tick(times=5)
    probes = len([message for message in of_kind(cluster.sent, Kind.APPEND) if message.to == 2])
    assert 3 <= probes <= 1 + 5


def test_a_follower_behind_rejects_one_broadcast_per_tick_and_each_append_of_its_own() -> None:
    cluster = led()
    raft, node = cluster[2], cluster.nodes[2]
    gap, term = raft.last_index + 10, raft.term
    for _ in range(5):
        raft.step(Message(EVERYBODY, 1, Kind.APPEND, term, gap, term, 1, 0, 0, [normal(term)]))
    assert len(node.turn()) == 1
    for _ in range(2):
        raft.step(Message(2, 1, Kind.APPEND, term, gap, term, 1, 0, 0, [normal(term)]))
    assert len(node.turn()) == 2
    raft.tick()
    raft.step(Message(EVERYBODY, 1, Kind.APPEND, term, gap, term, 1, 0, 0, [normal(term)]))
    (reject,) = node.turn()
    assert (reject.flag, reject.a, reject.b) == (1, gap, raft.last_index)


def test_who_is_no_member_and_hears_broadcasts_changes_nothing_for_the_leader() -> None:
    cluster = led()
    cluster.add(9)
    cluster.propose(1, b"a")
    cluster.tick(times=3)
    assert cluster[9].last_index == 0
    assert 9 not in cluster[1].progress
    assert cluster[1].progress[2].state is ProgressState.REPLICATE


def test_a_lost_broadcast_is_repaired_by_the_next_one() -> None:
    cluster = led()
    cluster.drop = lambda to, message: to == 3 and message.kind == Kind.APPEND
    cluster.propose(1, b"a")
    lose_none(cluster)
    cluster.propose(1, b"b")
    cluster.tick()
    assert cluster.nodes[3].machine.data == [b"a", b"b"]


def test_a_follower_acknowledges_what_is_durable_only() -> None:
    cluster = led()
    cluster[1].propose(b"a")
    cluster.turn()
    cluster.deliver()
    assert of_kind(cluster.nodes[2].turn(), Kind.APPEND_REPLY) == []
    cluster.crash(2)
    assert cluster[2].last_index < cluster[1].last_index
    cluster.settle()
    cluster.tick(times=4)
    assert cluster[2].last_index == cluster[1].last_index


def test_appends_of_a_turn_are_acknowledged_by_one_reply_with_the_highest_match() -> None:
    cluster = led()
    raft, node = cluster[2], cluster.nodes[2]
    last, term = raft.last_index, raft.term
    for previous, count in ((last, 3), (last, 1)):
        entries = [normal(term)] * count
        raft.step(Message(2, 1, Kind.APPEND, term, previous, term, 1, 0, 0, entries))
    node.turn()
    node.sync()
    assert [reply.a for reply in node.turn()] == [last + 3]


# snapshots


def cut_off(cluster: Cluster, number: int) -> None:
    """`number` misses entries that the leader then cuts."""
    cluster.drop = lambda to, message: to == number
    cluster.propose(1, b"a", b"b", b"c")
    cluster.nodes[1].flush_and_cut()


def test_a_follower_that_needs_entries_that_were_cut_is_told_to_pull_a_snapshot() -> None:
    cluster = led()
    cut_off(cluster, 3)
    lose_none(cluster)
    cluster.tick(times=6)
    assert of_kind(cluster.sent, Kind.SNAPSHOT)
    assert cluster.nodes[3].machine.data == [b"a", b"b", b"c"]
    assert cluster[1].progress[3].state is ProgressState.REPLICATE
    cluster.propose(1, b"d")
    cluster.tick()
    assert cluster.nodes[3].machine.data[-1] == b"d"


def test_the_order_to_pull_is_repeated_every_election_time_and_no_entries_are_sent() -> None:
    cluster = led()
    cut_off(cluster, 3)
    cluster.drop = lambda to, message: message.kind == Kind.SNAPSHOT
    cluster.tick(times=6)
    assert cluster[1].progress[3].state is ProgressState.SNAPSHOT
    cluster.sent.clear()
    cluster.tick(times=3 * E)
    assert len(of_kind(cluster.sent, Kind.SNAPSHOT)) == 3
    assert not [message for message in of_kind(cluster.sent, Kind.APPEND) if message.to == 3]


def test_any_snapshot_that_lets_the_log_go_on_ends_the_snapshot_state() -> None:
    """etcd#10308, raft#110: the one that was named may never come."""
    cluster = led()
    cut_off(cluster, 3)
    cut = cluster.disks[1].cut_index
    cluster.propose(1, b"d", b"e")
    cluster.drop = lambda to, message: message.kind == Kind.SNAPSHOT
    cluster.tick(times=6)
    member = cluster[1].progress[3]
    assert of_kind(cluster.sent, Kind.SNAPSHOT)[-1].a > cut
    assert member.state is ProgressState.SNAPSHOT
    cluster[1].step(Message(1, 3, Kind.APPEND_REPLY, cluster[1].term, cut - 1))
    assert member.state is ProgressState.SNAPSHOT
    cluster[1].step(Message(1, 3, Kind.APPEND_REPLY, cluster[1].term, cut))
    assert member.state is ProgressState.REPLICATE
    assert member.next == cut + 1


def test_a_pull_that_failed_is_asked_for_again() -> None:
    cluster = led()
    cut_off(cluster, 3)
    cluster.drop = lambda to, message: message.kind == Kind.SNAPSHOT
    cluster.tick(times=6)
    cluster.sent.clear()
    cluster[1].unreachable(3)
    cluster.settle()
    assert of_kind(cluster.sent, Kind.SNAPSHOT)


def test_a_snapshot_that_is_not_needed_is_answered_with_what_is_here() -> None:
    cluster = led()
    cluster.propose(1, b"a")
    raft = cluster[2]
    assert raft.commit < raft.last_index
    raft.step(Message(2, 1, Kind.SNAPSHOT, raft.term, raft.last_index, raft.log.last_term))
    assert raft.snapshot_wanted is None
    assert raft.commit == raft.last_index
    (reply,) = cluster.nodes[2].turn()
    assert (reply.kind, reply.a, reply.flag) == (Kind.APPEND_REPLY, raft.last_index, 0)


def test_an_older_snapshot_is_refused() -> None:
    cluster = led()
    cluster.propose(1, b"a")
    cluster.tick()
    with pytest.raises(ValueError, match="older"):
        cluster[2].restore(1, 0, configuration(1))
