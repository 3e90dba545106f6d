"""Linearizable reads: rounds that confirm leadership, reads by way of a follower, leases."""

from __future__ import annotations

from storenode.raft import Role, Settings
from storenode.raft.messages import EVERYBODY, Change, Kind, Message, Operation, Transition
from storenode.raft.read_only import NEVER
from tests.unit.storenode.raft.harness import Cluster

E = Settings().election_ticks
LEASE = Settings(lease_seconds=E - 1.5)


def led(nodes: int = 3, settings: Settings | None = None) -> Cluster:
    cluster = Cluster(nodes, settings=settings)
    cluster.elect(1)
    cluster.tick()
    cluster.sent.clear()
    return cluster


def lose_all(cluster: Cluster) -> None:
    cluster.drop = lambda to, message: True


def heartbeats(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.kind == Kind.HEARTBEAT]


def test_all_reads_of_a_turn_share_one_heartbeat_to_everybody() -> None:
    cluster = led()
    for token in range(100):
        cluster[1].read_index(token)
    (heartbeat,) = cluster.nodes[1].turn()
    assert (heartbeat.kind, heartbeat.to, heartbeat.a) == (Kind.HEARTBEAT, EVERYBODY, cluster[1].commit)
    cluster.post([heartbeat])
    cluster.settle()
    assert cluster.nodes[1].reads == [(cluster[1].commit, token) for token in range(100)]


def test_rounds_overlap_and_a_later_answer_confirms_the_earlier_ones() -> None:
    cluster = led()
    raft = cluster[1]
    contexts = []
    for token in "abc":
        raft.read_index(token)
        contexts += [message.context for message in heartbeats(cluster.nodes[1].turn())]
    assert contexts == sorted(set(contexts))
    raft.step(Message(1, 2, Kind.HEARTBEAT_REPLY, raft.term, context=contexts[1]))
    assert [tokens for _, tokens in raft.take_reads()] == [["a"], ["b"]]


def test_a_new_leader_reads_nothing_before_its_own_term_is_committed() -> None:
    """etcd#7331: its commit index may be behind what the leader before had acknowledged. It postpones."""
    cluster = led()
    cluster.drop = lambda to, message: message.kind == Kind.APPEND_REPLY
    (index,) = cluster.propose(1, b"a")
    cluster.drop = lambda to, message: message.kind == Kind.APPEND
    raft = cluster.elect(2)
    assert raft.commit < index
    raft.read_index("early")
    cluster.settle()
    cluster.tick(times=3)
    assert cluster.nodes[2].reads == []
    cluster.drop = lambda to, message: False
    cluster.tick(times=4)
    ((read_at, token),) = cluster.nodes[2].reads
    assert token == "early"
    assert read_at >= index


def test_answers_to_an_old_round_confirm_nothing_newer() -> None:
    """etcd#20418: a paused leader finds answers to a round of long ago; another one has written since."""
    cluster = led()
    raft = cluster[1]
    raft.read_index("before the pause")
    (old,) = heartbeats(cluster.nodes[1].turn())
    raft.read_index("after the pause")
    (new,) = heartbeats(cluster.nodes[1].turn())
    assert new.context > old.context
    for node in (2, 3):
        raft.step(Message(1, node, Kind.HEARTBEAT_REPLY, raft.term, context=old.context))
    assert [tokens for _, tokens in raft.take_reads()] == [["before the pause"]]


def test_a_context_that_another_term_gave_confirms_nothing() -> None:
    cluster = led()
    raft = cluster[1]
    raft.read_index("x")
    (heartbeat,) = heartbeats(cluster.nodes[1].turn())
    raft.step(Message(1, 2, Kind.HEARTBEAT_REPLY, raft.term - 1, context=heartbeat.context))
    raft.step(Message(1, 2, Kind.HEARTBEAT_REPLY, raft.term, context=heartbeat.context + 1))
    raft.step(Message(1, 9, Kind.HEARTBEAT_REPLY, raft.term, context=heartbeat.context))
    assert raft.take_reads() == []


def test_a_deposed_leader_that_knows_nothing_of_it_confirms_no_read() -> None:
    cluster = led()
    cluster.drop = lambda to, message: 1 in (to, message.sender)
    cluster.elect(2)
    cluster.propose(2, b"newer")
    assert cluster[1].role is Role.LEADER
    cluster[1].read_index("stale")
    cluster.settle()
    assert cluster.nodes[1].reads == []
    cluster.drop = lambda to, message: False
    cluster.tick(times=3)
    assert cluster.nodes[1].failed == ["stale"]


