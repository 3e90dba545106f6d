"""One point, all systems, in rounds; and the row that comes out of it."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from typing import Any

from tests.benchmark.cluster_bench.meter import Cost, measured
from tests.benchmark.cluster_bench.points import BARS, Point, Sample, System

OURS = "ours"
PEER_ERRORS = (RuntimeError, OSError, subprocess.TimeoutExpired)
"""What costs a peer its place in the run; TimeoutError is an OSError."""


class Rounds:
    """The systems of a run. The first one is ours; a peer that fails is left out from there on."""

    def __init__(
        self, systems: list[System], rounds: int, seconds: float, say: Callable[[str], None]
    ) -> None:
        assert systems[0].name == OURS
        self._systems = systems
        self._rounds = rounds
        self._seconds = seconds
        self._say = say

    def row(self, point: Point) -> dict[str, Any]:
        """Rounds alternate between the systems, and who begins changes; figures are medians of the rounds, a
        ratio is the median of the rounds' ratios.
        """
        taking_part = [system for system in list(self._systems) if self._prepared(system, point)]
        samples: dict[str, list[Sample]] = {system.name: [] for system in taking_part}
        costs = {system.name: Cost() for system in taking_part}
        for number in range(self._rounds):
            first = number % len(taking_part)
            for system in taking_part[first:] + taking_part[:first]:
                if system not in self._systems:
                    continue
                try:
                    found = measured(system, point, self._seconds, costs[system.name])
                except PEER_ERRORS as error:
                    self._lost(system, error)
                else:
                    samples[system.name].append(found)
        left = {system.name for system in self._systems}
        return _row(
            point,
            {name: found for name, found in samples.items() if name in left},
            {name: cost for name, cost in costs.items() if name in left},
        )

    def _prepared(self, system: System, point: Point) -> bool:
        try:
            return system.prepare(point)
        except PEER_ERRORS as error:
            self._lost(system, error)
        return False

    def _lost(self, system: System, error: Exception) -> None:
        if system.name == OURS:
            raise error
        self._say(f"  {system.name} is left out from here on: {error}")
        self._systems.remove(system)


def _row(point: Point, samples: dict[str, list[Sample]], costs: dict[str, Cost]) -> dict[str, Any]:
    ours = samples.pop(OURS)
    ratios = {
        name: round(
            statistics.median(mine.rate / theirs.rate for mine, theirs in zip(ours, found, strict=True)), 3
        )
        for name, found in samples.items()
    }
    row: dict[str, Any] = {
        "workload": point.name,
        "in_flight": point.in_flight,
        "ours": _figures(ours),
        "peers": {name: _figures(found) for name, found in samples.items()},
        "ratios": ratios,
        "bar": None,
        "met": None,
        "costs": {name: cost.per_op(point) for name, cost in costs.items()},
    }
    if point in BARS:
        peer, bar = BARS[point]
        row["bar"] = {peer: bar}
        row["met"] = ratios[peer] >= bar if peer in ratios else None
    if failed := sum(sample.failed for sample in ours):
        row["failed"] = failed
    return row


def _figures(samples: list[Sample]) -> dict[str, float]:
    return {
        "ops_per_s": round(statistics.median(sample.rate for sample in samples)),
        "p50_ms": round(statistics.median(sample.p50_ms for sample in samples), 3),
        "p99_ms": round(statistics.median(sample.p99_ms for sample in samples), 3),
    }
