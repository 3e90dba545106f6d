"""BACKUP messages: a partition's content at one moment, page by page (docs/raft.md section 11). Numbers and
kinds: `shared.messagefields`.

Owns their bytes. Encoders trust their caller; decoders check every field and raise
ProtocolError, nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from kvclient.errors import ProtocolError
from kvclient.protocol import KEY_BYTES_MAX
from shared.messagefields import UINT16_MAX, UINT64_MAX, VERSION, Kind, arity, binary, pack, unsigned


class BackupCommand(enum.StrEnum):
    """What a BACKUP message asks for."""

    OPEN = "open"
    READ = "read"
    CLOSE = "close"


class BackupRequest(NamedTuple):
    """Router to store. `cut` is the number that whoever asks has given the cut; `partition` counts for OPEN,
    `start`, the key to go on from, for READ. `cluster` is XXH64 of the cluster id.
    """

    token: int
    cluster: int
    command: BackupCommand
    partition: int
    cut: int
    start: bytes


class BackupReply(NamedTuple):
    """The answer: a MessagePack map if `status` is 0, otherwise an error body."""

    token: int
    status: int
    body: bytes


def encode_backup_request(request: BackupRequest) -> bytes:
    """BACKUP."""
    return pack((VERSION, Kind.BACKUP, *request))


def encode_backup_reply(token: int, status: int, body: bytes) -> bytes:
    """BACKUP_REPLY."""
    return pack((VERSION, Kind.BACKUP_REPLY, token, status, body))


def decode_backup_request(fields: Sequence[Any]) -> BackupRequest:
    """BACKUP, from its fields."""
    arity(fields, 8, "BACKUP")
    try:
        command = BackupCommand(fields[4])
    except ValueError:
        raise ProtocolError("the command of a BACKUP is unknown") from None
    start = binary(fields[7], "the start of a BACKUP")
    if len(start) > KEY_BYTES_MAX:
        raise ProtocolError(f"the start of a BACKUP is a key, at most {KEY_BYTES_MAX} bytes")
    return BackupRequest(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT64_MAX, "cluster"),
        command,
        unsigned(fields[5], UINT16_MAX, "partition"),
        unsigned(fields[6], UINT64_MAX, "cut"),
        start,
    )


def decode_backup_reply(fields: Sequence[Any]) -> BackupReply:
    """BACKUP_REPLY, from its fields."""
    arity(fields, 5, "BACKUP_REPLY")
    return BackupReply(
        unsigned(fields[2], UINT64_MAX, "token"),
        unsigned(fields[3], UINT16_MAX, "status"),
        binary(fields[4], "the body of a BACKUP_REPLY"),
    )
