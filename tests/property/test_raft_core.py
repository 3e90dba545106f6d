"""Many seeds of a group under loss, reordering, doubled messages, one-way partitions, crashes, slow disks,
pauses, membership changes, snapshots and transfers: Raft's safety properties in every step (dissertation,
figure 3.2), reads that are never stale, and progress when all is healed.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from storenode.raft import ConfigurationRefused, Dropped, NotLeader, Role, Settings
from storenode.raft.messages import (
    EVERYBODY,
    Change,
    Configuration,
    Entry,
    HardState,
    Message,
    Operation,
    Transition,
)
from tests.unit.storenode.raft.harness import Cluster, Node, configuration

TICK = 10
"""Steps of the simulation per tick."""

SETTINGS = Settings(
    election_ticks=5,
    append_bytes_max=200,
    inflight_messages=4,
    inflight_bytes=600,
    uncommitted_bytes_max=2000,
    lease_seconds=3.9,
)


class Checker:
    """What must hold whatever happens; looks at the nodes, changes nothing."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, Entry] = {}
        self.highest = 1
        self.commits: dict[int, tuple[Node, int]] = {}
        self.led: dict[int, tuple[int, int, int]] = {}  # node -> term, last index, its term
        self.hard: dict[int, HardState] = {}
        self.seen: dict[Node, int] = {}

    def look(self, node: Node, now: float) -> None:
        raft = node.raft
        self._applied(node)
        if raft.role is Role.LEADER:
            self._leader(node, now)
        before = self.commits.get(node.number)
        if before and before[0] is node:
            assert raft.commit >= before[1], "commit index went down"
        self.commits[node.number] = node, raft.commit
        assert raft.applied_index <= raft.commit <= raft.last_index
        hard, old = node.disk.hard_state, self.hard.get(node.number, HardState(0, 0, 0))
        assert hard.term >= old.term, "term went down"
        assert hard.term > old.term or old.vote in (0, hard.vote), "two votes in one term"
        self.hard[node.number] = hard

    def _applied(self, node: Node) -> None:
        """State machine safety: an index holds one entry, on every node and in every life."""
        for index, entry in node.machine.applied[self.seen.get(node, 0) :]:
            assert self.committed.setdefault(index, entry) == entry, f"two entries at index {index}"
            self.highest = max(self.highest, index)
        self.seen[node] = len(node.machine.applied)

    def _leader(self, node: Node, now: float) -> None:
        raft = node.raft
        assert self.leaders.setdefault(raft.term, node.number) == node.number, "two leaders in one term"
        term, last, last_term = self.led.get(node.number, (0, 0, 0))
        if term != raft.term:  # leader completeness
            for index in range(max(raft.log.first_index, self.highest - 40), self.highest + 1):
                if index in self.committed and self.committed[index].term < raft.term:
                    assert index <= raft.last_index, f"a leader without committed entry {index}"
                    assert raft.log.term(index) == self.committed[index].term
        elif last >= raft.log.first_index:  # leader append-only
            assert raft.last_index >= last
            assert raft.log.term(last) == last_term
        self.led[node.number] = raft.term, raft.last_index, raft.log.last_term
        assert now >= raft.lease_until or raft.commit >= self.highest, (
            "a lease after another leader committed"
        )

    def match(self, nodes: list[Node]) -> None:
        """Log matching: same index and term, same log up to there."""
        for one in nodes:
            for other in nodes:
                if one.number >= other.number:
                    continue
                low = max(one.raft.log.first_index, other.raft.log.first_index)
                high = min(one.raft.last_index, other.raft.last_index)
                same = False
                for index in range(high, low - 1, -1):
                    equal = one.raft.log.term(index) == other.raft.log.term(index)
                    assert equal or not same, f"logs differ below a common entry at {index}"
                    same = same or equal


