"""Load generators that want a number of requests, used for a time: the number follows from the last rate."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmark.cluster_bench.points import Point, Sample

PROBE_REQUESTS = 4
"""For each one under way: the first rate is of a short run."""
REQUESTS_MAX = 2_000_000
"""Of one run: its log is read into memory."""

Load = Callable[[Point, int], Sample]


class Paced:
    """Remembers the rate at each point."""

    def __init__(self) -> None:
        self._rates: dict[Point, float] = {}

    def probe(self, point: Point, load: Load) -> None:
        """A first, short run."""
        self._remember(point, load(point, _even(PROBE_REQUESTS * point.requests + 50)))

    def run(self, point: Point, seconds: float, load: Load) -> Sample:
        """About `seconds` of load; `probe` came before."""
        wanted = int(self._rates[point] * seconds / point.batch)
        return self._remember(point, load(point, _even(min(max(wanted, point.requests), REQUESTS_MAX))))

    def _remember(self, point: Point, result: Sample) -> Sample:
        self._rates[point] = result.rate
        return result


def _even(number: int) -> int:
    """Mixed loads are halved."""
    return number + number % 2