def test_a_single_node_reads_at_once() -> None:
    cluster = led(1)
    cluster[1].read_index("x")
    cluster[1].flush()
    assert cluster[1].take_reads() == [(cluster[1].commit, ["x"])]


def test_a_follower_asks_its_leader_once_per_turn_and_learns_the_commit_index_with_the_answer() -> None:
    cluster = led()
    (index,) = cluster.propose(1, b"a")
    for token in "xyz":
        cluster[2].read_index(token)
    asked = cluster.nodes[2].turn()
    assert [message.kind for message in asked] == [Kind.READ_INDEX]
    cluster.post(asked)
    cluster.settle()
    assert cluster.nodes[2].reads == [(index, token) for token in "xyz"]
    assert cluster.nodes[2].machine.index == index


def test_a_follower_without_a_leader_or_an_answer_gives_reads_back() -> None:
    cluster = Cluster(3)
    cluster[2].read_index("no leader")
    cluster.turn(2)
    assert cluster.nodes[2].failed == ["no leader"]
    cluster = led()
    cluster.drop = lambda to, message: message.kind == Kind.READ_INDEX
    cluster[2].read_index("no answer")
    cluster.settle()
    cluster.tick(times=E + 1)
    assert cluster.nodes[2].failed == ["no answer"]


def test_a_follower_that_loses_its_leader_gives_reads_back() -> None:
    cluster = led()
    lose_all(cluster)
    cluster[2].read_index("x")
    cluster.turn(2)
    raft = cluster[2]
    raft.step(Message(2, 3, Kind.HEARTBEAT, raft.term + 1, 1, 0, context=1))
    assert raft.take_failed_reads() == ["x"]


def test_an_answer_to_the_process_before_is_no_answer_to_this_one() -> None:
    cluster = led()
    lose_all(cluster)
    cluster[2].read_index("before")
    (asked,) = cluster.nodes[2].turn()
    cluster.settle()
    node = cluster.crash(2)
    node.raft.step(Message(2, 1, Kind.HEARTBEAT, cluster[1].term, 1, 0, context=1))
    node.raft.read_index("after")
    node.turn()
    node.raft.step(Message(2, 1, Kind.READ_INDEX_REPLY, cluster[1].term, 1, context=asked.context))
    assert node.raft.take_reads() == []


def test_a_lease_lasts_from_the_sending_of_a_heartbeat_that_a_quorum_answered() -> None:
    cluster = led(settings=LEASE)
    raft = cluster[1]
    assert raft.lease_until == raft.now + LEASE.lease_seconds
    until = raft.lease_until
    lose_all(cluster)
    cluster.tick(1, times=3)
    assert raft.lease_until == until
    assert cluster[2].lease_until == NEVER


def test_there_is_no_lease_before_the_own_term_is_committed_nor_without_the_setting() -> None:
    assert led()[1].lease_until == NEVER
    cluster = Cluster(3, settings=LEASE)
    cluster.drop = lambda to, message: message.kind == Kind.APPEND
    cluster.elect(1)
    cluster.tick(times=2)
    assert cluster[1].lease_until == NEVER


def test_there_is_no_lease_during_a_transfer_nor_after_the_order_has_left() -> None:
    cluster = led(settings=LEASE)
    raft = cluster[1]
    cluster.drop = lambda to, message: to == 2
    cluster.propose(1, b"a")
    raft.transfer(2)
    assert raft.lease_until == NEVER
    cluster.tick(times=E + 2)
    assert raft.lease_until > raft.now, "the order never left: leases again"
    cluster.drop = lambda to, message: message.kind == Kind.TIMEOUT_NOW
    cluster.tick(times=4)
    raft.transfer(2)
    cluster.settle()
    cluster.tick(times=E + 2)
    assert raft.role is Role.LEADER
    assert raft.lease_until == NEVER, "a late copy of the order may still depose it"


def test_a_change_of_configuration_voids_the_lease_until_the_next_round() -> None:
    """Those who confirmed it may be no voters any more."""
    cluster = led(settings=LEASE)
    raft = cluster[1]
    raft.propose_change(Change(Transition.AUTO, ((Operation.REMOVE, 3),)))
    cluster.settle()
    assert 3 not in raft.configuration.voters
    assert raft.lease_until == NEVER
    cluster.tick()
    assert raft.lease_until > raft.now