class Simulation:
    """One seed. `heal` ends the faults."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.size = random.choice((1, 2, 3, 3, 3, 5))
        self.cluster = Cluster(self.size, seed=seed, settings=SETTINGS)
        self.checker = Checker()
        self.step = 0
        self.loss = random.choice((0.0, 0.02, 0.15))
        self.double = random.choice((0.0, 0.05, 0.2))
        self.delay = random.choice((1, 5, 30))
        self.disk = random.choice((1, 5, 40))
        self.crashes = random.choice((0.0, 0.001, 0.005))
        self.faulty = True
        self.network: list[tuple[int, int, Message]] = []  # due, to, message
        self.syncs: dict[int, int] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.paused: dict[int, int] = {}
        self.dead: set[int] = set()  # ids that were removed and may never come back
        self.proposed = 0
        self.read = 0

    @property
    def now(self) -> float:
        return self.step / TICK

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            if self.faulty:
                self._disturb()
            self._load()
            self._deliver()
            for number in sorted(self.cluster.nodes):
                if self.paused.get(number, 0) <= self.step:
                    self._turn(self.cluster.nodes[number])
            if self.step % 50 == 0:
                self.checker.match(list(self.cluster.nodes.values()))

    def heal(self) -> None:
        self.faulty = False
        self.loss = self.double = 0.0
        self.delay = self.disk = 2
        self.blocked.clear()
        self.paused.clear()

    def _turn(self, node: Node) -> None:
        raft = node.raft
        raft.now = self.now
        if node.writing and self.syncs[node.number] <= self.step:
            node.sync()
        if self.step % TICK == node.number % TICK:
            raft.tick()
        wanted = raft.snapshot_wanted
        if wanted and self.random.random() < 0.1:
            source = self.random.choice(sorted(self.cluster.nodes))  # any replica that is as far will do
            if self.cluster.nodes[source].machine.index >= wanted[1]:
                node.restore_from(self.cluster.nodes[source])
        writing = node.writing
        for message in node.turn():
            self._send(message)
        if node.writing is not writing:
            self.syncs[node.number] = self.step + self.random.randint(1, self.disk)
        for index, token in node.reads:
            assert index >= token, f"stale read: {index} before {token}"
            self.read += 1
        node.reads.clear()
        node.failed.clear()
        self.checker.look(node, self.now)

    def _send(self, message: Message) -> None:
        targets = sorted(self.cluster.nodes) if message.to == EVERYBODY else [message.to]
        for to in targets:
            if to == message.sender or self.random.random() < self.loss:
                continue
            for _ in range(2 if self.random.random() < self.double else 1):
                due = self.step + self.random.randint(1, self.delay)
                if self.faulty and self.random.random() < 0.01:
                    due += 300  # found long after
                self.network.append((due, to, message))

    def _deliver(self) -> None:
        waiting = []
        for due, to, message in self.network:
            if due > self.step or self.paused.get(to, 0) > self.step:
                waiting.append((due, to, message))
            elif to in self.cluster.nodes and (message.sender, to) not in self.blocked:
                self.cluster[to].now = self.now
                self.cluster[to].step(message)
        self.network = waiting

    def _load(self) -> None:
        random = self.random
        node = self.cluster.nodes[random.choice(sorted(self.cluster.nodes))]
        if self.paused.get(node.number, 0) > self.step:
            return
        for _ in range(random.choice((0, 0, 1, 1, 3))):
            try:
                node.raft.propose(b"%d:" % self.proposed + bytes(random.choice((0, 10, 150))))
                self.proposed += 1
            except (NotLeader, Dropped):
                break
        if random.random() < 0.3:
            node.raft.read_index(self.checker.highest)

    def _disturb(self) -> None:
        random, cluster = self.random, self.cluster
        numbers = sorted(cluster.nodes)
        number = random.choice(numbers)
        chance = random.random()
        if chance < self.crashes:
            for each in numbers if random.random() < 0.1 else [number]:
                self._crash(each)
        elif chance < 0.012:
            self._partition(numbers)
        elif chance < 0.017:
            self.blocked.clear()
        elif chance < 0.019:
            self.paused[number] = self.step + random.randint(10, 200)
        elif chance < 0.030:
            if not cluster.nodes[number].writing:
                cluster.nodes[number].flush_and_cut()
        elif chance < 0.036:
            self._change(random)
        elif chance < 0.040:
            for leader in cluster.leaders():
                with suppress(Dropped):
                    cluster[leader].transfer(number)
        elif chance < 0.042:
            for leader in cluster.leaders():
                cluster[leader].unreachable(number)

    def _crash(self, number: int) -> None:
        node = self.cluster.nodes[number]
        if node.writing and self.random.random() < 0.5:
            node.disk.write(node.writing)  # it had reached the disk, and nobody had been told
        if self.random.random() < 0.5:
            self.network = [each for each in self.network if each[1] != number]
        self.cluster.crash(number)

    def _partition(self, numbers: list[int]) -> None:
        for one in numbers:
            for other in numbers:
                if one != other and self.random.random() < 0.25:
                    self.blocked.add((one, other))

    def _change(self, random: Random) -> None:
        leaders = self.cluster.leaders()
        if not leaders or self.size == 1:
            return
        raft = self.cluster[random.choice(leaders)]
        operations = []
        for number in random.sample(range(1, 8), random.randint(0, 3)):
            operation = random.choice(list(Operation))
            if operation is not Operation.REMOVE and number not in self.cluster.nodes:
                self.cluster.add(number)
            if operation is Operation.ADD_VOTER and not self.cluster[number].configuration.voters:
                operation = Operation.ADD_LEARNER  # who has no snapshot yet gives no vote: it learns first
            operations.append((int(operation), number))
        change = Change(
            random.choice((Transition.AUTO, Transition.IMPLICIT, Transition.EXPLICIT)), tuple(operations)
        )
        with suppress(ConfigurationRefused, Dropped):
            raft.propose_change(change)

    def newest(self) -> Configuration:
        """The configuration of who has applied most."""
        return max(self.cluster.nodes.values(), key=lambda node: node.machine.index).machine.configuration


def settle(simulation: Simulation) -> None:
    """All members of the final configuration have the same state, and new writes get through."""
    simulation.heal()
    for _ in range(40):
        simulation.run(100)
        members = simulation.newest().members
        nodes = [simulation.cluster.nodes[number] for number in sorted(members)]
        leaders = [node for node in nodes if node.raft.role is Role.LEADER]
        term = simulation.checker.committed.get(simulation.checker.highest)
        if leaders and term and term.term == leaders[-1].raft.term and not simulation.newest().auto_leave:
            target = simulation.checker.highest
            simulation.run(300)
            if all(node.machine.index >= target for node in nodes):
                return
    raise AssertionError(f"no progress after healing: {[vars(node.machine) for node in nodes]}"[:2000])


@pytest.mark.parametrize("seed", range(40))
def test_safety_in_every_step_and_progress_after_healing(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(1500)
    settle(simulation)
    assert simulation.proposed > 0
    assert simulation.read > 0


def test_a_seed_replays_exactly() -> None:
    def trace() -> list[tuple[int, list[tuple[int, Entry]]]]:
        simulation = Simulation(7)
        simulation.run(800)
        return [(number, node.machine.applied) for number, node in simulation.cluster.nodes.items()]

    assert trace() == trace()


def test_the_checker_sees_a_second_leader_and_a_lost_entry() -> None:
    cluster = Cluster(configuration(1, 2, 3).voters)
    checker = Checker()
    cluster.elect(1)
    checker.look(cluster.nodes[1], 0.0)
    checker.leaders[cluster[1].term] = 2
    with pytest.raises(AssertionError, match="two leaders"):
        checker.look(cluster.nodes[1], 0.0)
    checker.leaders.clear()
    checker.led.clear()
    checker.committed[9] = Entry(0, 0, b"")
    checker.highest = 9
    with pytest.raises(AssertionError, match="without committed"):
        checker.look(cluster.nodes[1], 0.0)
