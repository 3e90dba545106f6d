"""scripts/bench control: what the controller of a large cluster costs, and how large its documents are.

4,096 partitions on 50 nodes with three replicas, in virtual time: 50 stores report once a second, the real
Controller hears the bytes and steps, a small model of the groups carries its orders out. Told are the CPU
milliseconds of one step in each chapter: a new controller, nothing to do, a node silent, lost, replaced,
a node drained, the cluster grown by a node and balanced. Bars: a step <= 100 ms, a map <= 256 KiB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared.clustermap import ClusterMap, Node
from shared.hashing import xxh64
from storenode.control.controller import Controller, Order
from storenode.control.reports import GroupReport, Progress, Report, decode_report, encode_report
from storenode.control.state import CONTROL, ControlState

PARTITIONS, NODES, REPLICAS = 4096, 50, 3
BARS = {"step_ms": 100, "map_kib": 256}


def store(number: int) -> Node:
    host = f"store-{number}.cluster.example.net"
    return Node(
        number, f"store{number}", f"tcp://{host}:7200", f"tcp://{host}:7201", f"tcp://{host}:7202",
        f"zone{number % 5}",
    )  # fmt: skip


class Groups:
    """The groups as their logs would have them: members change at once when an order says so, learners are
    up to date a second later.
    """

    def __init__(self, cluster: ClusterMap) -> None:
        rows = {**dict(enumerate(cluster.replicas)), CONTROL: cluster.control}
        self.voters = {partition: list(row) for partition, row in rows.items()}
        self.learners: dict[int, list[int]] = {partition: [] for partition in rows}
        self.leader = {partition: row[0] for partition, row in rows.items()}
        self.index = dict.fromkeys(rows, 1)
        self._hosted: dict[int, set[int]] = defaultdict(set)
        for partition, row in rows.items():
            for node in row:
                self._hosted[node].add(partition)

    def carry_out(self, order: Order) -> None:
        voters, learners = self.voters[order.partition], self.learners[order.partition]
        if order.command == "transfer-leader":
            self.leader[order.partition] = order.node
            return
        if order.command == "erase":
            self._hosted[order.node].discard(order.partition)
            return
        self.index[order.partition] += 1
        if order.command == "add-learner":
            learners.append(order.node)
            self._hosted[order.node].add(order.partition)
        elif order.command in ("replace", "promote"):
            learners.remove(order.node)
            voters.append(order.node)
            if order.other in voters:
                voters.remove(order.other)
        elif order.command == "remove":
            for members in (voters, learners):
                if order.node in members:
                    members.remove(order.node)

    def lead(self, cluster: ClusterMap, dead: set[int]) -> None:
        """Leadership goes to the first of the row, or to whoever lives."""
        for partition, voters in self.voters.items():
            row = cluster.control if partition == CONTROL else cluster.replicas[partition]
            living = [node for node in (*row, *voters) if node in voters and node not in dead]
            self.leader[partition] = living[0] if living else 0

    def report(self, cluster: ClusterMap, node: int, second: int) -> Report:
        groups = tuple(self._group(partition, node) for partition in sorted(self._hosted[node]))
        number = xxh64(cluster.cluster_id.encode())
        return Report(number, node, f"{node:032x}", cluster.epoch, "1.0", 0, second, 1 << 40, groups)

    def _group(self, partition: int, node: int) -> GroupReport:
        leader = self.leader[partition]
        voters, learners = tuple(self.voters[partition]), tuple(self.learners[partition])
        progress = tuple(Progress(other, 100_000, 1, 50) for other in voters + learners if other != node)
        return GroupReport(
            partition, 2 if node == leader else 0, 7, leader, self.index[partition], voters, (), learners,
            100_000, 99_000, 1 << 30, False, progress if node == leader else (),
        )  # fmt: skip


class World:
    """The controller, its state written at once, and the stores. `dead` ones do not report."""

    def __init__(self) -> None:
        cluster = ClusterMap.bootstrap("bench", PARTITIONS, REPLICAS, map(store, range(1, NODES + 1)))
        self.state = ControlState.first(cluster)
        self.groups = Groups(cluster)
        self.dead: set[int] = set()
        self.second = 0
        self.controller = Controller(1, self.state, 0.0)
        self.hearing: list[float] = []
        self.report_bytes = 0
        self.steps: list[float] = []
        self.chapters: dict[str, tuple[float, float]] = {}

    def command(self, name: str, /, **arguments: Any) -> float:
        began = time.thread_time()
        outcome = self.controller.command(name, arguments, False, float(self.second))
        took = time.thread_time() - began
        if outcome.state is not None:
            self._adopt(outcome.state)
        return took * 1000

    def run(self, seconds: int, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(seconds):
            self._second()
            if until():
                return

    def _second(self) -> None:
        self.second += 1
        self.groups.lead(self.state.map, self.dead)
        frames = [
            encode_report(self.groups.report(self.state.map, node.id, self.second))
            for node in self.state.map.nodes
            if node.id not in self.dead
        ]
        self.report_bytes = max(self.report_bytes, *map(len, frames))
        began = time.thread_time()
        for frame in frames:
            self.controller.hear(decode_report(frame), float(self.second))
        heard = time.thread_time()
        step = self.controller.step(float(self.second))
        self.hearing.append((heard - began) * 1000)
        self.steps.append((time.thread_time() - heard) * 1000)
        for order in step.orders:
            self.groups.carry_out(order)
        if step.state is not None:
            self._adopt(step.state)

    def _adopt(self, state: ControlState) -> None:
        self.state = state
        self.controller.adopt(state)

    def chapter(self, name: str) -> None:
        """Ends one: median and highest of its steps."""
        steps, self.steps = self.steps, []
        self.chapters[name] = statistics.median(steps), max(steps)
        print(f"{name:<34} {statistics.median(steps):>8.1f} {max(steps):>8.1f}", flush=True)


def story(world: World, seconds: int) -> None:
    def idle() -> bool:
        return not world.state.moves

    world.run(5)
    world.chapter("a new controller")
    world.run(5)
    world.chapter("nothing to do")
    world.command("set", transfers_per_node=16, replace_after_ms=5_000)
    world.dead = {7}
    world.run(14)
    world.chapter("a node falls silent")
    world.run(4)
    world.run(seconds, idle)
    world.chapter("it is replaced")
    world.dead = set()
    world.run(4)
    world.chapter("it is back")
    world.command("node-drain", node=9)
    world.run(2)
    world.run(seconds, idle)
    world.chapter("a node is drained")
    host = "tcp://store-51.cluster.example.net"
    world.command(
        "join", name="store51", rpc=f"{host}:7200", bus=f"{host}:7201", events=f"{host}:7202", zone="zone1",
        incarnation=f"{51:032x}",
    )  # fmt: skip
    world.run(2)
    world.chapter("a node joins")
    world.steps = [world.command("rebalance-start")]
    world.chapter("(the command) rebalance start")
    world.run(2)
    world.run(seconds, idle)
    world.chapter("the cluster is balanced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=200, help="virtual seconds for each chapter of moves")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world = World()
    print(f"{'CPU ms of a step':<34} {'median':>8} {'highest':>8}")
    story(world, options.seconds)
    result = {
        "step_ms": round(max(highest for _, highest in world.chapters.values()), 1),
        "map_kib": round(len(world.state.map.encode()) / 1024, 1),
        "state_kib": round(len(world.state.encode()) / 1024, 1),
        "report_kib": round(world.report_bytes / 1024, 1),
        "hear_all_ms": round(statistics.median(world.hearing), 1),
        "moves_left": len(world.state.moves),
    }
    for key, value in result.items():
        print(f"{key:>14} {value:>8}" + (f"   bar: <= {BARS[key]}" if key in BARS else ""))
    if options.json:
        options.json.write_text(json.dumps(result | {"chapters": world.chapters}, indent=1) + "\n")


if __name__ == "__main__":
    main()
