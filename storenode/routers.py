"""The routers that this store heard of lately: they are in no map, and say themselves who they are
(docs/monitor.md section 1). Owns the list; opens no link to any of them. Loop thread.
"""

from __future__ import annotations

from typing import Final

from kvclient.errors import ProtocolError
from shared.clock import Clock
from shared.fields import connectable
from shared.units import Endpoint

ROUTERS_MAX: Final = 64
"""More are not told of: a list that anybody who reaches this store could grow."""

HEARD_S: Final = 15.0
"""Three times as long as routers are silent."""


class Routers:
    """Of one store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[str, float]] = {}

    def hear(self, name: str, front: str) -> None:
        """A router says its name and where its front is. ProtocolError if nobody could connect there."""
        try:
            there = front.startswith("tcp://") and connectable(Endpoint(front))
        except ValueError:
            there = False
        if not there:
            raise ProtocolError(f"{front[:100]!r} is no address of a router's front")
        now = self._clock.monotonic()
        self._heard = {key: known for key, known in self._heard.items() if now - known[1] <= HEARD_S}
        if front in self._heard or len(self._heard) < ROUTERS_MAX:
            self._heard[front] = name, now

    def figures(self) -> list[dict[str, str]]:
        """Those heard within HEARD_S, the one known longest first."""
        now = self._clock.monotonic()
        return [
            {"name": name, "front": front}
            for front, (name, heard_at) in self._heard.items()
            if now - heard_at <= HEARD_S
        ]
