"""Faults of the controller and of moves. The simulation of clusters that change (tests/simulation/elastic)
has to find each of those that a cluster shows in time; refusals and what is even are for tests of their own.
"""

from __future__ import annotations

from typing import Final

from tests.faults.fault import ELASTIC, Fault

SEEDS: Final = 100
CONTROL: Final = "storenode/control"


def _fault(name: str, harm: str, file: str, text: str, replacement: str) -> Fault:
    return Fault(name, harm, file, text, replacement, seeds=SEEDS, simulation=ELASTIC)


MOVES = (
    _fault(
        "map-changes-without-an-epoch",
        "stores and routers never learn that a partition has moved",
        f"{CONTROL}/state.py",
        "            epoch=old.epoch + 1,\n",
        "            epoch=old.epoch,\n",
    ),
    _fault(
        "left-replicas-stay",
        "a store keeps the data of every partition that it ever held",
        f"{CONTROL}/orders.py",
        "        for partition in sorted(self._tracking.strays):\n",
        "        for partition in ():\n",
    ),
    _fault(
        "bus-keeps-its-peers",
        "a store that joins is never heard, and its moves never end",
        "storenode/dataplane.py",
        "        maps.follow(lambda newest: self._bus.set_peers(_bus_endpoints(newest)))\n",
        "",
    ),
    _fault(
        "leader-is-not-asked-to-step-down",
        "a move away from the leader of a partition never ends",
        f"{CONTROL}/moves.py",
        "    if move.source == group.leader:\n",
        "    if move.source == -group.leader:\n",
    ),
    _fault(
        "removed-nodes-stay-in-the-map",
        "a node that was told to go is one for ever",
        f"{CONTROL}/controller.py",
        "            if node.id not in gone\n",
        "            if node.id not in ()\n",
    ),
    _fault(
        "lost-orders-are-never-given-again",
        "a move whose order was lost never ends",
        f"{CONTROL}/orders.py",
        "        if sent is None or now - sent.at >= REPEAT_S:\n",
        "        if sent is None:\n",
    ),
    _fault(
        "draining-nodes-keep-what-they-have",
        "a node that is drained is never empty",
        f"{CONTROL}/mending.py",
        '"drain" for node in state.map.nodes if node.state == "draining"',
        '"drain" for node in state.map.nodes if node.state == "drained"',
    ),
)


def _unit_fault(name: str, harm: str, file: str, text: str, replacement: str, test: str) -> Fault:
    return Fault(
        name, harm, f"{CONTROL}/{file}", text, replacement, (f"tests/unit/storenode/control/{test}",)
    )


DECISIONS = (
    _unit_fault(
        "draining-nodes-are-wanted",
        "a node that is drained has a share, and others less than theirs",
        "placement.py",
        'node.state != "draining"',
        'node.state != "drained"',
        "test_placement.py",
    ),
    _unit_fault(
        "draining-nodes-stay-first-in-control",
        "the controller that shall leave is handed its leadership back for ever",
        "controller.py",
        "        return turned((row,), nodes, share, 0, leaving)[0]\n",
        "        return row\n",
        "test_controller.py",
    ),
    _unit_fault(
        "control-gives-up-its-copies",
        "a cluster of three that has lost a node keeps one copy of its control state",
        "mending.py",
        "if len(staying) > max(size, self._factor)",
        "if len(staying) > size",
        "test_mending.py",
    ),
    _unit_fault(
        "living-taken-out-before-lost",
        "the control partition is left with a majority of dead nodes",
        "mending.py",
        "            key=lambda node: (node not in self._lost, node not in silent),\n",
        "            key=lambda node: (node in self._lost, node not in silent),\n",
        "test_mending.py",
    ),
    _unit_fault(
        "control-shrinks-below-its-majority",
        "the control partition stands still because the last living majority was taken apart",
        "mending.py",
        "if 2 * sum(holder not in silent for holder in left) > len(left):",
        "if left:",
        "test_mending.py",
    ),
    _unit_fault(
        "force-loses-the-quorum",
        "a node is given up that a partition cannot go on without",
        "membership.py",
        "    _refuse_lost_quorum(state, view, node)\n    after",
        "    after",
        "test_commands.py",
    ),
    _unit_fault(
        "silent-nodes-stay-first",
        "leadership is handed back to a node that does not answer",
        "leaders.py",
        "    turning.leave()\n",
        "",
        "test_leaders.py",
    ),
)

FAULTS = (*MOVES, *DECISIONS)
