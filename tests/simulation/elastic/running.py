"""Running seeds of clusters that change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.simulation import running
from tests.simulation.cluster import simulate as simulate_in
from tests.simulation.elastic.cluster import ElasticCluster
from tests.simulation.world import World

FAULTS_S = 12.0
"""How long things go wrong, by default."""

FIRST = 100_000
"""The seeds of this simulation begin here."""


def simulate(
    seed: int, faults_s: float = FAULTS_S, tell: Callable[[str], None] | None = None
) -> tuple[World, str, BaseException | None]:
    """Runs a seed: its world, a summary, and what went wrong."""
    return simulate_in(seed, faults_s, tell, ElasticCluster)


def run(
    seeds: Iterable[int],
    faults_s: float = FAULTS_S,
    tell: Callable[[str], None] | None = None,
    on_done: Callable[[int, str, str], None] | None = None,
) -> running.Failure | None:
    """Runs seeds until one fails."""
    failure = running.run(seeds, faults_s, tell, on_done, simulate)
    return failure and failure._replace(program="tests.simulation.elastic")
