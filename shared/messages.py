"""Router <-> store messages, version 1: one MessagePack frame each (docs/architecture.md section 3); and what
stores say to each other on the same socket.

Owns which messages there are for whom, and the bytes of all but GROUP, CONTROL and BACKUP
(`shared.groupmessages`, `shared.controlmessages`, `shared.backupmessages`). Knows nothing of sockets, maps or
ops: `ops` and `body` are bytes that pass through. Encoders trust their caller; decoders trust nobody, check
every field once and raise ProtocolError, nothing else. A batch is one unpack (`shared.frames`) and one pass
over its items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from kvclient.errors import ProtocolError
from shared import frames
from shared.backupmessages import BackupReply, BackupRequest, decode_backup_reply, decode_backup_request
from shared.controlmessages import ControlReply, ControlRequest, decode_control_reply, decode_control_request
from shared.groupmessages import GroupReply, GroupRequest, decode_group_reply, decode_group_request
from shared.messagefields import (
    UINT16_MAX,
    UINT64_MAX,
    VERSION,
    Kind,
    arity,
    binary,
    pack,
    text,
    unsigned,
)
from shared.shapes import TEXT_MAX
from shared.versions import Versions
from shared.versions import decode as decode_versions

MAP_TOPIC = b"map\0"
"""A message on an `events` endpoint that begins so is an encoded ClusterMap from there on: one frame."""

FIGURES_TOPIC = b"figures\0"
"""And so a store's figures: `shared.figuresmessage`."""


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
    """Router to store: are you there. `versions`: which the router speaks; None: one of the software version
    before, which does not say.
    """

    token: int
    versions: Versions | None = None


class Pong(NamedTuple):
    """Store to router: I am, with this id and epoch; `versions` if the PING had them."""

    token: int
    node_id: int
    epoch: int
    versions: Versions | None = None


class RouterHello(NamedTuple):
    """Router to store: my name, and the endpoint of my front. Not answered."""

    token: int
    name: str
    front: str


class BulkRequest(NamedTuple):
    """Store to store: a request for a snapshot or a part of one (docs/raft.md section 6)."""

    body: bytes


class BulkReply(NamedTuple):
    """Store to store: the answer to a BulkRequest."""

    body: bytes


class Fault(NamedTuple):
    """Either way: the last frame was not understood."""

    message: str


ToStore = (
    Batch
    | MapRequest
    | StatusRequest
    | Ping
    | RouterHello
    | BulkRequest
    | GroupRequest
    | ControlRequest
    | BackupRequest
    | Fault
)
ToRouter = BatchReply | MapReply | StatusReply | Pong | GroupReply | ControlReply | BackupReply | Fault
ToPeer = BulkReply | GroupReply | ControlReply | MapReply | Fault

Decoders = dict[int, Callable[[tuple[Any, ...]], ToStore | ToRouter | ToPeer]]

_ITEM_TYPES = (int,) * 8 + (bytes,)
_ANSWER_TYPES = (int, int, bytes)

_make_tuple = tuple.__new__  # the cheapest way to a NamedTuple from a tuple that was checked


def encode_batch(epoch: int, items: Sequence[Item]) -> bytes:
    """BATCH."""
    return pack((VERSION, Kind.BATCH, epoch, items))


def encode_map_request(token: int) -> bytes:
    """MAP."""
    return pack((VERSION, Kind.MAP, token))


def encode_status_request(token: int) -> bytes:
    """STATUS."""
    return pack((VERSION, Kind.STATUS, token))


def encode_ping(token: int, versions: Versions | None = None) -> bytes:
    """PING; without `versions` as software of the version before understands it."""
    return pack((VERSION, Kind.PING, token) if versions is None else (VERSION, Kind.PING, token, versions))


def encode_router_hello(name: str, front: str) -> bytes:
    """ROUTER."""
    return pack((VERSION, Kind.ROUTER, 0, name, front))


def encode_batch_reply(epoch: int, answers: Sequence[Answer] | Sequence[tuple[int, int, bytes]]) -> bytes:
    """BATCH_REPLY."""
    return pack((VERSION, Kind.BATCH_REPLY, epoch, answers))


def encode_map_reply(token: int, encoded_map: bytes) -> bytes:
    """MAP_REPLY."""
    return pack((VERSION, Kind.MAP_REPLY, token, encoded_map))


def encode_status_reply(token: int, figures: dict[str, Any]) -> bytes:
    """STATUS_REPLY; figures are numbers, strings, lists and maps of them by name."""
    return pack((VERSION, Kind.STATUS_REPLY, token, figures))


