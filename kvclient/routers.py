"""Which router a request goes through: the health of each one, as far as this client can tell.

Owns the rules of failover. It sticks to one router (`primary`) until that one loses its connection or stays
silent twice in a row; then the next in the ring becomes primary and stays it. A router that does not answer
is *suspect*: it is pinged once a second, and any frame from it clears it. If pings stay unanswered, its
socket is replaced, because libzmq gives up for good on some protocol errors. Knows no sockets, clocks or
requests: the session tells it what happened and when.

Invariant: `primary` is the index of a connected router, or -1 when none is connected; a suspect is primary
only if all connected ones are.
"""

from __future__ import annotations

# A request in flight when a router pauses for a moment is no proof; a second one sent after the first timed
# out is.
STRIKES_TO_SUSPECT = 2
PING_INTERVAL = 1.0
# Three lost pings, then a new socket; the patience doubles, so that a host that is gone for good costs next
# to nothing.
PINGS_TO_REBUILD = 3
PINGS_TO_REBUILD_MAX = 32


class _Health:
    __slots__ = (
        "connected",
        "heard_at",
        "ping_due",
        "pings_lost",
        "pings_to_rebuild",
        "strikes",
        "struck_at",
        "suspect",
    )

    def __init__(self, now: float) -> None:
        self.connected = False
        self.suspect = True
        self.strikes = 0
        self.struck_at = now
        self.heard_at = -1.0
        self.pings_lost = 0
        self.pings_to_rebuild = PINGS_TO_REBUILD
        self.ping_due = now + PING_INTERVAL


class Routers:
    """The health of `count` routers, numbered in the order in which they are preferred."""

    def __init__(self, count: int, now: float) -> None:
        self._health = [_Health(now) for _ in range(count)]
        self.primary = -1

    def connected(self, router: int) -> bool:
        """Whether the socket to `router` has a connection, as far as the shell has told."""
        return self._health[router].connected

    def after(self, router: int) -> int:
        """The router to try next when `router` did not serve a request: another trusted one if there is one;
        -1 = none.
        """
        best = -1
        for step in range(1, len(self._health) + 1):
            candidate = (router + step) % len(self._health)
            health = self._health[candidate]
            if health.connected:
                if not health.suspect:
                    return candidate
                if best < 0:
                    best = candidate
        return best

    def heard(self, router: int, now: float) -> None:
        """A frame came from `router`."""
        health = self._health[router]
        health.heard_at = now
        if health.suspect or health.strikes:
            self._trust(health)
            self._elect()

    def up(self, router: int) -> None:
        """The socket to `router` has a connection (the handshake was completed, so somebody lives there)."""
        health = self._health[router]
        if not health.connected:
            health.connected = True
            self._trust(health)
            self._elect()

    def down(self, router: int, now: float) -> None:
        """The socket to `router` has no connection."""
        health = self._health[router]
        if health.connected:
            health.connected = False
            self._suspect(health, now)
            self._elect()

    def silent(self, router: int, sent_at: float, now: float) -> None:
        """A request sent to `router` at `sent_at` was not answered in its time."""
        health = self._health[router]
        if health.heard_at >= sent_at or health.struck_at > sent_at:
            return  # it answers others, or this silence is already counted
        health.struck_at = now
        health.strikes += 1
        if health.strikes >= STRIKES_TO_SUSPECT and not health.suspect:
            self._suspect(health, now)
            self._elect()

    def ping_lost(self, router: int) -> bool:
        """A ping of `router` stayed unanswered; True if its socket is to be replaced."""
        health = self._health[router]
        health.pings_lost += 1
        if health.pings_lost < health.pings_to_rebuild:
            return False
        health.pings_lost = 0
        health.pings_to_rebuild = min(health.pings_to_rebuild * 2, PINGS_TO_REBUILD_MAX)
        return True

    def due_pings(self, now: float) -> list[int]:
        """The suspects to ping now; the next ping of each is a second later."""
        due = [i for i, health in enumerate(self._health) if health.suspect and health.ping_due <= now]
        for router in due:
            self._health[router].ping_due = now + PING_INTERVAL
        return due

    def next_ping(self) -> float:
        """When `due_pings` has something to say; infinity without suspects."""
        return min((health.ping_due for health in self._health if health.suspect), default=float("inf"))

    def _trust(self, health: _Health) -> None:
        health.suspect = False
        health.strikes = 0
        health.pings_lost = 0
        health.pings_to_rebuild = PINGS_TO_REBUILD

    def _suspect(self, health: _Health, now: float) -> None:
        health.suspect = True
        health.ping_due = now + PING_INTERVAL

    def _elect(self) -> None:
        if self.primary >= 0:
            current = self._health[self.primary]
            if current.connected and not current.suspect:
                return
        self.primary = self.after(self.primary)
