"""What the monitor knows of the cluster: what it heard, from whom and when; once a second a picture of it.

Owns the truth about who is gone and what is known. Must not know sockets, HTTP or Prometheus. One thread;
pictures and the history are for all.

Invariants:
- What is older than GONE_S is in no picture, but that it was there.
- Everything that grows has a bound: stores as the map has, ROUTERS_MAX routers, EVENTS_MAX events, an hour.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterable, Sequence
from importlib.metadata import version
from typing import Final

from kvclient.errors import ProtocolError
from kvclient.health import Problem
from monitor import changes, drawing, judgement, reading
from monitor.history import EVERY_S, History
from monitor.picture import Figures, Own, Picture, RouterSeen, Row, Said, StoreSeen
from monitor.watched import GONE_S, Watched
from shared import groups, process
from shared.clock import Clock
from shared.clustermap import ClusterMap, Node, stated_epoch
from shared.controlview import NO_VIEW, View
from shared.fields import connectable
from shared.figuresmessage import StoreFigures
from shared.hashing import xxh64
from shared.units import Endpoint

ROUTERS_MAX: Final = 64
"""As many as one store tells of."""
FORGET_S: Final = 600.0
"""A router that was silent for so long was taken away, or is somebody else's sorrow."""
EVENTS_MAX: Final = 100
VIEW_S: Final = 7.0
"""Three questions to the controller without an answer."""
SETTLE_S: Final = 3.0
"""Stores speak every second, or every three, each when it is its turn: one that hands a leadership over may
be heard before the one that took it. For so long a partition that nobody is known to lead is shown as it
was, if who led it is still heard.
"""

_VERSION: Final = version("ringkv")


