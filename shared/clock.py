"""Time, handed in. Owns the one seam through which timed code reads a clock; knows nothing of timers.

Monotonic seconds are for deadlines and durations and mean nothing outside the process; wall milliseconds
are for TTLs and may jump either way.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What timed code may ask."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def wall_ms() -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until it is moved; for tests and simulation."""

    __slots__ = ("_elapsed", "_monotonic", "_wall_ms")

    def __init__(self, monotonic: float = 0.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._elapsed = 0.0
        self._monotonic = monotonic
        self._wall_ms = wall_ms

    def monotonic(self) -> float:
        """Seconds, as moved by `advance`."""
        return self._monotonic + self._elapsed

    def wall_ms(self) -> int:
        """Milliseconds, as moved by `advance` and `jump_wall_ms`."""
        # From the sum of all steps: many steps of less than a millisecond must move this clock too.
        return self._wall_ms + round(self._elapsed * 1000)

    def advance(self, seconds: float) -> None:
        """Move both clocks; ValueError when `seconds` is negative."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._elapsed += seconds

    def jump_wall_ms(self, milliseconds: int) -> None:
        """Move the wall clock alone, as a time correction does; may be negative."""
        self._wall_ms += milliseconds
