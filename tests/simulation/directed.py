"""What scenarios are made of that wait for a moment instead of a time: a round is told as a story, a
generator that yields what it waits for.

Owns how a story goes on, and the links that it has cut. What a round is about is its scenario's. All of them
are about the first partition, of which every store is a member.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple

from storenode.raft import Dropped, Raft, Role
from storenode.raft.configuration import ConfigurationRefused
from storenode.raft.messages import Change, Operation, Transition
from tests.simulation.nemesis import Nemesis
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore
from tests.simulation.world import Event

GROUP = 0
CALM_S = 0.4
"""Between two rounds: everybody catches up."""

NOBODY_HEARD_S = 1.15
"""After so long without a leader a store may stand, and others vote for it, by whichever clock."""

ENTRY_S = 0.02
"""Longer than a turn: writes of one turn share an entry."""

NO_ROUTE = (b"r0.0", 0)
"""No life of a router has this number: the answer is for nobody."""


class Wait(NamedTuple):
    """Until `condition`, looked at whenever a store has done something, but not longer than `seconds`."""

    seconds: float
    condition: Callable[[], bool] | None = None


def directed(drawn: Settings, stores: int) -> Settings:
    """Settings of such a scenario: nothing goes wrong but what its rounds do, to a group of all stores."""
    return drawn._replace(stores=stores, replicas=stores, partitions=1, timeout=1.0, loss=0.0, faults=())


Story = Generator[Wait, bool, None]
Scene = Generator[Wait, bool, bool]


class Directed(Nemesis):
    """One round after another."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        """What happens, when all is well and there is one leader; the others come in any order."""
        raise NotImplementedError

    def begin(self) -> None:
        """Nothing is cut yet."""
        self._cuts: dict[tuple[str, str], None] = {}
        self._story: Story | None = None
        self._awaited: Callable[[], bool] | None = None
        self._timeout: Event | None = None
        for store in self._stores:
            store.on_turn = self._look
        super().begin()

    def end(self) -> None:
        self._cuts.clear()
        self._awaited = None
        super().end()

    # -- how a story goes on

    def _next(self) -> None:
        wait = CALM_S * self._world.random.uniform(0.5, 1.5)
        self._world.after(wait, self._strike)

    def _strike(self) -> None:
        if not self._active:
            return
        leading = [store for store in self._stores if self._leads(store)]
        if len(leading) != 1 or not all(store.up for store in self._stores):
            self._next()
            return
        others = [store for store in self._stores if store is not leading[0]]
        self._world.random.shuffle(others)
        self.begun += 1
        self._world.note(f"round {self.begun}: {leading[0].name}, then {[store.name for store in others]}")
        self._story = self.round(leading[0], others)
        self._go_on(next(self._story))

    def _go_on(self, wait: Wait) -> None:
        self._awaited = wait.condition
        self._timeout = self._world.after(wait.seconds, lambda: self._resume(False))
        self._look()

    def _look(self) -> None:
        """What was waited for is there, perhaps. Nobody's turn is interrupted by what comes of it."""
        if self._awaited is not None and self._awaited():
            self._awaited = None
            if self._timeout is not None:
                self._timeout.cancel()
            self._world.after(0.0, lambda: self._resume(True))

    def _resume(self, met: bool) -> None:
        self._awaited = None
        if not self._active or self._story is None:
            return
        try:
            wait = self._story.send(met)
        except StopIteration:
            self._heal()
            self._next()
        else:
            self._go_on(wait)

    def _elect(self, store: SimulatedStore, seconds: float) -> Scene:
        """It stands for election as often as it may, in a new term."""
        end, before = self._world.now + seconds, self._raft(store).term
        while self._world.now < end:
            self._campaign(store)
            if (yield Wait(0.1, lambda: self._leads(store) and self._raft(store).term > before)):
                return True
        return False

    def _make_voters(self, leader: SimulatedStore, voters: list[SimulatedStore]) -> Scene:
        """Just these, as far as everybody knows."""
        self._change(leader, voters)
        wanted = {store.node for store in voters}

        def settled() -> bool:
            found = [self._raft(store).configuration for store in self._stores]
            return all(one.voters == wanted and not one.joint for one in found)

        return (yield Wait(1.0, settled))

    # -- what it looks at

    @staticmethod
    def _raft(store: SimulatedStore) -> Raft:
        return store.groups.replicas[GROUP].raft

    def _leads(self, store: SimulatedStore) -> bool:
        return store.up and self._raft(store).role is Role.LEADER

    # -- what it does

    def _block(self, sources: Iterable[SimulatedStore], targets: Iterable[SimulatedStore]) -> None:
        """In this direction."""
        heard = list(targets)
        for source in sources:
            for target in heard:
                pair = (source.name, target.name)
                if source is not target and pair not in self._cuts:
                    self._cuts[pair] = None
                    self._network.block([pair])

    def _part(self, ones: Iterable[SimulatedStore], others: Iterable[SimulatedStore]) -> None:
        """In both directions."""
        here, there = list(ones), list(others)
        self._block(here, there)
        self._block(there, here)
        told = [store.name for store in here], [store.name for store in there]
        self._world.note(f"{told[0]} and {told[1]} are cut off")

    def _open(self, sources: Iterable[SimulatedStore], targets: Iterable[SimulatedStore]) -> None:
        heard = list(targets)
        for source in sources:
            for target in heard:
                pair = (source.name, target.name)
                if pair in self._cuts:
                    del self._cuts[pair]
                    self._network.unblock([pair])

    def _join(self, ones: Iterable[SimulatedStore], others: Iterable[SimulatedStore]) -> None:
        here, there = list(ones), list(others)
        self._open(here, there)
        self._open(there, here)

    def _heal(self) -> None:
        self._open(self._stores, self._stores)
        for store in self._stores:
            store.slow_disk = 1.0
        self._world.note("together again")

    def _campaign(self, store: SimulatedStore) -> None:
        """As if its timeout passed now."""
        if store.up:
            self._raft(store).campaign()
            self._wake(store)

    def _write(self, store: SimulatedStore) -> None:
        """A write that changes nothing and that nobody waits for, if it leads: an entry of this turn."""
        if store.up:
            now = store.clock.monotonic()
            store.groups.replicas[GROUP].propose(NO_ROUTE, 0, 0, 0, 0, b"", now + 1.0, now)
            self._wake(store)

    def _write_often(self, store: SimulatedStore, times: int) -> Story:
        """So many entries."""
        for _ in range(times):
            self._write(store)
            yield Wait(ENTRY_S)

    def _change(self, leader: SimulatedStore, voters: Iterable[SimulatedStore]) -> int:
        """The leader proposes that these be the voters; the index of the change, 0 if it may not or need
        not.
        """
        raft, wanted = self._raft(leader), {store.node for store in voters}
        had = raft.configuration.voters
        operations = [(Operation.ADD_VOTER, node) for node in sorted(wanted - had)]
        operations += [(Operation.ADD_LEARNER, node) for node in sorted(had - wanted)]
        if not operations or not self._leads(leader):
            return 0
        try:
            index = raft.propose_change(Change(Transition.IMPLICIT, tuple(operations)))
        except (ConfigurationRefused, Dropped):
            return 0
        self._world.note(f"{leader.name}: voters {sorted(wanted)}")
        self._wake(leader)
        return index

    def _wake(self, store: SimulatedStore) -> None:
        store.groups.dirty(store.groups.replicas[GROUP])
        store.call_later(0, lambda: None)
