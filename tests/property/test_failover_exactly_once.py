"""The real session and real routers, against partitions whose leaders change and die.

One seed is one run. The stores are a model: what a majority has committed is there for every later leader,
what a leader had only proposed may be committed by the next one or vanish. Whatever happens, an increment
that the caller was told about was applied exactly once, one that failed for certain was not applied, and no
attempt reaches a leader without RETRY while an earlier one may have been applied. Where no message is lost
and a leader is always elected soon, the caller sees nothing of it at all.
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
from router.requests import Budget
from router.routing import Router
from shared.clock import ManualClock
from shared.clustermap import ClusterMap
from shared.messages import Item
from shared.opstream import Limits
from tests.unit.router.conftest import PARTITIONS, THREE_STORES

ROUTERS = 2
REQUESTS = 40
TIMEOUT = 3.0
NODES = [node.id for node in THREE_STORES]
MAP = ClusterMap.bootstrap("test", PARTITIONS, 3, THREE_STORES)
ELECTION_SECONDS = 0.4


class Partition:
    """What its majority has: the session table and how often each key was incremented."""

    def __init__(self, leader: int) -> None:
        self.leader = leader  # 0 while there is none
        self.led_before = leader
        self.term = 1
        self.table: dict[int, bytes] = {}
        self.floor = 0
        self.first_tries: set[int] = set()  # proposed without RETRY, and not refused since
        self.applied: dict[bytes, int] = {}

    def apply(self, item: Item) -> bytes:
        self.floor = max(self.floor, item.acked_below)
        if item.sequence in self.table:
            return self.table[item.sequence]
        ops = protocol.decode_results(item.ops)
        if item.sequence < self.floor:
            return b"".join(protocol.pack((int(Status.OUTCOME_UNKNOWN), "acknowledged")) for _ in ops)
        for op in ops:
            self.applied[op[1]] = self.applied.get(op[1], 0) + 1
        self.table[item.sequence] = results = b"".join(protocol.pack((0, 1, 1)) for _ in ops)
        return results


class World:
    """One client, its routers, the stores, and time."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.clock = ManualClock(monotonic=1000.0)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.partitions = [Partition(self.random.choice(NODES)) for _ in range(PARTITIONS)]
        self.lives = dict.fromkeys(NODES, 1)
        self.up = dict.fromkeys(NODES, True)
        self.routers = [self.router(number) for number in range(ROUTERS)]
        self.session = Session([f"r{i}" for i in range(ROUTERS)], 5, self.random, self.now)
        for number in range(ROUTERS):
            self.session.connection(number, True, self.now)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def router(self, number: int) -> Router:
        router = Router(
            name=f"r{number}",
            version="1",
            seeds=["tcp://127.0.0.1:1"],
            limits=Limits(1 << 20),
            budget=Budget(1000, 1 << 20),
            clock=self.clock,
            random=self.random,
        )
        router.on_map(MAP.encode())
        for node in NODES:
            router.on_backend(node, True)
        return router

    # -- messages

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, action))

    def carry(self, action: Callable[[], None]) -> None:
        lost = self.random.random() < self.loss
        if not lost:
            slow = [0.3, 1.2] if self.loss else []
            self.at(self.random.choice([0.0005, 0.002, 0.01, *slow]), action)

    def flush(self) -> None:
        while self.session.outbox:
            pending = self.session.outbox.popleft()
            if not pending.done:
                router = self.routers[pending.router]
                self.carry(partial(router.on_request, b"c", pending.frame))
        self.session.rebuilds.clear()
        for number, router in enumerate(self.routers):
            for node, items in router.outbox_stores.items():
                router.outbox_stores[node] = []
                for item in items:
                    self.carry(partial(self.receive, number, node, self.lives[node], item))
            for _, frame in router.outbox_clients:
                self.carry(partial(self.respond, number, frame))
            router.outbox_clients.clear()

    def respond(self, number: int, frame: bytes) -> None:
        self.session.receive(number, [frame], self.now)

    # -- stores

    def receive(self, router: int, node: int, life: int, item: Item) -> None:
        if life != self.lives[node] or not self.up[node]:
            return
        partition = self.partitions[item.partition]
        if partition.leader == node:
            if not item.flags & protocol.FLAG_RETRY:
                assert item.sequence not in partition.first_tries, "sent again, and does not say so"
                partition.first_tries.add(item.sequence)
            self.at(
                self.random.choice([0.001, 0.05]),
                partial(self.commit, router, node, life, item, partition.term),
            )
        else:
            self.refuse(router, node, life, item)

    def commit(self, router: int, node: int, life: int, item: Item, term: int) -> None:
        """A majority has it; or the group has another leader meanwhile, which has it or has not."""
        partition = self.partitions[item.partition]
        if partition.term == term or self.random.random() < 0.4:
            self.answer(router, node, life, item, 0, partition.apply(item))
        elif self.random.random() < 0.5:
            if not item.flags & protocol.FLAG_RETRY:
                partition.first_tries.discard(item.sequence)
            self.refuse(router, node, life, item)
        else:
            self.lose_sight(router, node, life, item)

    def lose_sight(self, router: int, node: int, life: int, item: Item) -> None:
        """The store leads no more and cannot tell; the next leader has committed it by now, or never will."""
        if self.random.random() < 0.5:
            self.partitions[item.partition].apply(item)
        body = protocol.encode_error("it leads no more", retry_after_ms=50)
        self.answer(router, node, life, item, Status.OUTCOME_UNKNOWN, body)

    def refuse(self, router: int, node: int, life: int, item: Item) -> None:
        partition = self.partitions[item.partition]
        right, stale = partition.leader, partition.led_before
        hint = self.random.choice([right, right, right, stale, self.random.choice(NODES), None])
        body = protocol.encode_error("another leads", leader=hint)
        self.answer(router, node, life, item, Status.NOT_LEADER, body)

    def answer(self, router: int, node: int, life: int, item: Item, status: int, body: bytes) -> None:
        def arrive() -> None:
            if life == self.lives[node] and self.up[node]:
                self.routers[router].on_batch_reply(node, 1, [(item.token, status, body)])

        self.carry(arrive)

    def die(self, node: int) -> None:
        self.up[node] = False
        self.lives[node] += 1
        for router in self.routers:
            router.on_backend(node, False)
        for partition in self.partitions:
            if partition.leader == node:
                self.depose(partition)
        self.at(self.random.uniform(0.1, 1.0), partial(self.start, node))

    def start(self, node: int) -> None:
        self.up[node] = True
        for router in self.routers:
            router.on_backend(node, True)

    def depose(self, partition: Partition) -> None:
        partition.led_before, partition.leader = partition.leader, 0
        partition.term += 1
        self.at(self.random.uniform(0.05, ELECTION_SECONDS), partial(self.elect, partition))

    def elect(self, partition: Partition) -> None:
        if partition.leader == 0:
            partition.leader = self.random.choice([node for node in NODES if self.up[node]])

    def shake(self) -> None:
        """One store dies at a time: a majority is always there."""
        if self.random.random() < 0.15 and all(self.up.values()):
            self.die(self.random.choice(NODES))
        if self.random.random() < 0.15:
            self.depose(self.random.choice([p for p in self.partitions if p.leader] or [Partition(1)]))

    # -- time

    def run(self, until: float) -> None:
        while True:
            self.flush()
            due = min([self.session.next_due, *(router.next_due() for router in self.routers)])
            due = min(due, self.events[0][0] if self.events else until)
            if due >= until:
                self.clock.advance(until - self.now)
                return
            self.clock.advance(max(0.0, due - self.now))
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
                self.flush()
            for router in self.routers:
                router.should_ask_map()
                router.on_tick(self.now)
            if self.session.next_due <= self.now:
                self.session.tick(self.now)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.0, 0.05, 0.2]))
