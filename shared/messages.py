"""Router <-> store messages, version 1: one MessagePack frame each (docs/architecture.md section 3); and what
stores say to each other on the same socket.

Owns the numbers and the bytes of the messages. Knows nothing of sockets, maps or ops: `ops` and `body` are
bytes that pass through. Encoders trust their caller; decoders trust nobody, check every field once and raise
ProtocolError, nothing else. A batch is one unpack (`shared.frames`) and one pass over its items.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgpack

from kvclient.errors import ProtocolError
from shared import frames

VERSION = 1

UINT16_MAX = (1 << 16) - 1
UINT32_MAX = (1 << 32) - 1
UINT64_MAX = (1 << 64) - 1


class Kind(enum.IntEnum):
    """Second element of every message; replies have bit 6 set."""

    BATCH = 1
    MAP = 2
    STATUS = 3
    PING = 4
    BULK = 5
    GROUP = 6
    CONTROL = 7
    BATCH_REPLY = 65
    MAP_REPLY = 66
    STATUS_REPLY = 67
    PONG = 68
    BULK_REPLY = 69
    GROUP_REPLY = 70
    CONTROL_REPLY = 71
    FAULT = 127


class GroupCommand(enum.StrEnum):
    """What a GROUP message asks of one partition's replica (docs/raft.md section 9)."""

    SHOW = "show"
    TRANSFER_LEADER = "transfer-leader"
    ADD_LEARNER = "add-learner"
    PROMOTE = "promote"
    REMOVE = "remove"
    HOST = "host"
    """Of the leader's store to another: be ready to become a member."""


class ControlCommand(enum.StrEnum):
    """What a CONTROL message asks of whoever leads the control partition (docs/control.md section 4)."""

    SHOW = "show"
    JOIN = "join"
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


MAP_TOPIC = b"map\0"
"""A message on an `events` endpoint that begins so is an encoded ClusterMap from there on: one frame."""

DRY_RUN = 1
"""A flag of GROUP and CONTROL: say what would happen."""


class Item(NamedTuple):
    """One partition's share of a client request; `token` is the router's own and comes back in the answer."""

    token: int
    partition: int
    timeout_ms: int
    read_mode: int
    flags: int
    client_id: int
    sequence: int
    acked_below: int
    ops: bytes


class Answer(NamedTuple):
    """The answer to an item: results if `status` is 0, otherwise an error body."""

    token: int
    status: int
    body: bytes


class Batch(NamedTuple):
    """Router to store: items, and the epoch of the map they were routed by."""

    epoch: int
    items: list[Item]


class BatchReply(NamedTuple):
    """Store to router: answers, in any order, and the epoch of the store's map."""

    epoch: int
    answers: list[Answer]


class MapRequest(NamedTuple):
    """Router to store: send the cluster map."""

    token: int


class MapReply(NamedTuple):
    """Store to router: an encoded ClusterMap, not yet validated."""

    token: int
    map: bytes


class StatusRequest(NamedTuple):
    """Router to store: send your figures."""

    token: int


class StatusReply(NamedTuple):
    """Store to router: figures by name."""

    token: int
    figures: dict[str, Any]


class Ping(NamedTuple):
    """Router to store: are you there."""

    token: int


class Pong(NamedTuple):
    """Store to router: I am, with this id and epoch."""

    token: int
    node_id: int
    epoch: int


class BulkRequest(NamedTuple):
    """Store to store: a request for a snapshot or a part of one (docs/raft.md section 6)."""

    body: bytes


class BulkReply(NamedTuple):
    """Store to store: the answer to a BulkRequest."""

    body: bytes


class GroupRequest(NamedTuple):
    """Router to store, or store to store: a command for one partition. `node` is whom it is about, 0 for
    nobody; `cluster` is XXH64 of the cluster id.
    """

    token: int
    cluster: int
    partition: int
    timeout_ms: int
    flags: int
    command: GroupCommand
    node: int


