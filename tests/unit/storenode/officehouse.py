"""storenode/office.py with the real controller, on a replica that the test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgpack

from kvclient import protocol
from kvclient.errors import Status
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlCommand, ControlRequest
from shared.hashing import xxh64
from storenode.control.controller import Order
from storenode.control.reports import Report
from storenode.control.state import ControlState
from storenode.maps import Maps
from storenode.office import Office
from storenode.raft import Role
from storenode.raft.messages import Configuration
from storenode.statekey import KEY

PEER = b"router1"
MAP = ClusterMap.bootstrap(
    "test",
    4,
    3,
    [
        Node(
            number,
            f"store{number}",
            f"tcp://10.0.0.{number}:7200",
            f"tcp://10.0.0.{number}:7201",
            f"tcp://10.0.0.{number}:7202",
            f"zone{number}",
        )
        for number in range(1, 6)
    ],
)
CLUSTER = xxh64(MAP.cluster_id.encode())

Answer = tuple[int, int, dict[str, Any]]


class FakeReplica:
    """The control partition as this node's replica has it. Calls wait until `answer`."""

    def __init__(self, node: int) -> None:
        self.failure: str | None = None
        self.raft = SimpleNamespace(
            role=Role.LEADER, term=3, leader=node, configuration=Configuration(frozenset(MAP.control))
        )
        self.value, self.version = b"", 0
        self.calls: list[tuple[int, list[Any]]] = []
        self.on_answer: Callable[[bytes, int, int, bytes], None] = lambda *_: None

    def read(self, route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float) -> None:
        assert mode == protocol.LINEARIZABLE
        self.calls.append((route[1], msgpack.unpackb(ops)))

    def propose(
        self,
        route: tuple[bytes, int],
        client: int,
        sequence: int,
        acked: int,
        flags: int,
        ops: bytes,
        *_: float,
    ) -> None:
        assert (client, sequence, acked, flags) == (0, 0, 0, 0)
        self.calls.append((route[1], msgpack.unpackb(ops)))

    def refuse(self, status: int) -> None:
        """All that waits."""
        calls, self.calls = self.calls, []
        for token, _ in calls:
            self.on_answer(b"", token, status, protocol.encode_error("refused"))

    def answer(self) -> None:
        """All that waits, as an engine would."""
        calls, self.calls = self.calls, []
        for token, op in calls:
            assert op[1] == KEY
            self.on_answer(b"", token, Status.OK, msgpack.packb(self._execute(op)))

    def _execute(self, op: list[Any]) -> list[Any]:
        if op[0] == protocol.Op.GET:
            return [0, self.value, self.version] if self.version else [1]
        _, _, value, _, condition = op
        if condition != ([protocol.Condition.VERSION, self.version] if self.version else [1]):
            return [2, self.version]
        self.value, self.version = value, self.version + 7
        return [0, self.version]


class House:
    """The office of node 1, and all that it is connected to."""

    def __init__(self, node: int = 1) -> None:
        self.clock = ManualClock(1000.0)
        self.maps = Maps(MAP)
        self.replica: FakeReplica | None = FakeReplica(node)
        self.answers: list[tuple[int, int, bytes]] = []
        self.orders: list[Order] = []
        self.in_force: list[ControlState] = []
        self.tokens = 0
        self.office = Office(
            node,
            CLUSTER,
            self.clock,
            self.maps,
            lambda: self.replica,  # type: ignore[arg-type,return-value]
            self.orders.append,
            self._answer,
            self.in_force.append,
        )
        self.replica.on_answer = self.office.key.on_answer

    @property
    def group(self) -> FakeReplica:
        assert self.replica is not None
        return self.replica

    def _answer(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        assert peer == PEER
        self.answers.append((token, status, body))

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.office.tick()
        self.group.answer()
        self.office.end_turn()

    def sit(self) -> House:
        for _ in range(3):
            self.turn()
        assert self.office.sits
        return self

    def ask(
        self,
        command: str,
        *,
        dry_run: bool = False,
        cluster: int = CLUSTER,
        timeout_ms: int = 5000,
        **given: Any,
    ) -> int:
        self.tokens += 1
        self.office.on_request(
            PEER,
            ControlRequest(
                self.tokens, cluster, timeout_ms, int(dry_run), ControlCommand(command), msgpack.packb(given)
            ),
        )
        return self.tokens

    def told(self) -> list[Answer]:
        answers, self.answers = self.answers, []
        return [(token, status, msgpack.unpackb(body)) for token, status, body in answers]

    def statuses(self) -> list[tuple[int, int]]:
        return [(token, status) for token, status, _ in self.told()]

    def state(self) -> ControlState:
        return ControlState.decode(self.group.value)

    def report(self, node: int, sequence: int = 1) -> Report:
        incarnation = f"{node:032x}"
        return Report(CLUSTER, node, incarnation, MAP.epoch, "1.0", 5, sequence, 1 << 30)
