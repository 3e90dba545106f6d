"""The client protocol, version 1: `docs/protocol.md` as code.

Owns the numbers, the limits and the bytes of requests, ops, responses and results. Knows nothing of sockets,
time or retries. Encoders trust their caller and build bytes; decoders trust nobody and raise `ProtocolError`.
Public, like all of `kvclient`; the servers import it too, so that both sides share one table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from kvclient.errors import ProtocolError, Status

VERSION = 1

KEY_BYTES_MAX = 4096
VALUE_BYTES_MAX = 1 << 20
VALUE_BYTES_MAX_CONFIGURABLE = 8 << 20
REQUEST_BYTES_MAX = 16 << 20
OPS_MAX = 10_000
SCAN_LIMIT_MAX = 10_000
TXN_PARTS_MAX = 128
SCAN_PAGE_BYTES_MAX = 4 << 20
TTL_MS_MAX = 10 * 365 * 24 * 3600 * 1000
TIMEOUT_MS_MAX = 0xFFFFFFFF
# A client never sends an attempt of one (client_id, sequence) later than this after the first attempt; stores
# keep a session's answers at least this long.
RETRY_WINDOW_MS = 60_000


class Kind(enum.IntEnum):
    """What a request asks for."""

    OPS = 1
    ADMIN = 2
    PING = 3
    MAP = 4
    WATCH = 5


class Op(enum.IntEnum):
    """Op codes; GET, EXISTS and SCAN only read."""

    GET = 1
    PUT = 2
    DELETE = 3
    EXISTS = 4
    INCREMENT = 5
    TOUCH = 6
    SCAN = 7
    TXN = 8


class Condition(enum.IntEnum):
    """First element of a condition array."""

    ABSENT = 1
    PRESENT = 2
    VERSION = 3
    VALUE = 4


LINEARIZABLE = 0
LEASE = 1

FLAG_RETRY = 1
FLAG_BARRIER = 2

SCAN_REVERSE = 1
SCAN_KEYS_ONLY = 2
SCAN_COUNT = 4


class Request(NamedTuple):
    """A decoded request; the fields are those of docs/protocol.md section 1 without the version."""

    kind: int
    request_id: int
    timeout_ms: int
    read_mode: int
    flags: int
    client_id: int
    sequence: int
    acked_below: int
    body: bytes


class Response(NamedTuple):
    """A decoded response; `body` is results when `status` is 0, an error map otherwise."""

    kind: int
    request_id: int
    status: int
    body: bytes


class Entry(NamedTuple):
    """A key with its value (None when only keys were asked for) and version."""

    key: bytes
    value: bytes | None
    version: int


_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_packb = _packer.pack
pack = _packb  # one MessagePack value -> bytes; for callers that build a message without its NamedTuple
_UINT64_MAX = (1 << 64) - 1
_REQUEST_TYPES = (int,) * 8 + (bytes,)
# An array header and nine integers of at most nine bytes each.
_HEAD_BYTES_MAX = 5 + 9 * 9
# Below this, even the worst frame decodes to a few megabytes.
_LARGE_BYTES = 64 << 10
_ERROR_FIELDS = {
    "message": str,
    "retry_after_ms": int,
    "limit": int,
    "size": int,
    "node": str,
    "index": int,
    "leader": int,
}
_BIN_HEADS = (b"\xc4", b"\xc5", b"\xc6")


def unpack(frame: bytes) -> Any:
    """Decode one MessagePack value that fills `frame`; ProtocolError for anything else."""
    try:
        return msgpack.unpackb(frame, raw=False, strict_map_key=False, max_ext_len=0)
    except Exception as error:  # noqa: BLE001 - hostile bytes raise many types; all mean this
        raise ProtocolError(f"not a MessagePack value: {type(error).__name__}") from None


def encode_request(request: Request) -> bytes:
    """Pack a request into its one frame."""
    return _packb((VERSION, *request))  # type: ignore[no-any-return]


def decode_request(frame: bytes) -> Request:
    """Unpack and check a request frame; ProtocolError names the first field that is wrong."""
    fields = unpack(frame) if len(frame) < _LARGE_BYTES else _unpack_large(frame)
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError("a request is an array of 10 that begins with the version")
    if fields[0] != VERSION:
        raise ProtocolError(
            f"protocol version {fields[0]} is not understood, this side speaks {VERSION}",
            status=Status.VERSION_MISMATCH,
            request_id=_id_or_zero(fields[2]) if len(fields) > 2 else 0,
        )
    if len(fields) != 10:
        raise ProtocolError(f"a request is an array of 10, not {len(fields)}")
    request = Request._make(fields[1:])
    _, request_id, timeout_ms, read_mode, flags, client_id, sequence, acked_below, _ = request
    # A negative number stays negative through | and >>: one test finds what is below 0 or above its width.
    if (
        tuple(map(type, request)) != _REQUEST_TYPES
        or (request.kind | timeout_ms | read_mode | flags) >> 32
        or (request_id | client_id | sequence | acked_below) >> 64
    ):
        raise _blame(request)
    return request


def _blame(request: Request) -> ProtocolError:
    """The error that names the first field of a request that is wrong."""
    for name, value in request._asdict().items():
        width = 32 if name in ("kind", "timeout_ms", "read_mode", "flags") else 64
        if name != "body" and (type(value) is not int or value >> width):
            rule = f"an unsigned integer of {width} bits"
            break
    else:
        name, rule = "body", "bin"
    return ProtocolError(f"request field {name} must be {rule}", request_id=_id_or_zero(request.request_id))


def _unpack_large(frame: bytes) -> list[Any]:
    """The values of a large request; only its body may be large (nested arrays grow many times in memory)."""
    unpacker = msgpack.Unpacker(raw=False, max_ext_len=0)
    unpacker.feed(frame[:_HEAD_BYTES_MAX])
    try:
        count = unpacker.read_array_header()
        head = [unpacker.unpack() for _ in range(min(count, 10) - 1)]
    except Exception as error:  # noqa: BLE001 - see unpack()
        raise ProtocolError(f"a large frame that is no request: {type(error).__name__}") from None
    body = frame[unpacker.tell() :]
    if count != 10 or body[:1] not in _BIN_HEADS:
        return head
    return [*head, unpack(body)]


def _id_or_zero(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _UINT64_MAX else 0


def encode_response(kind: int, request_id: int, status: int, body: bytes) -> bytes:
    """Pack a response into its one frame."""
    return _packb((VERSION, kind, request_id, status, body))  # type: ignore[no-any-return]


def decode_response(frame: bytes) -> Response:
    """Unpack and check a response frame; ProtocolError if it is not one."""
    fields = unpack(frame)
    if type(fields) is not list or len(fields) != 5:
        raise ProtocolError("a response is an array of 5")
    version, kind, request_id, status, body = fields
    if version != VERSION:
        raise ProtocolError(
            f"protocol version {version!r:.20} is not understood, this side speaks {VERSION}",
            status=Status.VERSION_MISMATCH,
        )
    if tuple(map(type, (kind, request_id, status, body))) != (int, int, int, bytes):
        raise ProtocolError("a response field has the wrong type")
    return Response(kind, request_id, status, body)


def encode_error(
    message: str,
    *,
    retry_after_ms: int | None = None,
    limit: int | None = None,
    size: int | None = None,
    node: str | None = None,
    index: int | None = None,
    leader: int | None = None,
) -> bytes:
    """The body of a response whose status is not OK. `leader` is a node id and goes with NOT_LEADER, from a
    store to its router.
    """
    details = {
        "message": message,
        "retry_after_ms": retry_after_ms,
        "limit": limit,
        "size": size,
        "node": node,
        "index": index,
        "leader": leader,
    }
    return _packb({name: value for name, value in details.items() if value is not None})  # type: ignore[no-any-return]


def decode_error(body: bytes) -> dict[str, Any]:
    """The details of an error body: "message" and the optional fields it has. Unknown fields are ignored."""
    fields = unpack(body)
    if type(fields) is not dict or type(fields.get("message")) is not str:
        raise ProtocolError("an error body is a map with a message")
    details = {name: fields[name] for name in _ERROR_FIELDS if name in fields}
    for name, value in details.items():
        if type(value) is not _ERROR_FIELDS[name]:
            raise ProtocolError(f"the {name} of an error body must be {_ERROR_FIELDS[name].__name__}")
    return details


def absent() -> tuple[int, ...]:
    """Condition: the key must not exist."""
    return (1,)


def present() -> tuple[int, ...]:
    """Condition: the key must exist."""
    return (2,)


def version_equals(version: int) -> tuple[int, int]:
    """Condition: the key must have this version."""
    return (3, version)


def value_equals(value: bytes) -> tuple[int, bytes]:
    """Condition: the key must have exactly this value."""
    return (4, value)


def encode_get(key: bytes) -> bytes:
    """Op GET."""
    return _packb((1, key))  # type: ignore[no-any-return]


def encode_put(
    key: bytes,
    value: bytes,
    ttl_ms: int | None = None,
    condition: tuple[int | bytes, ...] | None = None,
) -> bytes:
    """Op PUT; trailing absent parts are left out."""
    if condition is not None:
        return _packb((2, key, value, ttl_ms, condition))  # type: ignore[no-any-return]
    if ttl_ms is not None:
        return _packb((2, key, value, ttl_ms))  # type: ignore[no-any-return]
    return _packb((2, key, value))  # type: ignore[no-any-return]


def encode_delete(key: bytes, condition: tuple[int | bytes, ...] | None = None) -> bytes:
    """Op DELETE."""
    return _packb((3, key) if condition is None else (3, key, condition))  # type: ignore[no-any-return]


def encode_exists(key: bytes) -> bytes:
    """Op EXISTS."""
    return _packb((4, key))  # type: ignore[no-any-return]


def encode_increment(key: bytes, delta: int) -> bytes:
    """Op INCREMENT; delta is an int64."""
    return _packb((5, key, delta))  # type: ignore[no-any-return]


def encode_touch(key: bytes, ttl_ms: int | None) -> bytes:
    """Op TOUCH; None takes the TTL off."""
    return _packb((6, key) if ttl_ms is None else (6, key, ttl_ms))  # type: ignore[no-any-return]


def encode_scan(start: bytes, stop: bytes | None, limit: int, flags: int = 0) -> bytes:
    """Op SCAN over [start, stop); stop None = no upper end."""
    return _packb((7, start, stop, limit, flags))  # type: ignore[no-any-return]


def encode_txn(
    compares: Sequence[tuple[bytes, tuple[int | bytes, ...]]], then: Sequence[bytes], else_: Sequence[bytes]
) -> bytes:
    """Op TXN of (key, condition) pairs and of the encoded ops of the two branches."""
    head = _packer.pack_array_header
    return b"".join((b"\x94\x08", _packb(compares), head(len(then)), *then, head(len(else_)), *else_))


def hashed_part(key: bytes) -> bytes:
    """The part of a key that its partition follows from: the hash tag, or all of it."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1)
    return key[begin + 1 : end] if 0 <= begin < end - 1 else key


