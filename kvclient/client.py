"""The synchronous client.

Owns the public methods and nothing else: what they send is in `calls`, how it travels in `session` and
`connection`. Thread-safe: every thread has its own connections. Usable after a fork: the child opens its own
connections and a session of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from kvclient import protocol, url
from kvclient.bulk import MISSING, BatchResult, Bulk, found, pairs
from kvclient.calls import UNSET, Call, Calls, Entry, Key, Pong, Unset, decode_pong
from kvclient.codec import Codec, resolve
from kvclient.connection import Connections
from kvclient.errors import ConnectError, KVTimeout
from kvclient.ops import Compare, Op
from kvclient.options import Options
from kvclient.pending import Pending
from kvclient.pipeline import Pipeline
from kvclient.scan import PAGE_DEFAULT, Cursor, Scan, key_range
from kvclient.txn import TxnResult, txn

if TYPE_CHECKING:
    from kvclient.views import KVMap

V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K", bound=Key)
T = TypeVar("T")
V2 = TypeVar("V2")


class Client(Generic[V]):
    """A cluster, seen through a key prefix and a codec. Made by `kvclient.connect`.

    `timeout` is the deadline in seconds of a whole call, retries included; the client's own unless given.
    `read` is "linearizable" (all that was acknowledged before is seen), "lease" (the same, as long as no
    clock runs much faster or slower than the others) or "stale:5s" (any replica answers that has heard its
    leader within that time). Keys are bytes or str, 1 to 4096 bytes; values are what the codec takes, up to
    1 MiB unless the cluster is configured for more.

    Any thread may use it; a child process after a fork as well.
    """

    def __init__(self, connections: Connections, calls: Calls[V], options: Options, *, owner: bool) -> None:
        self._connections = connections
        self._calls = calls
        self._options = options
        self._owner = owner

    # One key

    @overload
    def get(
        self, key: Key, default: None = None, *, read: str | None = None, timeout: float | None = None
    ) -> V | None: ...

    @overload
    def get(
        self, key: Key, default: D, *, read: str | None = None, timeout: float | None = None
    ) -> V | D: ...

    def get(
        self, key: Key, default: Any = None, *, read: str | None = None, timeout: float | None = None
    ) -> Any:
        """The value of `key`, or `default` if there is none."""
        return self._run(self._calls.get(key, default), read, timeout)

    def entry(self, key: Key, *, read: str | None = None, timeout: float | None = None) -> Entry[V]:
        """The value with its version and the seconds it has left; KeyNotFound if there is none."""
        return self._run(self._calls.entry(key), read, timeout)

    def put(
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
        return self._run(
            self._calls.put(key, value, ttl, if_absent, if_present, if_version, if_value), None, timeout
        )

    def delete(
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
        return self._run(self._calls.delete(key, if_present, if_version, if_value), None, timeout)

    def exists(self, key: Key, *, read: str | None = None, timeout: float | None = None) -> bool:
        """Whether `key` is there."""
        return self._run(self._calls.exists(key), read, timeout)

    def increment(self, key: Key, delta: int = 1, *, timeout: float | None = None) -> int:
        """Add to the decimal 64-bit integer that `key` holds (0 if missing) and return the sum; its TTL
        stays.

        NotAnInteger if the value is none or the sum does not fit. The value is stored as decimal text,
        whatever the codec.
        """
        return self._run(self._calls.increment(key, delta), None, timeout)

    def touch(self, key: Key, ttl: float | None, *, timeout: float | None = None) -> bool:
        """Give `key` a new TTL in seconds, or none at all; False if it is not there."""
        return self._run(self._calls.touch(key, ttl), None, timeout)

    # Many keys

    def get_many(
        self, keys: Iterable[K], *, read: str | None = None, timeout: float | None = None
    ) -> dict[K, V]:
        """The values of many keys, in the order of `keys`, without the missing ones.

        Sent in requests of up to 512 keys; `timeout` is for each request. If only some keys could be read,
        BatchError with `errors` and `details["results"]`; if none, the first error.
        """
        wanted = list(keys)
        values: list[Any] = [MISSING] * len(wanted)
        bulk = self._bulk(
            self._calls.get, values.__setitem__, ((key, MISSING) for key in wanted), read, timeout
        )
        results = found(wanted, values)
        bulk.raise_for_errors(results)
        return results

    def put_many(
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
        bulk = self._bulk(self._calls.put, _ignore, arguments, None, timeout)
        if bulk.unreachable is not None:
            raise self._connections.current().explained(bulk.unreachable)
        return BatchResult(bulk.ok, bulk.errors)

    def delete_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> int:
        """Remove many keys; returns how many were there.

        Sent in requests of up to 512 keys; `timeout` is for each request. If only some keys could be served,
        BatchError with `errors` and `details["results"]`; if none, the first error.
        """
        there: list[int] = []
        bulk = self._bulk(
            self._calls.delete,
            lambda index, was: there.append(index) if was else None,
            ((key,) for key in keys),
            None,
            timeout,
        )
        bulk.raise_for_errors(len(there))
        return len(there)

    def txn(
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
        return self._run(txn(self._calls, compare, then, else_), None, timeout)

    def pipeline(
        self,
        *,
        batch: int = 512,
        max_in_flight: int = 256,
        read: str | None = None,
        timeout: float | None = None,
    ) -> Pipeline[V]:
        """Ops that travel together: a context manager whose methods return handles with `.result()`.

        Requests of up to `batch` ops, up to `max_in_flight` of them under way; `timeout` is for each request.
        Not atomic; the ops of one key keep their order.
        """
        return Pipeline(
            self._connections.current(),
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
    ) -> Scan[V]:
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
        return Scan(cursor, lambda op: self._op(op, False, self._options.read_mode_of(read), timeout))

    def count(self, prefix: Key = b"", *, read: str | None = None, timeout: float | None = None) -> int:
        """How many keys have this prefix; the servers walk over all of them."""
        op = Cursor.count_op(key_range(self._calls, prefix, None, None))
        return Cursor.counted(self._op(op, False, self._options.read_mode_of(read), timeout))

    # The cluster

    def ping(self, *, timeout: float | None = None) -> Pong:
        """Ask a router for its name, software version and cluster epoch, and measure the round trip."""
        began = monotonic()
        answer = self._ask(protocol.Kind.PING, b"", timeout)
        return decode_pong(answer, monotonic() - began)

    def admin(self, command: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Run an admin command (docs/protocol.md section 6) and return its answer."""
        return self._ask(protocol.Kind.ADMIN, protocol.encode_admin(command, *arguments), timeout)

    def cluster_map(self, *, timeout: float | None = None) -> Any:
        """The cluster map as the routers know it."""
        return self._ask(protocol.Kind.MAP, b"", timeout)

    # Views

    @overload
    def namespace(self, prefix: Key) -> Client[V]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["bytes"]) -> Client[bytes]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["str"]) -> Client[str]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Literal["json", "msgpack"]) -> Client[Any]: ...

    @overload
    def namespace(self, prefix: Key, *, codec: Codec[V2]) -> Client[V2]: ...

    def namespace(self, prefix: Key, *, codec: str | Codec[Any] | None = None) -> Client[Any]:
        """The same client for the keys that begin with `prefix`, which is added and taken off; closing it
        does nothing.
        """
        calls = self._calls.narrowed(prefix, None if codec is None else resolve(codec))
        return Client(self._connections, calls, self._options, owner=False)

    def map(self, prefix: Key = b"") -> KVMap[V]:
        """The keys that begin with `prefix` as a MutableMapping from str to values."""
        from kvclient.views import KVMap

        return KVMap(self.namespace(prefix))

    def close(self) -> None:
        """Close all connections of all threads. Calls under way fail; a second close does nothing."""
        if self._owner:
            self._connections.close()

    def __enter__(self) -> Client[V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._connections.closed else "open"
        routers = ",".join(map(str, self._connections.address.endpoints))
        view = f"prefix={self._calls.prefix!r} codec={self._calls.codec.name}"
        return f"<kvclient.Client {routers} {view} {state}>"

    # How it is done

    def _run(self, call: Call[T], read: str | None, timeout: float | None) -> T:
        read_mode = self._options.read_mode if read is None else self._options.read_mode_of(read)
        return call.decode(self._op(call.op, call.writes, read_mode, timeout))

    def _op(self, op: bytes, writes: bool, read_mode: int, timeout: float | None) -> list[Any]:
        seconds = self._options.timeout if timeout is None else self._options.timeout_of(timeout)
        pending = Pending(protocol.Kind.OPS, op, 1, writes, read_mode, seconds)
        return self._connections.current().run(pending).results[0]  # type: ignore[no-any-return]

    def _ask(self, kind: int, body: bytes, timeout: float | None) -> Any:
        pending = Pending(kind, body, 1, False, 0, self._options.timeout_of(timeout))
        return self._connections.current().run(pending).results[0]

    def _bulk(
        self,
        make: Callable[..., Call[T]],
        keep: Callable[[int, T], None],
        arguments: Iterable[tuple[Any, ...]],
        read: str | None,
        timeout: float | None,
    ) -> Bulk[T]:
        connection = self._connections.current()
        bulk = Bulk(
            connection.start,
            make,
            keep,
            timeout=self._options.timeout_of(timeout),
            read_mode=self._options.read_mode_of(read),
        )
        batcher = bulk.batcher
        try:
            # The lock is not held while the caller's iterator runs: it may well use this client.
            for item in arguments:
                with connection.lock:
                    bulk.add(*item)
                    if batcher.full:
                        connection.turn_until(lambda: batcher.roomy)
            with connection.lock:
                batcher.flush()
                connection.turn_until(lambda: not batcher.unfinished)
        except BaseException:
            with connection.lock:
                for batch in batcher.discard(connection.session.live):
                    connection.session.abandon(batch)
            raise
        return bulk


def _ignore(index: int, result: object) -> None:
    """put_many keeps no versions."""


def connect(address: url.Address, codec: Codec[Any], options: Options) -> Client[Any]:
    """Open a client and prove that a router answers; ConnectError tells why none does."""
    connections = Connections(address)
    client: Client[Any] = Client(connections, Calls(address.namespace, codec), options, owner=True)
    try:
        client.ping(timeout=address.connect_timeout)
    except (ConnectError, KVTimeout) as error:
        explained = connections.current().explained(ConnectError(error.message))
        client.close()
        raise explained from None
    except BaseException:
        client.close()
        raise
    return client
