"""Read rounds of a leader, questions of a follower."""

from __future__ import annotations

from storenode.raft.read_only import NEVER, ForwardedReads, LeaderReads


def test_a_confirmed_context_confirms_all_before_it_and_none_after() -> None:
    reads = LeaderReads()
    for now, token in ((1.0, "a"), (2.0, "b"), (3.0, "c")):
        reads.begin(now, int(now) * 10, [token])
    assert reads.confirm(2) == [(10, ["a"]), (20, ["b"])]
    assert reads.lease_start == 2.0
    assert reads.abandon() == ["c"]


def test_a_heartbeat_without_reads_renews_the_lease_only() -> None:
    reads = LeaderReads()
    assert reads.begin(1.0, 5, []) == 1
    assert reads.confirm(1) == []
    assert reads.lease_start == 1.0


def test_a_voided_lease_comes_back_by_a_heartbeat_that_was_sent_after() -> None:
    reads = LeaderReads()
    reads.begin(1.0, 5, ["a"])
    reads.void_lease()
    assert reads.confirm(1) == [(5, ["a"])]
    assert reads.lease_start == NEVER
    reads.begin(4.0, 5, [])
    reads.confirm(2)
    assert reads.lease_start == 4.0


def test_an_answer_counts_once_and_only_for_its_own_question() -> None:
    reads = ForwardedReads(100)
    first, second = reads.ask(0, ["a", "b"]), reads.ask(0, ["c"])
    assert reads.answered(second + 1) == []
    assert reads.answered(first) == ["a", "b"]
    assert reads.answered(first) == []
    assert reads.abandon() == ["c"]


def test_questions_without_an_answer_are_given_up_by_age() -> None:
    reads = ForwardedReads(0)
    reads.ask(3, ["old"])
    reads.ask(7, ["new"])
    assert reads.late(5) == ["old"]
    assert reads.late(5) == []
    assert reads.waiting
