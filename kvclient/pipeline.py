"""Pipelines: ops are added one by one and travel together; each returns a handle for its result.

Two shells over `batching.Batcher`. Not atomic; ordered per key. Adding waits (and takes answers in) while the
pipeline is full, so a pipeline of millions of ops runs in bounded memory as long as its handles are not kept.

Leaving the block sends the rest, waits for everything and raises BatchError if an op failed for a reason
other than the data it met; a condition that did not hold, or an increment of something that is no number, is
for whoever asks the handle. An exception inside the block discards what was not sent.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvclient.batching import Batch, Batcher, Failures, check_window, outcome
from kvclient.calls import UNSET, Call, Calls, Key, Unset

if TYPE_CHECKING:
    from kvclient.aioconnection import AsyncConnection
    from kvclient.connection import Connection

V = TypeVar("V")
D = TypeVar("D")
T = TypeVar("T")


class Handle(Generic[T]):
    """The result of one op of a Pipeline, now or later."""

    __slots__ = ("_batch", "_call", "_index", "_pipeline")

    def __init__(self, pipeline: Pipeline[Any], batch: Batch, index: int, call: Call[T]) -> None:
        self._pipeline = pipeline
        self._batch = batch
        self._index = index
        self._call = call

    def result(self) -> T:
        """The op's result, or its exception; sends the op first if needed, and waits for the answer."""
        if not self._batch.done:
            self._pipeline._complete(self._batch)
        return outcome(self._batch, self._index, self._call.decode)


class Pipeline(Generic[V]):
    """Ops that travel together; made by `Client.pipeline()`, for one thread at a time.

    A method adds an op and returns its handle at once; it waits, and takes answers in, while the pipeline is
    full. Leaving the `with` block sends the rest, waits for everything, and raises BatchError if an op failed
    for another reason than the data it met: Conflict and NotAnInteger wait in the handle. An exception in the
    block discards what was not sent.
    """

    def __init__(
        self,
        connection: Connection,
        calls: Calls[V],
        *,
        batch: int,
        max_in_flight: int,
        timeout: float,
        read_mode: int,
    ) -> None:
        check_window(batch, max_in_flight)
        self._connection = connection
        self._calls = calls
        self._failures = Failures()
        self._batcher = Batcher(
            connection.start,
            self._failures.collect,
            batch=batch,
            max_in_flight=max_in_flight,
            timeout=timeout,
            read_mode=read_mode,
        )

    def get(self, key: Key, default: D | None = None) -> Handle[V | D | None]:
        """Add a get; see Client.get."""
        return self._add(self._calls.get(key, default))

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
    ) -> Handle[int]:
        """Add a put; see Client.put."""
        return self._add(self._calls.put(key, value, ttl, if_absent, if_present, if_version, if_value))

    def delete(
        self,
        key: Key,
        *,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
    ) -> Handle[bool]:
        """Add a delete; see Client.delete."""
        return self._add(self._calls.delete(key, if_present, if_version, if_value))

    def exists(self, key: Key) -> Handle[bool]:
        """Add an exists; see Client.exists."""
        return self._add(self._calls.exists(key))

    def increment(self, key: Key, delta: int = 1) -> Handle[int]:
        """Add an increment; see Client.increment."""
        return self._add(self._calls.increment(key, delta))

    def touch(self, key: Key, ttl: float | None) -> Handle[bool]:
        """Add a touch; see Client.touch."""
        return self._add(self._calls.touch(key, ttl))

    def flush(self) -> None:
        """Send what was added and wait for all answers; failures stay for the end of the block."""
        batcher = self._batcher
        with self._connection.lock:
            batcher.flush()
            while batcher.unfinished:
                self._connection.turn()

    def _add(self, call: Call[T]) -> Handle[T]:
        batcher, connection = self._batcher, self._connection
        with connection.lock:
            batch = batcher.add(call)
            handle = Handle(self, batch, batch.count - 1, call)
            if batcher.full:
                while not batcher.roomy:
                    connection.turn()
        return handle

    def _complete(self, batch: Batch) -> None:
        with self._connection.lock:
            self._batcher.flush()
            while not batch.done:
                self._connection.turn()

    def __enter__(self) -> Pipeline[V]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.flush()
            except BaseException:
                self._discard()
                raise
            self._failures.raise_any(self._batcher.count)
        else:
            self._discard()

    def _discard(self) -> None:
        with self._connection.lock:
            for batch in self._batcher.discard(self._connection.session.live):
                self._connection.session.abandon(batch)


