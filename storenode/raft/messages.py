"""What a Raft group says and stores: entries, hard state, messages, configurations (docs/raft.md).

Owns the shapes and the numbers. Plain tuples: they are made and read thousands of times a second, and their
order is the order on the wire and on the disk. Who decodes bytes into them checks them; nobody else does.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

NOBODY: Final = 0
EVERYBODY: Final = 0xFFFF


class EntryKind(enum.IntEnum):
    """What `Entry.data` holds."""

    NORMAL = 0
    CONFIGURATION = 1


class Entry(NamedTuple):
    """One entry of the log; its index is its place. Empty `data` of a NORMAL entry begins a term."""

    term: int
    kind: int
    data: bytes


class HardState(NamedTuple):
    """What must survive a crash. `commit` is a hint and may be old."""

    term: int
    vote: int
    commit: int


class Kind(enum.IntEnum):
    """Kinds of messages; replies follow what they answer."""

    APPEND = 1
    APPEND_REPLY = 2
    HEARTBEAT = 3
    HEARTBEAT_REPLY = 4
    PRE_VOTE = 5
    PRE_VOTE_REPLY = 6
    VOTE = 7
    VOTE_REPLY = 8
    SNAPSHOT = 9
    TIMEOUT_NOW = 10
    READ_INDEX = 11
    READ_INDEX_REPLY = 12


class Message(NamedTuple):
    """One message. `to` may be EVERYBODY. What `a`, `b`, `c`, `flag` and `context` mean depends on the kind:
    docs/raft.md section 3.
    """

    to: int
    sender: int
    kind: int
    term: int
    a: int = 0
    b: int = 0
    c: int = 0
    flag: int = 0
    context: int = 0
    entries: tuple[Entry, ...] | list[Entry] = ()


class Transition(enum.IntEnum):
    """How a configuration change is made."""

    AUTO = 0
    """In one step if it is one change, otherwise IMPLICIT."""
    IMPLICIT = 1
    """By a joint configuration that the leader leaves on its own."""
    EXPLICIT = 2
    """By a joint configuration that is left by an entry of its own."""


class Operation(enum.IntEnum):
    """One change to one node."""

    ADD_VOTER = 0
    REMOVE = 1
    ADD_LEARNER = 2


class Change(NamedTuple):
    """A proposed change of configuration; without operations: leave the joint configuration."""

    transition: int
    operations: tuple[tuple[int, int], ...]
    """(operation, node id) each."""


class Configuration(NamedTuple):
    """Who belongs to a group. `outgoing` is not empty while the configuration is joint: then both majorities
    count. `learners_next` are voters of `outgoing` that become learners when it is left.
    """

    voters: frozenset[int]
    outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def members(self) -> frozenset[int]:
        """All that belong to it in any way."""
        return self.voters | self.outgoing | self.learners
