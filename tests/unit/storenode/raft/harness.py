"""A group of Raft nodes in memory, on disks that lose what was not synced.

Owns the caller's duties (docstring of `storenode.raft`), done one turn at a time. `Cluster` is driven by hand
in unit tests and by a seed in tests/property/test_raft_core.py. Deterministic: all chance comes from one
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from storenode.raft import Compacted, Raft, Role, Settings, Unstable, decode_change
from storenode.raft.messages import (
    EVERYBODY,
    Change,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Kind,
    Message,
)

NORMAL = EntryKind.NORMAL


def configuration(*voters: int, learners: Iterable[int] = ()) -> Configuration:
    return Configuration(frozenset(voters), learners=frozenset(learners))


class Disk:
    """The durable log of one node, and its state machine as it was flushed last."""

    def __init__(self, start: Configuration) -> None:
        self.cut_index = 1 if start.voters else 0  # a group is born with its log cut at 1
        self.cut_term = 0
        self.hard_state = HardState(0, 0, self.cut_index)
        self.log: list[Entry] = []
        self.flushed = Machine(start, self.cut_index)

    @property
    def first_index(self) -> int:
        return self.cut_index + 1

    @property
    def last_index(self) -> int:
        return self.cut_index + len(self.log)

    def term(self, index: int) -> int:
        if index == self.cut_index:
            return self.cut_term
        if index < self.cut_index:
            raise Compacted(index)
        return self.log[index - self.cut_index - 1].term

    def entries(self, first: int, stop: int, bytes_max: int) -> list[Entry]:
        if first <= self.cut_index:
            raise Compacted(first)
        if stop > self.last_index + 1:
            raise IndexError(stop)
        found: list[Entry] = []
        size = 0
        for entry in self.log[first - self.first_index : stop - self.first_index]:
            size += len(entry.data)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def write(self, unstable: Unstable) -> None:
        if unstable.hard:
            self.hard_state = unstable.hard
        if unstable.entries:
            assert self.cut_index < unstable.first_index <= self.last_index + 1
            del self.log[unstable.first_index - self.first_index :]
            self.log += unstable.entries
        assert self.hard_state.commit <= self.last_index, "commit index ahead of the entries (etcd#14143)"

    def cut(self, index: int, term: int) -> None:
        keep = index <= self.last_index and self.term(index) == term
        self.log = self.log[index - self.cut_index :] if keep else []
        self.cut_index, self.cut_term = index, term


class Machine:
    """What entries do: they are remembered. The configuration is part of the state."""

    def __init__(self, start: Configuration, index: int) -> None:
        self.index = index
        self.term = 0
        self.configuration = start
        self.applied: list[tuple[int, Entry]] = []

    def copy(self) -> Machine:
        other = Machine(self.configuration, self.index)
        other.term, other.applied = self.term, self.applied[:]
        return other

    @property
    def data(self) -> list[bytes]:
        return [entry.data for _, entry in self.applied if entry.kind == NORMAL and entry.data]


class Node:
    """A process on a disk."""

    def __init__(self, number: int, disk: Disk, settings: Settings, random: Random) -> None:
        self.number = number
        self.disk = disk
        self.machine = disk.flushed.copy()
        self.raft = Raft(
            number,
            disk,
            self.machine.configuration,
            self.machine.index,
            settings,
            Random(random.getrandbits(64)),
        )
        self.writing: Unstable | None = None
        self.reads: list[tuple[int, object]] = []
        self.failed: list[object] = []

    def turn(self) -> list[Message]:
        """Steps 2 to 4 and 6 to 7 of the caller's duties; the write stays out until `sync`."""
        raft = self.raft
        self.apply()
        raft.flush()
        if self.writing is None:
            self.writing = raft.take_unstable()
        else:
            assert raft.take_unstable() is None
        out, raft.messages = raft.messages, []
        for index, tokens in raft.take_reads():
            self.reads += [(index, token) for token in tokens]
        self.failed += raft.take_failed_reads()
        return out

    def sync(self) -> None:
        """The write that is out becomes durable, and Raft is told."""
        if self.writing:
            self.disk.write(self.writing)
            self.raft.persisted(self.writing)
            self.writing = None

    def apply(self, bytes_max: int = 64) -> None:
        raft, machine = self.raft, self.machine
        while True:
            first, entries = raft.take_committed(bytes_max)
            if not entries:
                return
            assert first == machine.index + 1, "entries skipped or repeated"
            for index, entry in enumerate(entries, first):
                machine.applied.append((index, entry))
                machine.index, machine.term = index, entry.term
                if entry.kind == EntryKind.CONFIGURATION:
                    machine.configuration = raft.change_applied(decode_change(entry.data))
            raft.applied(machine.index)

    def flush_and_cut(self) -> None:
        """The engine flushes, and the log is cut there."""
        self.disk.flushed = self.machine.copy()
        if self.machine.index > self.disk.cut_index:
            self.disk.cut(self.machine.index, self.machine.term)

    def restore_from(self, other: Node) -> None:
        """Pull a snapshot of `other` and take it in."""
        machine = other.machine.copy()
        if machine.index <= self.machine.index or self.writing:
            return
        self.machine = machine
        self.disk.flushed = machine.copy()
        self.disk.cut(machine.index, machine.term)
        self.raft.restore(machine.index, machine.term, machine.configuration)