class AsyncHandle(Generic[T]):
    """The result of one op of an AsyncPipeline, now or later."""

    __slots__ = ("_batch", "_call", "_index", "_pipeline")

    def __init__(self, pipeline: AsyncPipeline[Any], batch: Batch, index: int, call: Call[T]) -> None:
        self._pipeline = pipeline
        self._batch = batch
        self._index = index
        self._call = call

    async def result(self) -> T:
        """The op's result, or its exception; sends the op first if needed, and waits for the answer."""
        if not self._batch.done:
            await self._pipeline._complete(self._batch)
        return outcome(self._batch, self._index, self._call.decode)


class AsyncPipeline(Generic[V]):
    """Ops that travel together; made by `AsyncClient.pipeline()`, for one task at a time.

    Awaiting a method waits for room, not for the answer, and gives the op's handle. Leaving the `async with`
    block is what it is for Pipeline.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        calls: Calls[V],
        *,
        batch: int,
        max_in_flight: int,
        timeout: float,
        read_mode: int,
    ) -> None:
        check_window(batch, max_in_flight)
        self._connection = connection
        self._calls = calls
        self._failures = Failures()
        self._batcher = Batcher(
            connection.start,
            self._failures.collect,
            batch=batch,
            max_in_flight=max_in_flight,
            timeout=timeout,
            read_mode=read_mode,
        )

    async def get(self, key: Key, default: D | None = None) -> AsyncHandle[V | D | None]:
        """Add a get; see Client.get."""
        return await self._add(self._calls.get(key, default))

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
    ) -> AsyncHandle[int]:
        """Add a put; see Client.put."""
        return await self._add(self._calls.put(key, value, ttl, if_absent, if_present, if_version, if_value))

    async def delete(
        self,
        key: Key,
        *,
        if_present: bool = False,
        if_version: int | None = None,
        if_value: V | Unset = UNSET,
    ) -> AsyncHandle[bool]:
        """Add a delete; see Client.delete."""
        return await self._add(self._calls.delete(key, if_present, if_version, if_value))

    async def exists(self, key: Key) -> AsyncHandle[bool]:
        """Add an exists; see Client.exists."""
        return await self._add(self._calls.exists(key))

    async def increment(self, key: Key, delta: int = 1) -> AsyncHandle[int]:
        """Add an increment; see Client.increment."""
        return await self._add(self._calls.increment(key, delta))

    async def touch(self, key: Key, ttl: float | None) -> AsyncHandle[bool]:
        """Add a touch; see Client.touch."""
        return await self._add(self._calls.touch(key, ttl))

    async def flush(self) -> None:
        """Send what was added and wait for all answers; failures stay for the end of the block."""
        self._connection.check()
        self._batcher.flush()
        await self._connection.until(lambda: not self._batcher.unfinished)

    async def _add(self, call: Call[T]) -> AsyncHandle[T]:
        self._connection.check()
        batch = self._batcher.add(call)
        handle = AsyncHandle(self, batch, batch.count - 1, call)
        if self._batcher.full:
            await self._connection.until(lambda: self._batcher.roomy)
        return handle

    async def _complete(self, batch: Batch) -> None:
        self._connection.check()
        self._batcher.flush()
        await self._connection.until(lambda: batch.done)

    async def __aenter__(self) -> AsyncPipeline[V]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                await self.flush()
            except BaseException:
                self._discard()
                raise
            self._failures.raise_any(self._batcher.count)
        else:
            self._discard()

    def _discard(self) -> None:
        for batch in self._batcher.discard(self._connection.session.live):
            self._connection.session.abandon(batch)
