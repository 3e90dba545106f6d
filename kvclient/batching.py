"""Many ops under way at once: how they are put into requests, and in which order requests may go.

`Batcher` fills requests, holds back what must wait, and counts. Pipelines and the bulk methods of both
clients are built on it. Knows no sockets: the shell hands in a function that sends a request.

Order: the writes of one pipeline to one key are applied in the order in which they were added, and an op sees
all earlier writes of its pipeline to its key. Requests that are under way together may be executed in any
order once one of them is retried, so a request waits until no earlier one that writes one of its keys is
unfinished. (A read may see a write that was added after it.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kvclient.calls import Call
from kvclient.errors import (
    BatchError,
    ClosedError,
    InvalidRequest,
    KVError,
    OutcomeUnknown,
    RequestTooLarge,
    from_result,
)
from kvclient.pending import Pending
from kvclient.protocol import OPS_MAX, REQUEST_BYTES_MAX, Kind

T = TypeVar("T")

BATCH_OPS = 512
# A request is sent when its ops reach this size: large enough to amortise everything, small enough not to
# delay heartbeats behind it.
BATCH_BYTES = 1 << 20
# What a pipeline may have in flight: the memory it can cost a router.
IN_FLIGHT_BYTES_MAX = 8 << 20
# Failures kept for the error at the end of a pipeline; all are counted.
ERRORS_KEPT_MAX = 100
# CONDITION_FAILED and NOT_AN_INTEGER are answers about the data, for whoever asks the handle.
_LAST_ANSWER_STATUS = 3
# The request around one op takes less than this.
_OP_BYTES_MAX = REQUEST_BYTES_MAX - 128
_OPS = int(Kind.OPS)


class Batch(Pending):
    """A request that is being filled or is under way. `first` is the number of its first op; the keys may
    hold duplicates.
    """

    __slots__ = ("blockers", "dependents", "first", "keys_read", "keys_written", "ops", "size")

    def __init__(
        self, call: Call[Any], first: int, timeout: float, read_mode: int, on_done: Callable[[Batch], None]
    ) -> None:
        op, key, writes, _ = call
        Pending.__init__(self, _OPS, op, 1, writes, read_mode, timeout, on_done)
        self.first = first
        self.size = len(op)
        self.ops: list[bytes] | None = None  # only with more than one op
        self.keys_read: list[bytes] | tuple[bytes, ...] = () if writes else (key,)
        self.keys_written: list[bytes] | tuple[bytes, ...] = (key,) if writes else ()
        self.blockers = 0
        self.dependents: list[Batch] | None = None

    def extend(self, call: Call[Any]) -> None:
        """Add an op."""
        op, key, writes, _ = call
        if self.ops is None:
            self.ops = [self.body]
            self.keys_read = list(self.keys_read)
            self.keys_written = list(self.keys_written)
        self.ops.append(op)
        self.count += 1
        self.size += len(op)
        if writes:
            self.writes = True
            self.keys_written.append(key)  # type: ignore[union-attr]
        else:
            self.keys_read.append(key)  # type: ignore[union-attr]


class Batcher:
    """Fills batches and lets them go in order. `start` sends one; `on_batch` gets each finished one."""

    def __init__(
        self,
        start: Callable[[Batch], None],
        on_batch: Callable[[Batch], None],
        *,
        batch: int,
        max_in_flight: int,
        timeout: float,
        read_mode: int,
    ) -> None:
        self.count = 0
        self.unfinished = 0
        self._start = start
        self._on_batch = on_batch
        self._batch = batch
        self._in_flight_max = max_in_flight
        # Once full, wait until an eighth is free: answers are then taken in groups instead of one by one.
        self._in_flight_low = max_in_flight - max(1, max_in_flight // 8)
        self._timeout = timeout
        self._read_mode = read_mode
        self._bytes = 0
        self._on_done = self._done  # one bound method for all batches
        self._filling: Batch | None = None
        self._last_writer: dict[bytes, Batch] = {}

    def add(self, call: Call[Any]) -> Batch:
        """Put an op at the end of the request that is being filled; sends that when it is full."""
        batch = self._filling
        if batch is None or batch.size + len(call[0]) > BATCH_BYTES:
            if len(call[0]) > _OP_BYTES_MAX:
                raise RequestTooLarge(
                    f"op is {len(call[0])} bytes", limit=REQUEST_BYTES_MAX, size=len(call[0])
                )
            if batch is not None:
                self.flush()
            batch = Batch(call, self.count, self._timeout, self._read_mode, self._on_done)
            self._filling = batch
        else:
            batch.extend(call)
        self.count += 1
        if batch.count >= self._batch:
            self.flush()
        return batch

    @property
    def full(self) -> bool:
        """Whether whoever adds must wait (until `roomy`)."""
        return self.unfinished >= self._in_flight_max or self._bytes >= IN_FLIGHT_BYTES_MAX

    @property
    def roomy(self) -> bool:
        """Whether whoever waited may go on."""
        return self.unfinished <= self._in_flight_low and self._bytes < IN_FLIGHT_BYTES_MAX

    def flush(self) -> None:
        """Send what is being filled."""
        batch = self._filling
        if batch is None:
            return
        self._filling = None
        if batch.ops is not None:
            batch.body = b"".join(batch.ops)
            batch.ops = None
        self.unfinished += 1
        self._bytes += batch.size
        last_writer = self._last_writer
        if last_writer:
            self._block(batch, last_writer)
        for key in batch.keys_written:
            last_writer[key] = batch
        if not batch.blockers:
            self._start(batch)

    def discard(self, live: Iterable[Pending]) -> list[Batch]:
        """Drop what was not sent; returns the requests of this batcher among the session's `live` ones, to be
        abandoned.
        """
        if self._filling is not None:
            _drop(self._filling)
            self._filling = None
        under_way = [batch for batch in live if isinstance(batch, Batch) and batch.on_done is self._on_done]
        waiting = deque(under_way)
        while waiting:
            for dependent in waiting.popleft().dependents or ():
                if not dependent.done:
                    _drop(dependent)
                    waiting.append(dependent)
        for batch in under_way:
            kind = OutcomeUnknown if batch.writes else ClosedError
            batch.error = kind("the pipeline was left by an exception while this op was under way")
        return under_way

    @staticmethod
    def _block(batch: Batch, last_writer: dict[bytes, Batch]) -> None:
        keys = (*batch.keys_read, *batch.keys_written)
        earlier = {last_writer[key] for key in keys if key in last_writer}
        for blocker in earlier:
            if blocker.dependents is None:
                blocker.dependents = []
            blocker.dependents.append(batch)
        batch.blockers = len(earlier)

    def _done(self, batch: Batch) -> None:
        self.unfinished -= 1
        self._bytes -= batch.size
        last_writer = self._last_writer
        for key in batch.keys_written:
            if last_writer.get(key) is batch:
                del last_writer[key]
        self._on_batch(batch)
        if batch.dependents is not None and not isinstance(batch.error, ClosedError):
            for dependent in batch.dependents:
                dependent.blockers -= 1
                if not dependent.blockers and not dependent.done:
                    self._start(dependent)


def _drop(batch: Batch) -> None:
    batch.error = ClosedError("this op was not sent: the pipeline was left by an exception")
    batch.done = True


def check_window(batch: int, max_in_flight: int) -> None:
    """InvalidRequest for sizes that make no sense."""
    if not 1 <= batch <= OPS_MAX:
        raise InvalidRequest(f"batch={batch} is not in 1..{OPS_MAX}")
    if not max_in_flight >= 1:
        raise InvalidRequest(f"max_in_flight={max_in_flight} is below 1")


def outcome(batch: Pending, index: int, decode: Callable[[list[Any]], T]) -> T:
    """The result of one op of a finished request."""
    if batch.error is not None:
        raise batch.error.with_traceback(None)
    return decode(batch.results[index])


class Failures:
    """The ops of a pipeline that failed for a reason other than the data they met."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[tuple[int, KVError]] = []

    def collect(self, batch: Batch) -> None:
        """Look through a finished request."""
        if batch.error is None and batch.count == 1 and batch.results[0][0] <= _LAST_ANSWER_STATUS:
            return
        if batch.error is not None:
            self.count += batch.count
            for index in range(min(batch.count, ERRORS_KEPT_MAX - len(self.kept))):
                self.kept.append((batch.first + index, batch.error))
            return
        for index, result in enumerate(batch.results):
            if result[0] > _LAST_ANSWER_STATUS:
                self.count += 1
                if len(self.kept) < ERRORS_KEPT_MAX:
                    self.kept.append((batch.first + index, from_result(result)))

    def raise_any(self, total: int) -> None:
        """BatchError if there were any."""
        if self.count:
            first = self.kept[0][1]
            raise BatchError(f"{self.count} of {total} ops failed; the first: {first}", errors=self.kept)
