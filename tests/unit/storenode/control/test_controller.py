"""The controller's steps: from reports and time to states and orders, for single situations. What holds for
all of them together: tests/property/test_control_moves.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import pytest

from shared.hashing import xxh64
from storenode.control.commands import Refused
from storenode.control.controller import Controller, Order, Step
from storenode.control.reports import GroupReport, Progress, Report
from storenode.control.state import CONTROL, ControlState, Settings
from tests.unit.storenode.control.worlds import make_state, removing, with_nodes

ACQUAINTED = 10.0
"""Enough for a controller to act, whatever was heard."""


class World:
    """Groups as their leaders know them, a controller that hears all of them once a second."""

    def __init__(self, state: ControlState) -> None:
        self.now = 0.0
        self.state = state
        self.rows = {**dict(enumerate(state.map.replicas)), CONTROL: state.map.control}
        self.leaders = {partition: row[0] for partition, row in self.rows.items()}
        self.learners: dict[int, tuple[int, ...]] = {}
        self.outgoing: dict[int, tuple[int, ...]] = {}
        self.index = dict.fromkeys(self.rows, 1)
        self.behind: set[tuple[int, int]] = set()
        self.stray: dict[tuple[int, int], int] = {}
        self.failed: set[tuple[int, int]] = set()
        self.silent: set[int] = set()
        self.durable = 100
        self.sequence = 0
        self.begin()

    def begin(self) -> None:
        """Another controller, of the state that is in force."""
        self.controller = Controller(1, self.state, self.now)

    def report(self, node: int) -> Report:
        self.sequence += 1
        groups = [
            self.group(partition, node)
            for partition in sorted(self.rows)
            if node in (*self.rows[partition], *self.learners.get(partition, ()))
            or (partition, node) in self.stray
        ]
        cluster = xxh64(self.state.map.cluster_id.encode())
        return Report(cluster, node, f"{node:032x}", 1, "1", 1, self.sequence, 0, tuple(groups))

    def group(self, partition: int, node: int) -> GroupReport:
        voters, learners = self.rows[partition], self.learners.get(partition, ())
        leads = self.leaders[partition] == node
        others = sorted({*voters, *learners} - {node}) if leads else ()
        return GroupReport(
            partition,
            2 if leads else 0,
            1,
            self.leaders[partition],
            self.stray.get((partition, node), self.index[partition]),
            voters,
            self.outgoing.get(partition, ()),
            learners,
            100,
            self.durable,
            1 << 20,
            (partition, node) in self.failed,
            tuple(
                Progress(other, *((0, 2) if (partition, other) in self.behind else (100, 1)), 50)
                for other in others
            ),
        )

    def hear(self, *nodes: int) -> list[bool]:
        """Reports of these, of all that live if none is named; whether they told anything new."""
        every = [node.id for node in self.state.map.nodes if node.id not in self.silent]
        return [self.controller.hear(self.report(node), self.now) for node in nodes or every]

    def step(self) -> Step:
        """One step; what it writes is in force."""
        step = self.controller.step(self.now)
        if step.state is not None:
            self.state = step.state
            self.controller.adopt(step.state)
        return step

    def run(self, seconds: float) -> list[Order]:
        """A second at a time; the orders of all steps."""
        orders = []
        for _ in range(round(seconds)):
            self.now += 1
            self.hear()
            orders += self.step().orders
        return orders

    def adopt(self, state: ControlState) -> None:
        """A command has written this."""
        self.state = state
        self.controller.adopt(state)

    def change(self, partition: int, voters: Iterable[int] = (), learners: Iterable[int] = ()) -> None:
        """The group's members are these from now on."""
        self.rows[partition] = tuple(voters) or self.rows[partition]
        self.learners[partition] = tuple(learners)
        self.index[partition] += 10


def queued(world: World, *moves: tuple[int, int, int, str]) -> None:
    world.adopt(world.state.queue(moves))


