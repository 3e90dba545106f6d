"""What is measured, in which shapes, and what one run of it comes to. Knows no system and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tests.benchmark.engine_bench.data import ENTRY_BYTES

WORKLOADS = ("put", "get", "lease_get", "mixed")
"""`get` is linearizable; `mixed` is half puts, half linearizable gets."""
SINGLE_IN_FLIGHT = (1, 64, 256, 1000)
PIPELINE_OPS = 100
PIPELINE_REQUESTS = 16
"""1600 ops under way, as many as 50 connections of redis-benchmark have with pipelines of 32."""


class Point(NamedTuple):
    """A workload with so many ops under way, in requests of `batch` ops each."""

    workload: str
    in_flight: int
    batch: int = 1

    @property
    def requests(self) -> int:
        """Requests under way."""
        return self.in_flight // self.batch

    @property
    def name(self) -> str:
        return self.workload if self.batch == 1 else f"{self.workload}/{self.batch}"

    @property
    def user_bytes(self) -> int:
        """Keys and values that one op brings; 0 unless all ops are puts."""
        return ENTRY_BYTES if self.workload == "put" else 0


class Sample(NamedTuple):
    """One run: ops that succeeded, those that did not, and how long requests took."""

    ops: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int = 0

    @property
    def rate(self) -> float:
        return self.ops / self.seconds


class System(Protocol):
    """A cluster that runs, and what loads it. Errors are RuntimeError, TimeoutError or OSError."""

    name: str

    def servers(self) -> dict[str, int]:
        """Process id by name."""

    def prepare(self, point: Point) -> bool:
        """Whether it has something like `point`. Afterwards a run of it is no first run."""

    def run(self, point: Point, seconds: float) -> Sample:
        """About so many seconds of load."""

    def syncs(self) -> int | None:
        """Syncs of its logs so far, where it counts them."""


BARS = {
    Point("put", 1): ("etcd", 1.0),
    Point("get", 1): ("etcd", 1.0),
    Point("put", 256): ("etcd", 2.0),
    Point("get", 256): ("etcd", 3.0),
    Point("put", PIPELINE_OPS * PIPELINE_REQUESTS, PIPELINE_OPS): ("redis", 0.5),
    Point("get", PIPELINE_OPS * PIPELINE_REQUESTS, PIPELINE_OPS): ("redis", 0.5),
}
"""Peer, and the least ratio of our rate to its. With one op under way the rate is one over the latency."""


def points(workload: str) -> list[Point]:
    """All shapes of a workload."""
    single = [Point(workload, in_flight) for in_flight in SINGLE_IN_FLIGHT]
    return [*single, Point(workload, PIPELINE_OPS * PIPELINE_REQUESTS, PIPELINE_OPS)]


def sample(ops: int, seconds: float, latencies_s: Sequence[float], failed: int = 0) -> Sample:
    """With the percentiles of the requests' latencies."""
    ordered = sorted(latencies_s)

    def percentile(percent: int) -> float:
        return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000 if ordered else 0.0

    return Sample(ops, seconds, percentile(50), percentile(99), failed)
