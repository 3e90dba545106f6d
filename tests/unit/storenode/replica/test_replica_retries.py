"""Writes of storenode/replica/replica.py that are sent more than once: each runs once, and every attempt has
the same answer.
"""

from __future__ import annotations

import pytest

from kvclient.errors import Status
from storenode.replica.proposal import Proposal
from storenode.replica.replica import ROUTES_MAX
from tests.unit.storenode.replicaworld import World, increment, reason

OTHER = b"router2"


def test_a_finished_write_is_answered_again_without_running_again(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    world.settle()
    first = leader.taken()[0][3]
    leader.propose(2, increment(), 1, router=OTHER, retry=True)
    assert leader.taken() == [(OTHER, 2, Status.OK, first)]
    world.tick()
    follower = world.others(leader)[0]
    follower.propose(3, increment(), 1, retry=True)
    assert follower.taken() == [(b"router", 3, Status.OK, first)]
    leader.propose(4, increment(), 1, retry=True, timeout=0)
    assert leader.statuses() == [(4, Status.OK)]
    assert leader.value(b"n") == b"1"


@pytest.mark.parametrize("logged", [False, True])
def test_a_retry_of_a_write_under_way_waits_for_it(world: World, logged: bool) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1)
    if logged:
        leader.turn()
    leader.propose(2, increment(), 1, router=OTHER, retry=True)
    assert leader.taken() == []
    world.settle()
    assert [answer[:3] for answer in leader.taken()] == [(b"router", 1, 0), (OTHER, 2, 0)]
    assert leader.value(b"n") == b"1"


def test_only_so_many_attempts_wait_for_one_write(world: World) -> None:
    leader = world.lead()
    for token in range(ROUTES_MAX + 1):
        leader.propose(token, increment(), 1, retry=token > 0)
    assert leader.statuses() == [(ROUTES_MAX, Status.BUSY)]
    world.settle()
    assert leader.statuses() == [(token, Status.OK) for token in range(ROUTES_MAX)]


def test_a_retry_with_time_left_keeps_an_expiring_write_alive(world: World) -> None:
    leader = world.lead()
    leader.propose(1, increment(), 1, timeout=1)
    leader.propose(2, increment(), 1, retry=True, timeout=5)
    world.clock.advance(2)
    world.settle()
    assert leader.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_a_write_that_was_sent_twice_to_two_leaders_runs_once(world: World) -> None:
    """Both attempts are in the log; the second one is answered from the session table when it is applied."""
    leader = world.lead()
    replica = leader.replica
    attempts = [
        Proposal((b"router", token), 9, 1, 0, flags, increment(), 1e9) for token, flags in ((1, 0), (2, 1))
    ]
    for attempt in attempts:
        assert leader.budget.take(len(attempt.ops))
        replica._pending = [attempt]
        replica.log_pending(world.clock.monotonic())
    leader.groups.dirty(replica)
    world.settle()
    first, second = leader.taken()
    assert first[2:] == second[2:] == (Status.OK, bytes([0x93, 0, 1, 1]))
    assert leader.value(b"n") == b"1"


def test_an_acknowledged_write_is_not_run_again(world: World) -> None:
    leader = world.lead()
    for sequence in (1, 2):
        leader.propose(sequence, increment(), sequence)
    leader.propose(3, increment(), 3, acked_below=3)
    world.settle()
    leader.taken()
    leader.propose(4, increment(), 1)
    world.settle()
    (answer,) = leader.taken()
    assert answer[2] == Status.OUTCOME_UNKNOWN
    assert "acknowledged" in reason(answer[3])
    assert leader.value(b"n") == b"3"


@pytest.mark.parametrize(("client", "sequence"), [(5, 0), (0, 5)])
def test_without_a_session_a_write_runs_each_time_and_a_retry_never(
    world: World, client: int, sequence: int
) -> None:
    leader = world.lead()
    for token in (1, 2):
        leader.propose(token, increment(), sequence, client=client)
    leader.propose(3, increment(), sequence, client=client, retry=True)
    world.settle()
    assert sorted(leader.statuses()) == [(1, 0), (2, 0), (3, Status.OUTCOME_UNKNOWN)]
    assert leader.value(b"n") == b"2"
