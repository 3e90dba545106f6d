"""Elections: the timers, who may ask for votes and when, how votes are given and counted.

Owns the two tick counters, the randomized timeout and the votes of the round that runs. Changes the vote;
changing role and term is the core's. Pre-vote (dissertation 9.6) and check-quorum (6.2) are always on: alone
neither is live under a partial partition.

Invariant: a node that heard a leader less than `election_ticks` ago helps nobody to depose it, unless the
leader itself ordered so (transfer). Leases rest on this, so a restarted node, which may have promised and
forgotten, waits too.
"""

from __future__ import annotations

from storenode.raft.messages import NOBODY, Kind, Message
from storenode.raft.quorum import VoteResult, vote_result
from storenode.raft.state import GroupState

ASK_AGAIN_TICKS = (2, 4)
"""After so many a pre-candidate asks again: whoever heard the leader a little later was still loyal, and said
nothing. It may be the only one with a complete log, and a whole timeout would make an outage of three times
`election_ticks`. Pre-votes raise no term and bind nobody.
"""


class Election:
    """The election side of one node in one group."""

    __slots__ = ("_state", "_timeout", "_votes", "elapsed", "heard")

    def __init__(self, state: GroupState) -> None:
        self._state = state
        self._votes: dict[int, bool] = {}
        self.elapsed = 0
        """Ticks since a leader was heard, a vote was given or an election began."""
        self.heard = 0 if state.term else state.settings.election_ticks
        """Ticks since a leader was heard; term 0 has had none."""
        self._timeout = 0
        self.reset()

    def reset(self) -> None:
        """Begin to wait anew, for `election_ticks` to 1.4 times that: what the lowest of a few draws adds to
        an outage stays small, and those who draw the same are told apart by `retry_by_rank`.
        """
        ticks = self._state.settings.election_ticks
        self.elapsed = 0
        self._timeout = self._state.random.randint(ticks, ticks + 4 * ticks // 10)

    def ask_again_soon(self) -> None:
        self._timeout = self._state.random.randint(*ASK_AGAIN_TICKS)

    def retry_by_rank(self) -> None:
        """A voter refused us: probably it is a candidate itself, and the votes are split. Both would wait for
        a whole timeout; so each stands again after as many ticks as its place among the voters.
        """
        voters = self._state.configuration.voters | self._state.configuration.outgoing
        rank = sum(node <= self._state.node for node in voters)
        self._timeout = min(self._timeout, self.elapsed + rank)

    def heard_leader(self) -> None:
        self.elapsed = 0
        self.heard = 0

    def release(self) -> None:
        """No leader needs our loyalty: we were it."""
        self.heard = self._state.settings.election_ticks

    @property
    def loyal(self) -> bool:
        return self.heard < self._state.settings.election_ticks

    def tick(self) -> bool:
        """Whether the timeout has passed."""
        self.elapsed += 1
        self.heard += 1
        return self.elapsed >= self._timeout

    def ask(self, kind: Kind, term: int, transfer: bool) -> None:
        """Ask every voter for its vote in `term`. A VOTE waits for the disk like a promise: after a crash
        this node could otherwise be elected in this term with a shorter log than the one it asked with.
        """
        state = self._state
        self._votes = {}
        log = state.log
        out = state.messages if kind == Kind.PRE_VOTE else state.pending_replies
        for to in sorted((state.configuration.voters | state.configuration.outgoing) - {state.node}):
            out.append(Message(to, state.node, kind, term, log.last_index, log.last_term, 0, int(transfer)))
        if kind == Kind.PRE_VOTE:
            self._votes[state.node] = True
        else:
            out.append(Message(state.node, state.node, Kind.VOTE_REPLY, term))

    def count(self, node: int, granted: bool) -> VoteResult:
        """The first vote of each node counts."""
        self._votes.setdefault(node, granted)
        return self.result()

    def result(self) -> VoteResult:
        return vote_result(self._state.configuration, self._votes)

    def answer(self, message: Message) -> None:
        """Grant or refuse a PRE_VOTE, or a VOTE of our term. The answer tells our commit index, too: a
        candidate that does not know yet that a change of configuration was committed may ask the wrong
        voters, all of whom refuse it, while those who know may not stand any more.
        """
        state = self._state
        pre = message.kind == Kind.PRE_VOTE
        free = (
            state.vote == message.sender
            or (state.vote == NOBODY and state.leader == NOBODY)
            or (pre and message.term > state.term)
        )
        granted = free and (message.b, message.a) >= (state.log.last_term, state.log.last_index)
        if granted and not pre:
            state.vote = message.sender
            self.elapsed = 0
        state.pending_replies.append(
            Message(
                message.sender,
                state.node,
                Kind.PRE_VOTE_REPLY if pre else Kind.VOTE_REPLY,
                message.term if granted else state.term,
                state.log.commit,
                state.log.term(state.log.commit),
                flag=0 if granted else 1,
            )
        )
