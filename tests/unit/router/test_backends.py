"""The stores' sockets and their health, with sockets and a loop that the test plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import zmq

from kvclient.protocol import FLAG_RETRY
from router import backends
from router.backends import SILENT_MAX, Backends
from shared import messages
from shared.clustermap import Node
from shared.config import ConfigError, Problem
from shared.messages import Kind
from shared.reactor import BUDGET
from shared.sockets import LinkEvent
from shared.versions import SPOKEN
from tests.unit.router.conftest import PARTITIONS, STORES, Harness, changed, ok, put


class Socket:
    """Frames to read, and what was sent."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()

    def recv(self, flags: int, copy: bool) -> Any:
        if not self.waiting:
            raise zmq.Again
        return SimpleNamespace(bytes=self.waiting.popleft(), more=False)

    def fileno(self) -> int:
        return 0

    def close(self, linger: int) -> None:
        pass


class House:
    """One router's backends: its sockets by number, in the order in which they were made."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, endpoints: Sequence[str] = (), hello: bytes | None = None
    ) -> None:
        self.harness = Harness()
        for store in STORES:
            self.harness.router.on_backend(store.id, not endpoints)
        self.timers: list[Callable[[], None]] = []
        self.fds: list[Callable[[], None]] = []
        self.readers: list[Callable[[list[list[bytes]]], None]] = []
        self.sockets: list[Socket] = []
        self.monitors: list[SimpleNamespace] = []
        self.made: list[str] = []
        self.refused: set[str] = set()
        self.closed: list[int] = []
        self.sent: list[tuple[int, bytes]] = []
        monkeypatch.setattr(backends.sockets, "backend_dealer", self._dealer)
        monkeypatch.setattr(backends.sockets, "monitor_events", self._monitor)
        monkeypatch.setattr(backends.sockets, "send_or_drop", self._send)
        reactor: Any = SimpleNamespace(
            add_reader=lambda socket, on_batch, priority: self.readers.append(on_batch),
            add_fd=lambda fd, callback: self.fds.append(callback),
            remove_reader=lambda socket: self.closed.append(self.sockets.index(socket)),
            remove_fd=lambda fd: None,
            call_later=lambda seconds, callback: self.timers.append(callback),
        )
        context: Any = None
        seeds = endpoints or [node.rpc for node in STORES]
        self.backends = Backends(reactor, context, self.harness.router, seeds, hello)
        self.backends.flush()

    def _dealer(self, context: object, endpoint: str) -> Socket:
        if endpoint in self.refused:
            raise ConfigError([Problem("", "", "no address")])
        self.made.append(endpoint)
        self.sockets.append(Socket())
        return self.sockets[-1]

    def _monitor(self, watched: Socket) -> SimpleNamespace:
        monitor = SimpleNamespace(socket=Socket(), said=[], close=lambda: None)
        monitor.events = lambda batch: monitor.said
        self.monitors.append(monitor)
        return monitor

    def _send(self, socket: Socket, frames: tuple[bytes]) -> None:
        self.sent.append((self.sockets.index(socket), frames[0]))

    def link(self, number: int, up: bool) -> None:
        self.monitors[number].said = [LinkEvent(up, self.made[number], "disconnected")]
        self.monitors[number].socket.waiting.append(b"")
        self.fds[number]()

    def hear(self, number: int, frame: bytes) -> None:
        self.readers[number]([[frame]])


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


def test_the_checks_go_on_when_one_fails(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next check was set after the work: one failure, and no silent store was found out any more."""

    def fail(*_: object) -> None:
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr(backends.sockets, "reconnect", fail)
    for backend in house.backends._backends.values():
        backend.broken = True
    check = house.timers.pop()
    with pytest.raises(zmq.ZMQError):
        check()
    assert house.timers == [check]


def test_all_that_a_store_said_before_it_went_is_heard(house: House) -> None:
    """Only the first batch was, and what came before a pong: writes answered in the rest were in doubt."""
    harness = house.harness
    house.link(0, True)
    house.backends._backends[STORES[0].rpc].up = True
    key = harness.keys(STORES[0].id, 1)[0]
    harness.send(put(key), client_id=0, sequence=0)
    _, item = harness.item()
    house.sockets[0].waiting.extend([messages.encode_pong(0, STORES[0].id, 1)] * BUDGET)
    house.sockets[0].waiting.append(messages.encode_batch_reply(1, [(item.token, 0, ok(1))]))
    house.link(0, False)
    assert harness.results() == [[0, 1]]


