"""The scenario "split": a leader is cut off with a router, and with clients that know no other one and go on
to ask it, while the other stores elect a leader and the same keys are written through the other router.

Owns when that happens, and in which of the ways that the rules of reads, leases and loyalty are for: late
answers, a process that stands still, a voter that restarts, a leadership that is given away, a successor that
is asked at once. Between the rounds all is well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from kvclient import protocol
from storenode.raft import Role
from tests.simulation.nemesis import Nemesis
from tests.simulation.settings import Settings

WAYS = (
    "cut_off", "answers_late", "stands_still", "loyal_ones_restart", "absent_ones_stand", "gives_away",
    "asked_at_once",
)  # fmt: skip
ROUTERS = 2
ROLES = 3
"""Of each router's clients: one reads by leases, one reads and writes, one reads by rounds. Who had to do all
of it would soon wait for a write that nobody answers, and read no more.
"""

HURRY_S = 0.02
"""How long clients think while it matters; a lease is gone within a second."""

LOOK_S = 0.001
"""Between two looks at what is waited for: less than most messages take, or it would be over."""

CALM_S = 0.7
"""Between two rounds: long enough for everybody to catch up."""


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    stores = random.choice((3, 3, 3, 3, 5))
    return drawn._replace(
        stores=stores,
        replicas=stores,
        partitions=1,
        routers=ROUTERS,
        clients=ROUTERS * ROLES,
        one_router=True,
        lanes=random.choice((1, 2)),
        keys=random.choice((1, 2)),
        key_life=random.choice((3.0, 6.0)),
        think=0.2,
        timeout=random.choice((2.0, 4.0)),
        latency=random.choice((0.0005, 0.002, 0.01)),
        loss=0.0,
        faults=(),
        restart=0.1,
    )


class Split(Nemesis):
    """One round after another, each of another kind."""

    def begin(self) -> None:
        """Clients have parts to play."""
        self._cuts: list[tuple[str, str]] = []
        self._seldom = self._clients[0].think
        for number, client in enumerate(self._clients):
            role = number // ROUTERS
            if role != 1:
                client.writes = False
                client.modes = (protocol.LEASE,) if role == 0 else (protocol.LINEARIZABLE,)
        super().begin()

    def end(self) -> None:
        self._cuts.clear()
        self._speak()
        self._rest()
        super().end()

    def _next(self) -> None:
        self._at(CALM_S * self._world.random.uniform(0.6, 1.4), self._round)

    def _at(self, seconds: float, action: Callable[[], object]) -> None:
        self._world.after(seconds, lambda: action() if self._active else None)

    def _round(self) -> None:
        leading = [store for store in self._stores if store.up and store.groups.leading]
        if len(leading) != 1 or not all(store.up for store in self._stores):
            self._next()
            return
        random = self._world.random
        self._old = leading[0]
        self._others = [store for store in self._stores if store is not self._old]
        random.shuffle(self._others)
        half = len(self._others) // 2
        self._absent, self._loyal = self._others[:half], self._others[half:]
        self._near, self._far = random.sample(self._routers, ROUTERS)
        way = random.choice(WAYS)
        self.begun += 1
        self._world.note(f"{self._old.name} with {self._near.name}: {way}")
        getattr(self, f"_{way}")()

    # -- the ways

    def _cut_off(self) -> None:
        """The plain one; the new leader may have a successor before the old one hears of it."""
        self._hurry()
        self._isolate()
        if self._world.random.random() < 0.5:
            self._at(self._world.random.uniform(1.6, 2.6), self._others_change)
        self._at(3.0, self._heal)

    def _answers_late(self) -> None:
        """Answers to the leader come later and later, so that some are under way when it is cut off."""
        late, step = self._world.random.uniform(1.2, 2.0), 0.4
        for number in range(int(late / step) + 1):
            self._at(number * step, partial(self._slow_down, min(late, (number + 1) * step)))
        self._at(late, self._hurry)
        self._at(late + step, self._isolate)
        self._at(late + step + 2.8, self._heal)

    def _stands_still(self) -> None:
        """The leader does, while answers are under way to it or lie there, and goes on as if nothing was."""
        random = self._world.random
        seconds = random.uniform(1.1, 2.6)
        self._hurry()
        self._at(random.uniform(0.1, 0.3), lambda: self._stop_old(seconds))
        self._at(3.4, self._heal)

    def _loyal_ones_restart(self) -> None:
        """Some have not heard the leader for long; the others restart as it is cut off."""
        random = self._world.random
        self._quiet()
        self._at(0.3, self._leave_behind)

        def restart() -> None:
            self._speak()
            self._isolate()
            for store in self._loyal:
                store.die(random.random() < 0.5, "restarts as the leader is cut off")

        self._at(0.3 + random.uniform(0.6, 2.2), restart)
        self._at(4.5, self._heal)

    def _absent_ones_stand(self) -> None:
        """Some have not heard the leader for long, and ask the others for votes as it is cut off."""
        self._quiet()
        self._at(0.3, self._leave_behind)

        def look(left: int) -> None:
            standing = any(store.groups.replicas[0].raft.role > Role.FOLLOWER for store in self._absent)
            if left and not standing:
                self._at(LOOK_S, lambda: look(left - 1))
                return
            self._speak()
            self._isolate()
            self._at(2.5, self._heal)

        self._at(0.3, lambda: look(round(2.2 / LOOK_S)))

    def _gives_away(self) -> None:
        """The leader, who does not hear what becomes of that."""
        self._quiet()

        def give() -> None:
            self._block([(other.name, self._old.name) for other in self._others])
            self._separate_routers()
            self._give_away(self._old)
            self._hurry()
            self._at(self._world.random.uniform(0.02, 0.2), self._speak)

        self._at(0.3, give)
        self._at(2.2, self._heal)

    def _asked_at_once(self) -> None:
        """The leader ends while it is written to; it takes the next one's disks long to begin its term."""
        self._hurry()

        def end(left: int) -> None:
            known = max(other.groups.replicas[0].raft.commit for other in self._others)
            if left and self._old.up and self._old.groups.replicas[0].raft.applied_index <= known:
                self._at(LOOK_S, lambda: end(left - 1))
                return
            self._old.die(False, "ends before the others know what it has committed")
            for other in self._others:
                other.slow_disk = self._world.random.uniform(0.03, 0.2) / self._settings.disk

        self._at(0.3, lambda: end(round(0.5 / LOOK_S)))
        self._at(4.0, self._heal)

    # -- what they are made of

    def _isolate(self) -> None:
        """The old leader and its router here, all others there; their router looks for whom it can find."""
        names = [other.name for other in self._others]
        self._block([(self._old.name, name) for name in names] + [(name, self._old.name) for name in names])
        self._separate_routers()
        self._world.note(f"{self._old.name} and {self._near.name} are cut off")

    def _separate_routers(self) -> None:
        pairs = [(self._near.name, other.name) for other in self._others]
        pairs.append((self._far.name, self._old.name))
        self._block(pairs + [(b, a) for a, b in pairs])
        self._at(self._world.random.uniform(0.0, 0.5), lambda: self._restart_router(self._far))

    def _leave_behind(self) -> None:
        pairs = [(self._old.name, store.name) for store in self._absent]
        self._block(pairs + [(b, a) for a, b in pairs])

    def _stop_old(self, seconds: float) -> None:
        if self._world.random.random() < 0.5:
            self._old.pause(seconds)
        else:
            self._old.stall(seconds, self._world.random.randint(1, 20))
        self._isolate()

    def _slow_down(self, seconds: float) -> None:
        for other in self._others:
            self._network.slow[other.name, self._old.name] = seconds

    def _others_change(self) -> None:
        for other in self._others:
            if other.up and other.groups.leading:
                self._give_away(other)

    def _block(self, pairs: list[tuple[str, str]]) -> None:
        self._network.block(pairs)
        self._cuts += pairs

    def _heal(self) -> None:
        self._network.unblock(self._cuts)
        self._cuts.clear()
        self._network.slow.clear()
        for store in self._stores:
            store.slow_disk = 1.0
        self._speak()
        self._rest()
        self._world.note("together again")
        self._next()

    # -- what clients do

    def _hurry(self) -> None:
        for client in self._clients:
            client.think = HURRY_S

    def _rest(self) -> None:
        for client in self._clients:
            client.think = self._seldom

    def _quiet(self) -> None:
        """Nobody writes, so that who hears nothing misses nothing; they read all the more."""
        self._hurry()
        for client in self._clients[ROUTERS : 2 * ROUTERS]:
            client.writes = False

    def _speak(self) -> None:
        for client in self._clients[ROUTERS : 2 * ROUTERS]:
            client.writes = True
