"""Codecs: how the values an application uses become the bytes that are stored.

A codec is chosen once per client (or view) and typed by it. Keys are never coded: they are bytes, or str as
UTF-8.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

from kvclient.errors import CodecError, InvalidRequest

V = TypeVar("V")


class Codec(Protocol[V]):
    """Anything with a name, `encode` (value -> bytes) and `decode` (bytes -> value). There are "bytes" (the
    default), "str" (UTF-8), "json" and "msgpack"; an object of your own may be given instead of a name.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def encode(self, value: V, /) -> bytes:
        """The bytes to store; an exception refuses the value before anything is sent."""
        ...

    def decode(self, data: bytes, /) -> V:
        """The value of stored bytes. An exception is the call's; get_many makes it the key's CodecError."""
        ...


class BytesCodec:
    """Values are bytes, stored as they are."""

    name = "bytes"

    def encode(self, value: bytes) -> bytes:
        """bytes, or a buffer that is copied; TypeError for the rest."""
        if type(value) is bytes:
            return value
        if isinstance(value, (bytearray, memoryview, bytes)):
            return bytes(value)
        raise TypeError(
            f"a value is bytes, not {type(value).__name__}: encode it, or use codec='str' (or json, msgpack)"
        )

    def decode(self, data: bytes) -> bytes:
        """The stored bytes."""
        return data


class StrCodec:
    """Values are str, stored as UTF-8."""

    name = "str"

    def encode(self, value: str) -> bytes:
        """UTF-8; TypeError for anything but str."""
        if not isinstance(value, str):
            raise TypeError(f"with codec='str' a value is str, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise CodecError(f"the value is not valid text: {error}") from None

    def decode(self, data: bytes) -> str:
        """CodecError if the stored bytes are not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CodecError(
                f"the stored value is not UTF-8: {error}", hint="read it with codec='bytes'"
            ) from None


class JsonCodec:
    """Values are what JSON can say, stored as compact UTF-8 text."""

    name = "json"

    def encode(self, value: Any) -> bytes:
        """CodecError for what JSON cannot say (NaN and infinity included)."""
        import json

        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise CodecError(f"the value cannot be written as JSON: {error}") from None

    def decode(self, data: bytes) -> Any:
        """CodecError if the stored bytes are no JSON."""
        import json

        try:
            return json.loads(data)
        except ValueError as error:
            raise CodecError(
                f"the stored value is not JSON: {error}", hint="read it with codec='bytes'"
            ) from None


class MsgpackCodec:
    """Values are what MessagePack can say; unlike JSON it knows bytes."""

    name = "msgpack"

    def encode(self, value: Any) -> bytes:
        """CodecError for what MessagePack cannot say."""
        import msgpack

        try:
            return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]
        except (TypeError, ValueError, OverflowError) as error:
            raise CodecError(f"the value cannot be written as MessagePack: {error}") from None

    def decode(self, data: bytes) -> Any:
        """CodecError if the stored bytes are not one MessagePack value."""
        from kvclient.protocol import unpack

        try:
            return unpack(data)
        except Exception as error:  # noqa: BLE001 - unpack() raises one type, and it means the same as any other here
            raise CodecError(f"the stored value is {error}", hint="read it with codec='bytes'") from None


BYTES: Final = BytesCodec()
_BY_NAME: Final[dict[str, Codec[Any]]] = {
    codec.name: codec for codec in (BYTES, StrCodec(), JsonCodec(), MsgpackCodec())
}


def resolve(codec: str | Codec[Any]) -> Codec[Any]:
    """A codec by name, or a codec object as it is; InvalidRequest for an unknown name."""
    if not isinstance(codec, str):
        return codec
    try:
        return _BY_NAME[codec]
    except KeyError:
        raise InvalidRequest(f"unknown codec {codec!r}; known: {', '.join(_BY_NAME)}") from None
