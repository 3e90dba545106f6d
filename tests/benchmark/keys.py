"""scripts/bench keys: what keys cost. Two clusters of the same shape, one with keys and one without, are
loaded in turns; of each turn the rate, and the CPU that an op takes of router and stores, are kept.

A machine that does other things as well lowers the rates of both; CPU per op bears that better.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.localcluster import Cluster

MIXES = {"get": "100/0", "put": "0/100"}
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: int) -> float:
    """Of all its threads, since it began."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def spent(cluster: Cluster) -> dict[str, float]:
    found = {"router": 0.0, "store": 0.0}
    for name, process in cluster.processes().items():
        role = name.rstrip("0123456789")
        if role in found:
            found[role] += cpu_seconds(process)
    return found


def turn(cluster: Cluster, mix: str, seconds: float, in_flight: int) -> dict[str, float]:
    before = spent(cluster)
    told = cluster.kvcli(
        "-o", "json", "bench", "--mix", mix, "--in-flight", str(in_flight), "--keys", "2000", "--keep",
        "--seconds", f"{seconds:g}s", "--no-fill", "--prefix", "bench:",
    )  # fmt: skip
    after = spent(cluster)
    result: dict[str, Any] = json.loads(told.stdout)
    ops = max(1, result["ops"])
    each = {f"{role}_us": (after[role] - before[role]) / ops * 1e6 for role in before}
    return {"ops_per_second": result["ops_per_second"], **each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        clusters = {name: Cluster(Path(directory) / name) for name in ("plain", "keys")}
        rows: dict[str, dict[str, list[dict[str, float]]]] = {}
        try:
            for name, cluster in clusters.items():
                secure = ("--secure",) if name == "keys" else ()
                cluster.up("--stores", "3", "--routers", "1", *secure)
                turn(cluster, "0/100", 1.0, 64)
            for _ in range(options.rounds):
                for what, mix in MIXES.items():
                    for name, cluster in clusters.items():
                        measured = turn(cluster, mix, options.seconds, options.in_flight)
                        rows.setdefault(what, {}).setdefault(name, []).append(measured)
        finally:
            for cluster in clusters.values():
                cluster.kvcli("dev", "down", "--dir", str(cluster.directory), check=False)
    medians = {
        what: {
            name: {key: statistics.median(one[key] for one in turns) for key in turns[0]}
            for name, turns in sides.items()
        }
        for what, sides in rows.items()
    }
    for what, sides in medians.items():
        for name, row in sides.items():
            print(
                f"{what}  {name:<6} {row['ops_per_second']:>8,.0f} ops/s   CPU of an op: router "
                f"{row['router_us']:6.1f} us, stores {row['store_us']:6.1f} us"
            )
    if options.json:
        options.json.write_text(json.dumps({"medians": medians, "rounds": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
