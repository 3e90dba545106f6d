"""A router in the simulated world: the real core, links that stand or not, and a loop.

Links are what router/backends.py makes of sockets: a store that died is noticed at once if its farewell gets
through, one that is silent for three checks is down, and what was said on a link that went is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any

from router.backends import CHECK_SECONDS, SILENT_MAX, cut
from router.requests import Budget
from router.routing import Router
from router.service import STALL_SECONDS
from shared import messages
from shared.clustermap import ClusterMap
from shared.opstream import Limits
from tests.simulation.machine import Machine, SimulatedTimer
from tests.simulation.network import Network
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore
from tests.simulation.world import Violation, World


class SimulatedRouter(Machine):
    """One router, over all of its lives."""

    def __init__(
        self,
        world: World,
        network: Network,
        settings: Settings,
        cluster_map: ClusterMap,
        number: int,
        stores: dict[int, SimulatedStore],
    ) -> None:
        super().__init__(world, f"r{number}", settings.turn)
        self.number = number
        self.respond: Callable[[SimulatedRouter, bytes, bytes], None]
        self.core: Router
        self._network = network
        self._map = cluster_map
        self._stores = stores

    def start(self) -> None:
        self.begin_life()
        self.core = Router(
            name=self.name,
            version="1",
            seeds=["tcp://seed:1"],
            limits=Limits(1 << 16),
            budget=Budget(1000, 1 << 20),
            clock=self.clock,
            random=Random(self.world.random.getrandbits(64)),
        )
        self.core.on_map(self._map.encode())
        self._lives = dict.fromkeys(self._stores, 0)
        self._silent = dict.fromkeys(self._stores, 0)
        self._timer: SimulatedTimer | None = None
        self._awake_at = self.clock.monotonic()
        self._check()

    def die(self) -> None:
        self.world.note(f"{self.name} dies")
        self.end_life()

    @property
    def identity(self) -> str:
        """Of its connections: another one in each life."""
        return f"{self.name}.{self.life}"

    # -- links

    def _check(self) -> None:
        self.call_later(CHECK_SECONDS, self._check)
        for node, store in self._linked():
            speaks = store.up and store.paused_until <= self.world.now
            if speaks and self._network.linked(self.name, store.name):
                self._silent[node] = 0
                if self._lives[node] != store.life:
                    self._set(node, store.life)
            else:
                self._silent[node] += 1
                if self._silent[node] >= SILENT_MAX:
                    self._set(node, 0)

    def _linked(self) -> Iterable[tuple[int, SimulatedStore]]:
        """The stores that it seeks links to."""
        return self._stores.items()

    def _set(self, node: int, life: int) -> None:
        if self._lives[node] and self._lives[node] != life:
            self.core.on_backend(node, False)
        self._lives[node] = life
        if life:
            self.core.on_backend(node, True)

    def on_farewell(self, node: int) -> None:
        """The link to a store has ended."""
        self.deliver("notified", lambda: self._set(node, 0))

    # -- turns

    def handle(self, source: str, items: list[Any]) -> None:
        self._notice_stall()
        if source == "requests":
            self.core.on_requests(items)
        elif source == "stores":
            for node, life, frame in items:
                if self._lives[node] != life:
                    continue
                reply = messages.decode_to_router(frame)
                if type(reply) is not messages.BatchReply:
                    raise Violation(f"s{node} answers {self.name} with {reply}")
                self.core.on_batch_reply(node, reply.epoch, reply.answers)
        else:
            super().handle(source, items)

    def _notice_stall(self) -> None:
        now = self.clock.monotonic()
        if now - self._awake_at > STALL_SECONDS:
            self.core.on_stall()
        self._awake_at = now

    def end_turn(self) -> None:
        self._notice_stall()
        core = self.core
        for node, items in core.outbox_stores.items():
            if items:
                core.outbox_stores[node] = []
                for batch in cut(items):
                    self._send(node, messages.encode_batch(core.topology.epoch, batch))
        core.outbox_status.clear()
        core.outbox_control.clear()
        if core.should_ask_map():
            self._ask_map()
        for client, frame in core.outbox_clients:
            self.respond(self, client, frame)
        core.outbox_clients.clear()
        if self._timer is not None:
            self._timer.cancel()
        wait = max(0.001, core.next_due() - self.clock.monotonic())
        self._timer = self.call_later(wait, lambda: core.on_tick(self.clock.monotonic()))

    def _ask_map(self) -> None:
        """A map is wanted from some store; there is no other than that which it has."""

    def _send(self, node: int, frame: bytes) -> None:
        store, life, identity = self._stores[node], self._lives[node], self.identity.encode()

        def arrive() -> None:
            if store.life == life:
                store.on_rpc(identity, frame)

        self._network.send(self.name, store.name, arrive, self.clock.ahead)

    def on_reply(self, store: SimulatedStore, identity: str, frame: bytes) -> None:
        """A store says something to one of our lives."""
        arrive = partial(self._take_reply, store.node, store.life, identity, frame)
        self._network.send(store.name, self.name, arrive, store.clock.ahead)

    def _take_reply(self, node: int, life: int, identity: str, frame: bytes) -> None:
        if identity == self.identity:
            self.deliver("stores", (node, life, frame))
