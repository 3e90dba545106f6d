"""The network: messages are lost, delayed, doubled, overtaken, and cut off in one direction or in both.

Owns which links are cut and how bad the weather is. Knows no message's meaning.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.settings import Settings
from tests.simulation.world import World


class Network:
    """Between machines, by name."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.cut: dict[tuple[str, str], int] = {}
        """(from, to) -> how many faults cut this direction."""
        self.slow: dict[tuple[str, str], float] = {}
        """(from, to) -> seconds that messages take longer."""
        self.loss = settings.loss
        self.duplication = settings.duplication
        self._hiccups = 0.0005 if settings.fifo else 0.01  # all that comes behind one waits as well, or not
        self._world = world
        self._latency = settings.latency
        self._fifo = settings.fifo
        self._last: dict[tuple[str, str], float] = {}

    def block(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self.cut[pair] = self.cut.get(pair, 0) + 1

    def unblock(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self.cut[pair] -= 1
            if not self.cut[pair]:
                del self.cut[pair]

    def linked(self, one: str, other: str) -> bool:
        """Whether messages pass in both directions."""
        return (one, other) not in self.cut and (other, one) not in self.cut

    def calm(self) -> None:
        """All is well from now on; what is under way arrives."""
        self.cut.clear()
        self.slow.clear()
        self.loss = self.duplication = self._hiccups = 0.0

    def send(
        self,
        source: str,
        target: str,
        arrive: Callable[[], object],
        ahead: float = 0.0,
        *,
        stream: bool = False,
    ) -> None:
        """`ahead`: leaves so much later. `stream`: by a connection that keeps the order and loses nothing
        but by a cut.
        """
        random = self._world.random
        if (source, target) in self.cut:
            return
        if not stream and self.loss and random.random() < self.loss:
            return
        copies = 2 if not stream and self.duplication and random.random() < self.duplication else 1
        for _ in range(copies):
            delay = ahead + self._latency * (0.2 + random.expovariate(1.0))
            delay += self.slow.get((source, target), 0.0)
            if random.random() < self._hiccups:
                delay += random.choice((self._latency * 20, 0.5, 2.0))
            if self._fifo or stream:
                last = self._last.get((source, target), 0.0)
                when = self._last[source, target] = max(last, self._world.now + delay)
                delay = when - self._world.now
            self._world.after(delay, arrive)
