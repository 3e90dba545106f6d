"""How often and for how long an engine asked its writers to slow down or to stop, and why.

What is noted is what `pressure` said whenever somebody asked: writers do, and workers after each job. Any
thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

Reason = Literal["memtables", "level0", "memory", "range_deletions"]
"""Memtables wait for their flush; level 0 has too many tables; the memtables of all engines take too much;
too many range deletions are in force."""

FINE, SLOW, STOP = 0, 1, 2
DEGREES = {SLOW: "slow", STOP: "stop"}
REASONS: tuple[Reason, ...] = ("memtables", "level0", "memory", "range_deletions")

MEMTABLES_SLOW = 2
MEMTABLES_STOP = 4
"""Retired memtables that wait for their flush: at the second one writing is faster than the disk, four are
all the memory there is for it."""

Measure = tuple[int, int, int, Reason]
"""(what there is of it, from how much on to slow down, and to stop, the reason)."""


class Stalls:
    """Counts and seconds by degree and reason."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now: tuple[int, Reason | None] = (FINE, None)
        self._since = clock()
        self._times = {(degree, reason): 0 for degree in DEGREES for reason in REASONS}
        self._seconds = dict.fromkeys(self._times, 0.0)

    def weigh(self, measured: Iterable[Measure]) -> int:
        """The highest degree of all, which is noted; with the first reason for it."""
        degree: int = FINE
        reason: Reason | None = None
        for value, slow, stop, name in measured:
            here = STOP if value >= stop else SLOW if value >= slow else FINE
            if here > degree:
                degree, reason = here, name
        self.note(degree, reason)
        return degree

    def note(self, degree: int, reason: Reason | None) -> None:
        """What holds from now on."""
        if self._now == (degree, reason):
            return
        with self._lock:
            self._count_seconds()
            self._now = (degree, reason)
            if reason is not None:
                self._times[degree, reason] += 1

    def stats(self) -> dict[str, Any]:
        """{"slow" | "stop": {reason: {"times", "seconds"}}}, with what still goes on."""
        with self._lock:
            self._count_seconds()
            return {
                name: {
                    reason: {
                        "times": self._times[degree, reason],
                        "seconds": round(self._seconds[degree, reason], 6),
                    }
                    for reason in REASONS
                }
                for degree, name in DEGREES.items()
            }

    def _count_seconds(self) -> None:
        now = self._clock()
        degree, reason = self._now
        if reason is not None:
            self._seconds[degree, reason] += now - self._since
        self._since = now
