"""scripts/bench keys: what keys cost. A cluster without keys, and one with them, in turns."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.cost_bench import turns
from tests.integration.localcluster import Cluster


def main() -> None:
    told = turns.options(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        sides = {
            "plain": turns.Side(Cluster(Path(directory) / "plain")),
            "keys": turns.Side(Cluster(Path(directory) / "keys"), "--secure"),
        }
        turns.measure("plain", "keys", sides, told)


if __name__ == "__main__":
    main()
