"""Manifests whose pages were changed in their structure are refused or harmless (lmdb_mutation.py): LMDB
would die of many of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.property.memory_directory import memory_directory

ROOT = Path(__file__).parents[2]
ENDLESS = 1 << 60


def fuzz(seed: str, seconds: float, cases: int) -> dict[str, int]:
    """How cases ended; fails with what the process said if one ended otherwise than it may."""
    with memory_directory("manifest-fuzz-") as directory:
        done = subprocess.run(
            [sys.executable, "-m", "tests.property.lmdb_mutation", directory, seed, str(seconds), str(cases)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    outcomes: dict[str, int] = ast.literal_eval(done.stdout.splitlines()[-1])
    return outcomes


def test_a_manifest_with_changed_pages_is_refused_or_harmless() -> None:
    outcomes = fuzz("default", seconds=60, cases=110)
    assert outcomes["refused"] > 20
    assert outcomes["right"] > 20


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_many_manifests_with_changed_pages() -> None:
    seed = os.environ.get("RINGKV_FUZZ_SEED", "long")
    print(fuzz(seed, seconds=float(os.environ.get("RINGKV_FUZZ_SECONDS", "600")), cases=ENDLESS))
