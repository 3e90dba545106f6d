"""What something costs: two clusters of the same shape, one with it and one without, are loaded in turns.

Owns the turns and what is made of them. Of each turn the rate is kept, and the CPU that an op takes of each
role. A round is a turn of each side, in the opposite order each time; its two rates make one ratio, so that
what else the machine does meets both. Must not know what the two differ in.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from tests.integration.localcluster import Cluster

MIXES = {"get": "100/0", "put": "0/100"}
ROLES = ("router", "store", "monitor", "client")
_TICKS = os.sysconf("SC_CLK_TCK")
_CONFIDENCE = 0.95

Row = dict[str, float]


class Side:
    """One of the two, and its cluster."""

    def __init__(self, cluster: Cluster, *up: str) -> None:
        self.cluster = cluster
        self._up = up

    def start(self, keys: int) -> None:
        """The cluster runs, and all keys are there."""
        self.cluster.up("--stores", "3", "--routers", "1", *self._up)
        self._bench("--keys", str(keys), "--ops", "1000", "--fill")

    def stop(self) -> None:
        """Whether it runs or not."""
        self.cluster.kvcli("dev", "down", "--dir", str(self.cluster.directory), check=False)

    def turn(self, mix: str, told: argparse.Namespace) -> Row:
        """One measurement."""
        before = self._spent()
        found = self._bench(
            "--mix", MIXES[mix], "--in-flight", str(told.in_flight), "--keys", str(told.keys),
            "--seconds", f"{told.seconds:g}s", "--no-fill",
        )  # fmt: skip
        after = self._spent()
        cpu = {f"{role}_us": (after[role] - before[role]) / found["ops"] * 1e6 for role in ROLES}
        return {"ops_per_second": found["ops_per_second"], **cpu}

    def _bench(self, *arguments: str) -> dict[str, Any]:
        done = self.cluster.kvcli("-o", "json", "bench", "--prefix", "bench:", "--keep", *arguments)
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def _spent(self) -> Row:
        """CPU seconds so far of each role; the client is kvcli, its start included."""
        client = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = {"router": 0.0, "store": 0.0, "monitor": 0.0, "client": client.ru_utime + client.ru_stime}
        for name, process in self.cluster.processes().items():
            spent[name.rstrip("0123456789")] += _cpu_seconds(process)
        return spent


def _cpu_seconds(process: int) -> float:
    """Of all its threads, since it began; of one that is gone 0, before a turn and after it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def options(description: str) -> argparse.Namespace:
    """What every bench of this kind can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=20, help="fewer than 6 make nothing certain")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(without: str, having: str, sides: Mapping[str, Side], told: argparse.Namespace) -> None:
    """Start both, take the turns, print the table, stop both."""
    rounds: dict[str, list[dict[str, Row]]] = {mix: [] for mix in MIXES}
    load = os.getloadavg()[0]
    began = time.monotonic()
    try:
        for side in sides.values():
            side.start(told.keys)
        for number in range(told.rounds):
            order = (without, having) if number % 2 else (having, without)
            for mix, taken in rounds.items():
                taken.append({name: sides[name].turn(mix, told) for name in order})
    finally:
        for side in sides.values():
            side.stop()
    result = {mix: summary(taken, without, having) for mix, taken in rounds.items()}
    print(
        f"{told.rounds} rounds of {told.seconds:g} s a side, {told.in_flight} in flight, "
        f"{time.monotonic() - began:.0f} s; load of the machine before: {load:.1f}"
    )
    for mix, found in result.items():
        for name in (without, having):
            print(f"{mix}  {_line(name, found['medians'][name])}")
        print(f"{mix}  {having} / {without}: {_spread(found['ratio'])}")
    if told.json:
        told.json.write_text(json.dumps({"summary": result, "rounds": rounds, "load": load}, indent=2) + "\n")


def summary(rounds: Sequence[Mapping[str, Row]], without: str, having: str) -> dict[str, Any]:
    """`medians` of each side, and the `ratio` of their rates, round by round."""
    medians = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in (without, having)
    }
    ratios = sorted(one[having]["ops_per_second"] / one[without]["ops_per_second"] for one in rounds)
    low = certain(len(ratios))
    return {
        "medians": medians,
        "ratio": {
            "median": statistics.median(ratios),
            "from": ratios[low],
            "to": ratios[-1 - low],
            "smallest": ratios[0],
            "largest": ratios[-1],
        },
    }


def certain(count: int) -> int:
    """How many of `count` sorted values may be left out at each end, so that the rest spans the true median
    with 95 % confidence, whatever their distribution; 0 if there are too few for that.
    """
    outside, left_out = 0.0, -1
    while True:
        outside += 2 * comb(count, left_out + 1) / 2**count
        if outside > 1 - _CONFIDENCE:
            return max(0, left_out)
        left_out += 1


def _line(name: str, row: Row) -> str:
    cpu = ", ".join(f"{role} {row[f'{role}_us']:.1f}" for role in ROLES)
    return f"{name:<8} {row['ops_per_second']:>8,.0f} ops/s   us of CPU an op: {cpu}"


def _spread(ratio: Mapping[str, float]) -> str:
    return (
        f"{ratio['median']:.3f} (95 % certain: {ratio['from']:.3f} to {ratio['to']:.3f}; "
        f"single rounds {ratio['smallest']:.2f} to {ratio['largest']:.2f})"
    )
