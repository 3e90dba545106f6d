"""What goes wrong, and when: one fault at a time is begun, several may be under way.

Owns the plan of faults. Each ends on its own, or when `end` makes everything well.
"""

from __future__ import annotations

from collections.abc import Callable

from storenode.raft import Dropped, Role
from storenode.raft.configuration import ConfigurationRefused
from storenode.raft.messages import Change, Operation, Transition
from tests.simulation.clients import Client
from tests.simulation.network import Network
from tests.simulation.routing import SimulatedRouter
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore
from tests.simulation.world import World

LONGEST_PAUSE_S = 8.0
"""Routers give up on a silent store after three seconds; only then do others lead, and are asked."""


class Nemesis:
    """Faults of the kinds that the settings name."""

    def __init__(
        self,
        world: World,
        network: Network,
        settings: Settings,
        stores: list[SimulatedStore],
        routers: list[SimulatedRouter],
        clients: list[Client],
        start_store: Callable[[SimulatedStore], None],
        restart_router: Callable[[SimulatedRouter], None],
    ) -> None:
        self.begun = 0
        self._world = world
        self._network = network
        self._settings = settings
        self._stores = stores
        self._routers = routers
        self._clients = clients
        self._start_store = start_store
        self._restart_router = restart_router
        self._active = False
        for store in stores:
            store.on_pulled = self._pulled

    def begin(self) -> None:
        self._active = True
        self._next()

    def end(self) -> None:
        """Everything is well from now on: links, disks, loops; who is down comes back."""
        self._active = False
        self._network.calm()
        for router in self._routers:
            router.go_on()
        for store in self._stores:
            store.slow_disk = 1.0
            store.disk.steps_until_death = 0
            store.clock.looks_until_stall = 0
            store.go_on()
            if store.disk.log_fails and store.up:
                store.die(False, "the disk was replaced")
            if not store.up:
                self._start_store(store)

    def revive(self, store: SimulatedStore) -> None:
        """Who died comes back some time later, whatever it died of."""
        random = self._world.random
        wait = random.uniform(0.02, self._settings.restart)

        def start() -> None:
            if not store.up:
                if self._active and "power" in self._settings.faults and random.random() < 0.2:
                    store.disk.steps_until_death = random.randint(1, 60)  # it dies again while it recovers
                self._start_store(store)

        self._world.after(wait, start)

    def _next(self) -> None:
        if self._settings.faults:
            wait = self._world.random.expovariate(1 / self._settings.fault_interval)
            self._world.after(wait, self._strike)

    def _strike(self) -> None:
        if self._active:
            fault = self._world.random.choice(self._settings.faults)
            self.begun += 1
            getattr(self, f"_{fault}")()
            self._next()

    def _any_store(self) -> SimulatedStore:
        return self._world.random.choice(self._stores)

    def _leader(self) -> SimulatedStore:
        """Who leads something, more often than not: what it misses is what tells leases from guesses."""
        leaders = [store for store in self._stores if store.up and store.groups.leading]
        if leaders and self._world.random.random() < 0.7:
            return self._world.random.choice(leaders)
        return self._any_store()

    def _for_a_while(self, longest: float, undo: Callable[[], object]) -> float:
        seconds = self._world.random.choice((0.3, 1.0, 1.0)) * self._world.random.uniform(0.1, longest)
        self._world.after(seconds, lambda: undo() if self._active else None)
        return seconds

    # -- the network

    def _cut(self, pairs: list[tuple[str, str]], what: str) -> None:
        self._network.block(pairs)
        seconds = self._for_a_while(8.0, lambda: self._network.unblock(pairs))
        self._world.note(f"{what} for {seconds:.2f} s")

    def _partition(self) -> None:
        random = self._world.random
        names = [machine.name for machine in (*self._stores, *self._routers)]
        random.shuffle(names)
        if random.random() < 0.5:  # a leader, if there is one, apart from all other stores
            alone = self._leader().name
            side = [alone, *(name for name in names if name[0] == "r" != alone[0] and random.random() < 0.5)]
        else:
            side = names[: random.randint(1, len(names) - 1)]
        others = [name for name in names if name not in side]
        pairs = [(one, other) for one in side for other in others]
        self._cut(pairs + [(b, a) for a, b in pairs], f"{side} and {others} are cut off")

    def _absence(self) -> None:
        """For so long that the others cut their logs, and what it misses is a snapshot."""
        names = [machine.name for machine in (*self._stores, *self._routers)]
        absent = self._any_store().name
        pairs = [(absent, name) for name in names if name != absent]
        pairs += [(b, a) for a, b in pairs]
        self._network.block(pairs)
        seconds = self._world.random.uniform(3.0, 7.0)
        self._world.note(f"{absent} is away for {seconds:.2f} s")
        self._world.after(seconds, lambda: self._network.unblock(pairs) if self._active else None)

    def _one_way(self) -> None:
        random = self._world.random
        names = [machine.name for machine in (*self._stores, *self._routers)]
        source = random.choice(names)
        targets = [name for name in names if name != source and random.random() < 0.6]
        if random.random() < 0.5:
            self._cut([(source, target) for target in targets], f"{source} is not heard by {targets}")
        else:
            self._cut([(target, source) for target in targets], f"{source} does not hear {targets}")

    def _lossy(self) -> None:
        network, before = self._network, self._network.loss
        network.loss = self._world.random.choice((0.05, 0.3))
        self._for_a_while(4.0, lambda: setattr(network, "loss", before))

    # -- machines

    def _power(self) -> None:
        self._any_store().die(True, "power lost")

    def _kill(self) -> None:
        self._any_store().die(False, "killed")

    def _outage(self) -> None:
        power_lost = self._world.random.random() < 0.7
        for store in self._stores:
            if self._world.random.random() < 0.9:
                store.die(power_lost, "outage")

    def _pulled(self, store: SimulatedStore) -> None:
        """A snapshot is there and waits to be installed: the moment for which there are the most rules."""
        random = self._world.random
        if self._active and {"power", "kill"} & set(self._settings.faults) and random.random() < 0.5:
            wait = random.uniform(0, self._settings.disk * 6)
            self._world.after(wait, lambda: store.die(random.random() < 0.5, "dies over a snapshot"))

    def _disk_step(self) -> None:
        self._any_store().disk.steps_until_death = self._world.random.randint(1, 40)

    def _log_failure(self) -> None:
        store = self._any_store()
        store.disk.log_fails = store.up

    def _slow_disk(self) -> None:
        store = self._any_store()
        store.slow_disk = self._world.random.choice((10.0, 100.0))
        self._for_a_while(5.0, lambda: setattr(store, "slow_disk", 1.0))

    # -- time

    def _pause(self) -> None:
        machine = (
            self._leader() if self._world.random.random() < 0.8 else self._world.random.choice(self._routers)
        )
        seconds = self._world.random.uniform(0.1, self._world.random.choice((2.0, LONGEST_PAUSE_S)))
        self._world.note(f"{machine.name} stands still for {seconds:.2f} s")
        machine.pause(seconds)

    def _stall(self) -> None:
        random = self._world.random
        self._leader().stall(random.uniform(0.3, 4.0), random.randint(1, 30))

    def _wall_jump(self) -> None:
        self._any_store().clock.jump_wall(self._world.random.choice((-3_600_000, -500, 500, 3_600_000)))

    # -- processes

    def _router_restart(self) -> None:
        self._restart_router(self._world.random.choice(self._routers))

    def _hand_over(self) -> None:
        self._give_away(self._any_store())

    def _give_away(self, store: SimulatedStore) -> None:
        if store.up:
            self._world.note(f"{store.name} hands over")
            store.groups.hand_over()
            store.groups._handing_over = False  # it was no stop after all
            store.call_later(0, lambda: None)

    def _reconfigure(self) -> None:
        """Some voters become learners, some learners voters: by a joint configuration, unless it is one."""
        random = self._world.random
        leading = [
            (store, replica)
            for store in self._stores
            if store.up
            for replica in store.groups.replicas.values()
            if replica.raft.role is Role.LEADER and len(replica.raft.configuration.members) > 1
        ]
        if not leading:
            return
        store, replica = random.choice(leading)
        configuration = replica.raft.configuration
        members = sorted(configuration.members)
        voters = set(random.sample(members, random.randint(1, len(members))))
        operations = [(Operation.ADD_VOTER, node) for node in sorted(voters - configuration.voters)]
        operations += [(Operation.ADD_LEARNER, node) for node in sorted(configuration.voters - voters)]
        change = Change(random.choice((Transition.AUTO, Transition.IMPLICIT)), tuple(operations))
        try:
            if operations:
                replica.raft.propose_change(change)
        except (ConfigurationRefused, Dropped):
            return  # another one is under way, or leadership is
        self._world.note(f"{store.name} p{replica.partition}: voters {sorted(voters)} of {members}")
        store.groups.dirty(replica)
        store.call_later(0, lambda: None)
        if random.random() < 0.7:  # while some know the new voters, and some do not
            begin = random.choice((self._partition, self._partition, self._outage))
            self._world.after(random.uniform(0, 0.2), lambda: begin() if self._active else None)
