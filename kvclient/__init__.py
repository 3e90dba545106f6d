"""ringkv's Python client.

    import kvclient

    with kvclient.connect("kv://127.0.0.1:7100", codec="str") as db:
        db.put("hello", "world", ttl=60)
        assert db.get("hello") == "world"

`await kvclient.aconnect(...)` gives the asyncio twin with the same methods. Everything is imported when it is
first used: the servers share `kvclient.protocol`, and a command line tool should not wait for asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

if TYPE_CHECKING:
    from os import PathLike

    from kvclient import errors as errors
    from kvclient import ops as ops
    from kvclient.aio import AsyncClient as AsyncClient
    from kvclient.bulk import BatchResult as BatchResult
    from kvclient.calls import Entry as Entry
    from kvclient.calls import Pong as Pong
    from kvclient.client import Client as Client
    from kvclient.codec import Codec as Codec
    from kvclient.errors import BatchError as BatchError
    from kvclient.errors import Busy as Busy
    from kvclient.errors import ClosedError as ClosedError
    from kvclient.errors import CodecError as CodecError
    from kvclient.errors import Conflict as Conflict
    from kvclient.errors import ConnectError as ConnectError
    from kvclient.errors import ForkedError as ForkedError
    from kvclient.errors import InvalidRequest as InvalidRequest
    from kvclient.errors import KeyNotFound as KeyNotFound
    from kvclient.errors import KVError as KVError
    from kvclient.errors import KVTimeout as KVTimeout
    from kvclient.errors import NotAnInteger as NotAnInteger
    from kvclient.errors import OutcomeUnknown as OutcomeUnknown
    from kvclient.errors import ReadOnly as ReadOnly
    from kvclient.errors import Unavailable as Unavailable
    from kvclient.ops import Compare as Compare
    from kvclient.txn import TxnResult as TxnResult
    from kvclient.views import KVMap as KVMap

V = TypeVar("V")

_ERRORS = (
    "BatchError",
    "Busy",
    "ClosedError",
    "CodecError",
    "Conflict",
    "ConnectError",
    "ForkedError",
    "InvalidRequest",
    "KVError",
    "KVTimeout",
    "KeyNotFound",
    "NotAnInteger",
    "OutcomeUnknown",
    "ReadOnly",
    "Unavailable",
)
_LAZY = {
    "AsyncClient": "kvclient.aio",
    "BatchResult": "kvclient.bulk",
    "Client": "kvclient.client",
    "Codec": "kvclient.codec",
    "Compare": "kvclient.ops",
    "Entry": "kvclient.calls",
    "KVMap": "kvclient.views",
    "Pong": "kvclient.calls",
    "TxnResult": "kvclient.txn",
    **dict.fromkeys(_ERRORS, "kvclient.errors"),
}

_MODULES = ("errors", "ops")

__all__ = ["aconnect", "connect", *_MODULES, *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"kvclient.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'kvclient' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__


@overload
def connect(
    url: str | None = None,
    *,
    codec: Literal["bytes"] | None = None,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> Client[bytes]: ...


@overload
def connect(
    url: str | None = None,
    *,
    codec: Literal["str"],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> Client[str]: ...


@overload
def connect(
    url: str | None = None,
    *,
    codec: Literal["json", "msgpack"],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> Client[Any]: ...


@overload
def connect(
    url: str | None = None,
    *,
    codec: Codec[V],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> Client[V]: ...


def connect(
    url: str | None = None,
    *,
    codec: str | Codec[Any] | None = None,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> Client[Any]:
    """Open a client: `kv://host:port,host2:port[/namespace][?timeout=5s&read=lease&codec=json]`.

    Without a URL, RINGKV_URL or else kv://127.0.0.1:7100. What is given here beats the URL. Returns once a
    router has answered; ConnectError, within `connect_timeout` (2 s), lists what was tried and why it failed.
    `keys`: a key directory, or the file of a private key in it (without: RINGKV_KEYS, or else no keys);
    InvalidRequest has all that is wrong in it. A codec in the URL is not seen by type checkers.
    """
    from kvclient import client, options
    from kvclient import codec as codecs
    from kvclient import url as urls

    address = urls.parse(urls.default_url() if url is None else url)
    name = codec if isinstance(codec, str) else None
    address, defaults = options.overridden(address, name, timeout, connect_timeout, read, keys)
    return client.connect(address, codecs.resolve(address.codec if codec is None else codec), defaults)


@overload
async def aconnect(
    url: str | None = None,
    *,
    codec: Literal["bytes"] | None = None,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> AsyncClient[bytes]: ...


@overload
async def aconnect(
    url: str | None = None,
    *,
    codec: Literal["str"],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> AsyncClient[str]: ...


@overload
async def aconnect(
    url: str | None = None,
    *,
    codec: Literal["json", "msgpack"],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> AsyncClient[Any]: ...


@overload
async def aconnect(
    url: str | None = None,
    *,
    codec: Codec[V],
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> AsyncClient[V]: ...


async def aconnect(
    url: str | None = None,
    *,
    codec: str | Codec[Any] | None = None,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    read: str | None = None,
    keys: str | PathLike[str] | None = None,
) -> AsyncClient[Any]:
    """Open a client: `kv://host:port,host2:port[/namespace][?timeout=5s&read=lease&codec=json]`.

    Without a URL, RINGKV_URL or else kv://127.0.0.1:7100. What is given here beats the URL. Returns once a
    router has answered; ConnectError, within `connect_timeout` (2 s), lists what was tried and why it failed.
    `keys`: a key directory, or the file of a private key in it (without: RINGKV_KEYS, or else no keys);
    InvalidRequest has all that is wrong in it. A codec in the URL is not seen by type checkers.
    """
    from kvclient import aio, options
    from kvclient import codec as codecs
    from kvclient import url as urls

    address = urls.parse(urls.default_url() if url is None else url)
    name = codec if isinstance(codec, str) else None
    address, defaults = options.overridden(address, name, timeout, connect_timeout, read, keys)
    return await aio.connect(address, codecs.resolve(address.codec if codec is None else codec), defaults)