@pytest.fixture
def world() -> World:
    """4 nodes, 8 partitions of 3 replicas, everybody heard for long enough."""
    world = World(make_state(4, partitions=8))
    world.run(ACQUAINTED)
    return world


def outsider(world: World, partition: int) -> int:
    return ({1, 2, 3, 4} - {*world.rows[partition]}).pop()


def test_a_calm_cluster_is_left_alone(world: World) -> None:
    state = world.state
    assert world.run(5) == []
    assert world.state is state


def test_incarnations_that_are_heard_first_are_kept(world: World) -> None:
    assert [member.incarnation for member in world.state.members] == [f"{node:032x}" for node in range(1, 5)]


def test_reports_of_others_are_ignored_and_counted(world: World) -> None:
    fine = world.report(2)
    for wrong in (
        fine._replace(cluster=1),
        fine._replace(node=9),
        fine._replace(incarnation="f" * 32),
        fine._replace(sequence=1),
    ):
        assert world.controller.hear(wrong, world.now) is False
    assert dict(world.controller.ignored) == {"cluster": 1, "node": 1, "foreign": 1, "old": 1}
    assert world.controller.view(world.now).foreign == {2}


def test_a_store_that_has_the_incarnation_of_another_is_foreign() -> None:
    world = World(make_state())
    world.hear(1)
    assert world.controller.hear(world.report(2)._replace(incarnation=f"{1:032x}"), world.now) is False
    world.hear(2, 3, 4)
    assert world.step().state is not None


def test_silence_is_written_and_a_report_ends_it(world: World) -> None:
    world.silent = {3}
    epoch = world.state.map.epoch
    world.run(3)
    assert world.state.map.node(3).state == "suspect"
    world.run(7)
    assert world.state.map.node(3).state == "down"
    assert world.state.map.epoch > epoch
    world.silent = set()
    assert any(world.hear(3))
    world.step()
    assert world.state.map.node(3).state == "up"


def test_hearing_tells_what_a_step_would_look_at(world: World) -> None:
    assert not any(world.hear())
    partition = next(p for p, leader in world.leaders.items() if leader == 2)
    world.leaders[partition] = next(node for node in world.rows[partition] if node != 2)
    assert any(world.hear())
    assert not any(world.hear())


def test_a_move_goes_through_its_stages_and_ends_with_its_row(world: World) -> None:
    row, target = world.rows[0], outsider(world, 0)
    source, leader = row[1], row[0]
    queued(world, (0, source, target, "rebalance"))
    assert world.run(1) == [Order(leader, 0, "add-learner", target, 0)]

    world.behind = {(0, target)}
    world.change(0, learners=(target,))
    assert world.run(3) == []
    assert world.controller.view(world.now).moves[1].stage == "learner"

    world.behind = set()
    assert any(world.hear(leader))
    assert world.run(1) == [Order(leader, 0, "replace", target, source)]

    world.change(0, voters=(row[0], target, row[2]))
    world.outgoing[0] = row
    assert world.run(3) == []
    world.outgoing = {}
    world.change(0)
    world.run(1)
    assert world.state.moves == ()
    assert set(world.state.map.replicas[0]) == {row[0], target, row[2]}


def test_a_source_that_leads_is_replaced_by_another_leader_first(world: World) -> None:
    row, target = world.rows[0], outsider(world, 0)
    queued(world, (0, row[0], target, "rebalance"))
    world.change(0, learners=(target,))
    (order,) = world.run(1)
    assert order[:3] == (row[0], 0, "transfer-leader")
    assert order.node in row[1:]
    world.leaders[0] = order.node
    assert world.run(1) == [Order(order.node, 0, "replace", target, row[0])]


def test_an_order_is_repeated_after_two_seconds_not_before(world: World) -> None:
    target = outsider(world, 0)
    queued(world, (0, world.rows[0][1], target, "rebalance"))
    assert [len(world.run(1)) for _ in range(5)] == [1, 0, 1, 0, 1]


