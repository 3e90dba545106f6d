"""`scripts/bench engine` with a few thousand entries: every workload runs, and its JSON is as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
READS = ["readrandom", "readmissing", "multiget100", "readseq", "readreverse", "seekrandom10"]
RATES = [
    "fillseq",
    "fillrandom",
    "fillbatch100",
    "fillsync",
    "overwrite",
    *READS,
    *(f"{name}/4x" for name in READS),
    "readwhilewriting",
]
FIGURES = [
    "write_amplification",
    "space_amplification",
    "longest_stall_s",
    "memory_of_budget",
    "reopen_s at 2,000",
]


def bench(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/benchmark/engine.py", "--quick", "--rounds", "1", *arguments]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def test_every_workload_has_its_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    run = bench("--entries", "2000", "--peers", "", "--json", str(file))
    assert run.returncode == 0, run.stderr
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    assert [row["workload"] for row in rows] == RATES + FIGURES
    for row in rows:
        assert row["peers"] == {}
        assert row["ratio_to_best_lsm"] is None
        assert row["workload"] in run.stdout
    rates = {row["workload"]: row["ours"] for row in rows[: len(RATES)]}
    assert all(isinstance(rate, int) and rate > 0 for rate in rates.values())
    synced = rows[RATES.index("fillsync")]
    assert synced["ratio_to_fdatasync"] == pytest.approx(synced["ours"] / synced["bare_fdatasync"], rel=0.05)
    assert synced["met"] == (synced["ratio_to_fdatasync"] >= 0.9)


def test_a_peer_that_is_not_there_is_said_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "plyvel.py").write_text("raise ImportError('no LevelDB here')\n")
    file = tmp_path / "rows.json"
    run = bench(
        "--entries", "500", "--peers", "leveldb", "--only", "fillseq", "--json", str(file), path=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert "leveldb: not installed, the run goes on without it (ImportError: no LevelDB here)" in run.stdout
    (row,) = json.loads(file.read_text())
    assert row["workload"] == "fillseq"
    assert row["peers"] == {}


@pytest.mark.parametrize("arguments", [("--peers", "sqlite"), ("--only", "readbackwards")])
def test_an_unknown_name_is_refused_with_those_that_there_are(arguments: tuple[str, str]) -> None:
    run = bench(*arguments)
    assert run.returncode == 2
    assert arguments[1] in run.stderr
    assert "there are" in run.stderr
