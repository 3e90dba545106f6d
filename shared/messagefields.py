"""What messages between routers and stores are made of: their version and numbers, checks of their fields.

Owns the numbers. Knows no message beyond its number. A check raises ProtocolError that names the field.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgpack

from kvclient.errors import ProtocolError

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
    ROUTER = 8
    BACKUP = 9
    BATCH_REPLY = 65
    MAP_REPLY = 66
    STATUS_REPLY = 67
    PONG = 68
    BULK_REPLY = 69
    GROUP_REPLY = 70
    CONTROL_REPLY = 71
    BACKUP_REPLY = 73
    FAULT = 127


DRY_RUN = 1
"""A flag of GROUP and CONTROL: say what would happen."""

pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def arity(fields: Sequence[object], count: int, name: str) -> None:
    """`fields` has `count`."""
    if len(fields) != count:
        raise ProtocolError(f"{name} is an array of {count}, not {len(fields)}")


def unsigned(value: object, limit: int, name: str) -> int:
    """`value` if it is an integer 0..`limit`."""
    if type(value) is not int or not 0 <= value <= limit:
        raise ProtocolError(f"{name} must be an unsigned integer up to {limit}")
    return value


def binary(value: object, name: str) -> bytes:
    """`value` if it is bin."""
    if type(value) is not bytes:
        raise ProtocolError(f"{name} must be bin")
    return value


def text(value: object, limit: int, name: str) -> str:
    """`value` if it is printable str of 1 to `limit` characters."""
    if type(value) is not str or not 0 < len(value) <= limit or not value.isprintable():
        raise ProtocolError(f"{name} must be printable str of 1 to {limit} characters")
    return value