class Cluster:
    """Nodes and the messages between them, delivered when asked for."""

    def __init__(
        self,
        nodes: int | Iterable[int],
        start: Configuration | None = None,
        seed: int = 1,
        settings: Settings | None = None,
    ) -> None:
        numbers = list(range(1, nodes + 1)) if isinstance(nodes, int) else list(nodes)
        self.random = Random(seed)
        self.settings = settings or Settings()
        self.start = start or configuration(*numbers)
        self.disks = {number: Disk(self.start) for number in numbers}
        self.nodes: dict[int, Node] = {}
        self.queue: list[tuple[int, Message]] = []
        self.sent: list[Message] = []
        self.drop: Callable[[int, Message], bool] = lambda to, message: False
        for number in numbers:
            self.boot(number)

    def __getitem__(self, number: int) -> Raft:
        return self.nodes[number].raft

    def add(self, number: int) -> Node:
        """A new node with an empty disk that does not know the group."""
        self.disks[number] = Disk(configuration())
        return self.boot(number)

    def boot(self, number: int) -> Node:
        self.nodes[number] = Node(number, self.disks[number], self.settings, self.random)
        return self.nodes[number]

    def crash(self, number: int) -> Node:
        """Lose all that is not on the disk, and start again."""
        return self.boot(number)

    def post(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.sent.append(message)
            for number in sorted(self.nodes):
                if number != message.sender and message.to in (number, EVERYBODY):
                    self.queue.append((number, message))

    def turn(self, *numbers: int) -> None:
        for number in numbers or sorted(self.nodes):
            self.post(self.nodes[number].turn())

    def sync(self, *numbers: int) -> None:
        for number in numbers or sorted(self.nodes):
            self.nodes[number].sync()

    def deliver(self) -> int:
        """All that is queued now; what this brings about is queued."""
        queue, self.queue = self.queue, []
        for to, message in queue:
            if to in self.nodes and not self.drop(to, message):
                self.nodes[to].raft.step(message)
        return len(queue)

    def pull(self) -> None:
        """Every node that is told to takes in a snapshot of the node that told it."""
        for node in self.nodes.values():
            wanted = node.raft.snapshot_wanted
            if wanted and wanted[0] in self.nodes:
                node.restore_from(self.nodes[wanted[0]])

    def settle(self, rounds: int = 200) -> None:
        """Turns, syncs and deliveries until nothing happens any more; time stands still."""
        for _ in range(rounds):
            self.turn()
            busy = any(node.writing for node in self.nodes.values())
            self.sync()
            self.pull()
            if not self.deliver() and not busy:
                return
        raise AssertionError("messages go round without end")

    def tick(self, *numbers: int, times: int = 1) -> None:
        """One unit of time each, and what comes of it."""
        for _ in range(times):
            for number in numbers or sorted(self.nodes):
                self.nodes[number].raft.now += 1.0
                self.nodes[number].raft.tick()
            self.settle()

    def elect(self, number: int) -> Raft:
        """Make `number` the leader of a group at rest."""
        raft = self[number]
        if raft.role is Role.LEADER:
            return raft
        for other in self.nodes.values():
            other.raft._election.release()
        raft.campaign()
        self.settle()
        assert raft.role is Role.LEADER
        return raft

    def propose(self, number: int, *data: bytes) -> list[int]:
        indexes = [self[number].propose(each) for each in data]
        self.settle()
        return indexes

    def change(self, number: int, change: Change) -> None:
        self[number].propose_change(change)
        self.settle()

    def leaders(self) -> list[int]:
        return [number for number, node in self.nodes.items() if node.raft.role is Role.LEADER]

    def log(self, number: int) -> list[tuple[int, int]]:
        """(index, term) of all entries of a node, durable or not."""
        log = self[number].log
        return [(index, log.term(index)) for index in range(log.first_index, log.last_index + 1)]


def normal(term: int, data: bytes = b"") -> Entry:
    return Entry(term, EntryKind.NORMAL, data)


def of_kind(messages: list[Message], kind: Kind) -> list[Message]:
    return [message for message in messages if message.kind == kind]


def led(nodes: int = 3, settings: Settings | None = None) -> Cluster:
    """Node 1 leads, all others replicate, everything is committed everywhere."""
    cluster = Cluster(nodes, settings=settings)
    cluster.elect(1)
    cluster.tick()
    cluster.sent.clear()
    return cluster


def lose_all(cluster: Cluster) -> None:
    cluster.drop = lambda to, message: True


def lose_none(cluster: Cluster) -> None:
    cluster.drop = lambda to, message: False
