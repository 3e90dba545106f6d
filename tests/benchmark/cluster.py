"""scripts/bench cluster: our cluster next to etcd and Redis, in the same run on the same machine.

Three stores with three replicas of 16 partitions and one router; three etcd nodes; one Redis server; all of
them sync before they answer. 16-byte keys, 100-byte values. Rounds alternate between the systems, medians are
reported, beside the ratios and what bars there are. How each is loaded: cluster_bench/load.py, etcd.py and
redis.py. Every workload begins with new systems that hold nothing but its keys: a get of etcd 3.4 costs four
times as much after a burst of writes. All of them run all the time, so each is measured beside idle others.

Costs per op follow each row: microseconds of CPU of each process ("load" is the generator), bytes written for
each byte of keys and values, syncs of the logs. Then, each on its own: failover (outages of writes when a
leader ends), catchup (of a replica that was away), idle (CPU of a cluster without load).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.cluster_bench import etcd, redis
from tests.benchmark.cluster_bench.catchup import catchup
from tests.benchmark.cluster_bench.failover import failover
from tests.benchmark.cluster_bench.idle import idle_percent
from tests.benchmark.cluster_bench.ours import PARTITIONS, STORES, OurCluster
from tests.benchmark.cluster_bench.points import WORKLOADS, System, points
from tests.benchmark.cluster_bench.rounds import PEER_ERRORS, Rounds
from tests.benchmark.cluster_bench.table import print_head, print_row

PEERS: dict[str, tuple[Callable[[ExitStack, Path], Sequence[System]], tuple[str, ...]]] = {
    "etcd": (etcd.start, etcd.PROGRAMS),
    "redis": (redis.start, redis.PROGRAMS),
}
APART = ("failover", "catchup", "idle")
IDLE_PARTITIONS = (PARTITIONS, 256)


def start_peers(stack: ExitStack, directory: Path, names: list[str]) -> list[System]:
    """Those that are installed and start; the others are named."""
    running: list[System] = []
    for name in names:
        start, programs = PEERS[name]
        if missing := [program for program in programs if shutil.which(program) is None]:
            print(f"{name}: not installed, the run goes on without it (no {', '.join(missing)})")
            continue
        try:
            running.extend(start(stack, directory / name))
        except PEER_ERRORS as error:
            print(f"{name}: does not start, the run goes on without it ({error})")
    return running


class Bench:
    """The parts of a run. Each has its own processes, which are gone when it ends."""

    def __init__(self, options: argparse.Namespace, peers: list[str]) -> None:
        self._options = options
        self._peers = peers
        self.rows: list[dict[str, Any]] = []

    def load(self, workload: str) -> None:
        """All points of a workload, on systems that have done nothing else."""

        def work(stack: ExitStack, directory: Path) -> None:
            ours = OurCluster(stack, directory / "ours", self._options.replicas)
            ours.fill()
            systems: list[System] = [ours, *start_peers(stack, directory, self._peers)]
            print_head()
            rounds = Rounds(systems, self._options.rounds, self._options.seconds, print)
            for point in points(workload):
                self._add(rounds.row(point))

        self._part(work)

    def failover(self) -> None:
        def work(stack: ExitStack, directory: Path) -> None:
            cluster = OurCluster(stack, directory / "ours", self._options.replicas)
            for row in failover(cluster, self._options.kills):
                self._add(row)

        self._part(work)

    def catchup(self) -> None:
        def work(stack: ExitStack, directory: Path) -> None:
            cluster = OurCluster(stack, directory / "ours", self._options.replicas)
            self._add(catchup(cluster, self._options.entries))

        if self._options.replicas == STORES:
            self._part(work)
        else:
            print(
                f"catchup is left out: it needs a replica of everything on every store (--replicas {STORES})"
            )

    def idle(self) -> None:
        seconds = self._options.idle_seconds
        peers: dict[str, Any] = {}

        def of_peers(stack: ExitStack, directory: Path) -> None:
            for system in start_peers(stack, directory, self._peers):
                if system.name not in self._peers:
                    continue  # the same servers under another load
                percent = idle_percent(system, seconds)
                peers[system.name] = {"cpu_percent": round(sum(percent.values()), 2)}

        def of_ours(partitions: int) -> Callable[[ExitStack, Path], None]:
            def work(stack: ExitStack, directory: Path) -> None:
                cluster = OurCluster(stack, directory / "ours", self._options.replicas, partitions)
                percent = idle_percent(cluster, seconds)
                self._add(
                    {
                        "workload": f"idle {partitions} partitions",
                        "in_flight": 0,
                        "ours": {"cpu_percent": round(sum(percent.values()), 2)},
                        "peers": peers,
                        "cpu_percent_by_process": percent,
                    }
                )

            return work

        self._part(of_peers)
        for partitions in IDLE_PARTITIONS:
            self._part(of_ours(partitions))

    def _part(self, work: Callable[[ExitStack, Path], None]) -> None:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir=self._options.directory))
            work(stack, Path(directory))

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print_row(row)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a first impression within a minute or two")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--only", default="", help=f"some of {','.join((*WORKLOADS, *APART))}")
    parser.add_argument("--replicas", type=int, default=STORES, help="default: %(default)s")
    parser.add_argument("--directory", help="where the data goes; default: the system's temporary directory")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--kills", type=int, help="of failover, for each signal")
    parser.add_argument("--entries", type=int, help="of catchup: writes that the replica misses")
    parser.add_argument("--idle-seconds", type=float)
    options = parser.parse_args()
    usual = {"rounds": 3, "seconds": 3.0, "kills": 30, "entries": 1_000_000, "idle_seconds": 10.0}
    quick = {"rounds": 1, "seconds": 0.5, "kills": 3, "entries": 20_000, "idle_seconds": 2.0}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not 1 <= options.replicas <= STORES:
        parser.error(f"--replicas is 1 to {STORES}: there are {STORES} stores")
    options.only = _chosen(parser, "measurement", options.only, (*WORKLOADS, *APART)) or [*WORKLOADS, *APART]
    options.peers = _chosen(parser, "peer", options.peers, tuple(PEERS))
    return options


def _chosen(parser: argparse.ArgumentParser, what: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> None:
    options = arguments()
    busy = os.getloadavg()[0]
    print(
        f"{STORES} stores, {options.replicas} replicas, 1 router; median of {options.rounds} rounds; "
        f"{os.cpu_count()} cores, load average {busy:.1f}"
    )
    if busy > 0.5:
        print("other work is running on this machine: expect every figure to be low, and ratios to wander")
    bench = Bench(options, options.peers)
    apart = {"failover": bench.failover, "catchup": bench.catchup, "idle": bench.idle}
    try:
        for name in WORKLOADS:
            if name in options.only:
                bench.load(name)
        for name in APART:
            if name in options.only:
                apart[name]()
    finally:  # a part that fails takes hours of others with it otherwise
        if options.json:
            options.json.write_text(json.dumps(bench.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
