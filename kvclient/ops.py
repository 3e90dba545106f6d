"""What a transaction is written with: compares, and ops as data.

Knows no bytes, no codec and no prefix: keys and values are those of the client that executes them.

    db.txn(
        compare=[Compare.value("{ada}name", "Ada")],
        then=[ops.put("{ada}name", "Countess"), ops.increment("{ada}changes")],
        else_=[ops.get("{ada}name")],
    )
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvclient.calls import UNSET, Key, Unset


class Compare(NamedTuple):
    """A condition on a key; made by the methods below."""

    key: Key
    if_absent: bool = False
    if_present: bool = False
    if_version: int | None = None
    if_value: Any | Unset = UNSET

    @staticmethod
    def absent(key: Key) -> Compare:
        """There must be no such key."""
        return Compare(key, if_absent=True)

    @staticmethod
    def present(key: Key) -> Compare:
        """There must be such a key."""
        return Compare(key, if_present=True)

    @staticmethod
    def version(key: Key, version: int) -> Compare:
        """The key must have this version."""
        return Compare(key, if_version=version)

    @staticmethod
    def value(key: Key, value: Any) -> Compare:
        """The key must have exactly this value."""
        return Compare(key, if_value=value)


class Op(NamedTuple):
    """One op of a transaction; made by the functions below."""

    name: str
    arguments: tuple[Any, ...]


def get(key: Key, default: Any = None) -> Op:
    """The value of `key`, or `default`; see Client.get."""
    return Op("get", (key, default))


def put(key: Key, value: Any, *, ttl: float | None = None) -> Op:
    """Set `key`, for `ttl` seconds or for ever: its new version; see Client.put."""
    return Op("put", (key, value, ttl))


def delete(key: Key) -> Op:
    """Remove `key`: whether it was there; see Client.delete."""
    return Op("delete", (key,))


def exists(key: Key) -> Op:
    """Whether `key` is there; see Client.exists."""
    return Op("exists", (key,))


def increment(key: Key, delta: int = 1) -> Op:
    """Add to the integer that `key` holds: the sum; see Client.increment."""
    return Op("increment", (key, delta))


def touch(key: Key, ttl: float | None) -> Op:
    """Give `key` a new TTL in seconds, or none: whether it is there; see Client.touch."""
    return Op("touch", (key, ttl))
