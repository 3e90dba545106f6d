"""Entries on their way: broadcast, windows, commits, and what a follower takes."""

from __future__ import annotations

import pytest

from storenode.raft import Dropped, NotLeader, Settings
from storenode.raft.messages import EVERYBODY, HardState, Kind, Message
from tests.unit.storenode.raft.harness import (
    Disk,
    configuration,
    led,
    lose_all,
    lose_none,
    normal,
    of_kind,
)

# sending


def test_all_proposals_of_a_turn_are_one_append_for_all_followers_that_wait_for_the_same() -> None:
    cluster = led()
    for data in (b"a", b"b", b"c"):
        cluster[1].propose(data)
    (append,) = of_kind(cluster.nodes[1].turn(), Kind.APPEND)
    assert (append.to, [entry.data for entry in append.entries]) == (EVERYBODY, [b"a", b"b", b"c"])
    assert [cluster[1].progress[node].inflight_bytes for node in (2, 3)] == [3, 3]


def test_who_is_behind_gets_its_own_append() -> None:
    cluster = led(4)
    cluster[1].unreachable(4)
    cluster[1].propose(b"a")
    appends = of_kind(cluster.nodes[1].turn(), Kind.APPEND)
    assert sorted(append.to for append in appends) == [4, EVERYBODY]


def test_a_leader_sends_before_its_own_disk_has_the_entry_and_counts_itself_after() -> None:
    cluster = led(2)
    cluster[1].propose(b"a")
    index = cluster[1].last_index
    cluster.turn()
    cluster.deliver()
    cluster.turn(2)
    cluster.sync(2)
    cluster.turn(2)
    cluster.deliver()
    assert cluster[1].progress[2].match == index
    assert cluster[1].commit == index - 1
    cluster.sync(1)
    assert cluster[1].commit == index


def test_committed_entries_are_handed_out_only_when_they_are_durable_here() -> None:
    cluster = led()
    cluster[1].propose(b"a")
    cluster.turn()
    cluster.deliver()
    cluster.turn(2, 3)
    cluster.sync(2, 3)
    cluster.turn(2, 3)
    cluster.deliver()
    assert cluster[1].commit == cluster[1].last_index
    assert cluster[1].take_committed(100)[1] == []
    cluster.sync(1)
    assert [entry.data for entry in cluster[1].take_committed(100)[1]] == [b"a"]


def test_a_single_node_commits_nothing_before_it_is_durable() -> None:
    """etcd#14370."""
    cluster = led(1)
    cluster[1].propose(b"a")
    cluster.turn()
    assert cluster.nodes[1].writing
    assert cluster[1].commit == cluster[1].last_index - 1
    assert cluster.nodes[1].machine.data == []
    cluster.sync()
    cluster.turn()
    assert cluster.nodes[1].machine.data == [b"a"]


def test_a_window_that_is_full_by_messages_stops_the_stream_and_answers_open_it() -> None:
    cluster = led(settings=Settings(inflight_messages=2))
    lose_all(cluster)
    sent = 0
    for data in (b"a", b"b", b"c"):
        cluster[1].propose(data)
        sent += len(of_kind(cluster.nodes[1].turn(), Kind.APPEND))
        cluster.sync(1)
    assert sent == 2
    lose_none(cluster)
    cluster.tick(times=5)
    assert cluster.nodes[2].machine.data == [b"a", b"b", b"c"]


def test_a_full_window_whose_messages_were_lost_recovers_without_a_new_proposal() -> None:
    """etcd#14633: an empty append passes a full window; its answer shows what is missing."""
    cluster = led(settings=Settings(inflight_messages=1))
    lose_all(cluster)
    cluster[1].propose(b"lost")
    cluster[1].propose(b"lost, too")
    cluster.settle()
    assert cluster[1].progress[2].full
    lose_none(cluster)
    cluster.tick(times=4)
    assert cluster.nodes[2].machine.data == cluster.nodes[3].machine.data == [b"lost", b"lost, too"]


def test_lost_acknowledgements_do_not_stall_a_full_window() -> None:
    cluster = led(settings=Settings(inflight_messages=1))
    cluster.drop = lambda to, message: message.kind == Kind.APPEND_REPLY
    cluster[1].propose(b"a")
    cluster.settle()
    lose_none(cluster)
    cluster.tick(times=4)
    assert cluster[1].progress[2].match == cluster[1].last_index
    assert cluster[1].progress[2].inflight_messages == 0


def test_one_turn_sends_at_most_four_appends_to_a_member_and_answers_ask_for_more() -> None:
    cluster = led(settings=Settings(append_bytes_max=10))
    for _ in range(9):
        cluster[1].propose(bytes(10))
    assert len(of_kind(cluster.nodes[1].turn(), Kind.APPEND)) == 4
    assert len(of_kind(cluster.nodes[1].turn(), Kind.APPEND)) == 4
    cluster.settle()
    cluster.tick(times=4)
    assert len(cluster.nodes[3].machine.data) == 9


def test_uncommitted_bytes_are_capped_but_one_proposal_always_passes() -> None:
    cluster = led(settings=Settings(uncommitted_bytes_max=10))
    lose_all(cluster)
    cluster[1].propose(bytes(50))
    with pytest.raises(Dropped, match="50 bytes wait"):
        cluster[1].propose(b"x")
    lose_none(cluster)
    cluster.tick(times=4)
    for _ in range(10):
        cluster[1].propose(b"x")
    with pytest.raises(Dropped):
        cluster[1].propose(b"x")


