"""Changes of configuration and transfers of leadership."""

from __future__ import annotations

import pytest

from storenode.raft import ConfigurationRefused, Dropped, NotLeader, ProgressState, Role, Settings
from storenode.raft.messages import (
    Change,
    Configuration,
    EntryKind,
    HardState,
    Kind,
    Message,
    Operation,
    Transition,
)
from tests.unit.storenode.raft.harness import Cluster, configuration

E = Settings().election_ticks
ADD, REMOVE, LEARN = Operation.ADD_VOTER, Operation.REMOVE, Operation.ADD_LEARNER
LEAVE = Change(Transition.AUTO, ())


def change(*operations: tuple[Operation, int], transition: Transition = Transition.AUTO) -> Change:
    return Change(transition, operations)


def led(nodes: int = 3) -> Cluster:
    cluster = Cluster(nodes)
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.tick()
    return cluster


def swap(cluster: Cluster) -> None:
    """Voter 3 by node 4, in one step, by way of a joint configuration."""
    cluster.add(4)
    cluster.change(1, change((ADD, 4), (REMOVE, 3)))


def configurations(cluster: Cluster) -> set[Configuration]:
    return {node.machine.configuration for node in cluster.nodes.values()}


def changes_in_log(cluster: Cluster, number: int) -> int:
    return sum(entry.kind == EntryKind.CONFIGURATION for _, entry in cluster.nodes[number].machine.applied)


def test_a_new_node_gets_a_snapshot_then_entries_and_votes_when_promoted() -> None:
    cluster = led()
    cluster.add(4)
    cluster.change(1, change((LEARN, 4)))
    cluster.tick(times=3)
    assert cluster.nodes[4].machine.data == [b"a"]
    assert cluster[1].progress[4].state is ProgressState.REPLICATE
    cluster.change(1, change((ADD, 4)))
    cluster.tick(times=2)
    assert configurations(cluster) == {configuration(1, 2, 3, 4)}


def test_a_learner_counts_for_no_commit() -> None:
    cluster = Cluster(3, start=configuration(1, 2, learners=[3]))
    cluster.elect(1)
    cluster.drop = lambda to, message: to == 2
    (index,) = cluster.propose(1, b"a")
    assert cluster[1].progress[3].match == index
    assert cluster[1].commit < index


def test_a_swap_goes_through_a_joint_configuration_and_leaves_it_on_its_own() -> None:
    cluster = led()
    swap(cluster)
    cluster.tick(times=4)
    assert cluster[1].configuration == cluster[4].configuration == configuration(1, 2, 4)
    assert changes_in_log(cluster, 1) == 2


def test_an_explicit_joint_configuration_stays_until_it_is_left() -> None:
    cluster = led()
    cluster.change(1, change((REMOVE, 3), transition=Transition.EXPLICIT))
    cluster.tick(times=2 * E)
    assert cluster[1].configuration.joint
    cluster.change(1, LEAVE)
    assert cluster[1].configuration == configuration(1, 2)


