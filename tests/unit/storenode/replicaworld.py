"""Stores of one process: real Raft, real engines, a real log on disk and the real `Groups`, joined by a
network that the test holds in its hands.

Nothing happens by itself: `turn` is one turn of every loop, `tick` is Raft's time, a log write is done at the
end of its turn unless the test holds it. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from kvclient import protocol
from kvclient.errors import Status
from shared.clock import ManualClock
from storenode import engine
from storenode.engine.vfs import Vfs
from storenode.founding import Founder
from storenode.groups import TICK_S, Groups
from storenode.raft import Role
from storenode.raft.messages import EVERYBODY, Entry, Message
from storenode.raftlog import RaftLog, Record, Written
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica

PARTITION = 7
CLIENT = 0xC11E
ROUTER = b"router"
Route = tuple[bytes, int]
Answer = tuple[bytes, int, int, bytes]


class HeldWriter:
    """Writes when it is told; `failure` is what the next write meets."""

    def __init__(self, log: RaftLog) -> None:
        self.held = False
        self.failure: Exception | None = None
        self.batches: list[list[Record]] = []
        self._log = log
        self._work: tuple[list[Record], Callable[[Written | Exception], object]] | None = None

    @property
    def busy(self) -> bool:
        return self._work is not None

    def submit(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None:
        assert self._work is None, "one log write at a time"
        self._work = records, done
        self.batches.append(records)

    def write(self) -> None:
        """Does what was submitted."""
        if self._work is None:
            return
        (records, done), self._work = self._work, None
        done(self.failure or self._log.write(records))


class Store:
    """One node: everything but threads and sockets."""

    def __init__(
        self, world: World, node: int, path: Path, partitions: Iterable[int], founders: list[int]
    ) -> None:
        self.node = node
        self.path = path
        self.answers: list[Answer] = []
        self.sent: list[tuple[int, Message]] = []
        self.inbox: list[tuple[int, int, Message]] = []
        self.fatal: list[Exception] = []
        self.clock = world.clock
        self.budget = Budget(1 << 20)
        self.partitions = list(partitions)
        self.log = RaftLog(Vfs(), str(path / "raft"), node, segment_bytes=world.segment_bytes)
        self.shared = engine.Shared(str(path), memtable_bytes=64 << 20, workers=1)
        self.writer = HeldWriter(self.log)
        self.groups = Groups(
            self.log,
            self.writer,
            self._send,
            world.clock,
            self.fatal.append,
            log_bytes_max=world.log_bytes_max,
        )
        self.engines = {
            number: engine.open_replica(str(path / str(number)), shared=self.shared, engine_id=number)
            for number in self.partitions
        }
        self.groups.preferred = lambda group: founders[0] if founders else 0
        founder = Founder(node, self.log, self.groups, world.clock, self.budget, self._answer)
        for number, opened in self.engines.items():
            founder.add(number, opened, founders, Random(node * 1000 + number))
        founder.finish()

    @property
    def replica(self) -> Replica:
        return self.groups.replicas[self.partitions[0]]

    @property
    def leads(self) -> bool:
        return self.replica.raft.role is Role.LEADER and self.replica.failure is None

    def _answer(self, router: bytes, token: int, status: int, body: bytes) -> None:
        self.answers.append((router, token, status, body))

    def _send(self, group: int, message: Message) -> None:
        self.sent.append((group, message))

    def turn(self, times: int = 1) -> None:
        """Takes what has arrived, and ends the turn."""
        for _ in range(times):
            inbox, self.inbox = self.inbox, []
            for sender, group, message in inbox:
                self.groups.on_messages(sender, [(group, message)])
            self.groups.end_turn()
            if not self.writer.held:
                self.writer.write()

    # -- what routers do

    def propose(
        self,
        token: int,
        ops: bytes,
        sequence: int = 0,
        *,
        router: bytes = ROUTER,
        client: int = CLIENT,
        acked_below: int = 0,
        retry: bool = False,
        timeout: float = 60.0,
    ) -> None:
        now = self.clock.monotonic()
        flags = protocol.FLAG_RETRY if retry else 0
        self.replica.propose((router, token), client, sequence, acked_below, flags, ops, now + timeout, now)

    def read(self, token: int, key: bytes, mode: int = 0, timeout: float = 60.0) -> None:
        now = self.clock.monotonic()
        self.replica.read((ROUTER, token), protocol.encode_get(key), mode, now + timeout, now)

    def taken(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return answers

    def statuses(self) -> list[tuple[int, int]]:
        """(token, status) of what was answered since the last look."""
        return [(token, status) for _, token, status, _ in self.taken()]

    def entries(self) -> list[Entry]:
        """All that is in the log, of the first partition."""
        log = self.log.group(self.partitions[0])
        return log.entries(log.first_index, log.last_index + 1, 1 << 30)

    def value(self, key: bytes) -> bytes | None:
        """What the engine has, whoever leads."""
        (result,) = protocol.decode_results(self.replica.machine.engine.read(protocol.encode_get(key), 0))
        return result[1] if result[0] == Status.OK else None

    def close(self) -> None:
        self.log.close()
        for opened in self.engines.values():
            opened.close()
        self.shared.close()


class World:
    """Stores 1 to `nodes`, and the wire between them. Store 1 is the leader that the map prefers."""

    def __init__(
        self,
        path: Path,
        *,
        nodes: int = 3,
        partitions: Iterable[int] = (PARTITION,),
        segment_bytes: int = 1 << 20,
        log_bytes_max: int = 1 << 30,
    ) -> None:
        self.path = path
        self.segment_bytes = segment_bytes
        self.log_bytes_max = log_bytes_max
        self.clock = ManualClock(1000.0)
        self.cut: set[int] = set()
        self.deaf: set[int] = set()
        self.partitions = list(partitions)
        self.nodes = list(range(1, nodes + 1))
        self.stores = {node: self.start(node) for node in self.nodes}

    def start(self, node: int) -> Store:
        return Store(self, node, self.path / f"store{node}", self.partitions, self.nodes)

    def restart(self, node: int, *, flush: bool = False) -> Store:
        """The process ends and begins again."""
        store = self.stores[node]
        if flush:
            for opened in store.engines.values():
                opened.flush()
        store.close()
        self.stores[node] = self.start(node)
        return self.stores[node]

    def lead(self) -> Store:
        """The store that leads and takes writes, after as much time as that needs."""
        for _ in range(200):
            self.settle()
            for store in self.stores.values():
                if store.node not in self.cut and store.leads and store.replica.raft.lease_until > 0:
                    return store
            self.tick()
        raise AssertionError("nobody leads")

    def elected(self) -> Store:
        """Store 1, which has just won; nothing of its term is committed."""
        leader = self.stores[1]
        for _ in range(20):
            if leader.leads:
                return leader
            self.turn()
        raise AssertionError("nobody leads")

    def depose(self, leader: Store) -> Store:
        """Another store leads; the old one was cut off, and does not know yet."""
        self.cut = {leader.node}
        others = self.others(leader)
        for _ in range(60):
            self.tick(nodes=[one.node for one in others])
            for other in others:
                if other.leads:
                    self.settle()
                    return other
        raise AssertionError("nobody else leads")

    def others(self, store: Store) -> list[Store]:
        return [one for one in self.stores.values() if one is not store]

    def carry(self) -> bool:
        """Brings what was sent to whom it is for; whether there was anything."""
        carried = False
        for store in self.stores.values():
            sent, store.sent = store.sent, []
            for group, message in sent:
                carried = True
                for node, other in self.stores.items():
                    wanted = message.to in (node, EVERYBODY) and node != store.node
                    if wanted and node not in self.deaf and not {node, store.node} & self.cut:
                        other.inbox.append((store.node, group, message))
        return carried

    def turn(self) -> bool:
        for store in self.stores.values():
            store.turn()
        return self.carry()

    def settle(self) -> None:
        """Turns until nobody has anything to say."""
        quiet = 0
        for _ in range(1000):
            quiet = 0 if self.turn() else quiet + 1
            if quiet == 3:
                return
        raise AssertionError("they never come to rest")

    def tick(self, times: int = 1, nodes: Iterable[int] | None = None) -> None:
        for _ in range(times):
            self.clock.advance(TICK_S)
            for node in self.nodes if nodes is None else nodes:
                self.stores[node].groups.tick()
            self.settle()

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


def increment(key: bytes = b"n") -> bytes:
    return protocol.encode_increment(key, 1)


def reason(body: bytes) -> str:
    message = protocol.decode_error(body)["message"]
    assert isinstance(message, str)
    return message
