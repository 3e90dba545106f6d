"""What of a store has to do with the cluster as a whole, put together: events, reports, the office of the
controller.

Knows every part and the inside of none. Off the data path: requests are served without any of it.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from shared import sockets
from shared.clock import Clock
from shared.hashing import xxh64
from shared.reactor import Reactor
from storenode.control.state import CONTROL
from storenode.events import Events
from storenode.groups import Groups
from storenode.maps import Maps
from storenode.office import Office
from storenode.reporting import Identity, Reporter
from storenode.service import Service
from storenode.starting import Home
from storenode.steering import Steering
from storenode.storerequests import StoreRequests

_VERSION: Final = version("ringkv")


class Listening(NamedTuple):
    """Where events are said, and whether a stranger may reach it."""

    endpoint: str
    insecure: bool


class ControlPlane:
    """Of one node. Hears and speaks from `start` on. `stack` takes what has to be closed, in order.
    ConfigError, ListenError.
    """

    def __init__(
        self,
        reactor: Reactor,
        context: sockets.Context,
        clock: Clock,
        home: Home,
        maps: Maps,
        groups: Groups,
        service: Service,
        stores: StoreRequests,
        listening: Listening,
        stack: ExitStack,
    ) -> None:
        identity = home.identity
        node, cluster = identity.node_id, xxh64(identity.cluster_id.encode())
        reporter = Reporter(
            Identity(cluster, node, identity.incarnation, _VERSION, clock.wall_ms()),
            groups.replicas,
            home.directory.free_bytes,
        )
        self._steering = Steering(cluster, clock, reactor.call_later, maps, home.registry, reporter, stores)
        self.office = Office(
            node,
            cluster,
            clock,
            maps,
            lambda: groups.replicas.get(CONTROL),
            self._steering.order,
            service.answer_control,
            self._steering.in_force,
        )
        self._events = Events(
            reactor,
            context,
            node,
            cluster,
            listening.endpoint,
            self._steering.on_map,
            self._steering.on_report,
            insecure=listening.insecure,
        )
        stack.callback(self._events.close)
        service.on_control = self.office.on_request
        self.say_figures = self._events.say_figures

    def start(self) -> None:
        """All replicas live."""
        self._steering.start(self._events, self.office)

    def figures(self) -> dict[str, Any]:
        """Who is the controller, as far as this store knows; counts since the start."""
        return {
            "controller": self.office.controller,
            "control": {
                "sits": self.office.sits,
                **self.office.counters.snapshot(),
                "orders_refused": self._steering.orders_refused,
                "events": self._events.counters.snapshot(),
            },
        }