def test_a_follower_names_the_leader_when_it_refuses_a_proposal() -> None:
    cluster = led()
    with pytest.raises(NotLeader) as refused:
        cluster[2].propose(b"a")
    assert refused.value.leader == 1


# committing


def test_followers_commit_by_the_next_heartbeat() -> None:
    cluster = led()
    (index,) = cluster.propose(1, b"a")
    assert cluster[2].commit < index
    cluster.tick()
    assert cluster[2].commit == index


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Figure 8 of the Raft paper: it may still be replaced; an entry of the own term carries it along."""
    cluster = led()
    raft = cluster[1]
    lose_all(cluster)
    old = raft.propose(b"old")
    cluster.settle()
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term + 1, 0, flag=1))
    raft._election.release()
    raft.campaign()
    cluster.settle()
    for reply in (Kind.PRE_VOTE_REPLY, Kind.VOTE_REPLY):
        raft.step(Message(1, 2, reply, raft.term + (reply == Kind.PRE_VOTE_REPLY)))
        cluster.settle()
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, old))
    assert raft.progress[2].match == old
    assert raft.commit < old
    raft.step(Message(1, 2, Kind.APPEND_REPLY, raft.term, raft.last_index))
    assert raft.commit == raft.last_index


def test_the_commit_index_on_disk_is_never_ahead_of_the_entries() -> None:
    """etcd#14143; the disk of the harness checks every write, the start refuses such a log."""
    cluster = led()
    for _ in range(5):
        cluster[1].propose(b"a")
        cluster.settle()
    assert cluster.disks[2].hard_state.commit > 2
    disk = Disk(configuration(1))
    disk.hard_state = HardState(3, 0, 7)
    cluster.disks[2] = disk
    with pytest.raises(ValueError, match="commit index 7 is beyond the last entry 1"):
        cluster.crash(2)


def test_a_follower_commits_only_what_a_message_verified() -> None:
    cluster = led()
    raft = cluster[2]
    last, term = raft.last_index, raft.term
    raft.log.append([normal(term), normal(term)])
    raft.step(Message(2, 1, Kind.APPEND, term, last, term, last + 50, 0, 0, [normal(term)]))
    assert raft.commit == last + 1, "what is beyond the message's entries it has not verified"
    raft.step(Message(2, 1, Kind.HEARTBEAT, term, last + 2, term + 1, context=9))
    assert raft.commit == last + 1
    raft.step(Message(2, 1, Kind.HEARTBEAT, term, last + 2, 0, context=10))
    assert raft.commit == last + 1
    raft.step(Message(2, 1, Kind.HEARTBEAT, term, last + 2, term, context=11))
    assert raft.commit == last + 2


def test_a_stale_append_never_truncates_below_the_commit_index() -> None:
    """raft#31, raft#149, raft-rs#557."""
    cluster = led()
    cluster.propose(1, b"a", b"b", b"c")
    cluster.tick()
    raft, before = cluster[2], cluster.log(2)
    first = raft.log.first_index
    raft.step(Message(2, 1, Kind.APPEND, raft.term, first, raft.log.term(first), 2, 0, 0, []))
    raft.step(Message(2, 1, Kind.APPEND, raft.term, first - 1, 0, 2, 0, 0, [normal(raft.term)]))
    assert cluster.log(2) == before
    cluster.nodes[2].turn()
    assert raft.commit == before[-1][0]


def test_an_append_that_begins_below_the_commit_index_brings_what_is_beyond_it() -> None:
    cluster = led()
    cluster.propose(1, b"a")
    cluster.tick()
    raft = cluster[2]
    commit, term = raft.commit, raft.term
    entries = [normal(term, b"a"), normal(term, b"b")]
    raft.step(Message(2, 1, Kind.APPEND, term, commit - 1, term, commit, 0, 0, entries))
    assert raft.last_index == commit + 1


def test_committed_entries_come_in_pages_without_a_gap() -> None:
    """etcd#10063."""
    cluster = led()
    expected = [b"%d" % number * (number % 40 + 1) for number in range(1, 100)]
    for data in expected:
        cluster[1].propose(data)
    cluster.settle()
    cluster.tick()
    taken = [entry.data for _, entry in cluster.nodes[1].machine.applied if entry.data]
    assert taken == expected
    assert cluster.nodes[2].machine.data == expected


def test_a_late_own_write_of_an_older_term_acknowledges_nothing_of_the_new_one() -> None:
    """etcd async_storage_writes_append_aba_race: the same indexes, another leader in between."""
    cluster = led()
    raft, node = cluster[1], cluster.nodes[1]
    lose_all(cluster)
    base, term = raft.last_index, raft.term
    raft.propose(b"first")
    node.turn()
    assert node.writing
    raft.step(Message(1, 2, Kind.APPEND, term + 1, base, term, base, 0, 0, [normal(term + 1, b"second")]))
    raft._election.release()
    raft.campaign()
    raft.step(Message(1, 3, Kind.PRE_VOTE_REPLY, term + 2))
    assert raft.term == term + 2
    node.sync()
    assert raft.log.durable_index == base
    cluster.turn(1)
    cluster.sync(1)
    raft.step(Message(1, 3, Kind.VOTE_REPLY, term + 2))
    assert raft.progress[1].match == base + 1
    assert cluster.disks[1].log[-1].data == b"second"