class GroupReply(NamedTuple):
    """The answer: a MessagePack map if `status` is 0, otherwise an error body."""

    token: int
    status: int
    body: bytes


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


class Fault(NamedTuple):
    """Either way: the last frame was not understood."""

    message: str


ToStore = Batch | MapRequest | StatusRequest | Ping | BulkRequest | GroupRequest | ControlRequest | Fault
ToRouter = BatchReply | MapReply | StatusReply | Pong | GroupReply | ControlReply | Fault
ToPeer = BulkReply | GroupReply | ControlReply | MapReply | Fault

Decoders = dict[int, Callable[[tuple[Any, ...]], ToStore | ToRouter | ToPeer]]

_ITEM_TYPES = (int,) * 8 + (bytes,)
_ANSWER_TYPES = (int, int, bytes)

_make_tuple = tuple.__new__  # the cheapest way to a NamedTuple from a tuple that was checked
_pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode_batch(epoch: int, items: Sequence[Item]) -> bytes:
    """BATCH."""
    return _pack((VERSION, Kind.BATCH, epoch, items))


def encode_map_request(token: int) -> bytes:
    """MAP."""
    return _pack((VERSION, Kind.MAP, token))


def encode_status_request(token: int) -> bytes:
    """STATUS."""
    return _pack((VERSION, Kind.STATUS, token))


def encode_ping(token: int) -> bytes:
    """PING."""
    return _pack((VERSION, Kind.PING, token))


def encode_batch_reply(epoch: int, answers: Sequence[Answer] | Sequence[tuple[int, int, bytes]]) -> bytes:
    """BATCH_REPLY."""
    return _pack((VERSION, Kind.BATCH_REPLY, epoch, answers))


def encode_map_reply(token: int, encoded_map: bytes) -> bytes:
    """MAP_REPLY."""
    return _pack((VERSION, Kind.MAP_REPLY, token, encoded_map))


def encode_status_reply(token: int, figures: dict[str, Any]) -> bytes:
    """STATUS_REPLY; figures are numbers, strings, lists and maps of them by name."""
    return _pack((VERSION, Kind.STATUS_REPLY, token, figures))


def encode_pong(token: int, node_id: int, epoch: int) -> bytes:
    """PONG."""
    return _pack((VERSION, Kind.PONG, token, node_id, epoch))


def encode_bulk_request(body: bytes) -> bytes:
    """BULK."""
    return _pack((VERSION, Kind.BULK, body))


def encode_bulk_reply(body: bytes) -> bytes:
    """BULK_REPLY."""
    return _pack((VERSION, Kind.BULK_REPLY, body))


def encode_group_request(request: GroupRequest) -> bytes:
    """GROUP."""
    return _pack((VERSION, Kind.GROUP, *request))


def encode_group_reply(token: int, status: int, body: bytes) -> bytes:
    """GROUP_REPLY."""
    return _pack((VERSION, Kind.GROUP_REPLY, token, status, body))


def encode_control_request(request: ControlRequest) -> bytes:
    """CONTROL."""
    return _pack((VERSION, Kind.CONTROL, *request))


def encode_control_reply(token: int, status: int, body: bytes) -> bytes:
    """CONTROL_REPLY."""
    return _pack((VERSION, Kind.CONTROL_REPLY, token, status, body))


def encode_fault(message: str) -> bytes:
    """FAULT."""
    return _pack((VERSION, Kind.FAULT, message))


def decode_to_store(frame: bytes) -> ToStore:
    """A message that a store may get; ProtocolError for any other bytes."""
    message: ToStore = _decode(frames.decode(frame), _TO_STORE)
    return message


def decode_to_router(frame: bytes) -> ToRouter:
    """A message that a router may get from a store; ProtocolError for any other bytes."""
    message: ToRouter = _decode(frames.decode(frame), _TO_ROUTER)
    return message


