"""What a majority, or two at once, has stored or voted (Ongaro's dissertation, sections 3.4, 3.6 and 4.3).

Owns the counting and nothing else: it knows node ids and numbers, not terms, logs or who leads. The leader
calls it for every reply, so it allocates one small list at most.

Invariants: an empty set of voters decides everything, so that a configuration that is not joint is the
special case of one that is, with an empty half. What is missing counts as not stored, or not yet voted.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Final

from storenode.raft.messages import Configuration

COMMITTED_ALL: Final = (1 << 64) - 1
"""What no voters have committed: above any index, so that the smaller of two halves is the other one."""


class VoteResult(enum.Enum):
    """How an election stands."""

    PENDING = 0
    """Votes that are still out decide it."""
    LOST = 1
    """No majority can be reached any more."""
    WON = 2


def committed_index(voters: Collection[int], match: Mapping[int, int]) -> int:
    """The highest index that a majority of `voters` has stored; COMMITTED_ALL if there are none.

    `match` is the highest index that each is known to have; who is missing there has 0.
    """
    if not voters:
        return COMMITTED_ALL
    stored = [match.get(voter, 0) for voter in voters]
    stored.sort()
    # A majority of n is n // 2 + 1; that many, counted from the top, end here.
    return stored[(len(stored) - 1) >> 1]


def joint_committed_index(configuration: Configuration, match: Mapping[int, int]) -> int:
    """The highest index that is committed under `configuration`: while it is joint, by both majorities."""
    index = committed_index(configuration.voters, match)
    if configuration.outgoing:
        return min(index, committed_index(configuration.outgoing, match))
    return index


def majority_vote_result(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """How the election stands among `voters`; WON if there are none. Votes of others do not count."""
    majority = len(voters) // 2 + 1 if voters else 0
    granted = missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    if granted >= majority:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= majority else VoteResult.LOST


def vote_result(configuration: Configuration, votes: Mapping[int, bool]) -> VoteResult:
    """How the election stands under `configuration`: while it is joint, both majorities have to be won."""
    result = majority_vote_result(configuration.voters, votes)
    if not configuration.outgoing:
        return result
    other = majority_vote_result(configuration.outgoing, votes)
    if result is other:
        return result
    if VoteResult.LOST in (result, other):
        return VoteResult.LOST
    return VoteResult.PENDING
