"""GROUP messages: commands for one partition's replica (docs/raft.md section 9). Numbers and kinds:
`shared.messagefields`.

Owns their bytes. Encoders trust their caller; decoders check every field and raise
ProtocolError, nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvclient.errors import ProtocolError
from shared.messagefields import (
    DRY_RUN,
    UINT16_MAX,
    UINT32_MAX,
    UINT64_MAX,
    VERSION,
    Kind,
    arity,
    binary,
    pack,
    unsigned,
)


class GroupCommand(enum.StrEnum):
    """What a GROUP message asks of one partition's replica (docs/raft.md section 9)."""

    SHOW = "show"
    TRANSFER_LEADER = "transfer-leader"
    ADD_LEARNER = "add-learner"
    PROMOTE = "promote"
    REMOVE = "remove"
    HOST = "host"
    """Of the leader's store to another: be ready to become a member."""
    REPLACE = "replace"
    """`node`, a learner, becomes a voter in place of `other`."""
    CHECKSUM = "checksum"
    """Do all members hold the same (docs/raft.md section 10)."""
    DIGEST = "digest"
    """Of the leader's store to another: the checksum of the cut at the index `other`."""
    ERASE = "erase"
    """Of this store itself: forget a replica that left its group with the configuration of index `other`."""


class GroupRequest(NamedTuple):
    """Router to store, or store to store: a command for one partition. `node` is whom it is about, 0 for
    nobody; `other` is what REPLACE, ERASE and DIGEST say of it, otherwise 0; `cluster` is XXH64 of the
    cluster id.
    """

    token: int
    cluster: int
    partition: int
    timeout_ms: int
    flags: int
    command: GroupCommand
    node: int
    other: int


class GroupReply(NamedTuple):
    """The answer: a MessagePack map if `status` is 0, otherwise an error body."""

    token: int
    status: int
    body: bytes


def encode_group_request(request: GroupRequest) -> bytes:
    """GROUP."""
    return pack((VERSION, Kind.GROUP, *request))


def encode_group_reply(token: int, status: int, body: bytes) -> bytes:
    """GROUP_REPLY."""
    return pack((VERSION, Kind.GROUP_REPLY, token, status, body))


def decode_group_request(fields: Sequence[Any]) -> GroupRequest:
    """GROUP, from its fields."""
    arity(fields, 10, "GROUP")
    try:
        command = GroupCommand(fields[7])
    except ValueError:
        raise ProtocolError("the command of a GROUP is unknown") from None
    return GroupRequest(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT64_MAX, "cluster"),
        unsigned(fields[4], UINT16_MAX, "partition"),
        unsigned(fields[5], UINT32_MAX, "timeout"),
        unsigned(fields[6], DRY_RUN, "flags"),
        command,
        unsigned(fields[8], UINT16_MAX, "node id"),
        unsigned(fields[9], UINT64_MAX, "other"),
    )


def decode_group_reply(fields: Sequence[Any]) -> GroupReply:
    """GROUP_REPLY, from its fields."""
    arity(fields, 5, "GROUP_REPLY")
    return GroupReply(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT16_MAX, "status"),
        binary(fields[4], "the body of a GROUP_REPLY"),
    )
