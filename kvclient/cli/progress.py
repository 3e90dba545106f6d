"""The one line of progress that a long command draws on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections import deque

from kvclient.cli.units import show_bytes, show_seconds

# A person cannot read faster, and drawing must cost nothing.
DRAW_SECONDS = 0.1

# The rate shown is that of the last ten seconds.
RATE_SECONDS = 10.0


class Progress:
    """Done and total in bytes (total None: unknown) and a count of `unit`. Draws nothing unless `shown` and
    stderr is a terminal; `shown` tells then.
    """

    def __init__(self, what: str, total: int | None, shown: bool = True, unit: str = "keys") -> None:
        self._unit = unit
        self._what = what
        self._total = total
        self.shown = shown and sys.stderr.isatty()
        self._drawn_at = 0.0
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, count: int, done: int, note: str = "") -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if not self._is_time(now):
            return
        self._samples.append((now, count, done))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        began, count_then, done_then = self._samples[0]
        elapsed = now - began
        rate = (count - count_then) / elapsed if elapsed else 0.0
        size = f", {show_bytes(done)}" if done else ""
        text = f"{self._what} {count:,} {self._unit}{size}, {rate:,.0f}/s"
        if self._total:
            text += f", {min(done / self._total, 1):.0%}"
            speed = (done - done_then) / elapsed if elapsed else 0.0
            if speed > 0:
                text += f", {show_seconds(max(self._total - done, 0) / speed)} left"
        self._draw(text + note)

    def say(self, text: str) -> None:
        """Draw this instead of figures, if it is time to."""
        if self._is_time(time.monotonic()):
            self._draw(f"{self._what} {text}")

    def _is_time(self, now: float) -> bool:
        if not self.shown or now - self._drawn_at < DRAW_SECONDS:
            return False
        self._drawn_at = now
        return True

    def _draw(self, text: str) -> None:
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, so that what follows begins on a clean one."""
        if self.shown and self._drawn_at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
