"""One description per SDK method: the op's bytes in, the result out. Shared by both shells and by pipelines.

Owns the checks of keys, values, TTLs and conditions (the same exceptions as the server's, before anything is
sent) and the meaning of results. Knows no sockets, sessions or time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from kvclient import protocol
from kvclient.codec import Codec
from kvclient.errors import (
    InvalidRequest,
    KeyNotFound,
    KeyTooLong,
    ProtocolError,
    Status,
    ValueTooLarge,
    from_result,
)

V = TypeVar("V")
D = TypeVar("D")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Key = bytes | str
Decode = Callable[[list[Any]], T]

_KEY_BYTES_MAX = protocol.KEY_BYTES_MAX
# The server's own limit may be lower; it is the one that answers then.
_VALUE_BYTES_MAX = protocol.VALUE_BYTES_MAX_CONFIGURABLE


class Unset:
    """The type of UNSET: no value was given, where None would be one."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


class Entry(NamedTuple, Generic[V]):
    """A key with its value (None where only keys were asked for), its version, and the seconds it has left
    (entry() only).
    """

    key: bytes
    value: V
    version: int
    ttl: float | None = None


class Pong(NamedTuple):
    """A router's answer to a ping; the round trip is in seconds."""

    router: str
    version: str
    epoch: int
    round_trip: float


class Call(NamedTuple, Generic[T_co]):
    """One op ready to be sent, and how to read its result. `key` is the full key it touches."""

    op: bytes
    key: bytes
    writes: bool
    decode: Callable[[list[Any]], T_co]


class Calls(Generic[V]):
    """The descriptions for one key prefix and one codec."""

    __slots__ = ("codec", "decode_value", "encode_value", "prefix")

    def __init__(self, prefix: bytes, codec: Codec[V]) -> None:
        self.prefix = prefix
        self.codec = codec
        self.encode_value = codec.encode
        self.decode_value = codec.decode

    def narrowed(self, prefix: Key, codec: Codec[Any] | None) -> Calls[Any]:
        """The descriptions for a longer prefix, with another codec if given."""
        more = encode_key(prefix) if isinstance(prefix, str) else _other_key(prefix)
        return Calls(self.prefix + more, self.codec if codec is None else codec)

    def key(self, key: Key) -> bytes:
        """The full key; TypeError, InvalidRequest or KeyTooLong for what is none."""
        if type(key) is str:
            key = encode_key(key)
        elif type(key) is not bytes:
            key = _other_key(key)
        if self.prefix:
            key = self.prefix + key
        if not key:
            raise InvalidRequest("a key has at least one byte")
        if len(key) > _KEY_BYTES_MAX:
            raise KeyTooLong(
                f"key is {len(key)} bytes, limit {_KEY_BYTES_MAX}", limit=_KEY_BYTES_MAX, size=len(key)
            )
        return key

    def value(self, value: V) -> bytes:
        """The encoded value; ValueTooLarge above what any server takes."""
        data = self.encode_value(value)
        if len(data) > _VALUE_BYTES_MAX:
            raise ValueTooLarge(
                f"value is {len(data)} bytes, limit {_VALUE_BYTES_MAX}",
                limit=_VALUE_BYTES_MAX,
                size=len(data),
            )
        return data

    def get(self, key: Key, default: D) -> Call[V | D]:
        decode_value = self.decode_value

        def decode(result: list[Any]) -> V | D:
            status = result[0]
            if status == 0:
                return decode_value(_bytes(result))
            if status == 1:
                return default
            raise from_result(result)

        full = self.key(key)
        return Call(protocol.encode_get(full), full, False, decode)

    def entry(self, key: Key) -> Call[Entry[V]]:
        full = self.key(key)

        def decode(result: list[Any]) -> Entry[V]:
            if result[0] == Status.NOT_FOUND:
                raise KeyNotFound(f"no such key: {full!r:.200}")
            if result[0] != 0:
                raise from_result(result)
            ttl_ms = result[3] if len(result) > 3 else None
            ttl = None if ttl_ms is None else ttl_ms / 1000
            return Entry(full[len(self.prefix) :], self.decode_value(_bytes(result)), result[2], ttl)

        return Call(protocol.encode_get(full), full, False, decode)

    def put(
        self,
        key: Key,
        value: V,
        ttl: float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
    ) -> Call[int]:
        full = self.key(key)
        wanted = self.condition(if_absent, if_present, if_version, if_value)
        op = protocol.encode_put(full, self.value(value), None if ttl is None else ttl_ms(ttl), wanted)
        return Call(op, full, True, _number)

    def delete(
        self,
        key: Key,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
    ) -> Call[bool]:
        full = self.key(key)
        wanted = self.condition(False, if_present, if_version, if_value)
        return Call(protocol.encode_delete(full, wanted), full, True, _found)

    def exists(self, key: Key) -> Call[bool]:
        full = self.key(key)
        return Call(protocol.encode_exists(full), full, False, _found)

    def increment(self, key: Key, delta: int) -> Call[int]:
        full = self.key(key)
        if type(delta) is not int:
            raise TypeError(f"delta is an int, not {type(delta).__name__}")
        if not -(1 << 63) <= delta < 1 << 63:
            raise InvalidRequest(f"delta {delta} is not a signed 64-bit integer")
        return Call(protocol.encode_increment(full, delta), full, True, _number)

    def touch(self, key: Key, ttl: float | None) -> Call[bool]:
        full = self.key(key)
        return Call(protocol.encode_touch(full, None if ttl is None else ttl_ms(ttl)), full, True, _found)

    def condition(
        self, if_absent: bool, if_present: bool, if_version: int | None, if_value: V | Unset
    ) -> tuple[int | bytes, ...] | None:
        """The one condition given, None if there is none; InvalidRequest for several."""
        if not if_absent and not if_present and if_version is None and if_value is UNSET:
            return None
        given = [bool(if_absent), bool(if_present), if_version is not None, if_value is not UNSET]
        if sum(given) > 1:
            raise InvalidRequest("give one of if_absent, if_present, if_version and if_value")
        if if_absent:
            return protocol.absent()
        if if_present:
            return protocol.present()
        if if_version is not None:
            if type(if_version) is not int:
                raise TypeError(f"if_version is an int, not {type(if_version).__name__}")
            if not 0 < if_version < 1 << 64:
                raise InvalidRequest(
                    f"if_version is a version from 1 on, not {if_version}; use if_absent for none"
                )
            return protocol.version_equals(if_version)
        assert not isinstance(if_value, Unset)
        return protocol.value_equals(self.value(if_value))


