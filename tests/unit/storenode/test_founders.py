"""Founders with empty directories ask each other, over real sockets, and answer while they wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgpack
import pytest

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared import messages, sockets
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlReply
from shared.reactor import Reactor
from storenode.founders import GRACE_S, Ballot, Before, Founding
from tests.unit.storenode.links import free_endpoint

OLD = "0d" * 16
DEADLINE_S = 10.0


def first_map(*endpoints: str) -> ClusterMap:
    nodes = [Node(number, f"store{number}", rpc) for number, rpc in enumerate(endpoints, 1)]
    return ClusterMap.bootstrap("c", 4, 1, nodes)


THREE = first_map("tcp://h1:1", "tcp://h2:1", "tcp://h3:1")


def says(node: int, incarnation: str = "") -> ControlReply:
    return ControlReply(0, Status.OK, msgpack.packb({"node": node, "incarnation": incarnation}))


def test_a_majority_includes_who_asks() -> None:
    ballot = Ballot(THREE, 3)
    assert not ballot.enough
    ballot.hear("tcp://h1:1", says(1))
    assert (ballot.enough, ballot.complete, ballot.before) == (True, False, None)
    ballot.hear("tcp://h2:1", says(2))
    assert ballot.complete


def test_the_same_founder_counts_once() -> None:
    ballot = Ballot(first_map(*(f"tcp://h{number}:1" for number in range(1, 6))), 5)
    for _ in range(3):
        ballot.hear("tcp://h1:1", says(1))
    assert not ballot.enough
    ballot.hear("tcp://h2:1", says(2))
    assert ballot.enough


def test_one_who_knows_outweighs_all_who_do_not() -> None:
    ballot = Ballot(THREE, 3)
    ballot.hear("tcp://h2:1", says(2))
    ballot.hear("tcp://h1:1", says(1, OLD))
    assert ballot.before == Before(THREE.node(1), OLD)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (messages.Fault("starting"), "starting"),
        (messages.MapReply(0, b""), "something else"),
        (ControlReply(0, Status.CONDITION_FAILED, encode_error("another cluster")), "another cluster"),
        (ControlReply(0, Status.BUSY, b"\xc1"), "status 20 and gave no reason"),
        (ControlReply(0, Status.OK, b"\xc1"), "not understood"),
        (ControlReply(0, Status.OK, msgpack.packb({"node": 1})), "not understood"),
        (ControlReply(0, Status.OK, msgpack.packb([])), "not understood"),
        (says(3), "node 3 answers, not node 1"),
        (says(3, OLD), "node 3 answers, not node 1"),
    ],
)
def test_what_does_not_count_is_a_reason(answer: ControlReply, reason: str) -> None:
    ballot = Ballot(THREE, 3)
    ballot.hear("tcp://h1:1", answer)
    assert not ballot.enough
    assert ballot.before is None
    assert reason in ballot.reasons["store1"]
    ballot.hear("tcp://h1:1", says(1))
    assert "store1" not in ballot.reasons


class House:
    """Founders of one cluster, all in this thread."""

    def __init__(self, count: int) -> None:
        self.context = sockets.context()
        self.map = first_map(*(free_endpoint() for _ in range(count)))
        self.running: dict[int, tuple[Reactor, Founding]] = {}

    def start(self, node: int) -> Founding:
        reactor = Reactor()
        endpoint = self.map.node(node).rpc
        socket = sockets.store_router(self.context, endpoint, batch_bytes_max=1 << 20)
        founding = Founding(reactor, self.context, socket, self.map, node)
        self.running[node] = (reactor, founding)
        return founding

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            for reactor, _ in self.running.values():
                reactor.call_later(0.002, lambda: None)
                reactor._turn()
        assert not any(reactor.failures for reactor, _ in self.running.values())

    def close(self) -> None:
        for reactor, founding in self.running.values():
            founding.close()
            reactor.close()
        self.context.destroy(0)


@pytest.fixture
def house() -> Iterator[House]:
    made = House(3)
    yield made
    made.close()


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_all_come_up_in_any_order(house: House, order: tuple[int, ...]) -> None:
    started = [house.start(node) for node in order]
    house.until(lambda: all(founding.granted for founding in started))


def test_one_alone_waits_and_a_second_is_enough(house: House) -> None:
    alone = house.start(1)
    end = time.monotonic() + GRACE_S + 0.2
    house.until(lambda: time.monotonic() > end)
    assert not alone.granted
    second = house.start(2)
    house.until(lambda: alone.granted and second.granted)


def test_who_asks_meanwhile_is_told_what_is_waited_for(house: House) -> None:
    house.start(1)
    answers: list[messages.ToRouter] = []
    dealer = sockets.bulk_dealer(house.context, house.map.node(1).rpc)
    reactor = house.running[1][0]
    reactor.add_reader(
        dealer, lambda batch: answers.extend(messages.decode_to_router(frame) for frame, *_ in batch)
    )

    def ask(frame: bytes) -> messages.ToRouter:
        answers.clear()
        house.until(lambda: sockets.send_or_drop(dealer, (frame,)) is None)
        house.until(lambda: bool(answers))
        return answers[0]

    fault = ask(messages.encode_ping(7))
    assert isinstance(fault, messages.Fault)
    assert "waits for 1 of the other founders: store2, store3" in fault.message
    assert ask(messages.encode_map_request(8)) == messages.MapReply(8, house.map.encode())
    assert isinstance(ask(b"\xc1"), messages.Fault)
    dealer.close(0)
