"""What loads our cluster, in a closed loop, from this process.

Single ops: raw requests on a few DEALERs, as h2load and redis-benchmark are raw for the peers; encoded by the
protocol's own code, in a session, with sequence numbers, every answer looked at. One op at a time, and
pipelines: the SDK as an application uses it, every result asked for. A pipeline's requests are timed from the
moment when the last op was added to the one when all results were taken, in order: never less than they took.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import msgpack
import zmq

import kvclient
from kvclient.protocol import LEASE, LINEARIZABLE, VERSION, Kind, pack
from tests.benchmark.cluster_bench import data
from tests.benchmark.cluster_bench.points import Point, Sample, sample

REQUEST_TIMEOUT_MS = 10_000
DRAIN_SECONDS = 15.0
"""How long answers may take after the last request: more than the requests' own timeout."""
LINK_IN_FLIGHT = 256
"""On one connection. The router keeps 1000 answers for a client that does not take them, and ZeroMQ hears of
taken ones in halves of that: with more under way answers could be dropped."""

_op_streams = cache(data.op_streams)
_clock = time.perf_counter


@contextmanager
def _steady() -> Iterator[None]:
    """What was prepared is not walked by the collector again and again meanwhile."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Link:
    """One socket and one session."""

    def __init__(self, stack: ExitStack, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = stack.enter_context(context.socket(zmq.DEALER))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)  # what is under way bounds both queues
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)
        self._client_id = int.from_bytes(os.urandom(8), "little") or 1
        self._request_id = 0
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._writing: dict[int, int] = {}
        """Sequence of each write under way, by its request id, oldest first."""

    @property
    def under_way(self) -> int:
        return len(self._sent)

    def send(self, ops: list[tuple[bytes, bool]], read_mode: int) -> None:
        """A request for each op."""
        send, sent, writing = self.socket.send, self._sent, self._writing
        acked_below = next(iter(writing.values()), self._sequence + 1)
        for body, writes in ops:
            self._request_id = request_id = self._request_id + 1
            sequence = 0
            if writes:
                self._sequence = sequence = self._sequence + 1
                writing[request_id] = sequence
            frame = pack(
                (
                    VERSION, Kind.OPS, request_id, REQUEST_TIMEOUT_MS, read_mode, 0,
                    self._client_id, sequence, acked_below, body,
                )
            )  # fmt: skip
            sent[request_id] = _clock()
            send(frame, zmq.NOBLOCK)

    def drain(self, latencies: list[float]) -> int:
        """Takes all answers in; returns how many ops failed."""
        receive, unpack = self.socket.recv, msgpack.unpackb
        sent, writing = self._sent, self._writing
        failed = 0
        try:
            while True:
                _, _, request_id, status, body = unpack(receive(zmq.NOBLOCK))
                latencies.append(_clock() - sent.pop(request_id))
                writing.pop(request_id, None)
                # A result is an array whose first element is 0 for success: `9n 00`.
                if status or body[1]:
                    failed += 1
        except zmq.Again:
            return failed


class RawLoad:
    """As many connections as it takes for what is under way."""

    def __init__(self, stack: ExitStack, endpoint: str) -> None:
        self._stack = stack
        self._context = stack.enter_context(zmq.Context())
        self._endpoint = endpoint
        self._links: list[_Link] = []
        self._at = 0

    def run(self, point: Point, seconds: float) -> Sample:
        """TimeoutError if requests get no answer, not even a refusal; this object is of no use then."""
        ops = _op_streams(point.workload)
        read_mode = LEASE if point.workload == "lease_get" else LINEARIZABLE
        links = self._connected(-(-point.in_flight // LINK_IN_FLIGHT))
        share = point.in_flight // len(links)
        poller = zmq.Poller()
        for link in links:
            poller.register(link.socket, zmq.POLLIN)
        by_socket = {link.socket: link for link in links}
        latencies: list[float] = []
        failed = 0
        with _steady():
            begin = now = _clock()
            for link in links:
                link.send(self._next(ops, share), read_mode)
            while any(link.under_way for link in links):
                if now > begin + seconds + DRAIN_SECONDS:
                    count = sum(link.under_way for link in links)
                    raise TimeoutError(f"{count} requests without an answer for {DRAIN_SECONDS:.0f} s")
                for socket, _ in poller.poll(1000):
                    link = by_socket[socket]
                    failed += link.drain(latencies)
                    if now < begin + seconds:
                        link.send(self._next(ops, share - link.under_way), read_mode)
                now = _clock()
        return sample(len(latencies) - failed, now - begin, latencies, failed)

    def _connected(self, count: int) -> list[_Link]:
        while len(self._links) < count:
            self._links.append(_Link(self._stack, self._context, self._endpoint))
        return self._links[:count]

    def _next(self, ops: list[tuple[bytes, bool]], count: int) -> list[tuple[bytes, bool]]:
        at = self._at
        self._at = (at + count) % len(ops)
        return ops[at : at + count] + (ops[: self._at] if at + count > len(ops) else [])


def one_by_one(client: kvclient.Client[bytes], point: Point, seconds: float) -> Sample:
    """The SDK's `put` and `get`, each waited for."""
    read = "lease" if point.workload == "lease_get" else None
    puts = {"put": (True, True), "mixed": (True, False)}.get(point.workload, (False, False))
    latencies = []
    with _steady():
        begin = now = _clock()
        for count, (key, value) in enumerate(data.entries()):
            if puts[count % 2]:
                client.put(key, value)
            elif client.get(key, read=read) is None:
                raise RuntimeError(f"a key that was written is not there: {key!r}")
            latencies.append(_clock() - now)
            now = _clock()
            if now > begin + seconds:
                break
    return sample(len(latencies), now - begin, latencies)


def pipelined(client: kvclient.Client[bytes], point: Point, seconds: float) -> Sample:
    """The SDK's pipelines: `point.requests` of `point.batch` ops under way."""
    read = "lease" if point.workload == "lease_get" else None
    puts = {"put": (True, True), "mixed": (True, False)}.get(point.workload, (False, False))
    source = data.entries()
    waiting: deque[tuple[float, list[kvclient.Handle[object]]]] = deque()
    latencies: list[float] = []
    done = 0

    def take() -> None:
        nonlocal done
        began, handles = waiting.popleft()
        for handle in handles:
            if handle.result() is None:
                raise RuntimeError("a key that was written is not there")
        latencies.append(_clock() - began)
        done += len(handles)

    with _steady(), client.pipeline(batch=point.batch, max_in_flight=point.requests, read=read) as pipeline:
        begin = now = _clock()
        while now < begin + seconds:
            handles: list[kvclient.Handle[object]] = []
            for at in range(point.batch):
                key, value = next(source)
                handles.append(pipeline.put(key, value) if puts[at % 2] else pipeline.get(key))
            waiting.append((_clock(), handles))
            if len(waiting) > point.requests:
                take()
            now = _clock()
        while waiting:
            take()
        now = _clock()
    return sample(done, now - begin, latencies)
