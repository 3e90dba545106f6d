"""A cluster that changes, under load: scripts/bench scale [--keys N] [--only lookup,growing] [--json FILE]

lookup: what the map costs a router. growing: 3 -> 4 stores, a drain, and a store that is lost for good, each
with bytes, times and the clients' latencies; bar: p99 at most 3 times that before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.scale_bench.growing import P99_RATIO_MAX, growing
from tests.benchmark.scale_bench.lookup import lookup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=2_000_000)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of the measurement before anything moves"
    )
    parser.add_argument("--only", default="lookup,growing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    if "lookup" in options.only:
        result["lookup"] = found = lookup()
        print(f"lookup: {found['worst_us_per_op']:.3f} us per op at worst; bar {found['bar_us_per_op']}")
    if "growing" in options.only:
        with tempfile.TemporaryDirectory() as directory:
            result["growing"] = found = growing(Path(directory) / "cluster", options.keys, options.seconds)
        for name in ("before", "grow", "drain", "kill_to_full_replication"):
            print(f"{name:<25}" + "  ".join(f"{figure} {value:,}" for figure, value in found[name].items()))
        print(f"moved {found['moved_bytes']:,} bytes, ideal {found['ideal_bytes']:,}")
        print(f"failed requests: {found['failed']} {found['failures']}; bar of p99_ratio: {P99_RATIO_MAX:g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
