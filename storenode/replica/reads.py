"""Reads that wait until what was committed when they came is applied, and since when this replica is known to
have what its leader had (docs/raft.md section 7).

Knows neither Raft nor the engine.
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

    def late(self, now: float) -> list[Read]:
        """Takes out those whose deadline has passed: nobody knows when their index will be applied here."""
        late = [read for _, reads in self._waiting for read in reads if read.deadline <= now]
        if late:
            left = [
                (index, [read for read in reads if read.deadline > now]) for index, reads in self._waiting
            ]
            self._waiting = deque((index, reads) for index, reads in left if reads)
        return late


class Freshness:
    """Since when nothing is missing here that a leader had committed. One thread.

    Of what was heard while something was missing, the oldest and the newest are kept: under steady writes the
    newest is always a little ahead of what is applied.
    """

    __slots__ = ("_awaited", "_heard", "since")

    def __init__(self) -> None:
        self.since = float("-inf")
        """When the newest commit index was heard that is applied here."""
        self._heard = self._awaited = (self.since, 0)

    def hear(self, now: float, commit: int, applied: int) -> None:
        """A leader's commit index was `commit`."""
        if self._heard[1] <= applied:
            self._awaited = now, commit
        self._heard = now, commit
        self.advance(applied)

    def advance(self, applied: int) -> None:
        """This much is applied."""
        if self._heard[1] <= applied:
            self.since = self._heard[0]
        elif self._awaited[1] <= applied:
            self.since = self._awaited[0]
            self._awaited = self._heard