def test_the_next_controller_goes_on_where_the_last_one_died(world: World) -> None:
    row, target = world.rows[0], outsider(world, 0)
    queued(world, (0, row[1], target, "rebalance"))
    world.change(0, learners=(target,))
    world.begin()
    assert world.run(2) == [], "what the last one has ordered may be on its way"
    assert Order(row[0], 0, "replace", target, row[1]) in world.run(4)


def test_transfers_are_bounded_for_each_node() -> None:
    world = World(make_state(4, partitions=16))
    world.run(ACQUAINTED)
    moves = [(p, world.rows[p][1], outsider(world, p), "rebalance") for p in range(16)]
    queued(world, *moves)
    orders = world.run(1)
    for node in range(1, 5):
        parts = [p for _, p, _, _, _ in orders if node in (world.rows[p][1], outsider(world, p))]
        assert len(parts) <= 2
    assert len(orders) >= 2
    waits = [view.waits for view in world.controller.view(world.now).moves.values()]
    assert any(text.endswith("is busy with 2 transfers") for text in waits)


def test_a_pause_lets_nothing_begin_and_what_has_begun_end(world: World) -> None:
    begun, target = world.rows[0], outsider(world, 0)
    queued(world, (0, begun[1], target, "rebalance"), (1, world.rows[1][1], outsider(world, 1), "rebalance"))
    world.adopt(attrs.evolve(world.state, paused=True))
    world.change(0, learners=(target,))
    assert world.run(1) == [Order(begun[0], 0, "replace", target, begun[1])]
    assert world.controller.view(world.now).moves[2].waits == "paused"


def test_of_one_partition_one_replica_moves_at_a_time(world: World) -> None:
    world = World(make_state(5, partitions=8))
    world.run(ACQUAINTED)
    row = world.rows[0]
    one, other = sorted({1, 2, 3, 4, 5} - {*row})
    queued(world, (0, row[1], one, "rebalance"), (0, row[2], other, "rebalance"))
    assert [order.node for order in world.run(6)] == [one] * 3
    waits = world.controller.view(world.now).moves[2].waits
    assert waits == "another replica of the partition is moving"


def test_a_learner_that_no_move_wants_is_taken_back_but_in_a_pause(world: World) -> None:
    world.change(0, learners=(outsider(world, 0),))
    index = world.index[0]
    world.adopt(attrs.evolve(world.state, paused=True))
    assert world.run(3) == []
    world.adopt(attrs.evolve(world.state, paused=False))
    assert world.run(1) == [Order(world.leaders[0], 0, "remove", outsider(world, 0), index)]


def test_a_replica_left_behind_is_erased_once_the_voters_cannot_forget(world: World) -> None:
    node = outsider(world, 0)
    world.change(0)
    world.stray[0, node] = 1
    world.durable = world.index[0] - 1
    assert world.run(3) == []
    world.durable = world.index[0]
    assert world.run(1) == [Order(node, 0, "erase", node, world.index[0])]


def test_members_changed_by_hand_become_the_row(world: World) -> None:
    row = world.rows[0]
    world.change(0, voters=(row[0], row[1], outsider(world, 0)))
    world.run(1)
    assert set(world.state.map.replicas[0]) == {*world.rows[0]}


def test_a_draining_node_gives_away_all_that_it_holds(world: World) -> None:
    world.adopt(with_nodes(world.state, {2: {"state": "draining"}}))
    held = set(world.state.map.partitions_of(2))
    world.run(1)
    moves = world.state.moves
    assert {move.partition for move in moves if move.source == 2} - {CONTROL} == held
    assert all(row[0] != 2 for row in world.state.map.replicas)
    assert world.state.map.node(2).state == "draining"


def test_a_node_that_stays_down_is_replaced_and_one_that_returns_is_not() -> None:
    world = World(attrs.evolve(make_state(4), settings=Settings(replace_after_ms=5_000)))
    world.run(ACQUAINTED)
    world.silent = {3}
    world.leaders = {p: next(node for node in row if node != 3) for p, row in world.rows.items()}
    world.run(14)
    assert not world.state.moves
    world.run(2)
    assert {move.source for move in world.state.moves if move.partition != CONTROL} == {3}
    assert world.controller.view(world.now).lost == {3}
    world.silent = set()
    world.run(2)
    assert [move for move in world.state.moves if move.reason == "replace"] == []


