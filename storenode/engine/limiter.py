"""How fast compactions may read and write: one bucket of tokens, a token a byte, for all engines of a Shared.

It only reckons; whoever took tokens waits on its own, so that the wait can be ended. Bytes are taken after
they were moved: the bucket may go below zero, and the next to take waits for that too. Any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PAUSE_BYTES = 1 << 20
"""Read and written, after which a limited job takes tokens: what the disk gets at once."""

BURST_SECONDS = 0.25
"""Of the rate, and `PAUSE_BYTES` at least: what an idle bucket has saved up."""


class RateLimiter:
    """A token bucket that is filled with `bytes_per_second`."""

    def __init__(self, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_second < 1:
            raise ValueError("compaction_bytes_per_second must be at least 1, or None for no limit")
        self._clock = clock
        self._lock = threading.Lock()
        self._set(bytes_per_second)
        self._tokens = float(self.burst_bytes)
        self._filled_at = clock()
        self._limited_bytes = 0
        self._unlimited_bytes = 0
        self._waits = 0
        self._wait_seconds = 0.0

    def _set(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.burst_bytes = max(PAUSE_BYTES, int(bytes_per_second * BURST_SECONDS))

    def change(self, bytes_per_second: int) -> None:
        """Another rate from now on; what was saved up or is owed stays."""
        with self._lock:
            self._fill()
            self._set(bytes_per_second)

    def _fill(self) -> None:
        now = self._clock()
        filled = self._tokens + (now - self._filled_at) * self.bytes_per_second
        self._filled_at = now
        self._tokens = min(filled, self.burst_bytes)

    def take(self, count: int) -> float:
        """Take tokens for bytes that were moved: how many seconds to wait before more are."""
        with self._lock:
            self._fill()
            self._tokens -= count
            self._limited_bytes += count
            return max(0.0, -self._tokens / self.bytes_per_second)

    def pass_by(self, count: int) -> None:
        """Count bytes that must not be slowed down, because somebody waits."""
        with self._lock:
            self._unlimited_bytes += count

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        with self._lock:
            self._waits += 1
            self._wait_seconds += seconds

    def stats(self) -> dict[str, float]:
        """bytes_per_second, burst_bytes; since the start: limited_bytes, unlimited_bytes (somebody waited for
        them), waits, wait_seconds."""
        with self._lock:
            return {
                "bytes_per_second": self.bytes_per_second,
                "burst_bytes": self.burst_bytes,
                "limited_bytes": self._limited_bytes,
                "unlimited_bytes": self._unlimited_bytes,
                "waits": self._waits,
                "wait_seconds": self._wait_seconds,
            }
