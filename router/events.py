"""Maps as the stores publish them: one subscription to the `events` endpoints of all stores of the map.

Owns that socket. Must not know requests or the links to stores. What comes by it is believed no more than an
answer to MAP, and whatever is lost is learnt by such an answer.
"""

from __future__ import annotations

from typing import Final

import zmq

from kvclient.errors import ProtocolError
from router import figures as figure
from router.routing import Router
from shared import logs, sockets
from shared.clustermap import stated_epoch
from shared.config import ConfigError
from shared.messages import MAP_TOPIC
from shared.reactor import Reactor

MAP_BYTES_MAX: Final = 1 << 20  # four times what 4,096 partitions and 50 nodes take
# Newer maps that are read in one turn, the newest first: one is enough, unless somebody publishes lies.
_TRIES: Final = 3

_log = logs.get("events")


class Events:
    """The subscription of one router."""

    def __init__(self, reactor: Reactor, context: zmq.Context[zmq.Socket[bytes]], core: Router) -> None:
        self._reactor = reactor
        self._core = core
        self._epoch = 0
        self._endpoints: set[str] = set()
        self._socket = sockets.bus_subscriber(context, [MAP_TOPIC])
        reactor.add_reader(self._socket, self._on_messages)

    def follow(self) -> None:
        """At the end of each turn: hear the stores of the map, and no others."""
        topology = self._core.topology
        if topology.map is None or topology.epoch == self._epoch:
            return
        self._epoch = topology.epoch
        wanted = {node.events for node in topology.map.nodes if node.events}
        for endpoint in self._endpoints - wanted:
            sockets.disconnect(self._socket, endpoint)
        for endpoint in sorted(wanted - self._endpoints):
            try:
                sockets.connect(self._socket, endpoint)
            except ConfigError as error:
                _log.warning("events_endpoint_refused", endpoint=endpoint, reason=str(error))
                wanted.discard(endpoint)
        self._endpoints = wanted

    def close(self) -> None:
        """Give the socket back."""
        self._reactor.remove_reader(self._socket)
        self._socket.close(0)

    def _on_messages(self, batch: list[list[bytes]]) -> None:
        newer: dict[int, bytes] = {}
        for frames in batch:
            encoded = _map_in(frames)
            epoch = 0 if encoded is None else stated_epoch(encoded)
            if encoded is None or not epoch:
                self._refuse("no map")
            elif epoch > self._core.topology.epoch:
                newer[epoch] = encoded
        for epoch in sorted(newer, reverse=True)[:_TRIES]:
            try:
                if self._core.on_map(newer[epoch]):
                    return
            except ProtocolError as error:
                self._refuse(error.message)

    def _refuse(self, reason: str) -> None:
        counters = self._core.figures.counters.values
        counters[figure.STORE_FRAMES_BAD] += 1
        if figure.worth_logging(counters[figure.STORE_FRAMES_BAD]):
            _log.warning("event_refused", reason=reason, count=counters[figure.STORE_FRAMES_BAD])


def _map_in(frames: list[bytes]) -> bytes | None:
    """The bytes behind the topic, if it is one frame of a size that a map may have."""
    if len(frames) != 1 or len(frames[0]) > MAP_BYTES_MAX or not frames[0].startswith(MAP_TOPIC):
        return None
    return frames[0][len(MAP_TOPIC) :]
