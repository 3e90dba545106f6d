"""What clients with names may do, and how much: through the router's core, without sockets."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_BARRIER, Kind, Request
from router.requests import Budget
from router.routing import Router
from shared.clock import ManualClock
from shared.clustermap import ClusterMap
from shared.opstream import Limits
from shared.security import Certificate, Grants
from shared.security import Limits as Rates
from tests.unit.router.conftest import STORES, ok, put

ALL = (b"",)
KEY = "x" * 40


def client(name: str, read: Any = ALL, write: Any = ALL, admin: bool = False, **rates: int) -> Certificate:
    return Certificate(name, "client", KEY, (), Grants(read, write, admin), Rates(**rates))


class House:
    """A router in front of one partition, and clients by name."""

    def __init__(self, *certificates: Certificate) -> None:
        self.known = {one.name: one for one in certificates}
        self.clock = ManualClock(monotonic=1000.0)
        self.router = Router(
            name="router1",
            version="0.1",
            seeds=[],
            limits=Limits(1 << 20),
            budget=Budget(1000, 1 << 30),
            clock=self.clock,
            random=random.Random(7),
            certificate=self.known.get,
        )
        self.router.on_map(ClusterMap.bootstrap("test", 1, 1, STORES[:1]).encode())
        self.router.on_backend(1, True)
        self.number = 0

    def asks(self, name: str, ops: bytes, identity: bytes = b"id", **fields: Any) -> None:
        self.number += 1
        values: dict[str, Any] = {
            "kind": Kind.OPS, "request_id": self.number, "timeout_ms": 5000, "read_mode": 0, "flags": 0,
            "client_id": 0, "sequence": 0, "acked_below": 0, "body": ops,
        }  # fmt: skip
        frame = protocol.encode_request(Request(**values | fields))
        self.router.on_named_requests([[identity, frame]], [name])

    def passed(self) -> int:
        """How many parts went to the store since the last look; they are answered."""
        items = self.router.outbox_stores[1]
        self.router.outbox_stores[1] = []
        self.router.on_batch_reply(1, 1, [(item.token, 0, ok(1)) for item in items])
        return len(items)

    def answers(self) -> list[protocol.Response]:
        """What leaves; the gate hears of it as from the shell."""
        assert self.router.gate is not None
        outbox = list(self.router.outbox_clients)
        self.router.outbox_clients.clear()
        for who, _ in outbox:
            self.router.gate.answered(who)
        return [protocol.decode_response(frame) for _, frame in outbox]

    def status(self) -> Status:
        self.passed()
        (answer,) = self.answers()
        return Status(answer.status)


def txn(*parts: Any) -> bytes:
    packed: bytes = msgpack.packb([8, *parts])
    return packed


R, W, N = b"r:1", b"w:1", b"n:1"
CASES = [
    (protocol.encode_get(R), True),
    (protocol.encode_get(W), False),
    (protocol.encode_exists(R), True),
    (protocol.encode_exists(N), False),
    (put(W), True),
    (put(R), False),
    (put(b"rw:1"), True),
    (protocol.encode_put(W, b"v", condition=protocol.absent()), False),
    (protocol.encode_put(b"rw:1", b"v", condition=protocol.absent()), True),
    (protocol.encode_delete(W), True),
    (protocol.encode_delete(W, protocol.present()), False),
    (protocol.encode_delete(N), False),
    (protocol.encode_increment(W, 1), False),
    (protocol.encode_increment(b"rw:1", 1), True),
    (protocol.encode_touch(W, None), True),
    (protocol.encode_get(R) + put(W), True),
    (protocol.encode_get(R) + put(N), False),
    (protocol.encode_scan(b"r:", b"r;", 10), True),
    (protocol.encode_scan(b"r:5", b"r:7", 10), True),
    (protocol.encode_scan(b"r:", None, 10), False),
    (protocol.encode_scan(b"r:", b"s", 10), False),
    (protocol.encode_scan(b"", b"r;", 10), False),
    (protocol.encode_scan(b"\xff\xff5", None, 10), True),
    (protocol.encode_scan(b"w:", b"w;", 10), False),
    (txn([[b"rw:{1}", [1]]], [[2, b"rw:{1}", b"v"]], []), True),
    (txn([[b"w:{1}", [1]]], [[2, b"w:{1}", b"v"]], []), False),
    (txn([], [[2, b"w:{1}", b"v"]], [[1, b"r:{1}"]]), True),
    (txn([], [[2, b"w:{1}", b"v"]], [[1, b"n:{1}"]]), False),
]


@pytest.mark.parametrize(("ops", "allowed"), CASES)
def test_what_prefixes_cover(ops: bytes, allowed: bool) -> None:
    house = House(client("app", (b"r:", b"rw:", b"\xff\xff"), (b"w:", b"rw:")))
    house.asks("app", ops)
    assert (house.passed() > 0) == allowed
    if not allowed:
        (answer,) = house.answers()
        assert answer.status == Status.PERMISSION_DENIED
        assert b"app may not" in answer.body


def test_who_has_no_grants_may_do_nothing_but_look() -> None:
    house = House(client("app", (), ()), Certificate("watch", "monitor", KEY))
    for name in ("app", "watch"):
        for ops in (protocol.encode_get(b"a"), put(b"a"), protocol.encode_scan(b"", None, 1)):
            house.asks(name, ops)
            assert house.status() == Status.PERMISSION_DENIED
        house.asks(name, b"", kind=Kind.PING)
        house.asks(name, b"", kind=Kind.MAP)
        house.asks(name, protocol.encode_admin("figures"), kind=Kind.ADMIN)
        assert [answer.status for answer in house.answers()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("command", "looks"),
    [
        (("status",), True),
        (("group", "show", 0), True),
        (("control", "show", b"\x80", False), True),
        (("control", "rebalance-plan", b"\x80", False), True),
        (("group", "remove", 0, 1, True), False),
        (("group", "checksum", 0), False),
        (("control", "node-remove", b"\x80", False), False),
        (("control", "set", b"\x80", True), False),
        (("control", "join", b"\x80", False), False),
    ],
)
def test_commands_that_change_the_cluster_are_the_operators(command: tuple[Any, ...], looks: bool) -> None:
    house = House(client("app"), client("ops", admin=True), Certificate("root", "admin", KEY))
    for name, allowed in (("app", looks), ("ops", True), ("root", True)):
        house.asks(name, protocol.encode_admin(*command), kind=Kind.ADMIN)
        refused = [answer for answer in house.answers() if answer.status == Status.PERMISSION_DENIED]
        assert bool(refused) != allowed


def test_the_name_counts_and_not_the_routing_id() -> None:
    house = House(client("strong"), client("weak", (), ()))
    house.asks("strong", put(b"a"), identity=b"same")
    assert house.status() == Status.OK
    house.asks("weak", put(b"a"), identity=b"same")
    assert house.status() == Status.PERMISSION_DENIED


def test_who_was_revoked_a_moment_ago_is_refused() -> None:
    house = House(client("app"))
    house.asks("app", put(b"a"))
    assert house.status() == Status.OK
    del house.known["app"]
    house.asks("app", put(b"a"))
    assert house.status() == Status.PERMISSION_DENIED


def test_new_grants_hold_for_the_next_request() -> None:
    house = House(client("app"))
    house.asks("app", put(b"a"))
    assert house.status() == Status.OK
    house.known["app"] = client("app", ALL, (b"b",))
    house.asks("app", put(b"a"))
    assert house.status() == Status.PERMISSION_DENIED


def test_requests_under_way_are_limited_and_counted_back_with_each_answer() -> None:
    house = House(client("app", in_flight=2), client("other"))
    for _ in range(3):
        house.asks("app", put(b"a"))
    (busy,) = house.answers()
    assert busy.status == Status.BUSY
    assert protocol.decode_error(busy.body)["retry_after_ms"] == 50
    house.asks("other", put(b"a"))
    assert house.passed() == 3
    assert len(house.answers()) == 3
    for _ in range(2):
        house.asks("app", put(b"a"))
    assert house.passed() == 2


def test_a_request_that_is_refused_further_on_is_not_under_way() -> None:
    house = House(client("app", in_flight=1))
    for _ in range(5):
        house.asks("app", put(b"a"), flags=64)
        assert house.status() == Status.UNSUPPORTED
    house.asks("app", put(b"a"))
    assert house.status() == Status.OK


@pytest.mark.parametrize("rate", ["ops_per_second", "bytes_per_second"])
def test_rates_are_limited_with_a_burst_of_a_second(rate: str) -> None:
    size = len(protocol.encode_request(Request(Kind.OPS, 1, 5000, 0, 0, 0, 0, 0, put(b"a"))))
    house = House(client("app", **{rate: 100 if rate == "ops_per_second" else 100 * size}))
    for _ in range(150):
        house.asks("app", put(b"a"))
    answers = house.answers()
    assert 98 <= house.passed() <= 101
    assert {answer.status for answer in answers} == {Status.BUSY}
    house.answers()
    house.clock.advance(0.5)
    for _ in range(100):
        house.asks("app", put(b"a"))
    assert 48 <= house.passed() <= 51


def test_what_is_larger_than_a_second_of_the_rate_passes_and_is_paid_for() -> None:
    house = House(client("app", ops_per_second=10))
    house.asks("app", put(b"a") * 40)
    assert house.status() == Status.OK
    house.clock.advance(2.0)
    house.asks("app", put(b"a"))
    assert house.status() == Status.BUSY
    house.clock.advance(2.0)
    house.asks("app", put(b"a"))
    assert house.status() == Status.OK


def test_bytes_that_are_no_request_are_refused_in_words_as_ever() -> None:
    house = House(client("app", (b"r",), ()))
    assert house.router.gate is not None
    for junk in (b"", b"\xc1", b"\x9a\x01\x01", b"\x9a\x01\x01" + b"\x01" * 7):
        house.router.on_named_requests([[b"id", junk]], ["app"])
        assert house.status() != Status.OK
    house.router.on_named_requests([[b"id", b"a", b"b"]], ["app"])
    assert len(house.answers()) == 1
    house.asks("app", b"\x92\x01")
    assert house.status() == Status.INVALID_REQUEST


def test_a_barrier_writes_nothing_and_counts_as_an_op() -> None:
    house = House(client("app", (b"r",), (), ops_per_second=1))
    house.asks("app", b"", flags=FLAG_BARRIER)
    assert house.status() == Status.OK
    house.asks("app", b"", flags=FLAG_BARRIER)
    assert house.status() == Status.BUSY
