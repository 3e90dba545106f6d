"""Many seeds of clusters whose members change, and that each is the same run every time.

RINGKV_SIMULATION_SEEDS says how many seeds the long run takes (`-m long`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import logs
from tests.simulation.elastic.running import FIRST, run, simulate

SEEDS = 100
CHUNK = 5
LONG_FIRST = FIRST + 100_000
SEEDS_LONG = int(os.environ.get("RINGKV_SIMULATION_SEEDS", "2000"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logs.configure("error", "console")


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, CHUNK))
def test_stores_come_and_go_and_nobody_notices(first: int) -> None:
    failure = run(range(first, first + CHUNK))
    assert failure is None, str(failure)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_more_seeds() -> None:
    failure = run(range(LONG_FIRST, LONG_FIRST + SEEDS_LONG))
    assert failure is None, str(failure)


def test_a_seed_is_the_same_run_each_time() -> None:
    seed = FIRST
    world, summary, error = simulate(seed, 8.0)
    assert error is None
    assert simulate(seed + 1, 8.0)[0].digest != world.digest
    for hash_seed in ("1", "2"):
        program = (
            "from shared import logs; logs.configure('error', 'console')\n"
            "from tests.simulation.elastic.running import simulate\n"
            f"print(simulate({seed}, 8.0)[0].digest)"
        )
        printed = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=dict(os.environ, PYTHONHASHSEED=hash_seed),
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.strip() == world.digest, summary
