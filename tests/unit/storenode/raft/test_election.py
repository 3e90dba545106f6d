"""Who may be elected, when, by whom: pre-vote, check-quorum, votes that survive crashes."""

from __future__ import annotations

import pytest

from storenode.raft import Role, Settings
from storenode.raft.election import ASK_AGAIN_TICKS
from storenode.raft.messages import Change, Entry, HardState, Kind, Message, Operation, Transition
from tests.unit.storenode.raft.harness import Cluster, configuration

E = Settings().election_ticks


def kinds(messages: list[Message]) -> list[int]:
    return [message.kind for message in messages]


def isolate(cluster: Cluster, *numbers: int) -> None:
    cluster.drop = lambda to, message: to in numbers or message.sender in numbers


def connect_only(cluster: Cluster, *links: tuple[int, int]) -> None:
    both = {*links, *((b, a) for a, b in links)}
    cluster.drop = lambda to, message: (message.sender, to) not in both


def test_a_follower_stands_after_a_timeout_between_one_and_one_and_a_half_election_times() -> None:
    waited = set()
    for seed in range(60):
        cluster = Cluster(3, seed=seed)
        ticks = 0
        while cluster[1].role is Role.FOLLOWER:
            cluster[1].tick()
            ticks += 1
        waited.add(ticks)
    assert min(waited) >= E
    assert max(waited) <= 3 * E // 2
    assert len(waited) >= E // 2


def test_who_asks_for_pre_votes_a_moment_too_early_asks_again_soon() -> None:
    """Our own: the only one with a complete log asked while the other was loyal for one more tick, and waited
    for a second timeout: nobody led for 2.6 election times.
    """
    cluster = Cluster(3)
    cluster.elect(1)
    isolate(cluster, 3)
    cluster.propose(1, b"x")
    isolate(cluster, 1)
    early, behind = cluster[2]._election, cluster[3]._election
    early.reset()
    behind.reset()
    early._timeout, behind._timeout = E, 2 * E - 1
    early.heard, behind.heard = 0, -1
    ticks = 0
    while cluster[2].role is not Role.LEADER:
        cluster.tick(2, 3)
        ticks += 1
        assert ticks <= E + ASK_AGAIN_TICKS[1]
    assert cluster[2].log.commit >= 3


def test_a_split_vote_is_mended_within_a_few_ticks() -> None:
    """Our own: the two that were left stood in the same moment, and both waited for another whole timeout:
    nobody led for 2.1 to 3 election times.
    """
    for seed in range(20):
        cluster = Cluster(3, seed=seed)
        cluster.elect(1)
        isolate(cluster, 1)
        for number in (2, 3):
            cluster[number]._election.release()
            cluster[number].campaign()
        cluster.settle()
        assert {cluster[2].role, cluster[3].role} == {Role.CANDIDATE}
        cluster.tick(2, 3, times=3)
        assert cluster[2].role is Role.LEADER


def test_three_nodes_elect_one_leader_and_all_know_it() -> None:
    cluster = Cluster(3)
    cluster.tick(times=2 * E)
    (leader,) = cluster.leaders()
    assert {node.raft.leader for node in cluster.nodes.values()} == {leader}


def test_only_a_log_that_is_as_new_gets_a_vote() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    for node in cluster.nodes.values():
        node.raft._election.release()
    raft = cluster[2]
    last, term = raft.last_index, raft.log.last_term
    for a, b, granted in ((last, term, True), (last - 1, term, False), (last + 9, term - 1, False)):
        raft.leader = 0
        raft.step(Message(2, 3, Kind.PRE_VOTE, raft.term + 1, a, b))
        cluster.nodes[2].sync()
        reply = cluster.nodes[2].turn()[-1]
        assert (reply.kind, not reply.flag) == (Kind.PRE_VOTE_REPLY, granted)


def test_a_candidate_asks_and_counts_itself_only_when_its_vote_is_durable() -> None:
    cluster = Cluster(1)
    node = cluster.nodes[1]
    node.raft.campaign()
    node.turn()
    assert node.raft.role is Role.CANDIDATE
    node.sync()
    assert node.raft.role is Role.LEADER
    cluster = Cluster(3)
    cluster[1].campaign()
    cluster.turn()
    cluster.deliver()
    cluster.turn(2, 3)
    cluster.deliver()
    assert cluster[1].role is Role.CANDIDATE
    assert Kind.VOTE not in kinds(cluster.nodes[1].turn())
    cluster.sync(1)
    assert kinds(cluster.nodes[1].turn()) == [Kind.VOTE, Kind.VOTE]


