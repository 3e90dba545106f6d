"""One process that is watched: its last figures, when they came, what has changed lately. Owns when one is
gone. `now` is handed in, monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from monitor import reading
from shared.metrics import percentile

GONE_S: Final = 5.0
"""Five figures are missing: more than a busy loop, a slow link or a collected PUB queue make one wait."""

SAMPLES: Final = 3
"""Figures come once a second: rates are over the last two."""

Figures = Mapping[str, Any]


class Watched:
    """A store or a router."""

    def __init__(self, now: float) -> None:
        self.known_since = now
        self.heard_at: float | None = None
        self.last: Figures = {}
        self.restarts = 0
        self._samples: deque[tuple[float, Figures]] = deque(maxlen=SAMPLES)

    def hear(self, figures: Figures, now: float) -> None:
        """Its newest figures."""
        if self.heard_at is not None and reading.number(figures, "pid") != reading.number(self.last, "pid"):
            self.restarts += 1
            self._samples.clear()
        elif self.is_gone(now):
            self._samples.clear()
        self.heard_at, self.last = now, figures
        self._samples.append((now, figures))

    def is_gone(self, now: float) -> bool:
        """Whether nothing came for GONE_S."""
        return now - (self.known_since if self.heard_at is None else self.heard_at) > GONE_S

    def figures(self, now: float) -> Figures:
        """What it says of itself; nothing if that is no longer known to be so."""
        return {} if self.heard_at is None or self.is_gone(now) else self.last

    def rate(self, read: Callable[[Figures], float | None]) -> float | None:
        """How fast a count grows, per second; None when it is not known."""
        span = self._span()
        if span is None:
            return None
        seconds, (first, last) = span
        before, after = read(first), read(last)
        if before is None or after is None:
            return None
        return max(0.0, after - before) / seconds

    def lately(self, read: Callable[[Figures], list[int] | None]) -> list[int] | None:
        """What was added to the buckets of a histogram."""
        span = self._span()
        if span is None:
            return None
        before, after = (read(figures) for figures in span[1])
        if before is None or after is None:
            return None
        return [max(0, new - old) for new, old in zip(after, before, strict=True)]

    def _span(self) -> tuple[float, tuple[Figures, Figures]] | None:
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (ended - began, (first, last)) if ended > began else None


def percentile_ms(buckets: list[int] | None, percent: float) -> float | None:
    """Milliseconds that `percent` of the durations stay within; None without any."""
    return round(percentile(buckets, percent) / 1e6, 3) if buckets and sum(buckets) else None


def added(several: list[list[int]]) -> list[int] | None:
    """The histograms of several processes as one."""
    return [sum(column) for column in zip(*several, strict=True)] if several else None
