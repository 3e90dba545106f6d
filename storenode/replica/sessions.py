"""The session table of one partition: which writes have run already, and what they answered.

Owns (client id, sequence) -> outcome. Knows no engine, socket or clock: times are handed in, in monotonic
seconds.

The rule that makes a write run at most once is one number, the **horizon**: every write of a session that
finished at or after the horizon is still in the table. It starts as the moment the table was made (the table
lives in memory: what ran before is not in it; in a partition where nothing ever ran it starts at minus
infinity) and moves up to the last use of each session that is evicted.
No attempt arrives later than RETRY_WINDOW_S after the first attempt of the same sequence. So a sequence that
is not in the table, asked for with RETRY at t, certainly never ran here if horizon <= t - RETRY_WINDOW_S;
then it is executed. Otherwise nobody can tell, and the answer is OUTCOME_UNKNOWN. Without RETRY it is a first
attempt and is executed.

Within a session, `floor` is the lowest sequence it can still answer for: what the client acknowledged, or, in
a session that holds too many results, what had to be dropped. Below the floor the answer is OUTCOME_UNKNOWN,
with or without RETRY.

Limit of this rule: a first attempt that is overtaken by its own retry and arrives only after the session was
evicted, or after a restart, runs a second time. It takes a message that lay in some queue for longer than all
of that.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from itertools import takewhile
from typing import Final

from kvclient.protocol import RETRY_WINDOW_MS
from storenode.replica.proposal import Proposal

RETRY_WINDOW_S: Final = RETRY_WINDOW_MS / 1000 + 15
"""What the SDK allows itself, and the 15 s after which a silent link is cut, with all that is still in it."""

SESSIONS_MAX: Final = 4096
"""Per partition: 54 new sessions a second until one goes within RETRY_WINDOW_S. About 2 MiB when full."""

TABLE_BYTES_MAX: Final = 8 << 20
"""Results of all sessions of a partition; a node with 16 busy partitions keeps at most 128 MiB of them."""

RESULTS_MAX: Final = 1024
"""Per session: more than the 1000 requests that an SDK keeps in flight; who acknowledges never meets it."""

SESSION_BYTES_MAX: Final = 1 << 20
"""Per session: one client with large batches drops its own old results before it pushes out others."""

_RESULT_OVERHEAD: Final = (
    96  # one stored result beside its bytes: object header, key, dict slot (CPython 3.11)
)


class Verdict(enum.Enum):
    """What the table says about a sequence whose results it does not have."""

    EXECUTE = "it never ran here"
    ACKNOWLEDGED = "the client has acknowledged it, or its results had to be dropped"
    UNKNOWN = "it may have run before the table's memory begins, or in a log write that failed"


class Session:
    """One client's sequences in this partition: results, the proposal under way, or None (may have run,
    nobody knows).
    """

    __slots__ = ("bytes", "client_id", "floor", "outcomes", "pending", "used")

    def __init__(self, client_id: int, floor: int, now: float) -> None:
        self.client_id = client_id
        self.floor = floor
        self.outcomes: dict[int, bytes | Proposal | None] = {}
        self.pending = 0
        self.bytes = 0
        self.used = now

    def acknowledge(self, acked_below: int) -> int:
        """Raises the floor and forgets what is below it at the front; returns the bytes freed.

        Outcomes are in order of arrival. One that arrived out of order goes when those in front of it go.
        """
        self.floor = acked_below
        return sum(map(self._drop, list(takewhile(acked_below.__gt__, self.outcomes))))

    def drop_oldest(self) -> int:
        """Forgets the oldest outcome and raises the floor above it; returns the bytes freed, 0 if it is under
        way.
        """
        sequence = next(iter(self.outcomes))
        freed = self._drop(sequence)
        if freed:
            self.floor = max(self.floor, sequence + 1)
        return freed

    def _drop(self, sequence: int) -> int:
        outcome = self.outcomes[sequence]
        if isinstance(outcome, Proposal):
            return 0
        del self.outcomes[sequence]
        freed = _size(outcome)
        self.bytes -= freed
        return freed


def _size(outcome: bytes | None) -> int:
    return _RESULT_OVERHEAD + len(outcome or b"")


class SessionTable:
    """All sessions of one partition, bounded, least recently used first. One thread."""

    def __init__(
        self, now: float, *, sessions_max: int = SESSIONS_MAX, bytes_max: int = TABLE_BYTES_MAX
    ) -> None:
        self.horizon = now
        self.bytes = 0
        self.evicted = 0
        self._sessions_max = sessions_max
        self._bytes_max = bytes_max
        self._sessions: OrderedDict[int, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def look_up(
        self, client_id: int, sequence: int, acked_below: int, retry: bool, now: float
    ) -> bytes | Proposal | Verdict:
        """The results of (client_id, sequence), the proposal under way, or the verdict; takes note of
        `acked_below`.
        """
        session = self._sessions.get(client_id)
        if session is not None:
            if acked_below > session.floor:
                self.bytes -= session.acknowledge(acked_below)
            if sequence in session.outcomes:
                outcome = session.outcomes[sequence]
                return Verdict.UNKNOWN if outcome is None else outcome
            acked_below = session.floor
        if sequence < acked_below:
            return Verdict.ACKNOWLEDGED
        if retry and now - RETRY_WINDOW_S < self.horizon:
            return Verdict.UNKNOWN
        return Verdict.EXECUTE

    def begin(self, proposal: Proposal, acked_below: int, now: float) -> None:
        """Notes that a sequence is under way, after EXECUTE; ends with one `finish` or `cancel`."""
        session = self._sessions.get(proposal.client_id)
        if session is None:
            session = self._sessions[proposal.client_id] = Session(proposal.client_id, acked_below, now)
            if len(self._sessions) > self._sessions_max:
                self._evict()
        session.outcomes[proposal.sequence] = proposal
        session.pending += 1
        proposal.session = session

    def finish(self, session: Session, sequence: int, outcome: bytes | None, now: float) -> None:
        """Keeps the outcome of a sequence that was under way: its results, or None when nobody knows."""
        session.pending -= 1
        session.used = now
        session.outcomes[sequence] = outcome
        size = _size(outcome)
        session.bytes += size
        self.bytes += size
        while len(session.outcomes) > RESULTS_MAX or session.bytes > SESSION_BYTES_MAX:
            freed = session.drop_oldest()
            if not freed:
                break
            self.bytes -= freed
        self._sessions.move_to_end(session.client_id)
        if self.bytes > self._bytes_max:
            self._evict()

    def cancel(self, session: Session, sequence: int) -> None:
        """Forgets a sequence that was under way and certainly did not run."""
        session.pending -= 1
        del session.outcomes[sequence]

    def _evict(self) -> None:
        """Evicts from the least recently used end; stops at a session with writes under way, of which the
        in-flight budget allows few.
        """
        while len(self._sessions) > self._sessions_max or self.bytes > self._bytes_max:
            session = next(iter(self._sessions.values()))
            if session.pending:
                return
            del self._sessions[session.client_id]
            self.bytes -= session.bytes
            self.horizon = max(self.horizon, session.used)
            self.evicted += 1
