"""The CPU that a system takes while nobody asks anything of it."""

from __future__ import annotations

import time

from tests.benchmark.cluster_bench.points import System
from tests.benchmark.cluster_bench.processes import cpu_seconds

SETTLE_SECONDS_MAX = 2.0
"""After the start, for what goes on in the background then; no longer than is measured."""


def idle_percent(system: System, seconds: float) -> dict[str, float]:
    """Of one core, by process."""
    time.sleep(min(seconds, SETTLE_SECONDS_MAX))
    before = {name: cpu_seconds(process_id) for name, process_id in system.servers().items()}
    began = time.perf_counter()
    time.sleep(seconds)
    after = {name: cpu_seconds(process_id) for name, process_id in system.servers().items()}
    took = time.perf_counter() - began
    return {name: round(100 * (after[name] - spent) / took, 2) for name, spent in before.items()}
