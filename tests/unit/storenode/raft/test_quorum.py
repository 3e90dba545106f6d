"""Majorities, single and joint: etcd-io/raft's own cases, and properties that need no oracle."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storenode.raft.messages import Configuration
from storenode.raft.quorum import (
    COMMITTED_ALL,
    VoteResult,
    committed_index,
    joint_committed_index,
    majority_vote_result,
    vote_result,
)
from tests.unit.storenode.raft.oracles import Block, blocks, parametrized

RESULTS = {"VoteWon": VoteResult.WON, "VotePending": VoteResult.PENDING, "VoteLost": VoteResult.LOST}

IDS = st.integers(1, 9)
VOTERS = st.frozensets(IDS, max_size=7)
MATCH = st.dictionaries(IDS, st.integers(0, 12))
VOTES = st.dictionaries(IDS, st.booleans())
JOINTS = st.builds(Configuration, VOTERS, VOTERS)


def halves_of(block: Block) -> tuple[list[int], list[int]]:
    """`cfg` and `cfgj`, in the order of the file; `cfgj=zero` is an empty second half."""
    voters, outgoing = (block.arguments.get(name, []) for name in ("cfg", "cfgj"))
    return [int(voter) for voter in voters], [] if outgoing == ["zero"] else [
        int(voter) for voter in outgoing
    ]


def named(values: list[str], halves: tuple[list[int], list[int]]) -> dict[int, str]:
    """What each voter, in the order in which the halves name them first, has; `_` is nothing."""
    voters = list(dict.fromkeys(halves[0] + halves[1]))
    assert len(values) == len(voters)
    return {voter: value for voter, value in zip(voters, values, strict=True) if value != "_"}


def index_in(answer: str) -> int:
    if answer.endswith("∞"):
        return COMMITTED_ALL
    return int(answer)


@parametrized("etcd-raft/quorum")
def test_committed_index_and_vote_agree_with_etcd_in_every_block_of(path: Path) -> None:
    compared = 0
    for block in blocks(path.read_text()):
        halves = halves_of(block)
        configuration = Configuration(frozenset(halves[0]), frozenset(halves[1]))
        where = f"{path.name}:{block.line}"
        if block.command == "vote":
            ballots = named(block.arguments.get("votes", []), halves)
            votes = {voter: {"y": True, "n": False}[ballot] for voter, ballot in ballots.items()}
            assert vote_result(configuration, votes) is RESULTS[block.expected[-1]], where
        else:
            assert block.command == "committed", where
            stored = named(block.arguments.get("idx", []), halves)
            match = {voter: int(index) for voter, index in stored.items()}
            assert joint_committed_index(configuration, match) == index_in(block.expected[-1]), where
        compared += 1
    assert compared >= 10


def naive_committed_index(voters: Collection[int], match: Mapping[int, int]) -> int:
    """The largest index that more than half have, found by trying them all."""
    candidates = [0, *(match.get(voter, 0) for voter in voters)]
    return max(
        index
        for index in candidates
        if 2 * sum(match.get(voter, 0) >= index for voter in voters) > len(voters)
    )


@given(VOTERS.filter(bool), MATCH)
def test_the_committed_index_is_the_largest_that_more_than_half_have(
    voters: frozenset[int], match: dict[int, int]
) -> None:
    assert committed_index(voters, match) == naive_committed_index(voters, match)


@pytest.mark.parametrize("count", range(1, 6))
def test_every_order_of_replies_of_small_groups_counts_the_same(count: int) -> None:
    for indexes in itertools.product(range(3), repeat=count):
        match = dict(enumerate(indexes, 1))
        assert committed_index(tuple(match), match) == naive_committed_index(match, match)


def test_a_group_without_voters_commits_everything_and_wins() -> None:
    assert committed_index((), {1: 5}) == COMMITTED_ALL
    assert majority_vote_result((), {1: False}) is VoteResult.WON


@given(JOINTS, MATCH)
def test_what_is_committed_jointly_is_committed_in_both_halves_and_is_the_most_that_is(
    configuration: Configuration, match: dict[int, int]
) -> None:
    index = joint_committed_index(configuration, match)
    halves = [committed_index(half, match) for half in (configuration.voters, configuration.outgoing)]
    assert index == min(halves)


@given(JOINTS, VOTES)
def test_a_joint_election_is_won_by_both_halves_and_lost_by_one(
    configuration: Configuration, votes: dict[int, bool]
) -> None:
    halves = {majority_vote_result(half, votes) for half in (configuration.voters, configuration.outgoing)}
    result = vote_result(configuration, votes)
    assert (result is VoteResult.WON) == (halves == {VoteResult.WON})
    assert (result is VoteResult.LOST) == (VoteResult.LOST in halves)


@given(JOINTS, VOTES)
def test_an_election_is_pending_exactly_while_votes_that_are_out_can_turn_it_either_way(
    configuration: Configuration, votes: dict[int, bool]
) -> None:
    everyone = configuration.voters | configuration.outgoing
    out = {voter: True for voter in everyone if voter not in votes}
    best = vote_result(configuration, votes | out)
    worst = vote_result(configuration, votes | dict.fromkeys(out, False))
    assert VoteResult.PENDING not in (best, worst)
    assert vote_result(configuration, votes) is (best if best is worst else VoteResult.PENDING)


@given(JOINTS, VOTES, VOTES)
def test_two_candidates_never_both_win_when_each_voter_votes_once(
    configuration: Configuration, votes: dict[int, bool], second: dict[int, bool]
) -> None:
    granted_once = {voter: vote and not votes.get(voter, False) for voter, vote in second.items()}
    if not configuration.voters and not configuration.outgoing:
        return
    results = [vote_result(configuration, cast) for cast in (votes, granted_once)]
    assert results != [VoteResult.WON, VoteResult.WON]


@given(VOTERS.filter(bool), MATCH, VOTES)
def test_learners_count_for_nothing(
    voters: frozenset[int], match: dict[int, int], votes: dict[int, bool]
) -> None:
    learners = frozenset(range(1, 10)) - voters
    without = Configuration(voters)
    with_learners = Configuration(voters, learners=learners)
    assert joint_committed_index(with_learners, match | dict.fromkeys(learners, 99)) == joint_committed_index(
        without, match
    )
    assert vote_result(with_learners, votes | dict.fromkeys(learners, True)) is vote_result(without, votes)
