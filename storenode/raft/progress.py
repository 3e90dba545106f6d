"""What the leader knows of one member: how far its log matches, what is on the way to it.

Owns the member's state (probe, replicate, snapshot) and its window. Must not know messages or the log.

Invariants: match < next. In PROBE at most one APPEND is out per heartbeat interval. In REPLICATE `next` runs
ahead of the answers, and the window bounds by how much. In SNAPSHOT nothing is sent.
Ongaro's dissertation 10.2.1 (pipelining); the three states are etcd's.
"""

from __future__ import annotations

import enum
from collections import deque

from storenode.raft.contract import Settings


class ProgressState(enum.IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    """One member, as its leader sees it."""

    __slots__ = (
        "_bytes_max",
        "_inflight",
        "_match_at_beat",
        "_messages_max",
        "acked_context",
        "heard_at",
        "inflight_bytes",
        "match",
        "next",
        "probe_sent",
        "recent_active",
        "since",
        "snapshot_ticks",
        "stalled",
        "state",
    )

    def __init__(self, next_index: int, settings: Settings, now: float = 0.0) -> None:
        self.match = 0
        self.next = next_index
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.recent_active = True
        """Heard of since the last check of the quorum; a new member has not had the time yet."""
        self.since = now
        """When this leader began to look after it, in the clock of `GroupState.now`."""
        self.heard_at: float | None = None
        """When its last answer came; None: there was none yet."""
        self.acked_context = 0
        """The newest heartbeat context it has answered."""
        self.snapshot_ticks = 0
        self.stalled = False
        """Nothing was acknowledged for a whole heartbeat interval: worth asking once."""
        self.inflight_bytes = 0
        self._inflight: deque[tuple[int, int]] = deque()  # last index, bytes
        self._messages_max = settings.inflight_messages
        self._bytes_max = settings.inflight_bytes
        self._match_at_beat = -1

    @property
    def inflight_messages(self) -> int:
        return len(self._inflight)

    @property
    def full(self) -> bool:
        """No more entries may be sent before some are acknowledged."""
        return len(self._inflight) >= self._messages_max or self.inflight_bytes >= self._bytes_max

    def hear(self, now: float) -> None:
        """An answer of it has come."""
        self.recent_active = True
        self.heard_at = now

    def sent(self, last: int, size: int) -> None:
        """Entries up to `last` went out, `size` bytes."""
        self.next = last + 1
        self._inflight.append((last, size))
        self.inflight_bytes += size

    def acknowledge(self, match: int) -> bool:
        """The member has everything up to `match`, durably; returns whether that is news."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= match:
            self.inflight_bytes -= inflight.popleft()[1]
        if match <= self.match:
            return False
        self.match = match
        self.probe_sent = False
        if self.next <= match:
            self.next = match + 1
        return True

    def probe(self, next_index: int) -> None:
        """Look for the place where the logs meet, from `next_index` down."""
        self._enter(ProgressState.PROBE, max(next_index, self.match + 1))

    def replicate(self) -> None:
        """The logs meet at `match`: stream from there."""
        self._enter(ProgressState.REPLICATE, self.match + 1)

    def snapshot(self) -> None:
        """Wait until the member has pulled a snapshot: whichever lets the log go on."""
        self._enter(ProgressState.SNAPSHOT, self.next)
        self.snapshot_ticks = 0

    def beat(self) -> None:
        """A heartbeat interval has passed."""
        self.stalled = self.match == self._match_at_beat
        self._match_at_beat = self.match

    def _enter(self, state: ProgressState, next_index: int) -> None:
        self.state = state
        self.next = next_index
        self.probe_sent = False
        self._inflight.clear()
        self.inflight_bytes = 0
