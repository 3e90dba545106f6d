"""What happens to a cluster that changes: all that goes wrong anyway, what its operators do, and what hits
those who carry it out.

Owns which nodes are lost for good. Never more of one group than it can bear: whatever its replicas take for
its members, the lost are one of them at most, and fewer than half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.controlmessages import ControlCommand
from storenode.control.state import CONTROL
from storenode.raft import Role
from tests.simulation.elastic import settings
from tests.simulation.nemesis import Nemesis

if TYPE_CHECKING:
    from tests.simulation.elastic.cluster import ElasticCluster
    from tests.simulation.elastic.store import ElasticStore

PATIENCE_S = 4.0
"""How long an operator tries a command."""


class ElasticNemesis(Nemesis):
    """Faults and commands of the kinds that the settings name."""

    cluster: ElasticCluster
    _stores: list[ElasticStore]  # type: ignore[assignment]

    def _command(self, command: ControlCommand, **arguments: Any) -> None:
        self.cluster.operator.ask(command, arguments, PATIENCE_S)

    def _any_node(self) -> int:
        """A node of the map as it is now."""
        newest = self.cluster.checks.newest
        nodes = (newest.map if newest is not None else self.cluster.map).nodes
        return self._world.random.choice(nodes).id

    def admit(self, store: ElasticStore) -> None:
        """A store that has joined meets the same fate as the others, and is given something to hold."""
        self._stores.append(store)
        store.on_pulled = self._pulled  # type: ignore[assignment]
        wait = self._world.random.uniform(0.2, 2.0)
        self._world.after(wait, lambda: self._rebalance() if self._active else None)

    # -- what operators do

    def _join(self) -> None:
        if self.cluster.joiners < settings.EXTRA_MAX:
            self.cluster.join()

    def _drain(self) -> None:
        self._command(ControlCommand.NODE_DRAIN, node=self._any_node())

    def _undrain(self) -> None:
        self._command(ControlCommand.NODE_UNDRAIN, node=self._any_node())

    def _remove(self) -> None:
        force = self._world.random.random() < 0.3
        newest = self.cluster.checks.newest
        draining = [node.id for node in newest.map.nodes if node.state == "draining"] if newest else []
        node = self._world.random.choice(draining) if draining else self._any_node()
        self._command(ControlCommand.NODE_REMOVE, node=node, force=force)

    def _weigh(self) -> None:
        weight = self._world.random.choice(self.cluster.plan.weights)
        self._command(ControlCommand.NODE_SET_WEIGHT, node=self._any_node(), weight=weight)

    def _pause_moves(self) -> None:
        self._command(ControlCommand.REBALANCE_PAUSE)
        self._for_a_while(5.0, lambda: self._command(ControlCommand.REBALANCE_RESUME))

    def _resume_moves(self) -> None:
        self._command(ControlCommand.REBALANCE_RESUME)

    def _rebalance(self) -> None:
        self._command(ControlCommand.REBALANCE_START)

    def _stop_moves(self) -> None:
        self._command(ControlCommand.REBALANCE_STOP)

    # -- what happens to nodes

    def _lose(self) -> None:
        """A node for good, disk and all."""
        store = self._world.random.choice(self._stores)
        if self.can_be_lost(store):
            self._stores.remove(store)
            store.lost = True
            self._world.note(f"{store.name} is lost for good")
            store.die(True, "lost for good")

    def can_be_lost(self, store: ElasticStore) -> bool:
        """Whether every group bears the loss, whatever its replicas take for its members."""
        lost = {one.node for one in self.cluster.stores.values() if one.lost} | {store.node}  # type: ignore[attr-defined]
        for one in self._stores:
            for replica in one.groups.replicas.values():
                members = replica.raft.configuration.members
                gone = len(members & lost)
                if gone > 1 or (gone and 2 * gone >= len(members)):
                    return False
        return True

    def _controller(self) -> ElasticStore | None:
        for store in self._stores:
            control = store.groups.replicas.get(CONTROL) if store.up else None
            if control is not None and control.raft.role is Role.LEADER:
                return store
        return None

    def _kill_controller(self) -> None:
        store = self._controller()
        if store is not None:
            store.die(self._world.random.random() < 0.5, "the controller dies")

    def _step_controller(self) -> None:
        store = self._controller()
        if store is not None:
            store.disk.steps_until_death = self._world.random.randint(1, 25)

    # -- what happens to control alone

    def _headless(self) -> None:
        """The control partition has no majority for a while; all other groups go on."""
        hosts = [store for store in self._stores if store.up and CONTROL in store.groups.replicas]
        deaf = self._world.random.sample(hosts, len(hosts) // 2 + 1) if hosts else []
        for store in deaf:
            store.control_deaf += 1

        def hear() -> None:
            for store in deaf:
                store.control_deaf -= 1

        seconds = self._for_a_while(6.0, hear)
        self._world.note(f"{[store.name for store in deaf]} hear nothing of control for {seconds:.2f} s")

    def _lose_reports(self) -> None:
        wires = self.cluster.wires
        wires.event_loss = self._world.random.choice((0.3, 0.9, 1.0))
        self._for_a_while(6.0, lambda: setattr(wires, "event_loss", 0.0))

    def _lose_orders(self) -> None:
        wires = self.cluster.wires
        wires.order_loss = self._world.random.choice((0.3, 0.8))
        self._for_a_while(5.0, lambda: setattr(wires, "order_loss", 0.0))

    def revive(self, store: ElasticStore) -> None:  # type: ignore[override]
        if not store.lost:
            super().revive(store)

    def end(self) -> None:
        super().end()
        self.cluster.wires.calm()
        for store in self._stores:
            store.control_deaf = 0
