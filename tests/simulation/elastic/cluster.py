"""One run of a cluster that changes: three founders, their clients, a time in which stores come, go and fail,
a time in which its operators put it in order, the verdict.
"""

from __future__ import annotations

from typing import Any

from kvclient.errors import Status
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlCommand
from shared.hashing import xxh64
from tests.simulation.clients import Book
from tests.simulation.cluster import Cluster
from tests.simulation.elastic import settings
from tests.simulation.elastic.checks import ElasticChecks
from tests.simulation.elastic.health import Health
from tests.simulation.elastic.nemesis import ElasticNemesis
from tests.simulation.elastic.operators import Operator
from tests.simulation.elastic.routing import ElasticRouter
from tests.simulation.elastic.sockets import Wires, simulated
from tests.simulation.elastic.store import ElasticStore
from tests.simulation.network import Network
from tests.simulation.world import World

LAST_COMMANDS_S = 7.0
"""After the last fault: for as long an operator's command may still be tried, and carried out then. A pause
that came behind the resumption of moves held them for good (seed 100878).
"""

JOIN_S = 60.0
"""How long a store tries to join."""


class ElasticCluster(Cluster):
    """The world of one seed."""

    checks: ElasticChecks
    stores: dict[int, ElasticStore]  # type: ignore[assignment]
    """By node id, all that there ever were."""

    def __init__(self, world: World, place: str) -> None:
        self.world = world
        self.settings, self.plan = settings.draw(world.random)
        world.note(f"{self.settings} {self.plan}")
        self.network = Network(world, self.settings)
        self.wires = Wires(world, self.network)
        self.checks = ElasticChecks(world, self.settings.replicas)
        self.book = Book(world)
        self.joiners = 0
        self.place = place
        nodes = [self._node(number, number) for number in range(1, settings.FOUNDERS + 1)]
        self.map = ClusterMap.bootstrap("simulation", self.settings.partitions, self.settings.replicas, nodes)
        self.operator = Operator(world, self.wires, "operator", xxh64(self.map.cluster_id.encode()))
        self.stores = {}
        alive: list[ElasticStore] = []
        for node in nodes:
            alive.append(self._make(node.id, f"s{node.id}", self.map, self.map, self._incarnation()))
        self.routers = [
            ElasticRouter(world, self.network, self.settings, self.map, number, self.stores)  # type: ignore[arg-type]
            for number in range(self.settings.routers)
        ]
        keys = [b"k%d" % number for number in range(self.settings.keys)]
        self.keys = keys + [b"n%d" % number for number in range((self.settings.keys + 1) // 2)]
        self.clients = [self._client(number) for number in range(self.settings.clients)]
        self.nemesis = ElasticNemesis(
            world,
            self.network,
            self.settings,
            alive,  # type: ignore[arg-type]
            self.routers,
            self.clients,
            ElasticStore.start,  # type: ignore[arg-type]
            self._restart_router,
        )
        self.nemesis.cluster = self
        self.health = Health(self)

    def _node(self, number: int, node: int) -> Node:
        ports = [f"tcp://store:{thousand + number}" for thousand in (7000, 8000, 9000)]
        zone = f"z{number % 3}" if self.plan.zones else ""
        return Node(node, f"s{number}", *ports, zone)

    def _incarnation(self) -> str:
        return f"{self.world.random.getrandbits(128):032x}"

    def _make(
        self, node: int, name: str, first: ClusterMap | None, known: ClusterMap, incarnation: str
    ) -> ElasticStore:
        store = ElasticStore(self, first, known, node, name, incarnation)
        self.stores[node] = self.checks.by_node[node] = store
        for other in self.stores.values():
            if other is not store:
                store.peers[other.node] = other
                other.peers[node] = store
        store.to_router = self._to_router
        store.on_death = self._store_died
        store.on_pulled = lambda _: None
        self.wires.stores[known.node(node).rpc] = store
        return store

    # -- a store joins

    def join(self) -> None:
        """A machine with an empty disk asks to be taken in."""
        self.joiners += 1
        number = settings.FOUNDERS + self.joiners
        incarnation = self._incarnation()
        machine = Operator(self.world, self.wires, f"s{number}", 0)
        node = self._node(number, 1)
        arguments = {
            "name": node.name, "rpc": node.rpc, "bus": node.bus, "events": node.events, "zone": node.zone,
            "weight": node.weight, "incarnation": incarnation,
        }  # fmt: skip

        def told(status: int, body: dict[str, Any]) -> None:
            if status == Status.OUTCOME_UNKNOWN:
                machine.ask(ControlCommand.JOIN, arguments, JOIN_S, told)
            elif status == Status.OK:
                known = ClusterMap.decode(body["map"])
                machine.end_life()
                if body["node"] in self.stores:
                    return  # the answer came twice
                store = self._make(body["node"], node.name, None, known, incarnation)
                self.nemesis.admit(store)
                store.start()

        machine.ask(ControlCommand.JOIN, arguments, JOIN_S, told)

    # -- the run

    def run(self, faults_s: float) -> None:
        """Violation: what must not happen has happened."""
        with simulated():
            self._run(faults_s)

    def _run(self, faults_s: float) -> None:
        world = self.world
        for store in list(self.stores.values()):
            store.start()
        for router in self.routers:
            router.respond = self._to_client
            router.start()
        for client in self.clients:
            client.begin()
        self.operator.ask(ControlCommand.SET, {"replace_after_ms": self.plan.replace_after_ms}, faults_s)
        self.nemesis.begin()
        world.run_until(faults_s)
        self.nemesis.end()
        world.note("all is well from here on")
        world.run_until(world.now + LAST_COMMANDS_S)
        self.health.restore()
        self.map = self.health.map
        self._check_progress()
        self._check_replicas_agree()
        self._judge()

    def summary(self) -> str:
        newest = self.checks.newest
        assert newest is not None
        return (
            f"{super().summary()}, epoch {newest.map.epoch}, {newest.next_move - 1} moves, "
            f"nodes {[node.id for node in newest.map.nodes]} of {len(self.stores)}, "
            f"well after {self.health.seconds:.1f} s"
        )
