"""The last hour of a few figures of the whole cluster, a point every EVERY_S.

Owns the arrays: POINTS points of 8 bytes for each series and the time, some 100 KiB, made once and written
round and round. NaN is what was not known. Any thread may read.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping
from math import isnan, nan
from typing import Final

EVERY_S: Final = 2.0
POINTS: Final = 1800

SERIES: Final = ("ops_per_s", "errors_per_s", "p50_ms", "p99_ms", "memory_bytes", "disk_bytes")


class History:
    """Of one monitor."""

    def __init__(self) -> None:
        self._series = {name: array("d", [nan]) * POINTS for name in ("at_s", *SERIES)}
        self._count = 0
        self._lock = threading.Lock()

    def add(self, at_s: int, figures: Mapping[str, float | None]) -> None:
        """One point; a series without a figure is not known at that time."""
        with self._lock:
            place = self._count % POINTS
            self._series["at_s"][place] = at_s
            for name in SERIES:
                value = figures.get(name)
                self._series[name][place] = nan if value is None else value
            self._count += 1

    def last(self, seconds: float) -> dict[str, list[float | None]]:
        """The points of the last `seconds`, oldest first; `at_s` are whole numbers."""
        found: dict[str, list[float | None]] = {}
        with self._lock:
            points = min(self._count, POINTS, int(seconds // EVERY_S))
            first = (self._count - points) % POINTS
            for name, ring in self._series.items():
                line = (ring[first : first + points] + ring[: max(0, first + points - POINTS)]).tolist()
                found[name] = [None if isnan(value) else value for value in line]
        found["at_s"] = [None if at is None else int(at) for at in found["at_s"]]
        return found
