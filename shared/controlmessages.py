"""CONTROL messages: commands for the cluster (docs/control.md section 4). Numbers and kinds:
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


class ControlCommand(enum.StrEnum):
    """What a CONTROL message asks of whoever leads the control partition (docs/control.md section 4)."""

    SHOW = "show"
    JOIN = "join"
    KNOWN = "known"
    """Of any store, not of the controller: what it has heard itself (section 7)."""
    NODE_ADD = "node-add"
    NODE_DRAIN = "node-drain"
    NODE_UNDRAIN = "node-undrain"
    NODE_REMOVE = "node-remove"
    NODE_SET_WEIGHT = "node-set-weight"
    REBALANCE_PLAN = "rebalance-plan"
    REBALANCE_START = "rebalance-start"
    REBALANCE_PAUSE = "rebalance-pause"
    REBALANCE_RESUME = "rebalance-resume"
    REBALANCE_STOP = "rebalance-stop"
    SET = "set"


class ControlRequest(NamedTuple):
    """Router to store, or store to store: a command for the cluster; `arguments` is a MessagePack map.
    `cluster` is XXH64 of the cluster id, 0 from a node that does not know it yet.
    """

    token: int
    cluster: int
    timeout_ms: int
    flags: int
    command: ControlCommand
    arguments: bytes


class ControlReply(NamedTuple):
    """The answer: a MessagePack map if `status` is 0, otherwise an error body."""

    token: int
    status: int
    body: bytes


def encode_control_request(request: ControlRequest) -> bytes:
    """CONTROL."""
    return pack((VERSION, Kind.CONTROL, *request))


def encode_control_reply(token: int, status: int, body: bytes) -> bytes:
    """CONTROL_REPLY."""
    return pack((VERSION, Kind.CONTROL_REPLY, token, status, body))


def decode_control_request(fields: Sequence[Any]) -> ControlRequest:
    """CONTROL, from its fields."""
    arity(fields, 8, "CONTROL")
    try:
        command = ControlCommand(fields[6])
    except ValueError:
        raise ProtocolError("the command of a CONTROL is unknown") from None
    return ControlRequest(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT64_MAX, "cluster"),
        unsigned(fields[4], UINT32_MAX, "timeout"),
        unsigned(fields[5], DRY_RUN, "flags"),
        command,
        binary(fields[7], "the arguments of a CONTROL"),
    )


def decode_control_reply(fields: Sequence[Any]) -> ControlReply:
    """CONTROL_REPLY, from its fields."""
    arity(fields, 5, "CONTROL_REPLY")
    return ControlReply(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT16_MAX, "status"),
        binary(fields[4], "the body of a CONTROL_REPLY"),
    )
