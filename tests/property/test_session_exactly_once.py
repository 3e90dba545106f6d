"""The session against a hostile network: lost and late messages, dying connections, refusals, a store that
answers a sequence once.

One seed is one run. Whatever happens, an increment that the caller was told about was applied exactly once,
one that failed for certain was not applied, and every request ends at its deadline.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient import protocol
from kvclient.errors import Status
from kvclient.pending import Pending
from kvclient.session import Session

ROUTERS = 3
REQUESTS = 60
TIMEOUT = 3.0


class Network:
    """Time, messages lost and late both ways, and stores: every key is a partition with a session table of
    its own.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.applied: dict[bytes, int] = {}
        self.tables: set[tuple[bytes, int]] = set()
        self.restarts = 0
        self.evictions = 0
        self.floors: dict[bytes, int] = {}
        self.up = [False] * ROUTERS
        self.session = Session([f"r{i}" for i in range(ROUTERS)], 5, self.random, self.now)
        self.trouble = self.random.choice([0.0, 0.1, 0.4])

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, action))

    def delay(self) -> float:
        return self.random.choice([0.001, 0.01, 0.3, 1.5])

    def carry(self, action: Callable[[], None]) -> None:
        """Soon, late, or never; not twice: ZeroMQ delivers a message at most once, what comes again was sent
        again.
        """
        if self.random.random() >= self.trouble:
            self.at(self.delay(), action)

    def flush(self) -> None:
        outbox = self.session.outbox
        while outbox:
            pending = outbox.popleft()
            if pending.done:
                continue
            if self.up[pending.router]:
                frame, router = pending.frame, pending.router
                self.carry(partial(self.serve, router, frame, self.restarts))
            else:
                self.session.unsent(pending, self.now)
        self.session.rebuilds.clear()

    def serve(self, router: int, frame: bytes, restarts: int) -> None:
        if restarts != self.restarts:
            return  # it was on its way to a process that has died
        request = protocol.decode_request(frame)
        status, body = self.execute(request)
        reply = protocol.encode_response(request.kind, request.request_id, status, body)
        self.carry(lambda: self.session.receive(router, [reply], self.now))

    def execute(self, request: protocol.Request) -> tuple[int, bytes]:
        if request.kind == protocol.Kind.PING:
            return 0, protocol.pack(["r", "v", 1])
        if self.random.random() < self.trouble:
            return Status.BUSY, protocol.encode_error("busy", retry_after_ms=self.random.randrange(50))
        return 0, b"".join(
            protocol.pack(self.slice(op[1], request)) for op in protocol.decode_results(request.body)
        )

    def slice(self, key: bytes, request: protocol.Request) -> list[object]:
        if self.random.random() < self.trouble / 2:
            refusals = (Status.UNAVAILABLE, Status.NOT_LEADER, Status.WRONG_REPLICA)
            return [int(self.random.choice(refusals)), "no leader"]
        if (key, request.sequence) in self.tables:
            return [0, 1, 1]
        if self.evictions and request.flags & protocol.FLAG_RETRY:
            return [int(Status.OUTCOME_UNKNOWN), "it may have run before the table's memory begins"]
        floor = self.floors[key] = max(self.floors.get(key, 0), request.acked_below)
        if request.sequence < floor:
            return [int(Status.OUTCOME_UNKNOWN), "acknowledged"]
        self.tables.add((key, request.sequence))
        self.applied[key] = self.applied.get(key, 0) + 1
        return [0, 1, 1]

    def run(self, until: float) -> None:
        while True:
            self.flush()
            due = min(self.session.next_due, self.events[0][0] if self.events else until)
            if due >= until:
                self.now = until
                return
            self.now = max(self.now, due)
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
                self.flush()
            if self.session.next_due <= self.now:
                self.session.tick(self.now)

    def shake(self) -> None:
        """Connections come and go; stores restart, which their session tables survive, unless so many others
        wrote meanwhile that this session had to go.
        """
        if self.random.random() < self.trouble / 10:
            self.restarts += 1
            if self.random.random() < 0.5:
                self.evictions += 1
                self.tables.clear()
                self.floors.clear()
        for router in range(ROUTERS):
            if self.random.random() < (0.3 if self.up[router] else 0.7):
                self.up[router] = not self.up[router]
                self.session.connection(router, self.up[router], self.now)
                self.flush()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_increment_is_applied_as_often_as_the_caller_was_told(seed):
    network = Network(seed)
    waiting = []
    for number in range(REQUESTS):
        network.shake()
        keys = [b"%d.%d" % (number, op) for op in range(network.random.choice([1, 1, 4]))]
        body = b"".join(protocol.encode_increment(key, 1) for key in keys)
        pending = Pending(protocol.Kind.OPS, body, len(keys), True, 0, TIMEOUT)
        network.session.submit(pending, network.now)
        waiting.append((network.now, keys, pending))
        network.run(network.now + network.random.choice([0.0, 0.01, 0.3]))
    network.run(network.now + TIMEOUT + 0.001)
    assert all(pending.done for _, _, pending in waiting)
    assert network.session.live == [] or all(pending.pinned >= 0 for pending in network.session.live)
    network.run(network.now + 10)  # what was under way arrives after all

    for _, keys, pending in waiting:
        for position, key in enumerate(keys):
            times = network.applied.get(key, 0)
            status = pending.error.status if pending.error else pending.results[position][0]
            if status == Status.OK:
                assert times == 1, (seed, key)
            elif status == Status.OUTCOME_UNKNOWN:
                assert times <= 1, (seed, key)
            else:
                assert times == 0, (seed, key, pending.error)
