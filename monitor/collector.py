"""The monitor's links: hears the stores, asks the routers, the controller and for the map (docs/monitor.md
section 1).

Owns every socket, whom to hear and when to ask. Must not know what figures mean: `monitor.model` takes them,
and refuses what is none. Loop thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from kvclient.errors import KVError, ProtocolError, Status
from kvclient.protocol import Kind, Request, decode_response, encode_admin, encode_request, pack
from monitor.asking import Asker
from monitor.model import Model
from shared import figuresmessage, frames, logs, messages, sockets
from shared.config import ConfigError
from shared.controlmessages import ControlCommand, ControlReply, ControlRequest, encode_control_request
from shared.controlview import read_view
from shared.hashing import xxh64
from shared.messages import FIGURES_TOPIC, MAP_TOPIC
from shared.reactor import Reactor

TICK_S: Final = 1.0
EAGER_S: Final = 0.2
"""Until there is a map: a link takes some milliseconds to come up, and questions do not wait for it."""
MAP_EVERY: Final = 10
SHOW_EVERY: Final = 2
"""Ticks."""
SHOW_MS: Final = 1500
SILENT_S: Final = 10.0
"""Events of a store that is silent for so long are connected to afresh, as stores do with one another."""

_FIGURES: Final = Request(Kind.ADMIN, 1, 1000, 0, 0, 0, 0, 0, encode_admin("figures"))

_log = logs.get("collector")


class Collector:
    """Of one monitor. Begins at once."""

    def __init__(
        self, reactor: Reactor, context: sockets.Context, model: Model, seeds: Sequence[str]
    ) -> None:
        self._reactor = reactor
        self._context = context
        self._model = model
        self._seeds = list(seeds)
        self._ticks = 0
        self._due = time.monotonic()
        self.ticked_at = self._due
        """When the last round began; any thread may read it."""
        self._stores: dict[str, Asker] = {}
        self._routers: dict[str, Asker] = {}
        self._endpoints: dict[int, str] = {}
        self._heard: dict[int, float] = {}
        self._events = sockets.bus_subscriber(context, (MAP_TOPIC, FIGURES_TOPIC))
        reactor.add_reader(self._events, self._on_events)
        self._tick()

    def close(self) -> None:
        """Give the sockets back."""
        for asker in (*self._stores.values(), *self._routers.values()):
            asker.close()
        self._reactor.remove_reader(self._events)
        self._events.close(0)

    # -- rounds

    def _tick(self) -> None:
        now = time.monotonic()
        lag_s, self.ticked_at = max(0.0, now - self._due), now
        self._due = now + (EAGER_S if self._model.map is None else TICK_S)
        self._reactor.call_later(self._due - now, self._tick)  # first: whatever fails below, rounds go on
        self._ask(now)
        self._model.tick(lag_s)
        self._ticks += 1

    def _ask(self, now: float) -> None:
        known = self._model.map
        if known is None:
            for endpoint in self._seeds:
                self._store(endpoint).ask(messages.encode_map_request(self._ticks))
        else:
            if self._ticks % MAP_EVERY == 0:
                node = known.nodes[self._ticks // MAP_EVERY % len(known.nodes)]
                self._store(node.rpc).ask(messages.encode_map_request(self._ticks))
            if self._ticks % SHOW_EVERY == 0:
                self._ask_controller()
        self._keep(self._routers, self._model.fronts, self._router)
        for asker in self._routers.values():
            asker.ask(encode_request(_FIGURES))
        for node_id, endpoint in self._endpoints.items():
            if now - self._heard[node_id] > SILENT_S:
                self._heard[node_id] = now
                sockets.reconnect(self._events, endpoint)

    def _ask_controller(self) -> None:
        node, known = self._model.controller(), self._model.map
        if node is not None and known is not None:
            cluster = xxh64(known.cluster_id.encode())
            show = ControlRequest(self._ticks, cluster, SHOW_MS, 0, ControlCommand.SHOW, pack({}))
            self._store(node.rpc).ask(encode_control_request(show))

    def _store(self, endpoint: str) -> Asker:
        asker = self._stores.get(endpoint)
        if asker is None:
            asker = self._stores[endpoint] = Asker(
                self._reactor, self._context, endpoint, partial(self._guarded, self._on_store)
            )
        return asker

    def _router(self, front: str) -> Asker:
        on_answer = partial(self._guarded, partial(self._on_router, front))
        return Asker(self._reactor, self._context, front, on_answer)

    @staticmethod
    def _keep(askers: dict[str, Asker], wanted: Sequence[str], make: Callable[[str], Asker]) -> None:
        for endpoint in askers.keys() - set(wanted):
            askers.pop(endpoint).close()
        for endpoint in wanted:
            if endpoint not in askers:
                askers[endpoint] = make(endpoint)

    # -- what comes

    def _on_events(self, batch: list[list[bytes]]) -> None:
        for message in batch:
            self._guarded(self._on_event, message[0] if len(message) == 1 else b"")

    def _on_event(self, frame: bytes) -> None:
        if frame.startswith(FIGURES_TOPIC):
            heard = figuresmessage.decode(frame[len(FIGURES_TOPIC) :])
            self._model.on_store(heard)
            self._heard[heard.node] = time.monotonic()
        elif frame.startswith(MAP_TOPIC):
            self._on_map(frame[len(MAP_TOPIC) :])
        else:
            raise ProtocolError("an event is one frame of a known topic")

    def _on_store(self, frame: bytes) -> None:
        message = messages.decode_to_peer(frame)
        if isinstance(message, messages.MapReply):
            self._on_map(message.map)
        elif isinstance(message, ControlReply):
            self._model.on_view(read_view(message.status, message.body))
        elif isinstance(message, messages.Fault):
            raise ProtocolError(f"a store refused a frame of ours: {message.message[:200]}")

    def _on_router(self, front: str, frame: bytes) -> None:
        response = decode_response(frame)
        if response.status != Status.OK:
            raise ProtocolError(f"the router at {front} gives no figures: status {response.status}")
        figures: Any = frames.decode(response.body)
        if type(figures) is not dict:
            raise ProtocolError(f"what the router at {front} gives is no map")
        self._model.on_router(front, figures)

    def _guarded(self, take: Callable[[bytes], object], frame: bytes) -> None:
        """What is not understood is counted, and logged now and then: peers can cause it at will."""
        try:
            take(frame)
        except (KVError, ProtocolError) as error:
            count = self._model.on_refused()
            if count.bit_count() == 1:
                _log.warning("refused", reason=str(error)[:300], count=count)

    def _on_map(self, encoded: bytes) -> None:
        if not self._model.on_map(encoded):
            return
        known = self._model.map
        assert known is not None, "a map was taken"
        _log.info("map_installed", cluster=known.name, epoch=known.epoch, nodes=len(known.nodes))
        wanted = {node.id: node.events for node in known.nodes if node.events}
        for node_id, endpoint in list(self._endpoints.items()):
            if wanted.get(node_id) != endpoint:
                del self._endpoints[node_id]
                sockets.disconnect(self._events, endpoint)
        for node_id in wanted.keys() - self._endpoints.keys():
            try:
                sockets.connect(self._events, wanted[node_id])
            except ConfigError as error:
                _log.warning("events_refused", node=node_id, reason=str(error))
                continue
            self._endpoints[node_id] = wanted[node_id]
            self._heard[node_id] = time.monotonic()
        addresses = {node.rpc for node in known.nodes}
        for endpoint in self._stores.keys() - addresses:
            self._stores.pop(endpoint).close()
