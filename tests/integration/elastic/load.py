"""The clients of the story: those of the fault tests with the SDK's default deadline, pipelines, and a reader
that asks every store directly, past the routers.

A direct read that a store answers belongs to the history: one by a store that no longer owns the key would be
stale, and the history would have no order. A refusal is what such a store owes, and counts as nothing.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

import zmq

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import LEASE, LINEARIZABLE, decode_results, encode_get
from shared import messages
from tests.integration.faults.workload import Workload
from tests.linearizability.models import Found

PIPELINE_OPS = 50
PIPELINE_PAUSE_S = 0.05
DIRECT_PAUSE_S = 0.01
DIRECT_TIMEOUT_MS = 500


class Load(Workload):
    """`stores`: the rpc endpoints by name, read anew for each direct read: the cluster changes."""

    def __init__(
        self, routers: list[str], partitions: int, seed: int, stores: Callable[[], Mapping[str, str]]
    ) -> None:
        super().__init__(routers, partitions, seed, call_seconds=None)
        self.pipelined: Counter[bytes] = Counter()
        """Acknowledged increments of each pipelined counter."""
        self.failures: list[str] = []
        """Of pipelines; those of single calls are in the history."""
        self.direct: Counter[str] = Counter()
        """How direct reads ended."""
        self._partitions = partitions
        self._stores = stores

    def _watches(self) -> list[Callable[[], None]]:
        return [self._pipeline, self._ask_stores]

    def _pipeline(self) -> None:
        with self.connect() as client:
            for number in itertools.count():
                if self._stop.wait(PIPELINE_PAUSE_S):
                    return
                keys = [self.tags[(number + op) % len(self.tags)] + b"piped" for op in range(PIPELINE_OPS)]
                try:
                    with client.pipeline() as pipeline:
                        for key in keys:
                            pipeline.increment(key)
                except KVError as error:
                    self.failures.append(f"pipeline {number}: {type(error).__name__}: {error}")
                else:
                    self.pipelined.update(keys)

    def _ask_stores(self) -> None:
        dice = random.Random(self._seed)
        with zmq.Context() as context:
            context.setsockopt(zmq.LINGER, 0)
            sockets: dict[str, zmq.Socket[bytes]] = {}
            for token in itertools.count():
                if self._stop.wait(DIRECT_PAUSE_S):
                    break
                name, endpoint = dice.choice(sorted(self._stores().items()))
                if endpoint not in sockets:
                    sockets[endpoint] = context.socket(zmq.DEALER)
                    sockets[endpoint].connect(endpoint)
                partition = dice.randrange(self._partitions)
                mode = dice.choice((LINEARIZABLE, LEASE))
                self.direct[self._ask(sockets[endpoint], name, token, partition, mode)] += 1
            for socket in sockets.values():
                socket.close()

    def _ask(self, socket: zmq.Socket[bytes], name: str, token: int, partition: int, mode: int) -> str:
        key = self.tags[partition] + b"register0"
        item = messages.Item(token, partition, DIRECT_TIMEOUT_MS, mode, 0, 0, 0, 0, encode_get(key))
        ticket = self.recorder.call(f"direct {name}", "get", key=key)
        with suppress(zmq.Again):
            socket.send(messages.encode_batch(1, [item]), zmq.NOBLOCK)
        while socket.poll(DIRECT_TIMEOUT_MS):
            try:
                reply = messages.decode_to_router(socket.recv())
            except ProtocolError as error:
                self.surprises.append(f"{name}: {error}")
                continue
            for answer in getattr(reply, "answers", ()):
                if answer[0] != token:
                    continue  # came too late for its question
                if answer[1] == Status.OK:
                    (result,) = decode_results(answer[2])
                    if result[0] in (Status.OK, Status.NOT_FOUND):
                        found = Found(result[1], result[2]) if result[0] == Status.OK else None
                        self.recorder.ok(ticket, found)
                        return "answered"
                self.recorder.fail(ticket)
                return "refused"
        self.recorder.fail(ticket)
        return "silent"
