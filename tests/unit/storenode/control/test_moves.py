"""Stages of a move, and what is ordered in each, from one report of the leader."""

from __future__ import annotations

from typing import Any

import pytest

from storenode.control.moves import Stage, done, finished, next_order, sensible, stage, take_back
from storenode.control.reports import NEVER, GroupReport, Progress
from storenode.control.state import Move

MOVE = Move(1, 7, 2, 4, "rebalance")
ADD = Move(2, 7, 0, 4, "replace")
DROP = Move(3, 7, 2, 0, "rebalance")


def group(
    voters: tuple[int, ...] = (1, 2, 3),
    outgoing: tuple[int, ...] = (),
    learners: tuple[int, ...] = (),
    leader: int = 1,
    **progress: Progress,
) -> GroupReport:
    """Of a leader with 5,000 entries; who is not mentioned in `progress` (n4=...) has them all."""
    rows = tuple(
        progress.get(f"n{node}", Progress(node, 5_000, 1, 40))
        for node in sorted({*voters, *outgoing, *learners} - {leader})
    )
    return GroupReport(7, 2, 3, leader, 90, voters, outgoing, learners, 5_000, 4_900, 1 << 20, False, rows)


@pytest.mark.parametrize(
    ("seen", "at"),
    [
        (group(), Stage.WAITING),
        (group(learners=(4,), n4=Progress(4, 0, 2, 40)), Stage.LEARNER),
        (group(learners=(4,), n4=Progress(4, 3_999, 1, 40)), Stage.LEARNER),
        (group(learners=(4,), n4=Progress(4, 5_000, 1, NEVER)), Stage.LEARNER),
        (group(learners=(4,), n4=Progress(4, 4_000, 1, 40)), Stage.SWAP),
        (group(voters=(1, 3, 4), outgoing=(1, 2, 3)), Stage.SWAP),
        (group(voters=(1, 2, 3, 4)), Stage.LEAVE),
        (group(voters=(1, 3, 4)), Stage.SETTLE),
    ],
)
def test_the_stage_follows_from_what_the_leader_reports(seen: GroupReport, at: Stage) -> None:
    assert stage(MOVE, seen) is at
    assert finished(MOVE, seen) is (at is Stage.SETTLE)


def test_a_move_without_a_target_leaves_until_the_source_has_gone() -> None:
    assert stage(DROP, group(voters=(1, 2, 3, 4))) is Stage.LEAVE
    assert stage(DROP, group(voters=(1, 3, 4), outgoing=(1, 2, 3, 4))) is Stage.LEAVE
    assert stage(DROP, group(voters=(1, 3, 4))) is Stage.SETTLE


def order(move: Move, seen: GroupReport, avoid: tuple[int, ...] = ()) -> tuple[Any, ...] | None:
    found, _ = next_order(move, seen, avoid)
    return None if found is None else (found.to, found.command, found.node, found.other)


def test_each_stage_has_its_order() -> None:
    ready = group(learners=(4,))
    assert order(MOVE, group()) == (1, "add-learner", 4, 0)
    assert order(MOVE, group(learners=(4,), n4=Progress(4, 0, 2, 40))) is None
    assert order(MOVE, ready) == (1, "replace", 4, 2)
    assert order(ADD, ready) == (1, "promote", 4, 0)
    assert order(MOVE, group(voters=(1, 3, 4))) is None
    assert order(DROP, group(voters=(1, 2, 3, 4))) == (1, "remove", 2, 90)


def test_a_joint_configuration_is_left_by_its_leader_alone() -> None:
    assert order(MOVE, group(voters=(1, 3, 4), outgoing=(1, 2, 3))) is None


def test_a_source_that_leads_hands_over_to_the_voter_with_the_most() -> None:
    seen = group(learners=(4,), leader=2, n1=Progress(1, 4_990, 1, 40), n3=Progress(3, 4_995, 1, 40))
    assert order(MOVE, seen) == (2, "transfer-leader", 3, 0)
    assert order(MOVE, seen, avoid=(3,)) == (2, "transfer-leader", 1, 0)
    assert order(MOVE, seen, avoid=(1, 3)) == (2, "transfer-leader", 3, 0)


def test_nobody_takes_over_who_is_behind_or_silent() -> None:
    seen = group(learners=(4,), leader=2, n1=Progress(1, 10, 1, 40), n3=Progress(3, 5_000, 1, 1_001))
    assert next_order(MOVE, seen, ()) == (None, "node 2 leads, and no other voter is up to date")


def test_no_voter_goes_while_those_left_would_be_no_majority() -> None:
    silent = {"n3": Progress(3, 5_000, 1, 9_000), "n2": Progress(2, 5_000, 1, 9_000)}
    assert order(MOVE, group(learners=(4,), **silent)) == (1, "replace", 4, 2)
    found, waits = next_order(DROP, group(voters=(1, 2, 3), **silent), ())
    assert found is None
    assert waits == "only 1 of 2 voters answer the leader"


def test_a_learner_is_taken_back_from_the_configuration_that_was_seen() -> None:
    assert take_back(group(learners=(4,)), 4) == (1, 7, "remove", 4, 90)


@pytest.mark.parametrize(
    ("move", "seen", "broken", "wanted"),
    [
        (MOVE, group(), False, True),
        (MOVE, group(voters=(1, 3, 5)), False, False),  # the source has gone, not by this move
        (MOVE, group(voters=(1, 3, 4)), False, True),
        (MOVE, group(voters=(1, 2, 4)), False, False),  # removing the source would be a voter less
        (MOVE, group(voters=(1, 2, 3, 4)), False, True),
        (ADD, group(), False, False),
        (ADD, group(voters=(1, 2)), False, True),
        (DROP, group(), False, False),
        (DROP, group(), True, True),
        (DROP, group(voters=(1, 2, 3, 4)), False, True),
    ],
)
def test_a_move_that_would_make_the_group_less_than_it_should_be_makes_no_sense(
    move: Move, seen: GroupReport, broken: bool, wanted: bool
) -> None:
    assert sensible(move, seen, 3, broken=broken) is wanted


def test_done_is_the_fraction_of_the_entries() -> None:
    assert done(MOVE, group()) == 0.0
    assert done(MOVE, group(learners=(4,), n4=Progress(4, 1_250, 1, 40))) == 0.25
    assert done(MOVE, group(learners=(4,))) == 1.0
