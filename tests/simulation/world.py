"""Virtual time, chance, and what happened: one queue of events, one seeded generator, one trace.

Owns the order of everything. Nothing here or above reads a real clock or the machine's entropy, and events of
the same moment run in the order in which they were made, so one seed is one run.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable
from random import Random

STORY_LINES = 400


class Violation(AssertionError):
    """Something that must never happen has happened."""


class Event:
    """One callback in the queue."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        self.action = None


class World:
    """`now` is in seconds since the beginning."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.events = 0
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._tell = tell
        self._queue: list[tuple[float, int, Event]] = []
        self._made = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def after(self, seconds: float, action: Callable[[], object]) -> Event:
        """Runs `action` in so many seconds of true time."""
        self._made += 1
        event = Event(action)
        heapq.heappush(self._queue, (self.now + seconds, self._made, event))
        return event

    def run_until(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Runs what is due until then, or until `stop()`; whether that came true."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            if stop is not None and stop():
                return True
            when, _, event = heapq.heappop(queue)
            if event.action is not None:
                self.now = when
                self.events += 1
                event.action()
        if stop is not None and stop():
            return True
        self.now = until
        return False

    # -- the trace

    def trace(self, *fields: object) -> None:
        """Something that belongs to the run: two runs of a seed have the same ones."""
        self._hash.update(repr((self.now, fields)).encode())

    def note(self, text: str) -> None:
        """A line of the story, for who looks at a failure; part of the trace."""
        self.trace(text)
        line = f"{self.now:10.4f} {text}"
        self.story.append(line)
        if self._tell is not None:
            self._tell(line)

    @property
    def digest(self) -> str:
        """Of all that was traced."""
        return self._hash.hexdigest()
