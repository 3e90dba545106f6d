"""storenode/replica/reads.py: what waits for an index, and how fresh a follower is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storenode.replica.reads import Confirmed, Freshness, Read


def read(deadline: float = 10.0) -> Read:
    return Read((b"router", 1), b"ops", deadline)


def test_reads_are_due_when_their_index_is_applied_in_the_order_in_which_they_came() -> None:
    confirmed = Confirmed()
    reads = [read() for _ in range(5)]
    confirmed.add(3, reads[:2])
    confirmed.add(3, reads[2:3])
    confirmed.add(7, reads[3:])
    assert confirmed.due(2) == []
    assert confirmed.due(6) == reads[:3]
    assert confirmed.due(6) == []
    assert confirmed.due(7) == reads[3:]


def test_a_lower_index_of_another_leader_waits_behind_and_is_never_served_too_early() -> None:
    confirmed = Confirmed()
    first, second = read(), read()
    confirmed.add(9, [first])
    confirmed.add(5, [second])
    assert confirmed.due(5) == []
    assert confirmed.due(9) == [first, second]


def test_late_reads_leave_and_the_others_stay_in_their_order() -> None:
    confirmed = Confirmed()
    early, late, later, gone = read(10), read(1), read(20), read(2)
    confirmed.add(3, [early, late])
    confirmed.add(4, [gone])
    confirmed.add(5, [later])
    assert confirmed.late(0.5) == []
    assert confirmed.late(2.0) == [late, gone]
    assert confirmed.late(2.0) == []
    assert confirmed.due(5) == [early, later]


def test_nothing_is_fresh_before_a_leader_was_heard() -> None:
    freshness = Freshness()
    freshness.advance(100)
    assert freshness.since == float("-inf")


def test_fresh_since_the_newest_commit_index_that_is_applied_was_heard() -> None:
    freshness = Freshness()
    freshness.hear(1.0, 5, applied=5)
    assert freshness.since == 1.0
    freshness.hear(2.0, 7, applied=5)
    freshness.hear(3.0, 9, applied=5)
    assert freshness.since == 1.0
    freshness.advance(6)
    assert freshness.since == 1.0
    freshness.advance(7)
    assert freshness.since == 2.0
    freshness.advance(9)
    assert freshness.since == 3.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_fresh_is_never_more_than_what_is_applied(steps: list[tuple[int, int]]) -> None:
    """Against all that was heard: `since` is a moment whose commit index is applied; and steady advance moves
    it."""
    freshness, heard = Freshness(), []
    commit = applied = 0
    for now, (more, done) in enumerate(steps):
        commit += more
        heard.append((float(now), commit))
        freshness.hear(float(now), commit, applied)
        applied = min(commit, applied + done)
        freshness.advance(applied)
        best = max((at for at, index in heard if index <= applied), default=float("-inf"))
        assert freshness.since <= best
        if applied == commit:
            assert freshness.since == best
