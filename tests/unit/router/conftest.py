"""The router's core without sockets: a manual clock, a seeded generator, and outboxes read by hand."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind, Request
from router.requests import Budget
from router.routing import Router
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlRequest
from shared.hashing import partition_of
from shared.messages import Item
from shared.opstream import Limits

CLIENT = b"\x00abcd"
PARTITIONS = 8
BUDGET = Budget(1000, 1 << 20)
THREE_STORES = tuple(
    Node(id=number, name=f"store{number}", rpc=f"tcp://127.0.0.1:{7190 + 10 * number}")
    for number in (1, 2, 3)
)
STORES = THREE_STORES[:2]


class Harness:
    """One router, its clock, and everything it wants to send since the last look."""

    def __init__(
        self,
        *,
        replicas: int = 1,
        with_map: bool = True,
        budget: Budget = BUDGET,
        stores: tuple[Node, ...] = STORES,
    ) -> None:
        self.clock = ManualClock(monotonic=1000.0)
        self.router = Router(
            name="router1",
            version="0.1",
            seeds=["tcp://127.0.0.1:7200"],
            limits=Limits(1 << 20),
            budget=budget,
            clock=self.clock,
            random=random.Random(7),
        )
        self.map = ClusterMap.bootstrap("test", PARTITIONS, replicas, stores)
        self.request_id = 0
        if with_map:
            self.router.on_map(self.map.encode())
            for node in stores:
                self.router.on_backend(node.id, True)

    def send(self, ops: bytes, **fields: Any) -> int:
        """One request of CLIENT; returns its id."""
        self.request_id += 1
        values: dict[str, Any] = {
            "kind": Kind.OPS,
            "request_id": self.request_id,
            "timeout_ms": 5000,
            "read_mode": 0,
            "flags": 0,
            "client_id": 9,
            "sequence": self.request_id,
            "acked_below": 1,
            "body": ops,
        }
        self.router.on_request(CLIENT, protocol.encode_request(Request(**values | fields)))
        return self.request_id

    def items(self) -> list[tuple[int, Item]]:
        """(node, item) of all that goes to stores."""
        found = []
        for node, queue in self.router.outbox_stores.items():
            found += [(node, item) for item in queue]
            self.router.outbox_stores[node] = []
        return found

    def item(self) -> tuple[int, Item]:
        (only,) = self.items()
        return only

    def commands(self) -> list[tuple[int, ControlRequest]]:
        """(node, request) of all that goes to the controller."""
        found = list(self.router.outbox_control)
        self.router.outbox_control.clear()
        return found

    def without_controller(self) -> None:
        """The store that is asked for what the controller knows is of a cluster that has none."""
        ((node, request),) = self.commands()
        body = protocol.encode_error("no control partition")
        self.router.on_control_reply(node, request.token, Status.UNSUPPORTED, body)

    def answer(self, node: int, item: Item, body: bytes, status: int = 0) -> None:
        self.router.on_batch_reply(node, self.router.topology.epoch, [(item.token, status, body)])

    def refuse(self, node: int, item: Item, status: Status, **details: Any) -> None:
        self.answer(node, item, protocol.encode_error("no", **details), status)

    def responses(self) -> list[protocol.Response]:
        found = [
            protocol.decode_response(frame)
            for client, frame in self.router.outbox_clients
            if client == CLIENT
        ]
        assert len(found) == len(self.router.outbox_clients), "a response went to somebody else"
        self.router.outbox_clients.clear()
        return found

    def response(self) -> protocol.Response:
        (only,) = self.responses()
        return only

    def results(self) -> list[list[Any]]:
        response = self.response()
        assert response.status == Status.OK
        return protocol.decode_results(response.body)

    def pass_time(self, seconds: float) -> None:
        """Move the clock as a shell would: from one due moment to the next."""
        end = self.clock.monotonic() + seconds
        while self.router.next_due() < end:
            self.clock.advance(max(0.0, self.router.next_due() - self.clock.monotonic()))
            self.router.on_tick(self.clock.monotonic())
            self.router.should_ask_map()
        self.clock.advance(end - self.clock.monotonic())
        self.router.on_tick(end)

    def partition(self, key: bytes) -> int:
        return partition_of(key, self.map.bits)

    def leader(self, key: bytes) -> int:
        return self.map.replicas[self.partition(key)][0]

    def keys(self, node: int, count: int) -> list[bytes]:
        """Keys of `count` different partitions that `node` leads."""
        found: dict[int, bytes] = {}
        for number in range(10_000):
            key = b"key%d" % number
            if self.leader(key) == node:
                found.setdefault(partition_of(key, self.map.bits), key)
        return list(found.values())[:count]

    @property
    def idle(self) -> bool:
        return not self.router.busy and self.router.flight.bytes_held == 0

    def count(self, name: str) -> int:
        value = self.router.figures.snapshot().get(name, 0)
        assert isinstance(value, int)
        return value


@pytest.fixture
def harness() -> Harness:
    return Harness()


def put(key: bytes) -> bytes:
    return protocol.encode_put(key, b"value")


def ok(*fields: Any) -> bytes:
    return protocol.pack((0, *fields))


def msgpack_values(stream: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(stream)
    return list(unpacker)


def changed(base: ClusterMap, **fields: Any) -> bytes:
    """A later map."""
    values = {name: getattr(base, name) for name in ("nodes", "replicas")} | fields
    return ClusterMap(
        base.name,
        base.cluster_id,
        base.epoch + 1,
        base.partition_count,
        base.replication_factor,
        values["nodes"],
        values["replicas"],
        tuple(node.id for node in values["nodes"][:1]),
    ).encode()