class TestVersions:
    """What a store says that it speaks, in its PONG."""

    def up(self, house: House) -> bool:
        return house.backends._backends[STORES[0].rpc].up

    def pinged(self, house: House) -> messages.ToStore:
        return messages.decode_to_store(house.sent[-1][1])

    def test_a_store_is_told_and_tells(self, house: House) -> None:
        house.link(0, True)
        assert self.pinged(house) == messages.Ping(0, SPOKEN)
        house.hear(0, messages.encode_pong(0, STORES[0].id, 1, {**SPOKEN, "later": (1, 2)}))
        assert self.up(house)

    def test_one_that_speaks_nothing_in_common_gets_no_requests(self, house: House) -> None:
        house.link(0, True)
        house.hear(0, messages.encode_pong(0, STORES[0].id, 1, {"map": (9, 9)}))
        assert not self.up(house)

    def test_one_of_the_version_before_is_asked_as_it_understands(self, house: House) -> None:
        house.link(0, True)
        house.hear(0, messages.encode_fault("the message is an array of 3, not 4"))
        house.timers.pop()()
        assert self.pinged(house) == messages.Ping(0)
        house.hear(0, messages.encode_pong(0, STORES[0].id, 1))
        assert self.up(house)

    def test_one_that_was_upgraded_is_told_again(self, house: House) -> None:
        house.link(0, True)
        house.hear(0, messages.encode_fault("the message is an array of 3, not 4"))
        house.link(0, False)
        house.link(0, True)
        assert self.pinged(house) == messages.Ping(0, SPOKEN)


class TestWhoThisRouterIs:
    """It tells the stores that it is up with, again and again; not those that would not understand it."""

    HELLO = messages.encode_router_hello("router1", "tcp://127.0.0.1:7100")

    def told(self, house: House) -> list[int]:
        found = [index for index, frame in house.sent if frame == self.HELLO]
        house.sent.clear()
        return found

    @pytest.fixture
    def house(self, monkeypatch: pytest.MonkeyPatch) -> House:
        return House(monkeypatch, hello=self.HELLO)

    def test_a_store_is_told_when_it_is_up_and_every_five_checks(self, house: House) -> None:
        house.link(0, True)
        assert self.told(house) == []
        house.hear(0, messages.encode_pong(0, STORES[0].id, 1, SPOKEN))
        assert self.told(house) == [0]
        for _ in range(10):
            house.hear(0, messages.encode_pong(0, STORES[0].id, 1, SPOKEN))
            house.timers.pop()()
        assert self.told(house) == [0, 0]

    def test_one_that_does_not_know_the_message_is_not_told(self, house: House) -> None:
        house.link(0, True)
        before = {name: span for name, span in SPOKEN.items() if name != "router"}
        for versions in (before, None):
            house.hear(0, messages.encode_pong(0, STORES[0].id, 1, versions))
            for _ in range(5):
                house.timers.pop()()
        assert self.told(house) == []