class Model:
    """Of one monitor. `seeds` are the endpoints that it looks for a map at."""

    def __init__(self, name: str, seeds: Sequence[str], clock: Clock) -> None:
        self.map: ClusterMap | None = None
        self.history = History()
        self._name = name
        self._seeds = seeds
        self._clock = clock
        self._began = clock.monotonic()
        self._stores: dict[int, Watched] = {}
        self._groups: dict[int, dict[int, groups.Group]] = {}
        self._routers: dict[str, Watched] = {}
        self._router_names: dict[str, str] = {}
        self._view: tuple[float, View] = (self._began, NO_VIEW)
        self._leaders: list[tuple[int, int]] = []
        self._led: dict[int, tuple[float, Row]] = {}
        self._leader_changes: list[int] = []
        self._events: deque[Said] = deque(maxlen=EVENTS_MAX)
        self._heard = Counter[str]()
        self._point_at = self._began
        self.picture = self._draw()

    # -- what is heard

    def on_map(self, encoded: bytes) -> bool:
        """A map, from whomever; whether it is newer. ProtocolError if it is none, or another cluster's."""
        if self.map is not None and stated_epoch(encoded) <= self.map.epoch:
            return False
        newest = ClusterMap.decode(encoded)
        if self.map is not None and newest.cluster_id != self.map.cluster_id:
            raise ProtocolError(f"a map of cluster {newest.name} ({newest.cluster_id})")
        self.map = newest
        now = self._clock.monotonic()
        self._stores = {node.id: self._stores.get(node.id) or Watched(now) for node in newest.nodes}
        if len(self._leaders) != newest.partition_count:
            self._leaders = [(0, 0)] * newest.partition_count
            self._leader_changes = [0] * newest.partition_count
            self._led.clear()
        return True

    def on_store(self, heard: StoreFigures) -> None:
        """What a store publishes. ProtocolError if it is none of this cluster's."""
        watched = self._stores.get(heard.node)
        if self.map is None or heard.cluster != xxh64(self.map.cluster_id.encode()) or watched is None:
            raise ProtocolError(f"figures of node {heard.node}, which is none of this cluster")
        self._heard["stores"] += 1
        self._groups[heard.node] = groups.read(heard.figures) or {}
        watched.hear({name: value for name, value in heard.figures.items() if name != "groups"},
                     self._clock.monotonic())  # fmt: skip
        self._learn_routers(heard.figures.get("routers"))

    def _learn_routers(self, told: object) -> None:
        now = self._clock.monotonic()
        for one in told if isinstance(told, (list, tuple)) else ():
            name, front = reading.text(one, "name"), reading.text(one, "front")
            if name and front and len(self._routers) < ROUTERS_MAX and front not in self._routers:
                try:
                    if connectable(Endpoint(front)):
                        self._routers[front] = Watched(now)
                except ValueError:
                    continue
            if name and front in self._routers:
                self._router_names[front] = name

    def on_router(self, front: str, figures: Figures) -> None:
        """What a router answers. ProtocolError if nobody asked it."""
        watched = self._routers.get(front)
        if watched is None:
            raise ProtocolError(f"{front} was not asked")
        self._heard["routers"] += 1
        watched.hear(figures, self._clock.monotonic())

    def on_view(self, view: View) -> None:
        """What the controller says."""
        self._view = self._clock.monotonic(), view

    def on_refused(self) -> int:
        """Something came that was none of all this; how often that was."""
        self._heard["refused"] += 1
        return self._heard["refused"]

    # -- whom to ask

    @property
    def fronts(self) -> list[str]:
        """Of the routers to ask."""
        return list(self._routers)

    def controller(self) -> Node | None:
        """The store to ask what the controller knows: who sits, or whom the others name."""
        now, named = self._clock.monotonic(), Counter[int]()
        for node in self.map.nodes if self.map is not None else ():
            figures = self._stores[node.id].figures(now)
            if reading.flag(figures, "control", "sits"):
                return node
            named[reading.whole(figures, "controller") or 0] += 1
        for identity, _ in named.most_common():
            for node in self.map.nodes if self.map is not None else ():
                if node.id == identity:
                    return node
        return None

    # -- pictures

    def tick(self, lag_s: float) -> None:
        """A second has passed; this began `lag_s` too late."""
        now = self._clock.monotonic()
        for front, router in list(self._routers.items()):
            if now - (router.heard_at or router.known_since) > FORGET_S:
                del self._routers[front], self._router_names[front]
        before, after = self.picture, self._draw(lag_s)
        for level, text in changes.between(before, after):
            self._events.appendleft(Said(after.at_ms, level, text))
        self.picture = after._replace(events=tuple(self._events))
        if now >= self._point_at:
            self._point_at = max(self._point_at + EVERY_S, now)
            self.history.add(after.at_ms // 1000, drawing.totals(self.picture))

    def _draw(self, lag_s: float = 0.0) -> Picture:
        now = self._clock.monotonic()
        view = self._view[1] if now - self._view[0] <= VIEW_S else NO_VIEW
        known = self.map
        heard = {node: one.figures(now) for node, one in self._stores.items() if one.figures(now)}
        views = {node: self._groups[node] for node in heard}
        table = groups.table(known, views) if known is not None and any(views.values()) else []
        table = [self._settled(row, heard, now) for row in table]
        self._count_leaders(table)
        shares = drawing.shares(table)
        stores = [
            drawing.store(node, self._stores[node.id], heard, view, shares, now)
            for node in (() if known is None else known.nodes)
        ]
        routers = list(self._routers_seen(now))
        return Picture(
            self._clock.wall_ms(), now, known, stores, routers, table, view.controller,
            view.said if view.controller else None, self._judge(stores, routers, table, view, now),
            tuple(self._leader_changes), tuple(self._events), self._own(lag_s),
        )  # fmt: skip

    def _settled(self, row: Row, heard: Container[int], now: float) -> Row:
        if row["leader"]:
            self._led[row["partition"]] = now, row
        led_at, before = self._led.get(row["partition"], (now, row))
        return before if now - led_at < SETTLE_S and before["leader"] in heard else row

    def _count_leaders(self, table: Iterable[Row]) -> None:
        for row in table:
            partition, place = row["partition"], (row["leader"], row["term"])
            before = self._leaders[partition]
            if place[0] and place != before:
                self._leader_changes[partition] += before != (0, 0)
                self._leaders[partition] = place

    def _judge(
        self, stores: list[StoreSeen], routers: list[RouterSeen], table: list[Row], view: View, now: float
    ) -> list[Problem]:
        if self.map is None:
            return [judgement.without_map(self._seeds)]
        unheard = [one for one in self._stores.values() if one.heard_at is None]
        if any(now - one.known_since <= GONE_S for one in unheard):
            return [judgement.beginning(len(self._stores) - len(unheard), len(self._stores))]
        return judgement.problems(stores, routers, table, view)

    def _routers_seen(self, now: float) -> Iterable[RouterSeen]:
        taken: set[str] = set()
        for front in sorted(self._routers, key=lambda front: (self._router_names[front], front)):
            watched, name = self._routers[front], self._router_names[front]
            name = f"{name}@{front}" if name in taken else name
            taken.add(name)
            yield drawing.router(name, front, watched, now)

    def _own(self, lag_s: float) -> Own:
        uptime = round(self._clock.monotonic() - self._began, 3)
        figures = {**process.figures(), "uptime_s": uptime, "version": _VERSION}
        stores, routers, refused = (self._heard[what] for what in ("stores", "routers", "refused"))
        return Own(self._name, _VERSION, figures, stores, routers, refused, round(lag_s, 4))
