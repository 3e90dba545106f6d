"""Patience with a cluster that is away for a while: what import and export may simply do again.

Every write of an import is a plain put of a fixed value, so repeating one whose outcome is unknown does no
harm.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from kvclient.errors import ConnectError, KVError, KVTimeout, OutcomeUnknown, Unavailable

_BACKOFF_SECONDS_FIRST = 0.05
_BACKOFF_SECONDS_MAX = 1.0


def is_transient(error: KVError) -> bool:
    """Whether the same call may succeed a little later."""
    return isinstance(error, (Unavailable, ConnectError, KVTimeout, OutcomeUnknown))


class Patience:
    """Counts the time since something last went well. Shared by threads: one failing batch does not use up
    another's time.
    """

    def __init__(self, seconds: float, on_trouble: Callable[[KVError], None]) -> None:
        self.seconds = seconds
        self.stopped = threading.Event()
        self._on_trouble = on_trouble

    def stop(self) -> None:
        """No more second tries."""
        self.stopped.set()

    def session(self) -> Trouble:
        """For one batch (or one scan)."""
        return Trouble(self, self._on_trouble)


class Trouble:
    """The tries of one batch."""

    def __init__(self, patience: Patience, on_trouble: Callable[[KVError], None]) -> None:
        self._patience = patience
        self._on_trouble = on_trouble
        self._deadline: float | None = None
        self._backoff = _BACKOFF_SECONDS_FIRST

    def over(self) -> None:
        """It went well: the next failure gets the full time again."""
        self._deadline = None
        self._backoff = _BACKOFF_SECONDS_FIRST

    def wait_or_raise(self, error: KVError) -> None:
        """Sleep before the next try; re-raise `error` if it is not transient, the time is used up, or the job
        was stopped.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._patience.seconds
        if not is_transient(error) or now >= self._deadline:
            raise error
        self._on_trouble(error)
        hinted = (error.retry_after_ms or 0) / 1000
        pause = max(hinted, self._backoff * random.uniform(0.5, 1.0))
        self._backoff = min(self._backoff * 2, _BACKOFF_SECONDS_MAX)
        if self._patience.stopped.wait(min(pause, max(self._deadline - now, 0))):
            raise error