def test_a_failed_replica_is_taken_out_erased_and_put_back_one_at_a_time(world: World) -> None:
    row, other = world.rows[0], world.rows[1]
    world.failed = {(0, row[1]), (1, other[1])}
    orders = world.run(2)
    assert orders == [Order(row[0], 0, "remove", row[1], world.index[0])]
    world.change(0, voters=(row[0], row[2]))
    world.stray[0, row[1]] = 1
    orders = world.run(3)
    assert Order(row[1], 0, "erase", row[1], world.index[0]) in orders
    assert all(order.partition == 0 for order in orders)
    del world.stray[0, row[1]]
    world.failed.discard((0, row[1]))
    orders = world.run(6)
    assert {(order.partition, order.command) for order in orders} == {(0, "add-learner")}


def test_who_drains_is_not_preferred_as_the_controller() -> None:
    """The leadership would come back to it before the next controller knows enough to take it out."""
    state = make_state(4, partitions=8)
    world = World(with_nodes(state, {1: {"state": "draining"}}).remap(control=(1, 2, 3)))
    world.hear()
    step = world.step()
    assert step.state is not None
    assert step.state.map.control == (2, 1, 3)


def test_who_is_to_leave_the_control_partition_without_a_successor_is_not_preferred_there() -> None:
    world = World(make_state(4, partitions=8).remap(control=(4, 1, 2, 3)))
    world.run(ACQUAINTED)
    assert [(move.partition, move.source, move.target) for move in world.state.moves] == [(CONTROL, 4, 0)]
    assert world.state.map.control == (1, 4, 2, 3)


def test_the_control_partition_replaces_who_is_lost_before_who_drains() -> None:
    state = attrs.evolve(make_state(6), settings=Settings(replace_after_ms=5_000))
    world = World(state.remap(control=(1, 2, 3)))
    world.run(ACQUAINTED)
    world.silent = {2}
    world.leaders = {p: next(node for node in row if node != 2) for p, row in world.rows.items()}
    world.run(20)
    world.adopt(with_nodes(world.state, {3: {"state": "draining"}}))
    world.run(2)
    (move,) = [move for move in world.state.moves if move.partition == CONTROL]
    assert move.source in (0, 2)


def test_a_node_that_was_told_to_go_leaves_the_map_when_no_group_has_it() -> None:
    world = World(removing(make_state(4, partitions=8), 4))
    world.silent = {4}
    world.leaders = {p: next(node for node in row if node != 4) for p, row in world.rows.items()}
    for partition, row in world.rows.items():
        world.change(partition, voters=tuple(node for node in row if node != 4))
    world.change(0, voters=(1, 2, 3), learners=(4,))
    world.adopt(attrs.evolve(world.state, paused=True))
    world.run(ACQUAINTED)
    assert 4 in {node.id for node in world.state.map.nodes}
    world.change(0)
    world.run(3)
    assert {node.id for node in world.state.map.nodes} == {1, 2, 3}
    assert world.controller.hear(world.report(4), world.now) is False


def test_at_most_sixteen_orders_leave_in_a_step() -> None:
    world = World(make_state(40, partitions=64))
    world.run(ACQUAINTED)
    for partition in range(64):
        world.change(partition, learners=(({*range(1, 41)} - {*world.rows[partition]}).pop(),))
    assert len(world.run(1)) == 16


def test_a_command_answers_from_what_is_known(world: World) -> None:
    shown = world.controller.command("show", {}, False, world.now)
    assert shown.state is None
    assert [node["state"] for node in shown.body["nodes"]] == ["up"] * 4
    with pytest.raises(Refused):
        world.controller.command("nothing", {}, False, world.now)
