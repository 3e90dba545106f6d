"""The asyncio client: the same methods as `client.Client`, awaited.

Owns the public methods and nothing else. Bound to the event loop it was opened on; on another loop, or after
a fork, ForkedError. A cancelled call is forgotten: its answer is dropped, and a write of it may have been
applied.
"""

from __future__ import annotations

import warnings
from asyncio import get_running_loop
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from kvclient import protocol, url
from kvclient.aioconnection import AsyncConnection
from kvclient.bulk import MISSING, BatchResult, Bulk, found, pairs
from kvclient.calls import UNSET, Call, Calls, Entry, Key, Pong, Unset, decode_pong
from kvclient.codec import Codec, resolve
from kvclient.errors import ConnectError, KVTimeout
from kvclient.names import spread
from kvclient.ops import Compare, Op
from kvclient.options import Options
from kvclient.pending import Pending
from kvclient.pipeline import AsyncPipeline
from kvclient.scan import PAGE_DEFAULT, AsyncScan, Cursor, key_range
from kvclient.txn import TxnResult, txn

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)
T = TypeVar("T")
V2 = TypeVar("V2")


class AsyncClient(Generic[V]):
    """A cluster, seen through a key prefix and a codec. Made by `kvclient.aconnect`.

    `timeout` is the deadline in seconds of a whole call, retries included; the client's own unless given.
    `read` is "linearizable" (all that was acknowledged before is seen), "lease" (the same, as long as no
    clock runs much faster or slower than the others) or "stale:5s" (any replica answers that has heard its
    leader within that time). Keys are bytes or str, 1 to 4096 bytes; values are what the codec takes, up to
    1 MiB unless the cluster is configured for more.

    It belongs to the event loop that opened it. A call that is cancelled is forgotten: a write of it may have
    been applied.
    """

    def __init__(
        self, connection: AsyncConnection, calls: Calls[V], options: Options, *, owner: bool
    ) -> None:
        self._connection = connection
        self._calls = calls
        self._options = options
        self._owner = owner

    # One key

    @overload
    async def get(
        self, key: Key, default: None = None, *, read: str | None = None, timeout: float | None = None
    ) -> V | None: ...

    @overload
    async def get(
        self, key: Key, default: D, *, read: str | None = None, timeout: float | None = None
    ) -> V | D: ...

    async def get(
        self, key: Key, default: Any = None, *, read: str | None = None, timeout: float | None = None
    ) -> Any:
        """The value of `key`, or `default` if there is none."""
        return await self._run(self._calls.get(key, default), read, timeout)

    async def entry(self, key: Key, *, read: str | None = None, timeout: float | None = None) -> Entry[V]:
        """The value with its version and the seconds it has left; KeyNotFound if there is none."""
        return await self._run(self._calls.entry(key), read, timeout)

    async def put(
        self,
        key: Key,
        value: V,
        *,
        ttl: float | None = None,
        if_absent: bool = False,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
        timeout: float | None = None,
    ) -> int:
        """Set `key`, for `ttl` seconds or for ever (an older TTL goes); returns its new version. Versions of
        a key only grow.

        At most one condition: the key is absent, is present, has this version, or has exactly this value.
        Conflict, with `current_version`, if it does not hold: nothing was changed then.
        """
        return await self._run(
            self._calls.put(key, value, ttl, if_absent, if_present, if_version, if_value), None, timeout
        )

    async def delete(
        self,
        key: Key,
        *,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
        timeout: float | None = None,
    ) -> bool:
        """Remove `key`; False if it was not there. Conditions are those of `put`; Conflict if the condition
        does not hold.
        """
        return await self._run(self._calls.delete(key, if_present, if_version, if_value), None, timeout)

    async def exists(self, key: Key, *, read: str | None = None, timeout: float | None = None) -> bool:
        """Whether `key` is there."""
        return await self._run(self._calls.exists(key), read, timeout)

    async def increment(self, key: Key, delta: int = 1, *, timeout: float | None = None) -> int:
        """Add to the decimal 64-bit integer that `key` holds (0 if missing) and return the sum; its TTL
        stays.

        NotAnInteger if the value is none or the sum does not fit. The value is stored as decimal text,
        whatever the codec.
        """
        return await self._run(self._calls.increment(key, delta), None, timeout)

    async def touch(self, key: Key, ttl: float | None, *, timeout: float | None = None) -> bool:
        """Give `key` a new TTL in seconds, or none at all; False if it is not there."""
        return await self._run(self._calls.touch(key, ttl), None, timeout)

    # Many keys

    async def get_many(
        self, keys: Iterable[K], *, read: str | None = None, timeout: float | None = None
    ) -> dict[K, V]:
        """The values of many keys, in the order of `keys`, without the missing ones.

        Sent in requests of up to 512 keys; `timeout` is for each request. If only some keys could be read,
        BatchError with `errors` and `details["results"]`; if none, the first error.
        """
        wanted = list(keys)
        values: list[Any] = [MISSING] * len(wanted)
        bulk = await self._bulk(
            self._calls.get, values.__setitem__, ((key, MISSING) for key in wanted), read, timeout
        )
        results = found(wanted, values)
        bulk.raise_for_errors(results)
        return results

    async def put_many(
        self,
        items: Mapping[K, V] | Iterable[tuple[K, V]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> BatchResult:
        """Set many keys; items may be an endless iterator. Returns what failed instead of raising it: call
        `raise_for_errors()`.

        Sent in requests of up to 512 items or 1 MiB; `timeout` is for each request. The same key twice ends
        with the later value. Raises ConnectError if no router could be reached at all.
        """
        arguments = ((key, value, ttl) for key, value in pairs(items))
        bulk = await self._bulk(self._calls.put, _ignore, arguments, None, timeout)
        if bulk.unreachable is not None:
            raise await self._connection.explained(bulk.unreachable)
        return BatchResult(bulk.ok, bulk.errors)

    async def delete_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> int:
        """Remove many keys; returns how many were there.

        Sent in requests of up to 512 keys; `timeout` is for each request. If only some keys could be served,
        BatchError with `errors` and `details["results"]`; if none, the first error.
        """
        there: list[int] = []
        bulk = await self._bulk(
            self._calls.delete,
            lambda index, was: there.append(index) if was else None,
            ((key,) for key in keys),
            None,
            timeout,
        )
        bulk.raise_for_errors(len(there))
        return len(there)

    async def txn(
        self,
        *,
        compare: Iterable[Compare] = (),
        then: Iterable[Op] = (),
        else_: Iterable[Op] = (),
        timeout: float | None = None,
    ) -> TxnResult:
        """Execute `then` if all compares hold, `else_` if not, atomically, in order: all of it or nothing.

        Up to 128 compares (of the state before) and ops (`kvclient.ops`); a branch writes a key only once.
        All keys have the same hash tag, such as {user:7}. What is written gets one version. NotAnInteger:
        nothing was changed.
        """
        return await self._run(txn(self._calls, compare, then, else_), None, timeout)

    def pipeline(
        self,
        *,
        batch: int = 512,
        max_in_flight: int = 256,
        read: str | None = None,
        timeout: float | None = None,
    ) -> AsyncPipeline[V]:
        """Ops that travel together: a context manager whose methods return handles with `.result()`.

        Requests of up to `batch` ops, up to `max_in_flight` of them under way; `timeout` is for each request.
        Not atomic; the ops of one key keep their order.
        """
        return AsyncPipeline(
            self._connection,
            self._calls,
            batch=batch,
            max_in_flight=max_in_flight,
            timeout=self._options.timeout_of(timeout),
            read_mode=self._options.read_mode_of(read),
        )

    def scan(
        self,
        prefix: Key = b"",
        *,
        start: Key | None = None,
        stop: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: bool = False,
        page: int = PAGE_DEFAULT,
        read: str | None = None,
        timeout: float | None = None,
    ) -> AsyncScan[V]:
        """The entries with this prefix, from `start` on and before `stop`, in key order; an iterator with
        `resume` and `pages()`.

        Fetched `page` entries at a time; `timeout` is for each page.
        """
        cursor = Cursor(
            self._calls,
            key_range(self._calls, prefix, start, stop),
            reverse=reverse,
            limit=limit,
            keys_only=keys_only,
            page=page,
        )
        return AsyncScan(cursor, lambda op: self._op(op, False, self._options.read_mode_of(read), timeout))

    async def count(self, prefix: Key = b"", *, read: str | None = None, timeout: float | None = None) -> int:
        """How many keys have this prefix; the servers walk over all of them."""
        op = Cursor.count_op(key_range(self._calls, prefix, None, None))
        return Cursor.counted(await self._op(op, False, self._options.read_mode_of(read), timeout))

    # The cluster

    async def ping(self, *, timeout: float | None = None) -> Pong:
        """Ask a router for its name, software version and cluster epoch, and measure the round trip."""
        began = monotonic()
        answer = await self._ask(protocol.Kind.PING, b"", timeout)
        return decode_pong(answer, monotonic() - began)

    async def admin(self, command: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Run an admin command (docs/protocol.md section 6) and return its answer."""
        return await self._ask(protocol.Kind.ADMIN, protocol.encode_admin(command, *arguments), timeout)

    async def cluster_map(self, *, timeout: float | None = None) -> Any:
        """The cluster map as the routers know it."""
        return await self._ask(protocol.Kind.MAP, b"", timeout)

    # Views

    @overload
    def namespace(self, prefix: Key) -> AsyncClient[V]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["bytes"]) -> AsyncClient[bytes]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["str"]) -> AsyncClient[str]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["json", "msgpack"]) -> AsyncClient[Any]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Codec[V2]) -> AsyncClient[V2]: ...

    def namespace(self, prefix: Key, *, codec: str | Codec[Any] | None = None) -> AsyncClient[Any]:
        """The same client for the keys that begin with `prefix`, which is added and taken off; closing it
        does nothing.
        """
        calls = self._calls.narrowed(prefix, None if codec is None else resolve(codec))
        return AsyncClient(self._connection, calls, self._options, owner=False)

    async def close(self) -> None:
        """Close all connections of all threads. Calls under way fail; a second close does nothing."""
        if self._owner:
            self._connection.close()

    async def __aenter__(self) -> AsyncClient[V]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_owner", False) and self._connection.forgotten:
            warnings.warn(
                "a kvclient.AsyncClient was not closed: use async with, or await close()", ResourceWarning, 2
            )

    def __repr__(self) -> str:
        state = "closed" if self._connection.closed else "open"
        routers = ",".join(map(str, self._connection.address.endpoints))
        view = f"prefix={self._calls.prefix!r} codec={self._calls.codec.name}"
        return f"<kvclient.AsyncClient {routers} {view} {state}>"

    # How it is done

    async def _run(self, call: Call[T], read: str | None, timeout: float | None) -> T:
        read_mode = self._options.read_mode if read is None else self._options.read_mode_of(read)
        return call.decode(await self._op(call.op, call.writes, read_mode, timeout))

    async def _op(self, op: bytes, writes: bool, read_mode: int, timeout: float | None) -> list[Any]:
        seconds = self._options.timeout if timeout is None else self._options.timeout_of(timeout)
        pending = Pending(protocol.Kind.OPS, op, 1, writes, read_mode, seconds)
        return (await self._connection.run(pending)).results[0]  # type: ignore[no-any-return]

    async def _ask(self, kind: int, body: bytes, timeout: float | None) -> Any:
        pending = Pending(kind, body, 1, False, 0, self._options.timeout_of(timeout))
        return (await self._connection.run(pending)).results[0]

    async def _bulk(
        self,
        make: Callable[..., Call[T]],
        keep: Callable[[int, T], None],
        arguments: Iterable[tuple[Any, ...]],
        read: str | None,
        timeout: float | None,
    ) -> Bulk[T]:
        connection = self._connection
        connection.check()
        bulk = Bulk(
            connection.start,
            make,
            keep,
            timeout=self._options.timeout_of(timeout),
            read_mode=self._options.read_mode_of(read),
        )
        batcher = bulk.batcher
        try:
            for item in arguments:
                bulk.add(*item)
                if batcher.full:
                    await connection.until(lambda: batcher.roomy)
            batcher.flush()
            await connection.until(lambda: not batcher.unfinished)
        except BaseException:
            for batch in batcher.discard(connection.session.live):
                connection.session.abandon(batch)
            raise
        return bulk


def _ignore(index: int, result: object) -> None:
    """put_many keeps no versions."""


async def connect(address: url.Address, codec: Codec[Any], options: Options) -> AsyncClient[Any]:
    """Open a client and prove that a router answers; ConnectError tells why none does."""
    endpoints = await get_running_loop().run_in_executor(None, spread, address.endpoints)
    connection = AsyncConnection(address, endpoints)
    client: AsyncClient[Any] = AsyncClient(connection, Calls(address.namespace, codec), options, owner=True)
    try:
        await client.ping(timeout=address.connect_timeout)
    except (ConnectError, KVTimeout) as error:
        explained = await connection.explained(ConnectError(error.message))
        await client.close()
        raise explained from None
    except BaseException:
        await client.close()
        raise
    return client