def encode_admin(command: str, *arguments: Any) -> bytes:
    """The body of an ADMIN request."""
    return _packb((command, *arguments))  # type: ignore[no-any-return]


def decode_results(body: bytes) -> list[list[Any]]:
    """Split a results body into one list per op, each beginning with its status."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_ext_len=0, max_buffer_size=0)
    unpacker.feed(body)
    results: list[list[Any]] = []
    end = 0
    try:
        for result in unpacker:
            if type(result) is not list or not result or type(result[0]) is not int:
                raise ProtocolError("a result is an array that begins with its status")
            results.append(result)
            end = unpacker.tell()
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - see unpack()
        raise ProtocolError(f"malformed results: {type(error).__name__}") from None
    # Asked after each value, because at the end tell() also counts the bytes of a value that is cut off.
    if end != len(body):
        raise ProtocolError("results end in the middle of a value")
    return results


def decode_entries(entries: bytes) -> Iterator[Entry]:
    """The entries of a SCAN result, in their order."""
    unpacker = msgpack.Unpacker(raw=False, max_ext_len=0, max_buffer_size=0)
    unpacker.feed(entries)
    flat: list[Any] = []
    end = 0
    try:
        for value in unpacker:
            flat.append(value)
            end = unpacker.tell()
    except Exception as error:  # noqa: BLE001 - see unpack()
        raise ProtocolError(f"malformed scan entries: {type(error).__name__}") from None
    if len(flat) % 3 or end != len(entries):
        raise ProtocolError("scan entries come in threes")
    if not (
        set(map(type, flat[0::3])) <= {bytes}
        and set(map(type, flat[1::3])) <= {bytes, type(None)}
        and set(map(type, flat[2::3])) <= {int}
    ):
        raise ProtocolError("a scan entry is key, value or nil, and version")
    fields = iter(flat)
    return map(Entry, fields, fields, fields)