def decode_to_peer(frame: bytes) -> ToPeer:
    """A message that a store may get from a store it asked; ProtocolError for any other bytes."""
    message: ToPeer = _decode(frames.decode(frame), _TO_PEER)
    return message


def _decode(fields: Any, decoders: Decoders) -> Any:
    if (
        type(fields) is not tuple
        or len(fields) < 3
        or type(fields[0]) is not int
        or type(fields[1]) is not int
    ):
        raise ProtocolError("a message is an array that begins with version and kind")
    if fields[0] != VERSION:
        raise ProtocolError(f"message version {fields[0]} is not understood, this side speaks {VERSION}")
    decoder = decoders.get(fields[1])
    if decoder is None:
        raise ProtocolError(f"message kind {fields[1]} does not belong here")
    return decoder(fields)


def _arity(fields: Sequence[Any], count: int, name: str) -> None:
    if len(fields) != count:
        raise ProtocolError(f"{name} is an array of {count}, not {len(fields)}")


def _unsigned(value: object, limit: int, name: str) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ProtocolError(f"{name} must be an unsigned integer up to {limit}")
    return value


def _items(value: object) -> list[Item]:
    if type(value) is not tuple:
        raise ProtocolError("the items of a BATCH are an array")
    items = []
    for row in value:
        if type(row) is not tuple or tuple(map(type, row)) != _ITEM_TYPES:
            raise ProtocolError("an item is an array of 8 integers and bin")
        token, partition, timeout_ms, read_mode, flags, client_id, sequence, acked_below, _ = row
        # A negative number stays negative through | and >>, so one test finds the fields below 0 and the ones
        # above the width.
        if (
            partition >> 16
            or (timeout_ms | read_mode | flags) >> 32
            or (token | client_id | sequence | acked_below) >> 64
        ):
            raise ProtocolError("an item has an integer out of range")
        items.append(_make_tuple(Item, row))
    return items


def _answers(value: object) -> list[Answer]:
    if type(value) is not tuple:
        raise ProtocolError("the answers of a BATCH_REPLY are an array")
    answers = []
    for row in value:
        if type(row) is not tuple or tuple(map(type, row)) != _ANSWER_TYPES:
            raise ProtocolError("an answer is an array of token, status and bin")
        if row[0] >> 64 or row[1] >> 16:
            raise ProtocolError("an answer has an integer out of range")
        answers.append(_make_tuple(Answer, row))
    return answers


def _batch(fields: Sequence[Any]) -> Batch:
    _arity(fields, 4, "BATCH")
    return Batch(_unsigned(fields[2], UINT64_MAX, "epoch"), _items(fields[3]))


def _batch_reply(fields: Sequence[Any]) -> BatchReply:
    _arity(fields, 4, "BATCH_REPLY")
    return BatchReply(_unsigned(fields[2], UINT64_MAX, "epoch"), _answers(fields[3]))


def _token_only(make: Callable[[int], Any], fields: Sequence[Any]) -> Any:
    _arity(fields, 3, "the message")
    return make(_unsigned(fields[2], UINT64_MAX, "token"))


def _map_reply(fields: Sequence[Any]) -> MapReply:
    _arity(fields, 4, "MAP_REPLY")
    if type(fields[3]) is not bytes:
        raise ProtocolError("the map of a MAP_REPLY must be bin")
    return MapReply(_unsigned(fields[2], UINT64_MAX, "token"), fields[3])


def _status_reply(fields: Sequence[Any]) -> StatusReply:
    _arity(fields, 4, "STATUS_REPLY")
    if type(fields[3]) is not dict or not set(map(type, fields[3])) <= {str}:
        raise ProtocolError("the figures of a STATUS_REPLY must be a map with names as keys")
    return StatusReply(_unsigned(fields[2], UINT64_MAX, "token"), fields[3])


def _pong(fields: Sequence[Any]) -> Pong:
    _arity(fields, 5, "PONG")
    return Pong(
        _unsigned(fields[2], UINT64_MAX, "token"),
        _unsigned(fields[3], UINT16_MAX, "node id"),
        _unsigned(fields[4], UINT64_MAX, "epoch"),
    )


