"""A range deletion as data: what it is, the op that logs it (docs/protocol.md section 2, code 9) and the
table property that remembers it (docs/formats.md section 4).

Knows no engine: which of them count where is ranges.pyx (keys) and tree.py (how long).
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

CODE = 9
"""The op's code, behind the array's head. Only an engine's own log has it: the native parser of op streams
and the router's know no such op."""

BOUND_BYTES_MAX = 65535
"""As long as the engine's longest key (KEY_BYTES_LIMIT of native/entry.h)."""


class RangeDeletion(NamedTuple):
    """Versions below `sequence` of the keys in [start, stop) are absent. `stop` None: of all keys from
    `start` on."""

    start: bytes
    stop: bytes | None
    sequence: int


def encode_delete_range(start: bytes, stop: bytes | None) -> bytes:
    """The op stream of one range deletion. ValueError if the range is empty or a bound too long."""
    for name, bound in (("start", start), ("stop", stop)):
        if not isinstance(bound, bytes) and not (name == "stop" and bound is None):
            raise TypeError(f"{name} is bytes, not {type(bound).__name__}")
        if bound is not None and len(bound) > BOUND_BYTES_MAX:
            raise ValueError(f"{name} has {len(bound)} bytes; a key has at most {BOUND_BYTES_MAX}")
    if stop is not None and start >= stop:
        raise ValueError(f"start {start!r} is not below stop {stop!r}: the range is empty")
    stream: bytes = msgpack.packb([CODE, start, stop])
    return stream


def decode_delete_range(ops: bytes) -> tuple[bytes, bytes | None] | None:
    """Start and stop of a stream that is one range deletion; None if it is anything else."""
    try:
        fields = msgpack.unpackb(ops)
    except (ValueError, msgpack.UnpackException):
        return None
    if not isinstance(fields, list) or not 2 <= len(fields) <= 3 or fields[0] != CODE:
        return None
    start, stop = fields[1], fields[2] if len(fields) > 2 else None
    if not isinstance(start, bytes) or not (stop is None or isinstance(stop, bytes)):
        return None
    if max(len(start), len(stop or b"")) > BOUND_BYTES_MAX or (stop is not None and start >= stop):
        return None
    return start, stop


def pack_deletions(deletions: tuple[RangeDeletion, ...]) -> bytes:
    """The property's value; no stop is an empty one, which no range has."""
    packed = bytearray()
    for start, stop, sequence in deletions:
        packed += _varint(sequence) + _varint(len(start)) + start
        packed += _varint(len(stop or b"")) + (stop or b"")
    return bytes(packed)


def unpack_deletions(packed: bytes) -> tuple[RangeDeletion, ...]:
    """What `pack_deletions` was given. ValueError if it cannot be that."""
    found: list[RangeDeletion] = []
    at = 0
    while at < len(packed):
        sequence, at = _take_varint(packed, at)
        start, at = _take_bytes(packed, at)
        stop, at = _take_bytes(packed, at)
        if stop and start >= stop:
            raise ValueError(f"an empty range, with sequence {sequence}")
        found.append(RangeDeletion(start, stop or None, sequence))
    return tuple(found)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    raise ValueError("a number is not whole")


def _take_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _take_varint(data, at)
    if at + size > len(data):
        raise ValueError("a key is not whole")
    return data[at : at + size], at + size