def test_a_vote_leaves_when_it_is_durable_and_is_remembered_after_a_crash() -> None:
    """hashicorp/raft#661, PySyncObj#84: term and vote are one durable write, before the answer."""
    cluster = Cluster(3)
    node = cluster.nodes[3]
    node.raft.step(Message(3, 1, Kind.VOTE, 5, 1, 0))
    assert kinds(node.turn()) == []
    node.sync()
    assert cluster.disks[3].hard_state[:2] == (5, 1)
    (reply,) = node.turn()
    assert (reply.to, reply.term, reply.flag) == (1, 5, 0)
    node = cluster.crash(3)
    node.raft._election.release()
    node.raft.step(Message(3, 2, Kind.VOTE, 5, 9, 4))
    (reply,) = node.turn()
    assert (reply.to, reply.flag) == (2, 1)


def test_who_gave_its_vote_waits_a_whole_timeout_for_the_candidate() -> None:
    cluster = Cluster(3)
    raft = cluster[3]
    raft.term = 5  # of the term of the vote already, so that nothing else begins the wait anew
    for _ in range(E - 1):
        raft.tick()
    raft._election.release()
    raft.step(Message(3, 1, Kind.VOTE, 5, 1, 0))
    for _ in range(E - 1):
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_a_vote_that_was_not_durable_was_never_told() -> None:
    cluster = Cluster(3)
    node = cluster.nodes[3]
    node.raft.step(Message(3, 1, Kind.VOTE, 5, 1, 0))
    node.turn()
    node = cluster.crash(3)
    assert cluster.disks[3].hard_state == HardState(0, 0, 1)
    assert not [message for message in cluster.sent if message.kind == Kind.VOTE_REPLY]


@pytest.mark.parametrize("kind", [Kind.PRE_VOTE, Kind.VOTE])
def test_who_heard_its_leader_helps_nobody_to_depose_it_except_by_its_order(kind: Kind) -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    raft = cluster[2]
    term = raft.term
    raft.step(Message(2, 3, kind, term + 1, 99, term))
    assert (raft.term, raft.pending_replies) == (term, [])
    cluster[1].step(Message(1, 3, kind, term + 1, 99, term))
    assert cluster[1].role is Role.LEADER
    raft.step(Message(2, 3, kind, term + 1, 99, term, flag=1))
    assert raft.pending_replies


def test_a_restarted_node_may_have_promised_and_waits_an_election_time() -> None:
    """A lease counts on who answered a heartbeat; a restart forgets the answer, not the promise."""
    cluster = Cluster(3)
    cluster.elect(1)
    raft = cluster.crash(2).raft
    for _ in range(E - 1):
        raft.tick()
        raft.step(Message(2, 3, Kind.PRE_VOTE, raft.term + 1, 99, raft.term))
        raft.campaign()
    assert not raft.pending_replies
    assert raft.role is Role.FOLLOWER
    raft.tick()
    if raft.role is Role.FOLLOWER:
        raft.step(Message(2, 3, Kind.PRE_VOTE, raft.term + 1, 99, raft.term))
        assert raft.pending_replies


def test_a_node_that_was_cut_off_keeps_its_term_and_deposes_nobody_when_it_is_back() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster[1].term
    isolate(cluster, 3)
    cluster.tick(times=5 * E)
    assert cluster[3].term == term
    cluster.drop = lambda to, message: False
    cluster.tick(times=3)
    assert cluster.leaders() == [1]
    assert cluster[3].leader == 1


def test_a_leader_without_a_quorum_steps_down() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    isolate(cluster, 1)
    cluster.tick(times=2 * E)
    assert cluster[1].role is not Role.LEADER


def test_a_leader_that_stepped_down_owes_loyalty_to_nobody() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster[1].transfer(2)
    cluster.settle()
    raft = cluster[2]
    assert raft.role is Role.LEADER
    raft.step(Message(2, 3, Kind.APPEND_REPLY, raft.term + 1, 0, flag=1))
    raft.step(Message(2, 3, Kind.PRE_VOTE, raft.term + 1, 99, raft.term))
    assert [message.kind for message in raft.pending_replies] == [Kind.PRE_VOTE_REPLY]


def test_the_node_that_reaches_a_quorum_is_elected_under_a_partial_partition() -> None:
    """Cloudflare 2020-11-02: all links of five nodes are gone but those of node 1; node 2 was the leader."""
    cluster = Cluster(5)
    cluster.elect(2)
    connect_only(cluster, *((1, other) for other in (2, 3, 4, 5)))
    cluster.tick(times=12 * E)
    assert cluster.leaders() == [1]
    term = cluster[1].term
    cluster.propose(1, b"through")
    cluster.tick(times=5 * E)
    assert (cluster.leaders(), cluster[1].term) == ([1], term), "and the others leave it in peace"
    assert all(node.machine.data == [b"through"] for node in cluster.nodes.values())