def test_the_end_of_a_joint_configuration_is_proposed_once() -> None:
    """etcd#14545."""
    cluster = led()
    cluster.add(4)
    cluster[1].propose_change(change((ADD, 4), (REMOVE, 3)))
    cluster.settle()
    cluster.drop = lambda to, message: True
    last = cluster[1].last_index
    cluster.tick(1, times=E // 2)
    assert cluster[1].last_index == last


def test_the_end_of_a_joint_configuration_is_not_forgotten_while_leadership_is_handed_over() -> None:
    """etcd#14538: the occasion passed during a transfer that came to nothing."""
    cluster = led()
    cluster.add(4)
    cluster[1].propose_change(change((ADD, 4), (REMOVE, 3)))
    cluster.drop = lambda to, message: message.kind == Kind.TIMEOUT_NOW or to == 2
    cluster[1].transfer(2)
    cluster.drop = lambda to, message: message.kind == Kind.TIMEOUT_NOW
    cluster.settle()
    cluster.tick()
    assert cluster[1].configuration.joint, "not proposed during the transfer"
    cluster.tick(times=E + 4)
    assert cluster[1].configuration == configuration(1, 2, 4)


def test_a_new_leader_leaves_the_joint_configuration_that_it_inherits() -> None:
    cluster = led()
    cluster.add(4)
    cluster.change(1, change((ADD, 4), (REMOVE, 3), transition=Transition.EXPLICIT))
    cluster.tick(times=4)
    assert cluster[2].configuration.joint
    for node in cluster.nodes.values():
        implicit = node.raft.configuration._replace(auto_leave=True)
        node.raft.configuration = node.machine.configuration = implicit
    cluster.drop = lambda to, message: 1 in (to, message.sender)
    cluster.elect(2)
    cluster.tick(times=4)
    assert cluster[2].configuration == configuration(1, 2, 4)


def test_one_change_at_a_time_and_none_before_it_is_applied() -> None:
    cluster = led()
    cluster[1].propose_change(change((LEARN, 4)))
    with pytest.raises(ConfigurationRefused, match="one at a time"):
        cluster[1].propose_change(change((LEARN, 5)))
    cluster.settle()
    cluster[1].propose_change(change((LEARN, 5)))


def test_no_change_before_the_leader_has_committed_in_its_term() -> None:
    """Ongaro, raft-dev 2015-07: otherwise two leaders may each take a step and their majorities not meet."""
    cluster = Cluster(3)
    cluster.drop = lambda to, message: message.kind == Kind.APPEND
    raft = cluster.elect(1)
    with pytest.raises(ConfigurationRefused, match="has not committed"):
        raft.propose_change(change((LEARN, 4)))


def test_an_illegal_change_is_refused_and_leaves_nothing_in_the_log() -> None:
    cluster = led()
    last = cluster[1].last_index
    with pytest.raises(ConfigurationRefused):
        cluster[1].propose_change(LEAVE)
    with pytest.raises(ConfigurationRefused):
        cluster[1].propose_change(change((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)))
    with pytest.raises(NotLeader):
        cluster[2].propose_change(change((LEARN, 4)))
    assert cluster[1].last_index == last


def test_a_leader_that_is_removed_leads_until_it_is_committed_then_hands_over() -> None:
    cluster = led()
    cluster[1].propose_change(change((REMOVE, 1)))
    assert cluster[1].role is Role.LEADER
    cluster.settle()
    assert cluster[1].role is Role.FOLLOWER
    assert len(cluster.leaders()) == 1, "without waiting for a timeout"
    cluster.tick(times=3 * E)
    assert cluster[1].role is Role.FOLLOWER
    cluster.propose(cluster.leaders()[0], b"b")


def test_removing_a_dead_voter_commits_what_waited_for_it() -> None:
    cluster = led(2)
    cluster.add(3)
    cluster.change(1, change((ADD, 3)))
    cluster.tick(times=4)
    cluster.change(1, change((ADD, 4)))
    cluster.tick(times=2)
    cluster.change(1, change((REMOVE, 4)))
    assert cluster[1].configuration == configuration(1, 2, 3)
    (index,) = cluster.propose(1, b"b")
    assert cluster[1].commit == index


def test_leadership_is_handed_to_a_follower_that_has_everything() -> None:
    cluster = led()
    cluster[1].transfer(2)
    cluster.settle()
    assert cluster.leaders() == [2]


def test_a_transfer_waits_until_the_follower_has_caught_up_and_drops_proposals() -> None:
    cluster = led()
    cluster.drop = lambda to, message: to == 2
    cluster.propose(1, b"b")
    cluster[1].transfer(2)
    with pytest.raises(Dropped, match="handed to node 2"):
        cluster[1].propose(b"c")
    with pytest.raises(Dropped):
        cluster[1].propose_change(change((LEARN, 9)))
    assert cluster.leaders() == [1]
    cluster.drop = lambda to, message: False
    cluster.tick(times=4)
    assert cluster.leaders() == [2]


def test_a_lost_order_to_stand_is_given_again_a_tick_later() -> None:
    """Our own: a store that stopped in order waited an election time before it tried another one."""
    cluster = led()
    cluster.drop = lambda to, message: message.kind == Kind.TIMEOUT_NOW
    cluster[1].transfer(2)
    cluster.settle()
    assert cluster[1].role is Role.LEADER
    cluster.drop = lambda to, message: False
    cluster.tick()
    assert cluster[2].role is Role.LEADER


def test_a_transfer_to_a_dead_follower_is_given_up_after_an_election_time() -> None:
    cluster = led()
    cluster.drop = lambda to, message: to == 2
    cluster.propose(1, b"b")
    cluster[1].transfer(2)
    cluster.tick(times=E + 1)
    cluster[1].propose(b"c")
    assert cluster.leaders() == [1]


def test_only_a_voter_with_a_log_takes_over() -> None:
    cluster = led()
    cluster.add(4)
    cluster.change(1, change((LEARN, 4)))
    cluster.tick(times=3)
    for node in (4, 9):
        with pytest.raises(Dropped, match="no voter"):
            cluster[1].transfer(node)
    cluster[1].progress[3].snapshot()
    with pytest.raises(Dropped, match="snapshot"):
        cluster[1].transfer(3)
    with pytest.raises(NotLeader):
        cluster[2].transfer(3)
    cluster[1].transfer(1)
    cluster[1].propose(b"still leading")


def test_an_order_to_stand_from_who_does_not_lead_is_ignored() -> None:
    cluster = led()
    cluster[2].step(Message(2, 3, Kind.TIMEOUT_NOW, cluster[2].term))
    assert cluster[2].role is Role.FOLLOWER


def test_an_erased_voter_that_is_hosted_again_elects_nobody_who_lacks_what_it_had_committed() -> None:
    cluster = led()
    cluster.drop = lambda to, message: 2 in (to, message.sender)
    cluster.propose(1, b"committed by 1 and 3")
    swap_in_4 = change((ADD, 4), (REMOVE, 3))
    cluster.add(4)
    cluster.change(1, swap_in_4)
    cluster.tick(times=2)
    assert cluster.nodes[4].machine.configuration == configuration(1, 2, 4)
    promised = HardState(cluster[3].term, cluster[3].vote, 0)
    cluster.add(3).disk.hard_state = promised  # erased, and hosted again
    cluster.boot(3)
    cluster.drop = lambda to, message: {to, message.sender} != {2, 3}
    for _ in range(4 * E):
        cluster.tick(2, 3)
    assert cluster[2].configuration == configuration(1, 2, 3), "it has not heard of the swap"
    assert cluster[2].role is not Role.LEADER
