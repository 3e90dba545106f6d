"""monitor/collector.py on real sockets, in front of a store and a router that say what the test wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import attrs
import pytest
import zmq

from kvclient.errors import Status
from kvclient.protocol import Kind, decode_request, encode_admin, encode_error, encode_response
from monitor import collector as collector_module
from monitor.collector import Collector
from monitor.model import Model
from shared import figuresmessage, messages, sockets
from shared.clock import SystemClock
from shared.controlmessages import ControlCommand, ControlRequest, encode_control_reply
from shared.hashing import xxh64
from shared.messagefields import pack
from shared.messages import FIGURES_TOPIC, MAP_TOPIC
from shared.reactor import Reactor
from tests.unit.monitor.watchedworld import World

DEADLINE_S = 20.0
Bare = zmq.Socket[bytes]


class House:
    """A collector, store 1 of three, and router 1, on one loop; both answer while they are not `mute`."""

    def __init__(self) -> None:
        self.reactor, self.context = Reactor(), sockets.context()
        self.world = World()
        self.rpc, rpc_at = self._bound(zmq.ROUTER)
        self.events, events_at = self._bound(zmq.PUB)
        self.front, self.front_at = self._bound(zmq.ROUTER)
        first, *others = self.world.map.nodes
        known = (attrs.evolve(first, rpc=rpc_at, events=events_at), *others)
        self.map = self.world.map = attrs.evolve(self.world.map, nodes=known)
        self.mute = False
        self.commands: list[ControlRequest] = []
        self.model = Model("monitor", [rpc_at], SystemClock())
        self.reactor.add_reader(self.rpc, self._on_store)
        self.reactor.add_reader(self.front, self._on_router)
        self.collector = Collector(self.reactor, self.context, self.model, [rpc_at])

    def _bound(self, kind: int, at: str = "tcp://127.0.0.1:*") -> tuple[Bare, str]:
        socket = self.context.socket(kind)
        socket.bind(at)
        return socket, socket.get_string(zmq.LAST_ENDPOINT)

    def _on_store(self, batch: list[list[bytes]]) -> None:
        for peer, frame in batch:
            request = messages.decode_to_store(frame)
            if isinstance(request, messages.MapRequest):
                self.rpc.send_multipart([peer, messages.encode_map_reply(request.token, self.map.encode())])
            elif isinstance(request, ControlRequest):
                self.commands.append(request)
                show = pack(
                    {"controller": 1, "moves": [], "nodes": [{"id": 1, "state": "up"}], "paused": False}
                )
                self.rpc.send_multipart([peer, encode_control_reply(request.token, Status.OK, show)])

    def _on_router(self, batch: list[list[bytes]]) -> None:
        for peer, frame in batch:
            request = decode_request(frame)
            assert request.body == encode_admin("figures")
            if not self.mute:
                body = pack(self.world.router(1))
                self.front.send_multipart(
                    [peer, encode_response(Kind.ADMIN, request.request_id, Status.OK, body)]
                )

    def figures(self) -> bytes:
        routers = [{"name": "router1", "front": self.front_at}]
        said = self.world.store(1) | {"routers": routers, "controller": 1}
        return FIGURES_TOPIC + figuresmessage.encode(xxh64(self.map.cluster_id.encode()), 1, said)

    def until(self, condition: Callable[[], object]) -> None:
        """The store goes on speaking meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.events.send(self.figures())
            self.reactor.call_later(0.02, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def close(self) -> None:
        self.collector.close()
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(collector_module, "TICK_S", 0.05)
    monkeypatch.setattr(collector_module, "EAGER_S", 0.05)
    made = House()
    yield made
    made.close()


def test_one_stores_address_is_enough_to_find_everybody(house: House) -> None:
    house.until(lambda: house.model.picture.routers and house.model.picture.routers[0].figures)
    house.until(lambda: house.model.picture.controller == 1)
    store, router = house.model.picture.stores[0], house.model.picture.routers[0]
    assert store.figures["memory_bytes"] == 50 << 20
    assert (router.name, router.figures["epoch"]) == ("router1", 1)
    command = house.commands[0]
    assert command.command is ControlCommand.SHOW
    assert command.cluster == xxh64(house.map.cluster_id.encode())


def test_a_newer_map_is_followed(house: House) -> None:
    house.until(lambda: house.model.picture.stores and house.model.picture.stores[0].figures)
    moved = attrs.evolve(house.map, epoch=house.map.epoch + 1)

    def told() -> bool:
        house.events.send(MAP_TOPIC + moved.encode())
        return house.model.map is not None and house.model.map.epoch == moved.epoch

    house.until(told)


def test_a_router_that_is_silent_is_asked_by_a_new_link_and_found_again(house: House) -> None:
    house.until(lambda: house.model.picture.routers and house.model.picture.routers[0].figures)
    house.mute = True
    asked = house.collector._routers[house.front_at]
    first = asked._socket
    house.until(lambda: asked._socket is not first)
    heard = house.model.picture.own.routers_heard
    house.mute = False
    house.until(lambda: house.model.picture.own.routers_heard > heard)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"nonsense", FIGURES_TOPIC, FIGURES_TOPIC + b"\xc1", FIGURES_TOPIC + pack([2, 1, 1, {}]),
        FIGURES_TOPIC + pack([1, 1, 1, {}]), FIGURES_TOPIC + pack([1, 1, 1, {b"x": 1}]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_event_is_counted_and_ends_nothing(house: House, frame: bytes) -> None:
    house.until(lambda: house.model.picture.stores and house.model.picture.stores[0].figures)
    house.collector._on_events([[frame], [frame, b"second"]])
    house.until(lambda: house.model.picture.own.refused >= 2)
    assert house.model.picture.stores[0].figures


@pytest.mark.parametrize("body", [b"", b"\xc1", pack([1]), pack({1: 2}), pack("x")])
def test_what_is_no_answer_of_a_router_is_counted(house: House, body: bytes) -> None:
    house.until(lambda: house.model.picture.routers)
    before = house.model.picture.own.refused
    answer = encode_response(Kind.ADMIN, 1, Status.OK, body)
    refusal = encode_response(Kind.ADMIN, 1, Status.UNSUPPORTED, encode_error("what is that"))
    for frame in (answer, refusal, b"\x00"):
        house.collector._guarded(lambda frame: house.collector._on_router(house.front_at, frame), frame)
    house.until(lambda: house.model.picture.own.refused == before + 3)