def test_a_leader_that_one_follower_cannot_hear_stays() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster[1].term
    connect_only(cluster, (1, 3), (2, 3))
    cluster.tick(times=6 * E)
    assert (cluster.leaders(), cluster[1].term) == ([1], term)


def test_a_follower_of_a_higher_term_is_not_left_without_a_leader() -> None:
    """etcd#8501, #8243: it refuses the leader's messages, and pre-vote never raises the leader's term."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[3].term += 3
    cluster.nodes[3].turn()
    cluster.nodes[3].sync()
    cluster.tick(times=4 * E)
    (leader,) = cluster.leaders()
    assert cluster[leader].term > 3
    assert {node.raft.leader for node in cluster.nodes.values()} == {leader}


def test_who_is_no_member_deposes_nobody_by_a_higher_term() -> None:
    cluster = Cluster(3)
    raft = cluster.elect(1)
    raft.step(Message(1, 9, Kind.APPEND_REPLY, raft.term + 5, 0, flag=1))
    assert raft.role is Role.LEADER
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term + 5, 0, flag=1))
    assert raft.role is Role.FOLLOWER


def test_a_learner_votes_when_asked_and_does_not_stand() -> None:
    """etcd#10998: it may have been promoted and not know it yet."""
    cluster = Cluster(2, start=configuration(1, learners=[2]))
    learner = cluster.nodes[2]
    for _ in range(3 * E):
        learner.raft.tick()
    assert learner.raft.role is Role.FOLLOWER
    learner.raft.campaign()
    assert learner.raft.role is Role.FOLLOWER
    learner.raft.step(Message(2, 1, Kind.VOTE, 4, 1, 0))
    learner.turn()
    learner.sync()
    (reply,) = learner.turn()
    assert (reply.kind, reply.flag) == (Kind.VOTE_REPLY, 0)


def test_nobody_stands_before_a_committed_change_is_applied() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    raft = cluster[2]
    change = Entry(raft.term, 1, b"")
    last = raft.last_index
    raft.step(Message(2, 1, Kind.APPEND, raft.term, last, raft.log.last_term, last + 1, 0, 0, [change]))
    raft._election.release()
    raft.campaign()
    assert raft.role is Role.FOLLOWER


def joint_cluster() -> Cluster:
    """Voters 1 2 3 and on the way to 1 4 5; the change is in force, the leader is 1."""
    cluster = Cluster(3)
    cluster.elect(1)
    for number in (4, 5):
        cluster.add(number)
        cluster.change(1, Change(Transition.AUTO, ((Operation.ADD_LEARNER, number),)))
        cluster.tick(times=4)
    operations = tuple((Operation.ADD_VOTER, n) for n in (4, 5)) + tuple(
        (Operation.REMOVE, n) for n in (2, 3)
    )
    cluster.change(1, Change(Transition.EXPLICIT, operations))
    cluster.tick(times=3)
    assert cluster[4].configuration.joint
    return cluster


def test_a_joint_election_takes_both_majorities() -> None:
    cluster = joint_cluster()
    connect_only(cluster, (4, 5), (4, 1), (1, 5))  # all of the new half, one of three of the old
    cluster.tick(times=5 * E)
    assert cluster.leaders() == []
    connect_only(cluster, (4, 5), (4, 2), (4, 3))  # two of each
    cluster.tick(times=12 * E)
    assert cluster.leaders() == [4]


def test_pre_votes_in_a_joint_configuration_end_with_a_leader() -> None:
    """openraft#1796."""
    cluster = joint_cluster()
    isolate(cluster, 1)
    cluster.tick(times=12 * E)
    assert len([number for number in cluster.leaders() if number != 1]) == 1


def test_answers_to_requests_for_votes_free_a_candidate_that_missed_a_commit() -> None:
    """Voters 1 2 3 to 3 alone: 3 has the entry that leaves the joint configuration but never heard that it is
    committed; 1 and 2 know, are no voters any more, and have longer logs.
    """
    cluster = Cluster(3)
    raft = cluster.elect(1)
    raft.propose_change(Change(Transition.EXPLICIT, ((Operation.REMOVE, 1), (Operation.REMOVE, 2))))
    cluster.settle()
    cluster.tick()
    assert cluster[3].configuration.joint
    raft.propose_change(Change(Transition.AUTO, ()))
    cluster.turn(1)
    raft.propose(b"longer")
    cluster.drop = lambda to, message: to == 3 and b"longer" in [entry.data for entry in message.entries]
    cluster.turn(1)
    cluster.deliver()
    cluster.drop = lambda to, message: to == 3
    cluster.settle()
    cluster.tick(times=2)
    assert cluster[1].configuration == configuration(3)
    assert cluster[3].configuration.joint
    assert cluster[1].last_index > cluster[3].last_index
    cluster.drop = lambda to, message: False
    cluster.tick(times=5 * E)
    assert cluster.leaders() == [3]
