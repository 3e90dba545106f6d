"""What goes round between the stores for the sake of the cluster: maps, reports, orders; and when
(docs/control.md section 3).

Owns the times of reports, and how this store comes by a newer map. Must not know what a report, an order or a
map is good for. Loop thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvclient.errors import ProtocolError
from shared import logs
from shared.clock import Clock
from shared.clustermap import ClusterMap, stated_epoch
from shared.groupmessages import GroupCommand, GroupRequest, encode_group_request
from shared.messages import MapReply, encode_map_request
from storenode.control.controller import Order
from storenode.control.reports import Heading, encode_report
from storenode.control.state import ControlState
from storenode.events import Events
from storenode.maps import Maps
from storenode.office import Office
from storenode.registry import Registry
from storenode.reporting import Reporter
from storenode.storerequests import Reply, StoreRequests, refusal

TICK_S: Final = 0.05
REPORT_S: Final = 1.0
EARLY_S: Final = 0.1
"""Between a report and an early one: what changes to and fro costs no more than this."""
MAP_EVERY: Final = 10
"""Reports; whoever has just begun to listen waits no longer for a map."""

ORDER_S: Final = 5.0
ASK_MAP_S: Final = 3.0

_log = logs.get("steering")


class Steering:
    """Of one node. `cluster` is XXH64 of the cluster id; `call_later` the loop's. Begins with `start`."""

    def __init__(
        self,
        cluster: int,
        clock: Clock,
        call_later: Callable[[float, Callable[[], object]], object],
        maps: Maps,
        registry: Registry,
        reporter: Reporter,
        stores: StoreRequests,
    ) -> None:
        self.orders_refused = 0
        self._cluster = cluster
        self._clock = clock
        self._call_later = call_later
        self._maps = maps
        self._registry = registry
        self._reporter = reporter
        self._stores = stores
        self._events: Events | None = None
        self._office: Office | None = None
        self._reported_at = float("-inf")
        self._reports = 0
        self._asking_map = False
        maps.follow(self._follow)

    def start(self, events: Events, office: Office) -> None:
        """From now on this store is heard."""
        self._events, self._office = events, office
        events.set_peers(_endpoints(self._maps.map))
        self._tick()

    # -- time

    def _tick(self) -> None:
        self._call_later(TICK_S, self._tick)
        assert self._office is not None
        self._office.tick()
        since = self._clock.monotonic() - self._reported_at
        if since >= REPORT_S or (since >= EARLY_S and self._reporter.changed()):
            self._report()

    def _report(self) -> None:
        assert self._events is not None
        assert self._office is not None
        now = self._reported_at = self._clock.monotonic()
        report = self._reporter.report(self._maps.map.epoch, now)
        self._events.say_report(encode_report(report))
        self._office.hear_report(report)
        self._reports += 1
        if self._reports % MAP_EVERY == 0:
            self._events.say_map(self._maps.encoded)

    # -- what others say

    def on_map(self, encoded: bytes) -> None:
        """A map, of whomever. ProtocolError if it claims to be newer and is none."""
        if stated_epoch(encoded) > self._maps.map.epoch:
            self._maps.take(ClusterMap.decode(encoded))

    def on_report(self, heading: Heading, payload: bytes) -> None:
        """The report of a peer. ProtocolError."""
        if self._maps.node(heading.node) is not None:  # or anybody could fill the disk with names
            self._registry.hear(heading.node, heading.incarnation)
        if heading.epoch > self._maps.map.epoch:
            self._ask_map(heading.node)
        if self._office is not None:
            self._office.hear(payload)

    def _ask_map(self, node: int) -> None:
        known = self._maps.node(node)
        if self._asking_map or known is None:
            return
        self._asking_map = True
        deadline = self._clock.monotonic() + ASK_MAP_S
        self._stores.ask(known.rpc, encode_map_request, deadline, self._map_came)

    def _map_came(self, reply: Reply | None) -> None:
        self._asking_map = False
        if not isinstance(reply, MapReply):
            return  # the next report with that epoch asks again
        try:
            self.on_map(reply.map)
        except ProtocolError as error:
            _log.warning("map_refused", reason=error.message)

    def _follow(self, cluster_map: ClusterMap) -> None:
        if self._events is not None:
            self._events.set_peers(_endpoints(cluster_map))
            self._events.say_map(self._maps.encoded)

    # -- what the office of the controller says

    def in_force(self, state: ControlState) -> None:
        """The control state, as it was read or written."""
        self._maps.take(state.map)
        self._registry.settle((member.node, member.incarnation) for member in state.members)

    def order(self, order: Order) -> None:
        """Tells the store what to do. Whatever it answers is told to people only."""
        known = self._maps.node(order.to)
        if known is None:
            return
        command, timeout_ms = GroupCommand(order.command), round(ORDER_S * 1000)

        def encode(token: int) -> bytes:
            request = GroupRequest(
                token, self._cluster, order.partition, timeout_ms, 0, command, order.node, order.other
            )
            return encode_group_request(request)

        def answered(reply: Reply | None) -> None:
            reason = refusal(reply)
            if reason is not None:
                self.orders_refused += 1
            _log.info("order", store=order.to, **_words(order), refused=reason)

        self._stores.ask(known.rpc, encode, self._clock.monotonic() + ORDER_S, answered, once=True)


def _words(order: Order) -> dict[str, Any]:
    return {
        "partition": order.partition,
        "command": order.command,
        "member": order.node,
        "other": order.other,
    }


def _endpoints(cluster_map: ClusterMap) -> dict[int, str]:
    return {node.id: node.events for node in cluster_map.nodes if node.events}
