"""A process in the simulated world: its clocks, its loop, its pauses.

Owns when its turns happen and what they are given. Knows nothing of what the process does. A turn takes all
that has arrived, as the real loop does (shared/reactor.py): sources in any order, then timers, then the end.

A process may stand still between two turns, or in the middle of one at any look at its clock: everything that
this turn says after that moment leaves when the process goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storenode.founding import CLOCK_DRIFT
from tests.simulation.world import Event, World

WALL_MS = 1_700_000_000_000
_SLOW = (1 + CLOCK_DRIFT) ** -0.5  # the fastest and the slowest clock differ by just what is allowed
_FAST = 1 / _SLOW * (1 - 1e-9)


class SimulatedClock:
    """The clocks of one machine: `rate` seconds pass in one true second."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.rate = random.choice((_SLOW, _FAST, random.uniform(_SLOW, _FAST)))
        self.ahead = 0.0
        """For how long the process has stood still in this turn."""
        self.looks_until_stall = 0
        self.stall = 0.0
        self._world = world
        self._base = random.uniform(0, 1e6)
        self._wall = WALL_MS + random.randint(-2000, 2000)

    def monotonic(self) -> float:
        if self.looks_until_stall:
            self.looks_until_stall -= 1
            if not self.looks_until_stall:
                self.ahead += self.stall
        return self._base + (self._world.now + self.ahead) * self.rate

    def wall_ms(self) -> int:
        return self._wall + int((self._world.now + self.ahead) * self.rate * 1000)

    def jump_wall(self, milliseconds: int) -> None:
        self._wall += milliseconds


class SimulatedTimer:
    """As `shared.timers.Timer`."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback
        self.event: Event | None = None

    def cancel(self) -> None:
        self.callback = None
        if self.event is not None:
            self.event.cancel()


class SimulatedWakeup:
    """As `shared.reactor.Wakeup`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def notify(self, callback: Callable[[], None]) -> None:
        self._machine.deliver("notified", callback)


class Machine:
    """One process, of which there may be several lives. Also what its parts take for the reactor."""

    def __init__(self, world: World, name: str, turn: float) -> None:
        self.world = world
        self.name = name
        self.clock = SimulatedClock(world)
        self.up = False
        self.life = 0
        self.paused_until = 0.0
        self._seen_until = 0.0
        self._turn = turn
        self._arrived: dict[str, list[Any]] = {}
        self._scheduled = False

    # -- life

    def begin_life(self) -> None:
        self.life += 1
        self.up = True
        self.paused_until = self._seen_until = 0.0
        self._arrived = {}
        self._scheduled = False
        self.clock.ahead = 0.0
        self.clock.looks_until_stall = 0

    def end_life(self) -> None:
        self.life += 1
        self.up = False

    def pause(self, seconds: float) -> None:
        """It stands still from now on."""
        if self.up:
            self.paused_until = max(self.paused_until, self.world.now + seconds)

    def stall(self, seconds: float, looks: int) -> None:
        """It will stand still when it has looked at its clock so many times more."""
        if self.up:
            self.clock.stall, self.clock.looks_until_stall = seconds, looks

    def go_on(self) -> None:
        """It stands still no longer: but what has seen a clock cannot go back behind that."""
        self.paused_until = self._seen_until

    # -- what arrives

    def deliver(self, source: str, item: Any) -> None:
        """Something for the next turn; lost if nobody lives."""
        if self.up:
            self._arrived.setdefault(source, []).append(item)
            self._schedule()

    def later(self, seconds: float, action: Callable[[], object]) -> Event:
        """Something that the machine, not the process, does: it happens also while that stands still, but in
        this life only.
        """
        life = self.life

        def happen() -> None:
            if self.life == life:
                action()
                self.after_event()

        return self.world.after(seconds, happen)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> SimulatedTimer:
        """As of the reactor: seconds of this machine's clock."""
        timer = SimulatedTimer(callback)
        timer.event = self.later(
            self.clock.ahead + seconds / self.clock.rate, lambda: self.deliver("timer", timer)
        )
        return timer

    def wakeup(self) -> SimulatedWakeup:
        return SimulatedWakeup(self)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            wait = max(0.0, self.paused_until - self.world.now)
            self.later(wait + self.world.random.uniform(0, self._turn), self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        if not self.up:
            return
        if self.world.now < self.paused_until:
            self._schedule()
            return
        arrived, self._arrived = self._arrived, {}
        timers = arrived.pop("timer", [])
        sources = sorted(arrived)
        self.world.random.shuffle(sources)
        for source in sources:
            self.handle(source, arrived[source])
        for timer in timers:
            if timer.callback is not None:
                timer.callback()
        self.end_turn()
        if self.clock.ahead:
            self.world.note(f"{self.name} stood still for {self.clock.ahead:.2f} s in a turn")
            self._seen_until = self.world.now + self.clock.ahead
            self.pause(self.clock.ahead)
            self.clock.ahead = 0.0

    def handle(self, source: str, items: list[Any]) -> None:
        """What arrived from one source since the last turn, in order."""
        if source == "notified":
            for callback in items:
                callback()
        else:
            raise NotImplementedError(source)

    def end_turn(self) -> None:
        """The end of a turn."""

    def after_event(self) -> None:
        """The end of everything that happens to it."""
