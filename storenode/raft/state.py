"""What every role of a group's node reads and changes: term, vote, role, log, configuration, outgoing
messages.

Owns these and how a message gets out. Must not know what any message means.
"""

from __future__ import annotations

import enum
from random import Random

from storenode.raft.contract import Settings
from storenode.raft.log_view import LogView
from storenode.raft.messages import NOBODY, Configuration, Kind, Message
from storenode.raft.storage import Storage


class Role(enum.IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class GroupState:
    """The state of one node in one group. `messages` may be sent at once; `pending_replies` promise
    durability.
    """

    def __init__(
        self,
        node: int,
        storage: Storage,
        configuration: Configuration,
        applied: int,
        settings: Settings,
        random: Random,
    ) -> None:
        hard = storage.hard_state
        if hard.commit > storage.last_index:
            raise ValueError(
                f"raft log of node {node}: commit index {hard.commit} is beyond the last entry"
                f" {storage.last_index}; entries are lost, replace this replica"
            )
        if not storage.first_index - 1 <= applied <= storage.last_index:
            raise ValueError(
                f"raft log of node {node} goes from {storage.first_index} to {storage.last_index} and"
                f" does not join the applied index {applied}; cut it there, or replace this replica"
            )
        self.node = node
        self.settings = settings
        self.random = random
        self.configuration = configuration
        self.log = LogView(storage, max(hard.commit, applied))
        self.applied_index = applied
        self.term = hard.term
        self.vote = hard.vote
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.now = 0.0
        """Monotonic seconds, set by the caller before inputs; stamps heartbeats for leases, nothing else."""
        self.messages: list[Message] = []
        self.pending_replies: list[Message] = []
        self.snapshot_wanted: tuple[int, int, int] | None = None
        """(leader, index, term): what the leader told us to pull."""
        self.rejected_this_tick = False
        """A broadcast has been rejected: not again before the next tick, the leader knows."""

    @property
    def promotable(self) -> bool:
        """Whether this node may stand for election: a learner that does not know yet may not (it votes,
        though).
        """
        configuration = self.configuration
        return self.node in configuration.voters or self.node in configuration.outgoing

    def acknowledge(self, to: int, match: int) -> None:
        """Say, when what is here is durable, that the log matches the leader's up to `match`. Several in a
        turn are one.
        """
        pending = self.pending_replies
        if pending:
            last = pending[-1]
            if last[2] == Kind.APPEND_REPLY and last[0] == to and last[3] == self.term and not last[7]:
                match = max(match, last[4])
                pending.pop()
        pending.append(Message(to, self.node, Kind.APPEND_REPLY, self.term, match))
