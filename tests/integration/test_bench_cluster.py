"""`scripts/bench cluster` with runs of a few milliseconds: every measurement has its row, its JSON is as
told, and peers that are not there are named.

With one replica: what needs more is only said to be left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.cluster_bench import etcd, redis
from tests.benchmark.cluster_bench.ours import OurCluster
from tests.benchmark.cluster_bench.points import WORKLOADS, Point, Sample, sample
from tests.benchmark.cluster_bench.rounds import Rounds

ROOT = Path(__file__).resolve().parents[2]
LOADS = [
    (f"{workload}{suffix}", in_flight)
    for workload in WORKLOADS
    for suffix, in_flight in (("", 1), ("", 64), ("", 256), ("", 1000), ("/100", 1600))
]
APART = ["failover kill -9", "failover SIGTERM", "idle 16 partitions", "idle 256 partitions"]
PROCESSES = {"store1", "store2", "store3", "router", "load"}


def bench(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/benchmark/cluster.py", "--quick", "--replicas", "1", *arguments]
    environment = os.environ | ({} if path is None else {"PATH": path})
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)


def rows_of(tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """What a run writes and what it prints."""
    file = tmp_path / "rows.json"
    run = bench(*arguments, "--json", str(file))
    assert run.returncode == 0, run.stderr
    return json.loads(file.read_text()), run.stdout


def test_every_load_has_its_row(tmp_path: Path) -> None:
    rows, output = rows_of(tmp_path, "--peers", "", "--only", ",".join(WORKLOADS), "--seconds", "0.05")
    assert [(row["workload"], row["in_flight"]) for row in rows] == LOADS
    for row in rows:
        assert f"{row['workload']}, {row['in_flight']} in flight" in output
        assert row["peers"] == row["ratios"] == {}
        assert row["met"] is None
        assert "failed" not in row
        ours = row["ours"]
        assert ours["ops_per_s"] > 0
        assert 0 < ours["p50_ms"] <= ours["p99_ms"]
        cost = row["costs"]["ours"]
        assert set(cost["cpu_us_per_op"]) == PROCESSES
        assert ("written_per_user_byte" in cost) == row["workload"].startswith("put")
    assert [row["bar"] for row in rows[:3]] == [{"etcd": 1.0}, None, {"etcd": 2.0}]


def test_failover_and_idle_have_their_rows_and_catchup_says_what_it_needs(tmp_path: Path) -> None:
    rows, output = rows_of(
        tmp_path, "--peers", "", "--only", "failover,catchup,idle", "--kills", "1", "--idle-seconds", "0.1"
    )
    assert [row["workload"] for row in rows] == APART
    for row in rows[:2]:
        assert row["kills"] == 1 <= len(row["outages_ms"]) < row["in_flight"]
        assert row["ours"]["max_ms"] == max(*row["outages_ms"], row["longest_of_others_ms"]) > 0
    for row in rows[2:]:
        assert set(row["cpu_percent_by_process"]) == PROCESSES - {"load"}
    assert "catchup is left out: it needs a replica of everything on every store" in output


def test_peers_that_are_not_installed_are_named_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    run = bench("--only", "idle", "--idle-seconds", "0.1", "--json", str(file), path=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "etcd: not installed, the run goes on without it (no etcd, h2load)" in run.stdout
    assert "redis: not installed, the run goes on without it" in run.stdout
    assert [row["peers"] for row in json.loads(file.read_text())] == [{}, {}]


@pytest.mark.parametrize(
    ("peer", "programs", "pipelined"),
    [("etcd", etcd.PROGRAMS, ["etcd"]), ("redis", redis.PROGRAMS, ["redis", "redis-100"])],
)
def test_a_peer_that_is_installed_stands_beside_ours(
    peer: str, programs: tuple[str, ...], pipelined: list[str], tmp_path: Path
) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    rows, output = rows_of(tmp_path, "--peers", peer, "--only", "mixed", "--seconds", "0.05")
    assert "left out" not in output
    _, *single, batches = rows
    assert [list(row["peers"]) for row in single] == [[peer]] * 3
    assert list(batches["peers"]) == pipelined
    for row in (*single, batches):
        for name, figures in row["peers"].items():
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
            assert row["ratios"][name] == pytest.approx(
                row["ours"]["ops_per_s"] / figures["ops_per_s"], rel=0.01
            )


@pytest.mark.parametrize("arguments", [("--peers", "consul"), ("--only", "delete"), ("--replicas", "4")])
def test_what_there_is_not_is_refused_with_what_there_is(arguments: tuple[str, str]) -> None:
    run = bench(*arguments)
    assert run.returncode == 2
    assert "there are" in run.stderr


def test_ops_that_fail_are_no_ops_per_second(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = OurCluster(stack, tmp_path / "ours", replicas=1)  # without a key to be found
        found = cluster.run(Point("get", 300), 0.05)
        assert found.ops == 0
        assert found.failed >= 300
        for point in (Point("get", 1), Point("lease_get", 200, 100)):
            with pytest.raises(RuntimeError, match="not there"):
                cluster.run(point, 0.05)
        cluster.stores[3].stop()
        with pytest.raises(RuntimeError, match="store3 ended while waiting"):
            cluster.wait_ready()


class Scripted:
    """A system whose runs are given; None stands for a run that fails."""

    def __init__(self, name: str, rates: list[int | None]) -> None:
        self.name = name
        self._rates = rates

    def servers(self) -> dict[str, int]:
        return {"server": os.getpid()}

    def syncs(self) -> int | None:
        return None

    def prepare(self, point: Point) -> bool:
        return True

    def run(self, point: Point, seconds: float) -> Sample:
        rate = self._rates.pop(0)
        if rate is None:
            raise RuntimeError("the disk is full")
        return Sample(rate, 1.0, 1.0, 2.0)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    ours, theirs = Scripted("ours", [100, 400, 300]), Scripted("etcd", [50, 100, 300])
    row = Rounds([ours, theirs], 3, 1.0, print).row(Point("put", 256))
    assert row["ours"]["ops_per_s"] == 300
    assert row["peers"]["etcd"]["ops_per_s"] == 100
    assert row["ratios"] == {"etcd": 2.0}
    assert row["bar"] == {"etcd": 2.0}
    assert row["met"] is True


def test_a_peer_that_fails_is_left_out_from_there_on_and_we_are_not() -> None:
    said: list[str] = []
    ours, theirs = Scripted("ours", [100, 100, 100, None]), Scripted("etcd", [50, None])
    rounds = Rounds([ours, theirs], 2, 1.0, said.append)
    assert rounds.row(Point("put", 256))["peers"] == {}
    assert said == ["  etcd is left out from here on: the disk is full"]
    with pytest.raises(RuntimeError, match="the disk is full"):
        rounds.row(Point("put", 256))


def test_percentiles_are_of_the_requests() -> None:
    assert sample(1000, 2.0, [number / 1000 for number in range(100, 0, -1)]) == Sample(
        1000, 2.0, 51.0, 100.0
    )


@pytest.mark.parametrize(
    ("point", "revisions", "data", "error"),
    [
        (Point("put", 64), 999, 9000, "999 revisions of 1000 puts"),
        (Point("put", 1600, 100), 100_000, 9000, "100000 revisions of 1000 puts"),
        (Point("mixed", 64), 400, 200_000, "400 revisions of 500 puts"),
        (Point("get", 64), 0, 99_999, "too small"),
        (Point("get", 1600, 100), 0, 9_999_999, "too small"),
        (Point("get", 64), 0, 121_000, None),
        (Point("put", 64), 1000, 9000, None),
        (Point("mixed", 64), 510, 70_000, None),
    ],
)
def test_what_http_calls_a_success_counts_only_if_etcd_did_it(
    point: Point, revisions: int, data: int, error: str | None
) -> None:
    text = f"requests: 1000 done, 1000 succeeded, 0 failed, 0 errored\ntraffic: ({data}) data"
    output = subprocess.CompletedProcess([], 0, text, "")
    with pytest.raises(RuntimeError, match=error) if error else nullcontext():
        etcd.check(point, 1000, 16, output, revisions)


def test_etcd_requests_are_what_its_protobuf_schema_says() -> None:
    put, reads = Point("put", 200, 2), Point("lease_get", 1)
    key, value = etcd.KEYS[0], etcd.END
    assert etcd.message(Point("put", 1)) == b"\x0a\x10" + etcd.LAST_KEY + b"\x12\x64" + value
    assert etcd.message(reads) == b"\x0a\x10" + etcd.LAST_KEY + b"\x38\x01"
    assert etcd.message(put).startswith(b"\x12\x7a\x12\x78\x0a\x10" + key + b"\x12\x64" + value)
    assert etcd.varint(300) == b"\xac\x02"
    assert max(etcd.KEYS) < etcd.LAST_KEY < value
