"""scripts/bench footprint: idle memory of the processes, and how long `kvcli get` takes from a cold start.

Bars: router <= 60 MiB and store <= 100 MiB resident when idle, `kvcli get` <= 250 ms (median). The bare
interpreter is timed in the same run, alternating, so that a slow machine is seen as one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.localcluster import KVCLI, Cluster, resident_bytes


def milliseconds(command: list[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(Path(directory))
        try:
            cluster.up("--stores", "3", "--routers", "2")
            resident = {name: resident_bytes(pid) / (1 << 20) for name, pid in cluster.processes().items()}
            cluster.kvcli("put", "hello", "world")
            environment = cluster.environment()
            pairs = [
                (
                    milliseconds([KVCLI, "get", "hello"], environment),
                    milliseconds([sys.executable, "-c", ""], environment),
                )
                for _ in range(options.rounds)
            ]
        finally:
            cluster.dev("down")
    result = {
        "router_mib": round(max(size for name, size in resident.items() if name.startswith("router")), 1),
        "store_mib": round(max(size for name, size in resident.items() if name.startswith("store")), 1),
        "kvcli_get_ms": round(statistics.median(ours for ours, _ in pairs), 1),
        "python_ms": round(statistics.median(bare for _, bare in pairs), 1),
    }
    bars = {"router_mib": 60, "store_mib": 100, "kvcli_get_ms": 250}
    for name, value in result.items():
        print(f"{name:>14} {value:>8}" + (f"   bar: <= {bars[name]}" if name in bars else ""))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
