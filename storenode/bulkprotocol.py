"""Requests for snapshots and their answers as bytes (docs/raft.md section 6).

Owns the format and its limits. Encoders trust their caller; decoders trust nobody and raise ProtocolError,
nothing else. Knows no socket, no file and no snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import ProtocolError, Status
from shared import frames
from storenode.engine import codec
from storenode.raft.messages import EVERYBODY, NOBODY
from storenode.raftframes import CONTROL, GROUP_MAX

VERSION: Final = 1

CHUNK_BYTES_MAX: Final = 1 << 20
"""What one answer carries at most: larger ones would hold up the heartbeats of their link."""

NAME: Final = re.compile(r"(?:\w[\w.-]{0,63}/)?\w[\w.-]{0,63}", re.ASCII)
"""Of a file within a snapshot, at most one directory deep; never a way out of it, nor a hidden name, which
the receiver has for itself.
"""

_UINT64_MAX: Final = (1 << 64) - 1

_pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class Open(NamedTuple):
    """Make or find a snapshot of `group` that has at least index `at_least`, for `node`."""

    token: int
    group: int
    at_least: int
    node: int


class Read(NamedTuple):
    """A chunk of a file of the snapshot."""

    token: int
    snapshot: int
    name: str
    offset: int
    length: int


class Close(NamedTuple):
    """`node` needs the snapshot no more."""

    token: int
    snapshot: int
    node: int


Request = Open | Read | Close


class FileMeta(NamedTuple):
    """A file of a snapshot: its path within it, its bytes, and their masked CRC-32C."""

    name: str
    size: int
    crc: int


class Opened(NamedTuple):
    """The answer to Open."""

    token: int
    snapshot: int
    state: bytes
    files: tuple[FileMeta, ...]


class Chunk(NamedTuple):
    """The answer to Read; `crc` is the masked CRC-32C of `data`."""

    token: int
    data: bytes
    crc: int


class Closed(NamedTuple):
    """The answer to Close."""

    token: int


class Refusal(NamedTuple):
    """The answer to a request that is not served; `retry_after_ms` 0: asking again changes nothing."""

    token: int
    status: int
    message: str
    retry_after_ms: int = 0


Answer = Opened | Chunk | Closed | Refusal


def mask(crc: int) -> int:
    """A running CRC-32C as it is stored: docs/formats.md, Checksums."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


assert mask(codec.crc32c(b"a")) == codec.masked_crc32c(b"a")


def encode_request(request: Request) -> bytes:
    """Any request."""
    word = {Open: "open", Read: "read", Close: "close"}[type(request)]
    return _pack((VERSION, request[0], word, *request[1:]))


def encode_answer(answer: Answer) -> bytes:
    """Any answer."""
    if isinstance(answer, Refusal):
        return _pack(answer)
    return _pack((answer[0], Status.OK, *answer[1:]))


def decode_request(body: bytes) -> Request:
    """A request; ProtocolError for any other bytes."""
    fields = frames.decode(body)
    if type(fields) is not tuple or len(fields) < 4 or type(fields[0]) is not int:
        raise ProtocolError("a request for a snapshot is an array that begins with a version")
    if fields[0] != VERSION:
        raise ProtocolError(f"version {fields[0]} of snapshots' messages, this side speaks {VERSION}")
    token, word, rest = fields[1], fields[2], fields[3:]
    if word == "open" and _are(rest, int, int, int):
        group, at_least, node = rest
        if (
            (0 <= group <= GROUP_MAX or group == CONTROL)
            and _unsigned(token, at_least)
            and NOBODY < node < EVERYBODY
        ):
            return Open(token, group, at_least, node)
    elif word == "read" and _are(rest, int, str, int, int):
        snapshot, name, offset, length = rest
        if _unsigned(token, snapshot, offset) and 0 < length <= CHUNK_BYTES_MAX and NAME.fullmatch(name):
            return Read(token, snapshot, name, offset, length)
    elif word == "close" and _are(rest, int, int):
        snapshot, node = rest
        if _unsigned(token, snapshot) and NOBODY < node < EVERYBODY:
            return Close(token, snapshot, node)
    raise ProtocolError("a request for a snapshot is neither an open, nor a read, nor a close")


def decode_answer(body: bytes) -> Answer:
    """An answer; ProtocolError for any other bytes. Whether it fits what was asked is for the caller."""
    fields = frames.decode(body)
    if type(fields) is not tuple or len(fields) < 2 or not _unsigned(*fields[:2]):
        raise ProtocolError("an answer about a snapshot is an array that begins with token and status")
    token, status, rest = fields[0], fields[1], fields[2:]
    if status != Status.OK:
        if _are(rest, str, int) and _unsigned(rest[1]):
            return Refusal(token, status, rest[0], rest[1])
    elif _are(rest, int, bytes, tuple) and _unsigned(rest[0]):
        return Opened(token, rest[0], rest[1], _files(rest[2]))
    elif _are(rest, bytes, int):
        return Chunk(token, *rest)
    elif not rest:
        return Closed(token)
    raise ProtocolError("an answer about a snapshot is of no known shape")


def _are(values: Sequence[Any], *types: type) -> bool:
    return tuple(map(type, values)) == types


def _unsigned(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value <= _UINT64_MAX for value in values)


def _files(rows: tuple[Any, ...]) -> tuple[FileMeta, ...]:
    found: dict[str, FileMeta] = {}
    for row in rows:
        if type(row) is not tuple or not _are(row, str, int, int) or not _unsigned(*row[1:]):
            raise ProtocolError("a file of a snapshot is an array of name, bytes and crc")
        if not NAME.fullmatch(row[0]) or row[0] in found or row[0].split("/")[0] in found:
            raise ProtocolError(f"a snapshot cannot have a file {row[0][:80]!r} here")
        found[row[0]] = FileMeta(*row)
    return tuple(found.values())