class TestTheMapChanges:
    """Stores that leave, that come, and addresses that change hands."""

    ELSEWHERE = Node(id=7, name="store7", rpc="tcp://127.0.0.1:7777")

    def newer(self, house: House, *nodes: Node) -> None:
        """A map of these nodes comes, and the turn ends."""
        holders = ((nodes[-1].id,),) * PARTITIONS
        known = house.harness.router.topology.map
        assert known is not None
        house.harness.router.on_map(changed(known, nodes=nodes, replicas=holders))
        house.backends.flush()

    def pong(self, house: House, index: int, node: int, epoch: int = 1) -> None:
        """The store at the `index`-th socket that was made is linked and says who it is."""
        house.link(index, True)
        house.hear(index, messages.encode_pong(0, node, epoch))

    def check(self, house: House) -> None:
        house.timers.pop()()

    def test_a_store_that_comes_gets_a_link_and_is_up_when_it_answers(self, house: House) -> None:
        self.newer(house, *STORES, self.ELSEWHERE)
        assert house.made == [*(store.rpc for store in STORES), self.ELSEWHERE.rpc]
        assert 7 not in house.harness.router.outbox_stores
        self.pong(house, 2, 7)
        assert 7 in house.harness.router.outbox_stores

    def test_a_store_that_leaves_keeps_its_link_until_it_has_answered(self, house: House) -> None:
        harness = house.harness
        self.pong(house, 0, 1)
        self.pong(house, 1, 2)
        harness.send(put(harness.keys(1, 1)[0]), client_id=0, sequence=0)
        _, item = harness.item()
        self.newer(house, STORES[1])
        self.check(house)
        assert house.closed == []
        house.hear(0, messages.encode_batch_reply(2, [(item.token, 0, ok(1))]))
        assert harness.results() == [[0, 1]]
        self.check(house)
        assert house.closed == [0]

    def test_a_store_that_left_and_goes_silent_has_lost_what_it_had(self, house: House) -> None:
        harness = house.harness
        self.pong(house, 0, 1)
        self.pong(house, 1, 2)
        harness.send(put(harness.keys(1, 1)[0]))
        harness.items()
        self.newer(house, STORES[1])
        for _ in range(SILENT_MAX + 1):
            house.hear(1, messages.encode_pong(0, 2, 2))
            self.check(house)
        assert house.closed == [0]
        node, item = harness.item()
        assert (node, item.flags) == (2, FLAG_RETRY)

    def test_another_node_at_the_address_of_one_that_left_gets_a_link_of_its_own(self, house: House) -> None:
        """A wiped store comes back under a new id: nothing that the old one had can be answered."""
        harness = house.harness
        self.pong(house, 0, 1)
        self.pong(house, 1, 2)
        harness.send(put(harness.keys(1, 1)[0]))
        harness.items()
        self.newer(house, STORES[1], attrs.evolve(STORES[0], id=9, name="again"))
        assert house.closed == [0]
        assert house.made[2:] == [STORES[0].rpc]
        assert house.harness.router.busy
        self.pong(house, 2, 9)
        node, item = harness.item()
        assert (node, item.flags) == (9, FLAG_RETRY)

    def test_who_answers_with_another_id_says_that_the_map_is_old(self, house: House) -> None:
        self.pong(house, 0, 1)
        self.pong(house, 0, 9, epoch=2)
        assert 1 not in house.harness.router.outbox_stores
        assert house.harness.router.should_ask_map()

    def test_an_address_that_is_none_keeps_nobody_else_from_being_reached(self, house: House) -> None:
        house.refused.add("nonsense")
        self.newer(house, attrs.evolve(self.ELSEWHERE, rpc="nonsense"), *STORES)
        self.pong(house, 0, 1)
        assert set(house.harness.router.outbox_stores) >= {1}

    def test_the_question_goes_to_who_has_a_newer_map(self, house: House) -> None:
        self.pong(house, 0, 1)
        for epoch in (5, 6, 7):
            self.pong(house, 1, 2, epoch)
            house.sent.clear()
            house.harness.clock.advance(1)
            house.backends.flush()
            assert [index for index, frame in house.sent if frame[2] == Kind.MAP] == [1]


class TestSeeds:
    """The configured stores; the second of them is none of the map."""

    @pytest.fixture
    def house(self, monkeypatch: pytest.MonkeyPatch) -> House:
        return House(monkeypatch, [STORES[0].rpc, "tcp://seed:1"])

    def test_a_seed_that_is_none_of_the_map_is_let_go_when_one_of_it_is_up(self, house: House) -> None:
        house.timers.pop()()
        assert house.closed == []
        house.link(0, True)
        house.hear(0, messages.encode_pong(0, 1, 1))
        house.timers.pop()()
        assert house.closed == [1]

    def test_seeds_are_sought_again_when_nobody_of_the_map_is_up(self, house: House) -> None:
        house.link(0, True)
        house.hear(0, messages.encode_pong(0, 1, 1))
        house.timers.pop()()
        house.link(0, False)
        house.timers.pop()()
        assert house.made == [STORES[0].rpc, "tcp://seed:1", STORES[1].rpc, "tcp://seed:1"]
        house.link(3, True)
        house.sent.clear()
        house.harness.clock.advance(20)
        house.backends.flush()
        assert [index for index, frame in house.sent if frame[2] == Kind.MAP] == [3]