def encode_key(key: str) -> bytes:
    """A str key as UTF-8; bytes that came in by surrogateescape go out as they were."""
    return key.encode("utf-8", "surrogateescape")


def _other_key(key: object) -> bytes:
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    if isinstance(key, str):
        return encode_key(key)
    advice = (
        " (write str(n), or a fixed-width b'%020d' % n to keep numeric order)" if isinstance(key, int) else ""
    )
    raise TypeError(f"a key is bytes or str, not {type(key).__name__}{advice}")


def ttl_ms(seconds: float) -> int:
    """A TTL for the wire, at least one millisecond; InvalidRequest outside of ten years."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"ttl is a number of seconds, not {type(seconds).__name__}")
    if not 0 < seconds <= protocol.TTL_MS_MAX / 1000:
        raise InvalidRequest(
            f"ttl is {seconds} s; it is above 0 and at most {protocol.TTL_MS_MAX // 1000} s (ten years)"
        )
    return max(1, round(seconds * 1000))


def _bytes(result: list[Any]) -> bytes:
    if len(result) < 3 or type(result[1]) is not bytes:
        raise ProtocolError("malformed answer: the result of a get is [0, value, version]")
    return result[1]


def _number(result: list[Any]) -> int:
    if result[0] == 0:
        if len(result) < 2 or type(result[1]) is not int:
            raise ProtocolError("malformed answer: a number is missing")
        return result[1]
    raise from_result(result)


def _found(result: list[Any]) -> bool:
    if result[0] == 0:
        return True
    if result[0] == Status.NOT_FOUND:
        return False
    raise from_result(result)


def decode_pong(answer: Any, round_trip: float) -> Pong:
    """The value of a PING response."""
    if type(answer) is not list or len(answer) < 3 or list(map(type, answer[:3])) != [str, str, int]:
        raise ProtocolError("a ping's answer is [name, version, epoch]")
    return Pong(answer[0], answer[1], answer[2], round_trip)