def encode_pong(token: int, node_id: int, epoch: int, versions: Versions | None = None) -> bytes:
    """PONG; with `versions` to who has said theirs."""
    fields = (VERSION, Kind.PONG, token, node_id, epoch)
    return pack(fields if versions is None else (*fields, versions))


def encode_bulk_request(body: bytes) -> bytes:
    """BULK."""
    return pack((VERSION, Kind.BULK, body))


def encode_bulk_reply(body: bytes) -> bytes:
    """BULK_REPLY."""
    return pack((VERSION, Kind.BULK_REPLY, body))


def encode_fault(message: str) -> bytes:
    """FAULT."""
    return pack((VERSION, Kind.FAULT, message))


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
    arity(fields, 4, "BATCH")
    return Batch(unsigned(fields[2], UINT64_MAX, "epoch"), _items(fields[3]))


def _batch_reply(fields: Sequence[Any]) -> BatchReply:
    arity(fields, 4, "BATCH_REPLY")
    return BatchReply(unsigned(fields[2], UINT64_MAX, "epoch"), _answers(fields[3]))


def _token_only(make: Callable[[int], Any], fields: Sequence[Any]) -> Any:
    arity(fields, 3, "the message")
    return make(unsigned(fields[2], UINT64_MAX, "token"))


def _map_reply(fields: Sequence[Any]) -> MapReply:
    arity(fields, 4, "MAP_REPLY")
    return MapReply(unsigned(fields[2], UINT64_MAX, "token"), binary(fields[3], "the map of a MAP_REPLY"))


def _status_reply(fields: Sequence[Any]) -> StatusReply:
    arity(fields, 4, "STATUS_REPLY")
    if type(fields[3]) is not dict or not set(map(type, fields[3])) <= {str}:
        raise ProtocolError("the figures of a STATUS_REPLY must be a map with names as keys")
    return StatusReply(unsigned(fields[2], UINT64_MAX, "token"), fields[3])


def _ping(fields: Sequence[Any]) -> Ping:
    arity(fields, 4 if len(fields) == 4 else 3, "PING")
    versions = decode_versions(fields[3]) if len(fields) == 4 else None
    return Ping(unsigned(fields[2], UINT64_MAX, "token"), versions)


def _pong(fields: Sequence[Any]) -> Pong:
    arity(fields, 6 if len(fields) == 6 else 5, "PONG")
    return Pong(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT16_MAX, "node id"),
        unsigned(fields[4], UINT64_MAX, "epoch"),
        decode_versions(fields[5]) if len(fields) == 6 else None,
    )


def _router_hello(fields: Sequence[Any]) -> RouterHello:
    arity(fields, 5, "ROUTER")
    return RouterHello(
        unsigned(fields[2], UINT64_MAX, "token"),
        text(fields[3], TEXT_MAX, "the name of a ROUTER"),
        text(fields[4], TEXT_MAX, "the front of a ROUTER"),
    )


def _body_only(make: Callable[[bytes], Any], fields: Sequence[Any]) -> Any:
    arity(fields, 3, "the message")
    return make(binary(fields[2], "the body of the message"))


def _fault(fields: Sequence[Any]) -> Fault:
    arity(fields, 3, "FAULT")
    if type(fields[2]) is not str:
        raise ProtocolError("the message of a FAULT must be str")
    return Fault(fields[2])


_TO_STORE: Decoders = {
    Kind.BATCH: _batch,
    Kind.MAP: partial(_token_only, MapRequest),
    Kind.STATUS: partial(_token_only, StatusRequest),
    Kind.PING: _ping,
    Kind.ROUTER: _router_hello,
    Kind.BULK: partial(_body_only, BulkRequest),
    Kind.GROUP: decode_group_request,
    Kind.CONTROL: decode_control_request,
    Kind.BACKUP: decode_backup_request,
    Kind.FAULT: _fault,
}
_TO_ROUTER: Decoders = {
    Kind.BATCH_REPLY: _batch_reply,
    Kind.MAP_REPLY: _map_reply,
    Kind.STATUS_REPLY: _status_reply,
    Kind.PONG: _pong,
    Kind.GROUP_REPLY: decode_group_reply,
    Kind.CONTROL_REPLY: decode_control_reply,
    Kind.BACKUP_REPLY: decode_backup_reply,
    Kind.FAULT: _fault,
}
_TO_PEER: Decoders = {
    Kind.MAP_REPLY: _map_reply,
    Kind.BULK_REPLY: partial(_body_only, BulkReply),
    Kind.GROUP_REPLY: decode_group_reply,
    Kind.CONTROL_REPLY: decode_control_reply,
    Kind.FAULT: _fault,
}
