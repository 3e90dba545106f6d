"""A small cluster for the controller's property test: groups that obey Raft's rules of membership, stores
that report, orders and reports that are late, lost and repeated, controllers that die between any two steps.

Groups are made of one truth each; what a controller sees of it are reports, up to seconds old. Everything
that must never happen is an assertion where it would.
"""

from __future__ import annotations

import random

import attrs

from shared.clustermap import ClusterMap, Node
from shared.hashing import xxh64
from storenode.control.controller import Controller, Order
from storenode.control.reports import GroupReport, Progress, Report
from storenode.control.state import CONTROL, ControlState, Settings

TICK_S = 0.1
FACTOR = 3
PARTITIONS = 8


@attrs.define
class Replica:
    """`config` is the index of the configuration that it has applied, `members` what that says."""

    match: int
    durable: int
    config: int
    members: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    snapshot: bool = False
    failed: bool = False


@attrs.define
class Group:
    partition: int
    voters: set[int]
    outgoing: set[int] = attrs.Factory(set)
    learners: set[int] = attrs.Factory(set)
    config: int = 1
    commit: int = 10
    term: int = 1
    leader: int = 0
    joint_ticks: int = 0

    def members(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return tuple(sorted(self.voters)), tuple(sorted(self.outgoing)), tuple(sorted(self.learners))


@attrs.define
class Store:
    node: int
    incarnation: str
    alive: bool = True
    gone: bool = False
    sequence: int = 0
    started: int = 1
    replicas: dict[int, Replica] = attrs.Factory(dict)


class Model:
    """`chaos` is how likely a message is lost, and how late it may come."""

    def __init__(self, seed: int, nodes: int = 5, zones: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.chaos = True
        founders = [self._node(node, zones) for node in range(1, nodes + 1)]
        first = ClusterMap.bootstrap("model", PARTITIONS, FACTOR, founders)
        self.zones = zones
        self.state = attrs.evolve(
            ControlState.first(first), settings=Settings(replace_after_ms=5_000, transfers_per_node=2)
        )
        self.cluster = xxh64(first.cluster_id.encode())
        self.stores = {node.id: Store(node.id, f"{node.id:032x}") for node in founders}
        self.groups = {p: Group(p, set(row)) for p, row in enumerate(first.replicas)}
        self.groups[CONTROL] = Group(CONTROL, set(first.control))
        for group in self.groups.values():
            for node in group.voters:
                self.stores[node].replicas[group.partition] = Replica(10, 10, 1, group.members())
        self.controller: Controller | None = None
        self.next_controller = 0.5
        self.next_step = 0.0
        self.messages: list[tuple[float, int, Order | Report]] = []
        self.sent = 0
        self.epochs = {first.epoch: first}
        self.told: dict[int, object] = {}

    def _node(self, node: int, zones: int) -> Node:
        return Node(node, f"store{node}", f"tcp://h:{node}", zone=f"z{node % zones}" if zones else "")

    # -- what happens to it

    def add_node(self) -> int:
        """A new store joins."""
        node = self.state.next_node
        self.stores[node] = Store(node, f"{node:032x}")
        self.write(
            self.state.remap(nodes=(*self.state.map.nodes, self._node(node, self.zones)), next_node=node + 1)
        )
        return node

    def mark(self, node: int, state: str) -> None:
        """An operator drains a node, or not any more."""
        nodes = tuple(
            attrs.evolve(other, state=state) if other.id == node else other for other in self.state.map.nodes
        )
        self.write(self.state.remap(nodes=nodes))

    def write(self, state: ControlState) -> None:
        """What the control partition commits."""
        before = self.state
        assert state.map.epoch >= before.map.epoch
        if state.map.epoch == before.map.epoch:
            assert state.map == before.map, "another map with the same epoch"
        assert ControlState.decode(state.encode()) == state
        self.state = state
        if self.controller is not None:
            self.controller.adopt(state)

    def stop(self, node: int) -> None:
        store = self.stores[node]
        store.alive = False
        for group in self.groups.values():
            if group.leader == node:
                group.leader = 0
        if self.controller is not None and self.controller.node == node:
            self.kill_controller()

    def start(self, node: int) -> None:
        store = self.stores[node]
        store.alive, store.sequence, store.started = True, 0, store.started + 1

    def kill_controller(self) -> None:
        self.controller = None
        self.next_controller = self.now + self.random.uniform(0.3, 3.0)

    # -- a tick

    def tick(self) -> None:
        self.now = round(self.now + TICK_S, 3)
        for group in self.groups.values():
            self._run(group)
        for store in self.stores.values():
            self._report(store)
        self._deliver()
        self._control()

    def _run(self, group: Group) -> None:
        if not self.quorum(group):
            group.leader = 0
            return
        if not group.leader:
            if self.random.random() < 0.1:
                able = [node for node in group.voters if self._sound(node, group.partition)]
                if able:
                    group.leader = max(able, key=lambda n: self.stores[n].replicas[group.partition].match)
                    group.term += 1
            return
        group.commit += self.random.choice((0, 0, 3, 40))
        if group.outgoing:
            group.joint_ticks += 1
            if group.joint_ticks > 3:
                group.outgoing = set()
                self._changed(group)
        for node in group.voters | group.outgoing | group.learners:
            if self._sound(node, group.partition):
                self._follow(group, node, self.stores[node].replicas[group.partition])

    def _follow(self, group: Group, node: int, replica: Replica) -> None:
        if replica.snapshot:
            if self.random.random() < 0.05:
                replica.snapshot = False
                replica.config, replica.members = group.config, group.members()
            return
        if node == group.leader or self.random.random() < 0.8:
            replica.match = group.commit
            if node == group.leader or self.random.random() < 0.5:
                replica.config, replica.members = group.config, group.members()
        if self.random.random() < 0.2:
            replica.durable = replica.match

    def _sound(self, node: int, partition: int) -> bool:
        store = self.stores[node]
        replica = store.replicas.get(partition)
        return store.alive and replica is not None and not replica.failed

    def quorum(self, group: Group) -> bool:
        return all(
            2 * sum(self._sound(node, group.partition) for node in voters) > len(voters)
            for voters in (group.voters, group.outgoing)
            if voters
        )

    def spares(self, node: int) -> bool:
        """Whether every group could do without that node for good."""
        self.stores[node].alive = False
        without = all(map(self.quorum, self.groups.values()))
        self.stores[node].alive = True
        return without

    def _changed(self, group: Group) -> None:
        group.commit += 1
        group.config = group.commit
        group.joint_ticks = 0
        assert len(group.learners) <= 1, f"partition {group.partition}: {group}"
        if group.leader and group.leader not in group.voters:
            group.leader = 0

    # -- reports

    def _report(self, store: Store) -> None:
        if not store.alive:
            return
        groups = tuple(
            self._group_report(store.node, self.groups[p], replica)
            for p, replica in sorted(store.replicas.items())
            if replica.config
        )
        told = [(group.partition, group.role, group.config_index, group.failed) for group in groups]
        beat = round(self.now * 10) % 10 == store.node % 10
        if not beat and self.told.get(store.node) == told:
            return
        self.told[store.node] = told
        store.sequence += 1
        report = Report(
            self.cluster, store.node, store.incarnation, 1, "m", store.started, store.sequence, 0, groups
        )
        self._post(report, 0.1, 0.5)

    def _group_report(self, node: int, group: Group, replica: Replica) -> GroupReport:
        leads = group.leader == node
        voters, outgoing, learners = replica.members
        progress = []
        if leads:
            for other in sorted((group.voters | group.outgoing | group.learners) - {node}):
                theirs = self.stores[other].replicas.get(group.partition)
                sound = self._sound(other, group.partition)
                progress.append(
                    Progress(
                        other,
                        theirs.match if theirs and not theirs.snapshot else 0,
                        2 if theirs is None or theirs.snapshot else 1,
                        50 if sound else 60_000,
                    )
                )
        return GroupReport(
            group.partition,
            2 if leads else 0,
            group.term,
            group.leader,
            replica.config,
            voters,
            outgoing,
            learners,
            max(group.commit if leads else 0, replica.match),
            replica.durable,
            1 << 20,
            replica.failed,
            tuple(progress),
        )

    # -- messages

    def _post(self, message: Order | Report, lost: float, late: float) -> None:
        if self.chaos and self.random.random() < lost:
            return
        for _ in range(2 if self.chaos and self.random.random() < 0.1 else 1):
            self.sent += 1
            delay = self.random.uniform(0, late) if self.chaos else 0.02
            self.messages.append((self.now + delay, self.sent, message))

    def _deliver(self) -> None:
        due = sorted(message for message in self.messages if message[0] <= self.now)
        self.messages = [message for message in self.messages if message[0] > self.now]
        for _, _, message in due:
            if isinstance(message, Order):
                if self.stores[message.to].alive:
                    self._obey(message)
            elif self.controller is not None and self.controller.hear(message, self.now):
                self.next_step = min(self.next_step, self.now + TICK_S)

    def _obey(self, order: Order) -> None:
        group = self.groups[order.partition]
        if order.command == "erase":
            self._erase(group, order)
            return
        if group.leader != order.to or not self.quorum(group):
            return
        if order.command == "transfer-leader":
            if order.node in group.voters and self._up_to_date(group, order.node):
                group.leader = order.node
                group.term += 1
        elif not group.outgoing:
            getattr(self, "_" + order.command.replace("-", "_"))(group, order)

    def _up_to_date(self, group: Group, node: int) -> bool:
        replica = self.stores[node].replicas.get(group.partition)
        return bool(
            self._sound(node, group.partition)
            and replica is not None
            and not replica.snapshot
            and group.commit - replica.match <= 1000
        )

    def _add_learner(self, group: Group, order: Order) -> None:
        node = order.node
        store = self.stores[node]
        if node in group.voters or node in group.learners or not store.alive:
            return
        replica = store.replicas.get(group.partition)
        if replica is not None and replica.failed:
            return
        if replica is None:
            store.replicas[group.partition] = Replica(0, 0, 0, ((), (), ()), snapshot=True)
        group.learners.add(node)
        self._changed(group)
        self._check_transfers(group.partition, node)

    def _check_transfers(self, partition: int, node: int) -> None:
        if partition == CONTROL:
            return
        copying = [p for p, group in self.groups.items() if node in group.learners and p != CONTROL]
        assert len(copying) <= self.state.settings.transfers_per_node, f"node {node}: {copying}"

    def _replace(self, group: Group, order: Order) -> None:
        if order.node not in group.learners or order.other not in group.voters:
            return
        assert order.other != group.leader, "the leader is taken out while it leads"
        self._joint(group, (group.voters - {order.other}) | {order.node}, order.node)

    def _promote(self, group: Group, order: Order) -> None:
        if order.node in group.learners:
            self._joint(group, group.voters | {order.node}, order.node)

    def _remove(self, group: Group, order: Order) -> None:
        node = order.node
        if order.other not in (0, group.config):
            return
        if node in group.learners:
            group.learners.discard(node)
            self._changed(group)
        elif node in group.voters and node != group.leader and len(group.voters) > 1:
            replica = self.stores[node].replicas.get(group.partition)
            failed = replica is not None and replica.failed
            member = next((member for member in self.state.members if member.node == node), None)
            told = failed or group.partition == CONTROL or (member is not None and member.removing)
            assert told or len(group.voters) > FACTOR, f"{order}: {group}"
            self._joint(group, group.voters - {node}, 0)

    def _joint(self, group: Group, voters: set[int], target: int) -> None:
        if target and not self._up_to_date(group, target):
            return
        if 2 * sum(self._sound(node, group.partition) for node in voters) <= len(voters):
            return
        group.outgoing, group.voters = group.voters, voters
        group.learners.discard(target)
        self._changed(group)

    def _erase(self, group: Group, order: Order) -> None:
        store = self.stores[order.to]
        replica = store.replicas.get(group.partition)
        if replica is None or replica.config > order.other:
            return
        assert order.to not in group.voters | group.outgoing, f"{order}: {group}"
        del store.replicas[group.partition]

    # -- the controller

    def _control(self) -> None:
        control = self.groups[CONTROL]
        if self.controller is not None and control.leader != self.controller.node:
            self.kill_controller()
        if self.controller is None:
            if control.leader and self.now >= self.next_controller:
                self.controller = Controller(control.leader, self.state, self.now)
                self.next_step = self.now
            return
        if self.now >= self.next_step:
            self.next_step = self.now + 1.0
            self._step(self.controller, self.random.randrange(40) if self.chaos else 99)

    def _step(self, controller: Controller, death: int) -> None:
        step = controller.step(self.now)
        assert len(step.orders) <= 16
        if death != 1 and step.state is not None:
            self.write(step.state)
        if death not in (1, 2):
            for order in step.orders:
                self._post(order, 0.15, 1.5)
        if death in (1, 2, 3):
            self.kill_controller()

    # -- what has to come about

    def unrest(self) -> list[str]:
        """What is not as it should be in the end."""
        found = [f"queued: {move}" for move in self.state.moves]
        nodes = {node.id: node for node in self.state.map.nodes}
        may = [n for n in nodes.values() if n.state == "up" and n.weight]
        for partition, group in self.groups.items():
            row = self.state.map.control if partition == CONTROL else self.state.map.replicas[partition]
            if set(row) != group.voters or group.outgoing or group.learners:
                found.append(f"partition {partition}: row {row}, group {group}")
            if any(nodes[node].state != "up" for node in row) and len(may) > FACTOR:
                found.append(f"partition {partition}: on {row}, nodes that should not hold it")
            if partition != CONTROL and len(row) != FACTOR:
                found.append(f"partition {partition}: {len(row)} replicas")
        for store in self.stores.values():
            if store.alive:
                for partition, replica in store.replicas.items():
                    if replica.config and (store.node not in self.groups[partition].voters or replica.failed):
                        found.append(f"node {store.node}: a replica of {partition}: {replica}")
        return found