def _body_only(make: Callable[[bytes], Any], fields: Sequence[Any]) -> Any:
    _arity(fields, 3, "the message")
    if type(fields[2]) is not bytes:
        raise ProtocolError("the body of the message must be bin")
    return make(fields[2])


def _group_request(fields: Sequence[Any]) -> GroupRequest:
    _arity(fields, 9, "GROUP")
    try:
        command = GroupCommand(fields[7])
    except ValueError:
        raise ProtocolError("the command of a GROUP is unknown") from None
    return GroupRequest(
        _unsigned(fields[2], UINT64_MAX, "token"),
        _unsigned(fields[3], UINT64_MAX, "cluster"),
        _unsigned(fields[4], UINT16_MAX, "partition"),
        _unsigned(fields[5], UINT32_MAX, "timeout"),
        _unsigned(fields[6], DRY_RUN, "flags"),
        command,
        _unsigned(fields[8], UINT16_MAX, "node id"),
    )


def _control_request(fields: Sequence[Any]) -> ControlRequest:
    _arity(fields, 8, "CONTROL")
    try:
        command = ControlCommand(fields[6])
    except ValueError:
        raise ProtocolError("the command of a CONTROL is unknown") from None
    if type(fields[7]) is not bytes:
        raise ProtocolError("the arguments of a CONTROL must be bin")
    return ControlRequest(
        _unsigned(fields[2], UINT64_MAX, "token"),
        _unsigned(fields[3], UINT64_MAX, "cluster"),
        _unsigned(fields[4], UINT32_MAX, "timeout"),
        _unsigned(fields[5], DRY_RUN, "flags"),
        command,
        fields[7],
    )


def _command_reply(
    make: Callable[[int, int, bytes], Any], name: str, fields: Sequence[Any]
) -> GroupReply | ControlReply:
    _arity(fields, 5, name)
    if type(fields[4]) is not bytes:
        raise ProtocolError(f"the body of a {name} must be bin")
    token = _unsigned(fields[2], UINT64_MAX, "token")
    reply: GroupReply | ControlReply = make(token, _unsigned(fields[3], UINT16_MAX, "status"), fields[4])
    return reply


def _fault(fields: Sequence[Any]) -> Fault:
    _arity(fields, 3, "FAULT")
    if type(fields[2]) is not str:
        raise ProtocolError("the message of a FAULT must be str")
    return Fault(fields[2])


_TO_STORE: Decoders = {
    Kind.BATCH: _batch,
    Kind.MAP: partial(_token_only, MapRequest),
    Kind.STATUS: partial(_token_only, StatusRequest),
    Kind.PING: partial(_token_only, Ping),
    Kind.BULK: partial(_body_only, BulkRequest),
    Kind.GROUP: _group_request,
    Kind.CONTROL: _control_request,
    Kind.FAULT: _fault,
}
_TO_ROUTER: Decoders = {
    Kind.BATCH_REPLY: _batch_reply,
    Kind.MAP_REPLY: _map_reply,
    Kind.STATUS_REPLY: _status_reply,
    Kind.PONG: _pong,
    Kind.GROUP_REPLY: partial(_command_reply, GroupReply, "GROUP_REPLY"),
    Kind.CONTROL_REPLY: partial(_command_reply, ControlReply, "CONTROL_REPLY"),
    Kind.FAULT: _fault,
}
_TO_PEER: Decoders = {
    Kind.MAP_REPLY: _map_reply,
    Kind.BULK_REPLY: partial(_body_only, BulkReply),
    Kind.GROUP_REPLY: partial(_command_reply, GroupReply, "GROUP_REPLY"),
    Kind.CONTROL_REPLY: partial(_command_reply, ControlReply, "CONTROL_REPLY"),
    Kind.FAULT: _fault,
}
