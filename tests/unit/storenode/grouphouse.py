"""Store nodes without sockets and threads: real logs, engines, replicas and group commands; messages, log
writes and snapshots are moved by hand.

Owns the turns. Time is a manual clock that `tick` moves. What a node loses when it stops is what a process
loses: everything but its directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgpack

from kvclient import protocol
from kvclient.errors import Status
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.groupmessages import GroupCommand, GroupReply, GroupRequest
from shared.messagefields import DRY_RUN
from shared.messages import decode_to_store
from storenode import engine
from storenode.checksums import Checksums
from storenode.engine.vfs import Vfs
from storenode.engines import Engines
from storenode.erasing import Erasing
from storenode.founding import Founder, open_groups
from storenode.groupcommands import GroupCommands
from storenode.groups import TICK_S, Arrived, Groups
from storenode.hosting import Hosting
from storenode.maps import Maps
from storenode.raft import Role
from storenode.raft.messages import EVERYBODY, Message
from storenode.raftlog import RaftLog, Record, Written
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.storerequests import Encode
from storenode.storerequests import Reply as StoreReply

CLUSTER = 0xC1
PARTITIONS = 8
ASKER = b"router1"

Reply = tuple[Status, dict[str, Any]]


class InlineWriter:
    """Writes at once."""

    busy = False

    def __init__(self, log: RaftLog) -> None:
        self._log = log

    def submit(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None:
        done(self._log.write(records))


class FailingEngines(Engines):
    """On a disk that refuses `refused`, one of the steps, as long as it is set."""

    refused = ""

    def open(self, group: int) -> engine.ReplicaEngine:
        self._check("open")
        return super().open(group)

    def set_aside(self, group: int) -> None:
        self._check("set_aside")
        super().set_aside(group)

    def remove(self, group: int) -> None:
        self._check("remove")
        super().remove(group)

    def _check(self, step: str) -> None:
        if step == self.refused:
            raise OSError(28, "No space left on device")


class StoreNode:
    """One process on the directory `path`. `founded`: partition -> founders, of those that it is one of."""

    def __init__(self, house: House, number: int, path: Path, founded: dict[int, tuple[int, ...]]) -> None:
        self.house = house
        self.number = number
        self.path = path
        self.group_replies: dict[int, Reply] = {}
        self.group_bodies: dict[int, tuple[int, bytes]] = {}
        self.answers: dict[int, tuple[Status, bytes]] = {}
        self._pulled = False
        self.log = RaftLog(Vfs(), str(path / "raft"), number, segment_bytes=1 << 20)
        self.shared = engine.Shared(str(path), workers=1)
        self.engines = FailingEngines(str(path / "partitions"), engine.Options(), self.shared)
        self.beside: list[tuple[Callable[[], object], Callable[[Any], None]]] = []
        self.groups = Groups(
            self.log, InlineWriter(self.log), self._send, house.clock, self._fatal, log_bytes_max=1 << 20
        )
        self.groups.on_wanted = self._pull
        self.groups.preferred = lambda group: house.founders[0]
        founder = Founder(number, self.log, self.groups, house.clock, Budget(1 << 20), self._answer)
        open_groups(founder, self.log, self.engines, founded, lambda: Random(number))
        self.commands = GroupCommands(
            number,
            CLUSTER,
            house.maps,
            self.groups,
            house.clock,
            self._reply,
            house.ask_host,
            Hosting(founder, self.engines.open).host,
            Erasing(self.groups, self.engines, lambda work, done: self.beside.append((work, done))),
            Checksums(
                number,
                CLUSTER,
                self.groups,
                house.clock,
                lambda work, done: self.beside.append((work, done)),
                self._reply,
                house.ask,
                lambda: 0,
            ),
        )

    def _send(self, group: int, message: Message) -> None:
        self.house.queue.append((group, message))

    def _fatal(self, error: Exception) -> None:
        raise error

    def _reply(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        assert peer == ASKER
        assert token not in self.group_replies, "answered twice"
        answer = msgpack.unpackb(body) if status == 0 else protocol.decode_error(body)
        self.group_replies[token] = (Status(status), answer)
        self.group_bodies[token] = (status, body)

    def _answer(self, router: bytes, token: int, status: int, body: bytes) -> None:
        self.answers[token] = (Status(status), body)

    def _pull(self, replica: Replica) -> None:
        """The snapshot is there at once."""
        wanted = replica.raft.snapshot_wanted
        assert wanted is not None
        source = self.house.nodes.get(wanted[0])
        if source is None or self.house.snapshots_stopped:
            return
        directory = self.path / "incoming"
        shutil.rmtree(directory, ignore_errors=True)
        source.groups.replicas[replica.partition].machine.engine.checkpoint(str(directory))
        examined = replica.machine.engine.examine(str(directory))
        self._pulled = True
        self.groups.install(Arrived(replica, examined, self._installed))

    def _installed(self, error: Exception | None) -> None:
        assert error is None, error
        self.house.installed += 1

    def turn(self) -> bool:
        """The end of a turn; whether more is to be done at once."""
        self._pulled = False
        left = self.groups.end_turn()
        self.commands.end_turn()
        beside, self.beside = self.beside, []
        for work, done in beside:
            try:
                result: object = work()
            except Exception as error:  # noqa: BLE001 - as `storenode.beside`
                result = error
            done(result)
        return left or self._pulled or bool(beside)

    def close(self) -> None:
        self.engines.close_all()
        self.shared.close()
        self.log.close()


class House:
    """Nodes 1 to `count`; partition p is founded by `founders`."""

    def __init__(self, path: Path, count: int = 4, founders: tuple[int, ...] = (1, 2, 3)) -> None:
        self.path = path
        self.numbers = range(1, count + 1)
        self.founders = founders
        self.clock = ManualClock(1000.0)
        nodes = [
            Node(number, f"store{number}", f"tcp://127.0.0.1:{7000 + number}") for number in self.numbers
        ]
        self.maps = Maps(ClusterMap.bootstrap("test", PARTITIONS, 3, nodes))
        self.queue: list[tuple[int, Message]] = []
        self.nodes: dict[int, StoreNode] = {}
        self.cut_off: set[int] = set()
        self.installed = 0
        self.snapshots_stopped = False
        self.host_asked: list[tuple[int, int]] = []
        self.host_hook: Callable[[int], bool] = lambda node: True
        self._hosts: dict[tuple[int, int], Callable[[str | None], object]] = {}
        self._asked: dict[tuple[int, int], Callable[[StoreReply | None], object]] = {}
        self._late_asked: list[tuple[float, Callable[[StoreReply | None], object]]] = []
        self._late_hosts: list[tuple[float, Callable[[str | None], object]]] = []
        self._token = 0
        for number in self.numbers:
            self.start(number)

    def start(self, number: int) -> StoreNode:
        path = self.path / f"store{number}"
        path.mkdir(exist_ok=True)
        founded = {0: self.founders} if number in self.founders else {}
        node = self.nodes[number] = StoreNode(self, number, path, founded)
        return node

    def stop(self, number: int) -> None:
        """The process ends; its directory stays."""
        self.nodes.pop(number).close()

    def close(self) -> None:
        for number in list(self.nodes):
            self.stop(number)

    def replica(self, number: int, partition: int = 0) -> Replica:
        return self.nodes[number].groups.replicas[partition]

    def ask_host(
        self, node: int, partition: int, deadline: float, done: Callable[[str | None], object]
    ) -> None:
        """Asks as `StoreRequests` do: the other store's commands; nothing comes from one that is away."""
        self.host_asked.append((node, partition))
        if node not in self.nodes or not self.host_hook(node):
            self._late_hosts.append((deadline, done))
            return
        token = self.tell(node, GroupCommand.HOST, node, partition=partition)
        self._hosts[node, token] = done

    def ask(
        self, node: int, encode: Encode, deadline: float, done: Callable[[StoreReply | None], object]
    ) -> None:
        """Asks the other store's commands; nothing comes from one that is away."""
        self._token += 1
        if node in self.nodes:
            request = decode_to_store(encode(self._token))
            assert isinstance(request, GroupRequest)
            self._asked[node, self._token] = done
            self.nodes[node].commands.on_request(ASKER, request)
        else:
            self._late_asked.append((deadline, done))

    def _tell_askers(self) -> bool:
        """Whether anybody was told what another store has answered."""
        told = False
        for (node, token), done in list(self._asked.items()):
            if node in self.nodes and token in self.nodes[node].group_bodies:
                del self._asked[node, token]
                told = True
                done(GroupReply(token, *self.nodes[node].group_bodies[token]))
        now = self.clock.monotonic()
        for late in [late for late in self._late_asked if late[0] <= now]:
            self._late_asked.remove(late)
            told = True
            late[1](None)
        return told

    def tell(
        self,
        number: int,
        command: GroupCommand,
        member: int,
        *,
        other: int = 0,
        partition: int = 0,
        dry: bool = False,
        timeout_ms: int = 5000,
        cluster: int = CLUSTER,
    ) -> int:
        """A command to the store `number`; returns its token."""
        self._token += 1
        flags = DRY_RUN if dry else 0
        token = self._token
        request = GroupRequest(token, cluster, partition, timeout_ms, flags, command, member, other)
        self.nodes[number].commands.on_request(ASKER, request)
        return token

    def reply(self, number: int, token: int) -> Reply:
        return self.nodes[number].group_replies[token]

    def run(self, number: int, command: GroupCommand, member: int, **options: Any) -> Reply:
        """A command and its answer, for which time passes."""
        token = self.tell(number, command, member, **options)
        for _ in range(100):
            self.settle()
            if token in self.nodes[number].group_replies:
                return self.reply(number, token)
            self.tick()
        raise AssertionError("no answer within ten seconds")

    def settle(self) -> None:
        """Turns and deliveries until nothing happens any more."""
        for _ in range(500):
            busy = [node.turn() for node in list(self.nodes.values())]
            told = self._tell_hosts() | self._tell_askers()
            queue, self.queue = self.queue, []
            for group, message in queue:
                for number, node in self.nodes.items():
                    heard = message.to in (number, EVERYBODY) and number != message.sender
                    if heard and not self.cut_off & {number, message.sender}:
                        node.groups.on_messages(message.sender, [(group, message)])
            if not (queue or told or any(busy)):
                return
        raise AssertionError("messages go round without end")

    def _tell_hosts(self) -> bool:
        """Whether anybody was told that a store hosts a partition, or does not."""
        told = False
        for (node, token), done in list(self._hosts.items()):
            answer = self.nodes[node].group_replies.get(token) if node in self.nodes else None
            if answer is not None:
                del self._hosts[node, token]
                told = True
                done(None if answer[0] == Status.OK else answer[1]["message"])
        now = self.clock.monotonic()
        for late in [late for late in self._late_hosts if late[0] <= now]:
            self._late_hosts.remove(late)
            late[1]("it did not answer in time")
            told = True
        return told

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(TICK_S)
            for node in self.nodes.values():
                node.groups.tick()
            self.settle()

    def elect(self, number: int) -> None:
        """Make `number` the leader of partition 0."""
        for _ in range(100):
            leader = self.leader()
            if leader == number:
                return
            if leader:
                self.transfer(leader, number)
            self.tick()
        raise AssertionError(f"node {number} does not get elected")

    def transfer(self, number: int, to: int) -> None:
        """The leader `number` hands over, without an operator's order."""
        self.replica(number).raft.transfer(to)
        self.nodes[number].groups.dirty(self.replica(number))

    def leader(self) -> int:
        for number, node in self.nodes.items():
            replica = node.groups.replicas.get(0)
            if replica is not None and replica.raft.role is Role.LEADER and number not in self.cut_off:
                return number
        return 0

    def put(self, number: int, key: bytes, value: bytes) -> None:
        """A write through the replica of `number`, applied."""
        self._token += 1
        token, now = self._token, self.clock.monotonic()
        self.replica(number).propose(
            (ASKER, token), 0, 0, 0, 0, protocol.encode_put(key, value), now + 5, now
        )
        self.settle()
        assert self.nodes[number].answers.pop(token)[0] == Status.OK

    def get(self, number: int, key: bytes) -> list[Any]:
        """What the engine of `number` has."""
        ops = protocol.encode_get(key)
        return protocol.decode_results(self.replica(number).machine.engine.read(ops, 1))[0]


def founded(directory: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it; node 4 has nothing."""
    made = House(directory)
    made.elect(1)
    made.put(1, b"k", b"v")
    made.tick(2)
    yield made
    made.close()
