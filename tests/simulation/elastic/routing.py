"""A router of a cluster that changes: it learns maps from the stores, and keeps links to those of its map
and to those that left it and have not answered what they have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from shared import messages
from tests.simulation.routing import SimulatedRouter
from tests.simulation.store import SimulatedStore


class ElasticRouter(SimulatedRouter):
    """Its seeds are all stores that there ever were, as operators keep their configuration up to date."""

    def start(self) -> None:
        super().start()
        self._lives = defaultdict(int)
        self._silent = defaultdict(int)
        self._asked = 0

    def _linked(self) -> Iterable[tuple[int, SimulatedStore]]:
        known = self.core.topology.map
        assert known is not None
        nodes = {node.id for node in known.nodes}
        for node in list(self._lives):
            if node not in nodes and not self.core.is_with(node):
                del self._lives[node]
        return [(node, self._stores[node]) for node in self._stores if node in nodes or node in self._lives]

    def _ask_map(self) -> None:
        self._asked += 1
        stores = list(self._stores.values())
        store, identity = stores[self._asked % len(stores)], self.identity.encode()
        frame = messages.encode_map_request(self._asked)
        self._network.send(
            self.name,
            store.name,
            lambda: store.on_rpc(identity, frame) if store.up else None,
            self.clock.ahead,
        )

    def handle(self, source: str, items: list[Any]) -> None:
        if source == "stores":
            rest = []
            for node, life, frame in items:
                reply = messages.decode_to_router(frame)
                if isinstance(reply, messages.MapReply):
                    self.core.on_map(reply.map)
                else:
                    rest.append((node, life, frame))
            items = rest
        super().handle(source, items)