def test_every_increment_is_applied_as_often_as_the_caller_was_told(seed: int, loss: float) -> None:
    world = World(seed, loss)
    waiting = []
    for number in range(REQUESTS):
        world.shake()
        keys = [b"%d.%d" % (number, op) for op in range(world.random.choice([1, 1, 4]))]
        body = b"".join(protocol.encode_increment(key, 1) for key in keys)
        pending = Pending(protocol.Kind.OPS, body, len(keys), True, 0, TIMEOUT)
        world.session.submit(pending, world.now)
        waiting.append((keys, pending))
        world.run(world.now + world.random.choice([0.0, 0.01, 0.3]))
    world.run(world.now + TIMEOUT + 0.01)
    assert all(pending.done for _, pending in waiting)
    world.run(world.now + 10)  # what was under way arrives after all
    assert not any(router.busy for router in world.routers)

    for keys, pending in waiting:
        for position, key in enumerate(keys):
            times = sum(partition.applied.get(key, 0) for partition in world.partitions)
            status = pending.error.status if pending.error else pending.results[position][0]
            if status == Status.OK:
                assert times == 1, (seed, key)
            elif status == Status.OUTCOME_UNKNOWN:
                assert times <= 1, (seed, key)
            else:
                assert times == 0, (seed, key, status)
            assert status not in (Status.NOT_LEADER, Status.WRONG_REPLICA), "only between store and router"
            assert loss or status == Status.OK, (seed, key, status, pending.error, pending.results)
