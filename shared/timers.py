"""Callbacks that are due once, in order of time. Knows nothing of clocks or loops: `now` is handed in."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

# Cancelled timers are swept out when they are the majority; below this many it is not worth looking.
_SWEEP_ABOVE = 64


class Timer:
    """One callback. `cancel` may be called at any time, also after it ran."""

    __slots__ = ("_callback", "_timers")

    def __init__(self, timers: Timers, callback: Callable[[], object]) -> None:
        self._timers = timers
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Never run it, unless it ran already."""
        if self._callback is not None:
            self._callback = None
            self._timers._cancelled_one()


class Timers:
    """A heap of timers; requests that are answered in time cancel theirs, so most never run."""

    __slots__ = ("_cancelled", "_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()  # equal times run in the order they were set
        self._cancelled = 0

    def __len__(self) -> int:
        """How many are kept, cancelled ones that have not been swept included."""
        return len(self._heap)

    def add(self, due: float, callback: Callable[[], object]) -> Timer:
        """Have `callback` come out of `take_due` once `due` is past."""
        timer = Timer(self, callback)
        heapq.heappush(self._heap, (due, next(self._numbers), timer))
        return timer

    def next_due(self) -> float | None:
        """When to look again; None when there is nothing to wait for. A cancelled timer may answer here."""
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> Iterator[Callable[[], object]]:
        """What is due, in order. A timer that is added meanwhile waits for the next call, due or not."""
        due: list[Timer] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            callback, timer._callback = timer._callback, None
            if callback is not None:
                yield callback
            elif self._cancelled:
                self._cancelled -= 1

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()
        self._cancelled = 0

    def _cancelled_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > _SWEEP_ABOVE and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2]._callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
