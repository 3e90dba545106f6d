"""What the core asks of its caller: the durable log, the settings; and how it says no.

Owns no state. Everything here is shared by the files of this room and by those who use it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import attrs

from storenode.raft.messages import Entry, HardState, Message

MIB: Final = 1 << 20


@attrs.frozen
class Settings:
    """Bounds and times of a group; the same on all of its nodes."""

    election_ticks: int = 10
    """Ticks without a leader before a follower asks for votes: the shortest; the longest is 1.4
    times that. Too short makes elections of every pause, too long makes a dead leader felt.
    """
    heartbeat_ticks: int = 1
    append_bytes_max: int = MIB
    """Bytes of entries in one APPEND: a frame of the bus takes 4 MiB."""
    inflight_messages: int = 128
    """APPENDs that a follower has not answered. With one per turn that is 128 turns of the loop, more than
    the round trip takes; the bus queues 1000.
    """
    inflight_bytes: int = 16 * MIB
    """Bytes of them: what a slow follower may hold in queues."""
    uncommitted_bytes_max: int = 64 * MIB
    """Bytes that a leader without a quorum takes in before it refuses proposals."""
    lease_seconds: float = 0.0
    """How long after a heartbeat was sent its answers promise that nobody else leads; 0: no leases. At most
    election_ticks - 1 ticks in seconds, for the first tick may follow at once, less the bound on clock drift.
    """

    def __attrs_post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError(
                f"heartbeat_ticks {self.heartbeat_ticks} must be at least 1 and less than"
                f" election_ticks {self.election_ticks}"
            )
        if min(self.append_bytes_max, self.inflight_messages, self.inflight_bytes) < 1:
            raise ValueError("append_bytes_max, inflight_messages and inflight_bytes must be at least 1")


class Unstable(NamedTuple):
    """One write to the durable log, and what may be said when it is durable."""

    first_index: int
    entries: list[Entry]
    """They replace everything from `first_index` on; empty: the log's entries stay as they are."""
    hard: HardState | None
    replies: list[Message]


class NotLeader(Exception):
    """Only the leader does this; `leader` is its node id, or NOBODY."""

    def __init__(self, leader: int) -> None:
        super().__init__(
            f"not the leader; it is node {leader}" if leader else "not the leader; there is none"
        )
        self.leader = leader


class Dropped(Exception):
    """The leader does not take this now; nothing of it is in the log. Ask again later."""
