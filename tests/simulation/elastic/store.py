"""A store of a cluster that changes, wired as storenode/node.py wires a real one.

Real beside what tests/simulation/store.py has: the whole data plane with its commands for groups, hosting and
erasing, maps, events, reports, the office of the controller. Simulated: their sockets, and who joins.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from shared.clustermap import ClusterMap
from shared.opstream import Limits
from storenode import raftframes
from storenode.control.state import CONTROL
from storenode.dataplane import Process
from storenode.directory import Identity
from storenode.maps import Maps
from storenode.starting import Home, Start
from tests.simulation.elastic.plane import SimulatedDataPlane
from tests.simulation.elastic.sockets import SocketMachine
from tests.simulation.store import IN_FLIGHT_BYTES, SimulatedService, SimulatedStore
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.elastic.checks import ElasticChecks
    from tests.simulation.elastic.cluster import ElasticCluster
    from tests.simulation.elastic.plane import SimulatedBus

SOFTWARE = "simulation"


class ElasticStore(SocketMachine, SimulatedStore):
    """One node, over all of its lives. `first`: the map that the cluster was founded with, None for a node
    that came later; `known`: the map that it begins with.
    """

    checks: ElasticChecks
    bus: SimulatedBus

    def __init__(
        self,
        cluster: ElasticCluster,
        first: ClusterMap | None,
        known: ClusterMap,
        node: int,
        name: str,
        incarnation: str,
    ) -> None:
        super().__init__(
            cluster.world, cluster.network, cluster.settings, known, node, cluster.place, cluster.checks, name
        )
        self.wires = cluster.wires
        self.checks = cluster.checks
        self.settings = cluster.settings
        self.lost = False
        """For good, disk and all: it starts no more."""
        self.gone_at = 0.0
        """When it died the last time."""
        self.control_deaf = 0
        """How many faults keep what is said of the control partition from it."""
        self.maps = Maps(known)
        self._incarnation = incarnation
        self._first = first
        self._durable_map = known

    def start(self) -> None:
        if not self.lost:
            super().start()

    def close(self) -> None:
        self.gone_at = self.world.now
        super().close()

    @property
    def epoch(self) -> int:
        return self.maps.map.epoch

    def keep_map(self, newest: ClusterMap) -> None:
        """As its disk does: map.bin is written beside and renamed, so that it is never lost."""
        self._durable_map = newest

    def chance(self) -> Random:
        """Of this life."""
        return Random(self._random.getrandbits(64))

    # -- what it is made of

    def _build(self, stack: ExitStack) -> None:
        settings, self._random = self._settings, Random(self.world.random.getrandbits(64))
        self._turn_ends: list[Callable[[], object]] = []
        self._map = self._durable_map
        self.maps = maps = Maps(self._map)
        maps.follow(self._follow)
        self.service = SimulatedService(self, maps, self.node, Limits(1 << 16), self.clock)  # type: ignore[arg-type]
        self.service.leave = self._leave
        config: Any = SimpleNamespace(
            node=SimpleNamespace(name=self.name),
            raft=SimpleNamespace(
                segment=settings.segment_bytes,
                cache=settings.log_cache_bytes,
                log_bytes=settings.log_bytes_max,
            ),
            limits=SimpleNamespace(in_flight_bytes=IN_FLIGHT_BYTES),
            listen=SimpleNamespace(events=maps.map.node(self.node).events if self.knows(self.node) else ""),
            insecure=False,
        )
        directory: Any = SimpleNamespace(path=Path(self.disk.path), free_bytes=lambda: 1 << 40)
        registry: Any = SimpleNamespace(hear=lambda *_: None, settle=lambda *_: None)
        cluster = self._map
        identity = Identity(
            cluster.name, cluster.cluster_id, self.node, cluster.partition_count, self._incarnation,
            self._first is not None,
        )  # fmt: skip
        home = Home(directory, identity, registry)
        start = Start(self.node, self._map, self._first, home, None)  # type: ignore[arg-type]
        process = Process(self, self, self.clock, self._on_log_failed)  # type: ignore[arg-type]
        plane = SimulatedDataPlane(self, config, start, home, process, maps, self.service, stack)
        self.office = plane.control.office
        self.service.start(None, self.groups.replicas, dict)  # type: ignore[arg-type]

    def _follow(self, newest: ClusterMap) -> None:
        self._map = newest
        if self.speaks:
            self.world.trace(self.name, "map", newest.epoch)
            self.checks.look_at_map(self, newest.epoch, newest.encode())

    # -- the reactor's side

    def on_turn_end(self, callback: Callable[[], object]) -> None:
        """As of the reactor."""
        self._turn_ends.append(callback)

    def add_reader(self, socket: Any, on_batch: Any, priority: int = 0) -> None:
        if socket is None:
            SimulatedStore.add_reader(self, socket, on_batch)
        else:
            super().add_reader(socket, on_batch, priority)

    def end_turn(self) -> None:
        for callback in self._turn_ends:
            callback()
        self.service.end_turn()
        if self.speaks:
            self.checks.after_turn(self)
        self.on_turn()
        if not self._jobs_scheduled:
            self._jobs_scheduled = True
            self.later(self._disk_latency() * 4, self._do_jobs)

    # -- messages

    def send_frame(self, peer: SimulatedStore, frame: bytes) -> None:
        """By the bus."""
        self._network.send(self.name, peer.name, partial(peer.on_frame, frame), self.clock.ahead)

    def on_frame(self, frame: bytes) -> None:
        if not self.up:
            return
        found = raftframes.decode(frame, self._cluster)
        if found.rows_dropped:
            raise Violation(f"{self.name} refuses rows of {found.sender}: {frame!r}")
        if found.sender in self.bus.peers:
            rows = [row for row in found.rows if row[0] != CONTROL or not self.control_deaf]
            self.deliver("bus", (found.sender, rows))

    def knows(self, node: int) -> bool:
        """Whether its map has that node."""
        return self.maps.node(node) is not None

    def _leave(self, router: bytes, frame: bytes) -> None:
        if not self.speaks:
            return
        if router.startswith(b"socket"):
            self.wires.reply(self, router, frame)
        else:
            self.to_router(self, router.decode(), frame)

    def _ask_peer(self, endpoint: str, body: bytes) -> None:
        peer: Any = self.wires.stores.get(endpoint)
        if self.speaks and peer is not None:
            arrive = partial(peer.deliver, "bulk", (self, body))
            self._network.send(self.name, peer.name, arrive, self.clock.ahead, stream=True)
