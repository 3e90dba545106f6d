"""How a cluster becomes well again when nothing fails any more, and what well means.

Owns what the operators do at the end: stores for those that were lost, `node remove --force` for these, moves
resumed. Then everything has to come to rest by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvclient.errors import Status
from shared.clustermap import ClusterMap
from shared.controlmessages import ControlCommand
from storenode.control.state import CONTROL, ControlState
from storenode.raft import Role
from storenode.replica.replica import Replica
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.elastic.cluster import ElasticCluster
    from tests.simulation.elastic.store import ElasticStore

REST_S = 60.0
"""In which all moves end. A snapshot, a catch-up and a swap take two or three seconds of a calm world,
commands that got lost are given again after two, and there are up to thirty replicas to move.
"""

AGAIN_S = 1.0
"""After a refusal."""

LOOK_S = 0.1
"""Between two looks: they cost more than what happens meanwhile."""


class Health:
    """Of one cluster."""

    def __init__(self, cluster: ElasticCluster) -> None:
        self.seconds = 0.0
        self._cluster = cluster
        self._world = cluster.world
        self._asked: set[str] = set()

    @property
    def map(self) -> ClusterMap:
        return self.state.map

    @property
    def state(self) -> ControlState:
        newest = self._cluster.checks.newest
        if newest is None:
            raise Violation("there never was a control state")
        return newest

    def restore(self) -> None:
        """Violation unless the cluster comes to rest."""
        began = self._world.now
        self._command("resume", ControlCommand.REBALANCE_RESUME, {})
        self._until("has a state", lambda: self._cluster.checks.newest is not None)
        self._until("has enough nodes", self._enough_nodes)
        for node in self._lost():
            self._command(f"remove {node}", ControlCommand.NODE_REMOVE, {"node": node, "force": True})
        self._until("comes to rest", self._rests)
        self._command("rebalance", ControlCommand.REBALANCE_START, {})
        self._until("was told to rebalance", lambda: "rebalance" not in self._asked)
        self._until("comes to rest balanced", self._rests)
        self._check_balance()
        self.seconds = self._world.now - began

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        until = self._world.now + REST_S
        while not condition():
            if self._world.now >= until:
                self._tell()
                raise Violation(f"within {REST_S} s of health the cluster never {what}: {self._why()}")
            self._world.run_until(self._world.now + LOOK_S)

    def _tell(self) -> None:
        """What the controller says of its moves."""
        for store in self._living():
            controller = store.office._controller if store.up else None
            if controller is not None:
                view = controller.view(store.clock.monotonic())
                self._world.note(f"{store.name} is the controller, it waits: {view.waits}")
                for move in controller.state.moves:
                    self._world.note(f"{move}: {view.moves.get(move.id)}")

    def _command(self, what: str, command: ControlCommand, arguments: dict[str, Any]) -> None:
        """Given until it is carried out. A removal is refused as long as a controller that stood still takes
        the lost node to be alive.
        """
        self._asked.add(what)

        def ask() -> None:
            self._cluster.operator.ask(command, arguments, REST_S, told)

        def told(status: int, body: dict[str, Any]) -> None:
            if status == Status.OUTCOME_UNKNOWN:
                ask()
            elif status == Status.CONDITION_FAILED and arguments.get("node") in self._lost():
                self._world.after(AGAIN_S, ask)
            else:
                self._asked.discard(what)

        ask()

    # -- what is there

    def _lost(self) -> list[int]:
        stores = self._cluster.stores
        return [node.id for node in self.map.nodes if node.id not in stores or stores[node.id].lost]

    def _living(self) -> list[ElasticStore]:
        stores = self._cluster.stores
        return [stores[node.id] for node in self.map.nodes if node.id in stores and not stores[node.id].lost]

    def _enough_nodes(self) -> bool:
        usable = [
            store
            for store in self._living()
            if self.map.node(store.node).weight > 0 and self.map.node(store.node).state != "draining"
        ]
        wanted = self.map.replication_factor
        if len(usable) >= wanted:
            return True
        if not self._asked & {"join"}:
            self._asked.add("join")
            self._cluster.join()
            self._world.after(10.0, lambda: self._asked.discard("join"))
        return False

    def _rests(self) -> bool:
        return not self._why()

    def _why(self) -> str:
        """What is not yet as it shall be; "" if all is."""
        state = self.state
        if self._asked - {"join", "rebalance"}:
            return f"commands wait: {sorted(self._asked)}"
        if lost := self._lost():
            return f"the nodes {lost} are lost and in the map"
        if state.moves:
            return f"there are moves: {state.moves}"
        for node in state.map.nodes:
            if node.state == "draining" and (held := state.map.partitions_of(node.id)):
                return f"node {node.id} is draining and holds {held}"
            if node.state not in ("up", "draining"):
                return f"node {node.id} is {node.state}"
        for partition, row in (*enumerate(state.map.replicas), (CONTROL, state.map.control)):
            if why := self._why_not_settled(partition, row):
                return why
        for store in self._living():
            if store.epoch != state.map.epoch:
                return f"{store.name} has the map of epoch {store.epoch}, the newest is {state.map.epoch}"
        return ""

    def _why_not_settled(self, partition: int, row: tuple[int, ...]) -> str:
        leaders = 0
        for store in self._living():
            replica = store.groups.replicas.get(partition)
            if replica is not None and store.node not in row and _waits_to_join(replica):
                continue
            if (replica is not None) != (store.node in row):
                return f"p{partition} is of {row}; on {store.name} {'it is' if replica else 'is none'}"
            if replica is None:
                continue
            configuration = replica.raft.configuration
            if configuration.joint or configuration.learners or configuration.voters != frozenset(row):
                return f"p{partition} is of {row}; {store.name} has {configuration}"
            leaders += replica.raft.role is Role.LEADER
        if leaders != 1:
            return f"p{partition} has {leaders} leaders"
        return ""

    def _check_balance(self) -> None:
        """Every node has its share, as nearly as whole replicas allow and a node holds one of a partition."""
        state = self.state
        nodes = [node for node in state.map.nodes if node.state != "draining" and node.weight > 0]
        total = state.map.partition_count * state.map.replication_factor
        weight = sum(node.weight for node in nodes)
        if self._cluster.plan.zones or len({node.weight for node in nodes}) > 1:
            return  # zones and bounds of weights come before shares
        for node in nodes:
            held, share = len(state.map.partitions_of(node.id)), total * node.weight / weight
            if abs(held - share) > 1:
                raise Violation(
                    f"node {node.id} holds {held} replicas, its share is {share:.1f}: {state.map}"
                )


def _waits_to_join(replica: Replica) -> bool:
    """Hosted for an order that then came to nothing: it holds nothing, is not reported, and may wait for ever
    (docs/control.md section 3, docs/raft.md section 9).
    """
    return not replica.raft.configuration.members and replica.machine.position.index == 0
