"""Reads that wait: until their leader has proved that it leads, then until what was committed when they came
is applied (docs/raft.md section 7).

Owns the reads of one partition between their arrival and the moment when they may run. Knows neither Raft nor
the engine.
"""

from __future__ import annotations

from collections import deque


class Read:
    """A stream of ops that only read, who waits for it, and until when (monotonic seconds)."""

    __slots__ = ("deadline", "ops", "route")

    def __init__(self, route: tuple[bytes, int], ops: bytes, deadline: float) -> None:
        self.route = route
        self.ops = ops
        self.deadline = deadline


class Confirmed:
    """Reads whose index is known, in the order of their indexes. One thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, list[Read]]] = deque()

    def __len__(self) -> int:
        return sum(len(reads) for _, reads in self._waiting)

    def add(self, index: int, reads: list[Read]) -> None:
        """These may run when `index` is applied. Indexes of one leader never go down; after a change of
        leaders they may, and then these wait a little longer than they must.
        """
        self._waiting.append((index, reads))

    def due(self, applied: int) -> list[Read]:
        """Takes out what may run now."""
        waiting = self._waiting
        ready: list[Read] = []
        while waiting and waiting[0][0] <= applied:
            ready += waiting.popleft()[1]
        return ready

    def take_all(self) -> list[Read]:
        """Takes out everything."""
        reads = [read for _, some in self._waiting for read in some]
        self._waiting.clear()
        return reads
