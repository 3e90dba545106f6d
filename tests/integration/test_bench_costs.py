"""The benches that hold two clusters against each other: both sides are what they say that they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmark.cost_bench import turns
from tests.benchmark.metrics import Unheard

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("count", "left_out"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5), (100, 39)])
def test_how_many_ratios_may_be_left_out_at_each_end(count: int, left_out: int) -> None:
    """As tables of the sign test have it."""
    assert turns.certain(count) == left_out


def test_ratios_are_taken_round_by_round() -> None:
    rounds = [
        {"off": {"ops_per_second": float(rate)}, "on": {"ops_per_second": rate * 0.9}}
        for rate in (100, 10, 1)
    ]
    found = turns.summary(rounds, "off", "on")
    assert found["medians"]["off"] == {"ops_per_second": 10}
    assert found["ratio"]["median"] == pytest.approx(0.9)


def test_without_metrics_nothing_is_counted_and_told(tmp_path: Path) -> None:
    cluster = Unheard(tmp_path)
    try:
        cluster.up("--stores", "1", "--routers", "1")
        with cluster.connect() as client:
            client.put_many({b"key%d" % number: b"value" for number in range(100)})
            figures = client.admin("figures")
        assert figures["requests_ops"] > 0
        assert figures["durations"]["write"]["count"] == 0
        assert figures["requests"] == {}
    finally:
        cluster.dev("down")


def test_a_short_run_tells_the_cost_of_metrics(tmp_path: Path) -> None:
    into = tmp_path / "result.json"
    command = ["tests/benchmark/metrics.py", "--rounds", "1", "--seconds", "0.5", "--keys", "100"]
    done = subprocess.run(
        [sys.executable, *command, "--json", str(into)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "on / off:" in done.stdout
    medians = json.loads(into.read_text())["summary"]["put"]["medians"]
    assert medians["off"]["monitor_us"] == 0
    assert all(medians[side][f"{role}_us"] > 0 for side in medians for role in ("router", "store", "client"))
