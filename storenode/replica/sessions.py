"""The session table of one partition: which writes have run already, and what they answered.

Owns (client id, sequence) -> results. It is a part of the replicated state: it changes only when an entry is
applied, by what the entry says, so it is the same on every replica after the same entry. Knows no engine, no
socket and no clock: times are the entries' `session_ms`, which never run faster than real time (docs/raft.md
section 2).

The rule that makes a write run at most once is one number, the **horizon**: every write of a session that was
last used at or after the horizon is still in the table. It begins before all time, with the partition, and
moves up to the last use of each session that is evicted. No attempt arrives later than RETRY_WINDOW_MS after
the first attempt of the same sequence. So a sequence that is not in the table, asked for with RETRY at t,
certainly never ran if horizon <= t - RETRY_WINDOW_MS; then it is executed. Otherwise nobody can tell, and the
answer is OUTCOME_UNKNOWN. Without RETRY it is a first attempt and is executed.

Within a session, `floor` is the lowest sequence it can still answer for: what the client acknowledged, or, in
a session that holds too many results, what had to be dropped. Below the floor the answer is OUTCOME_UNKNOWN,
with or without RETRY.

Limit of this rule: a first attempt that is overtaken by its own retry and arrives only after the session was
evicted runs a second time. It takes a message that lay in some queue while 4096 other clients wrote.

Source: Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.3.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Any, Final

from kvclient.protocol import RETRY_WINDOW_MS as SDK_RETRY_WINDOW_MS

RETRY_WINDOW_MS: Final = SDK_RETRY_WINDOW_MS + 15_000
"""What the SDK allows itself, and the 15 s after which a silent link is cut, with all that is still in it."""

SESSIONS_MAX: Final = 4096
"""Per partition: 54 new sessions a second until one goes within the window. About 2 MiB when full."""

TABLE_BYTES_MAX: Final = 8 << 20
"""Results of all sessions of a partition; a node with 16 busy partitions keeps at most 128 MiB of them."""

RESULTS_MAX: Final = 1024
"""Per session: more than the 1000 requests that an SDK keeps in flight; who acknowledges never meets it."""

SESSION_BYTES_MAX: Final = 1 << 20
"""Per session: one client with large batches drops its own old results before it pushes out others."""

_BEFORE_ALL_TIME: Final = -RETRY_WINDOW_MS
_RESULT_OVERHEAD: Final = (
    96  # one stored result beside its bytes: object header, key, dict slot (CPython 3.11)
)


class Verdict(enum.Enum):
    """What the table says about a sequence whose results it does not have."""

    EXECUTE = "it never ran here"
    ACKNOWLEDGED = "the client has acknowledged it, or its results had to be dropped"
    UNKNOWN = "it may have run before the table's memory begins"


class Session:
    """One client's sequences in this partition."""

    __slots__ = ("bytes", "client_id", "floor", "results", "used")

    def __init__(self, client_id: int, floor: int) -> None:
        self.client_id = client_id
        self.floor = floor
        self.results: dict[int, bytes] = {}
        self.bytes = 0
        self.used = 0

    def acknowledge(self, acked_below: int) -> int:
        """Raises the floor and forgets what is below it at the front; returns the bytes freed.

        Results are in the order of the log. One that came out of order goes when those in front of it go.
        """
        self.floor = acked_below
        results, freed = self.results, 0
        while results and (sequence := next(iter(results))) < acked_below:
            freed += _RESULT_OVERHEAD + len(results.pop(sequence))
        self.bytes -= freed
        return freed

    def drop_oldest(self) -> int:
        """Forgets the oldest result and raises the floor above it; returns the bytes freed."""
        sequence = next(iter(self.results))
        self.floor = max(self.floor, sequence + 1)
        freed = _RESULT_OVERHEAD + len(self.results.pop(sequence))
        self.bytes -= freed
        return freed

    def keep(self, sequence: int, results: bytes) -> int:
        """Returns the bytes that it takes."""
        self.results[sequence] = results
        size = _RESULT_OVERHEAD + len(results)
        self.bytes += size
        return size


class SessionTable:
    """All sessions of one partition, bounded, least recently used first. One thread."""

    def __init__(self, *, sessions_max: int = SESSIONS_MAX, bytes_max: int = TABLE_BYTES_MAX) -> None:
        self.horizon = _BEFORE_ALL_TIME
        self.bytes = 0
        self.evicted = 0
        self._sessions_max = sessions_max
        self._bytes_max = bytes_max
        self._sessions: OrderedDict[int, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def results_of(self, client_id: int, sequence: int) -> bytes | None:
        """The results of a sequence that ran, if they are here. Changes nothing."""
        session = self._sessions.get(client_id)
        return None if session is None else session.results.get(sequence)

    def judge(
        self, client_id: int, sequence: int, acked_below: int, retry: bool, session_ms: int
    ) -> bytes | Verdict:
        """The results of (client_id, sequence), or the verdict; takes note of `acked_below`."""
        session = self._sessions.get(client_id)
        if session is not None:
            if acked_below > session.floor:
                self.bytes -= session.acknowledge(acked_below)
            if sequence in session.results:
                return session.results[sequence]
            acked_below = session.floor
        if sequence < acked_below:
            return Verdict.ACKNOWLEDGED
        if retry and session_ms - RETRY_WINDOW_MS < self.horizon:
            return Verdict.UNKNOWN
        return Verdict.EXECUTE

    def record(
        self, client_id: int, sequence: int, acked_below: int, results: bytes, session_ms: int
    ) -> None:
        """Keeps the results of a sequence that was executed after EXECUTE."""
        session = self._sessions.get(client_id)
        if session is None:
            session = self._sessions[client_id] = Session(client_id, acked_below)
        else:
            self._sessions.move_to_end(client_id)
            if acked_below > session.floor:  # when this write was judged, others of its entry had not run
                self.bytes -= session.acknowledge(acked_below)
        session.used = session_ms
        self.bytes += session.keep(sequence, results)
        while len(session.results) > RESULTS_MAX or session.bytes > SESSION_BYTES_MAX:
            self.bytes -= session.drop_oldest()
        while len(self._sessions) > self._sessions_max or self.bytes > self._bytes_max:
            self._evict()

    def _evict(self) -> None:
        _, session = self._sessions.popitem(last=False)
        self.bytes -= session.bytes
        self.horizon = max(self.horizon, session.used)
        self.evicted += 1

    def dump(self) -> list[Any]:
        """What `load` takes: numbers, bytes and lists of them, in the order of last use."""
        sessions = [
            [one.client_id, one.floor, one.used, list(one.results.items())] for one in self._sessions.values()
        ]
        return [self.horizon, sessions]

    def load(self, dumped: list[Any]) -> None:
        """Becomes the table that was dumped."""
        self.horizon, sessions = dumped
        self._sessions.clear()
        self.bytes = 0
        for client_id, floor, used, results in sessions:
            session = self._sessions[client_id] = Session(client_id, floor)
            session.used = used
            for sequence, kept in results:
                self.bytes += session.keep(sequence, kept)
