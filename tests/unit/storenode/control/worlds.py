"""Control states and views for tests: clusters of any size, and what a controller may have heard of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from shared.clustermap import ClusterMap, Node
from storenode.control.commands import Outcome, execute
from storenode.control.reports import GroupReport, Report
from storenode.control.state import CONTROL, ControlState
from storenode.control.view import View

NEW = {
    "name": "store9",
    "rpc": "tcp://10.9.0.1:7200",
    "bus": "tcp://10.9.0.1:7201",
    "events": "tcp://10.9.0.1:7202",
    "zone": "rack9",
    "weight": 200,
    "incarnation": "ab" * 16,
}


def store(number: int, **fields: Any) -> Node:
    host = f"10.0.{number // 256}.{number % 256}"
    known = {
        "name": f"store{number}",
        "rpc": f"tcp://{host}:7200",
        "bus": f"tcp://{host}:7201",
        "events": f"tcp://{host}:7202",
    }
    return Node(number, **(known | fields))


def make_state(nodes: int = 4, partitions: int = 16, replicas: int = 3, zones: int = 0) -> ControlState:
    stores = [store(number, zone=f"zone{number % zones}" if zones else "") for number in range(1, nodes + 1)]
    return ControlState.first(ClusterMap.bootstrap("test", partitions, replicas, stores))


def with_nodes(state: ControlState, changes: Mapping[int, Mapping[str, Any]]) -> ControlState:
    """The state with these fields of these nodes changed."""
    return state.remap(
        nodes=tuple(attrs.evolve(node, **changes.get(node.id, {})) for node in state.map.nodes)
    )


def removing(state: ControlState, *nodes: int) -> ControlState:
    """The state in which these were told to go."""
    state = with_nodes(state, {node: {"state": "draining"} for node in nodes})
    return attrs.evolve(
        state,
        members=tuple(attrs.evolve(member, removing=member.node in nodes) for member in state.members),
    )


def make_view(
    state: ControlState, silent: Mapping[int, int | None] = {}, age_ms: int = 60_000, **fields: Any
) -> View:
    """All were heard 100 ms ago and report what the map says, but `silent` (ms, None: never heard, by a
    controller of that age).
    """
    rows = {**dict(enumerate(state.map.replicas)), CONTROL: state.map.control}
    reports = {
        node.id: Report(
            1, node.id, "", state.map.epoch, "1.0", 0, 1, 1 << 30,
            tuple(group(partition, row, node.id) for partition, row in rows.items() if node.id in row),
        )
        for node in state.map.nodes
        if silent.get(node.id, 0) is not None
    }  # fmt: skip
    heard = {node: silent.get(node, 100) for node in reports}
    silence = {node.id: heard.get(node.id, age_ms) for node in state.map.nodes}
    known: dict[str, Any] = {
        "controller": 1,
        "reports": reports,
        "heard_ms": heard,
        "states": {node.id: node.state for node in state.map.nodes},
        "foreign": frozenset(),
        "leaders": {partition: row[0] for partition, row in rows.items() if row[0] in reports},
        "moves": {},
        "waits": (),
        "silence_ms": silence,
    }
    return View(**(known | fields))


def group(partition: int, row: tuple[int, ...], node: int) -> GroupReport:
    role = 2 if node == row[0] else 0
    return GroupReport(partition, role, 1, row[0], 1, row, (), (), 100, 100, 1000 + partition, False)


def run(state: ControlState, command: str, view: Any = None, dry_run: bool = False, **given: Any) -> Outcome:
    return execute(state, view or make_view(state), command, given, dry_run)


def changed(outcome: Outcome) -> ControlState:
    assert outcome.state is not None
    assert ControlState.decode(outcome.state.encode()) == outcome.state
    return outcome.state
