"""Maps by subscription: what counts as one, and that every store of the map is heard, on real sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import zmq

from router import events
from router.events import MAP_BYTES_MAX, Events
from shared import sockets
from shared.clustermap import ClusterMap, Node
from shared.messages import MAP_TOPIC
from shared.reactor import Reactor
from tests.unit.router.conftest import STORES, Harness

LIMIT_S = 10.0


def later(base: ClusterMap, by: int, *nodes: Node) -> ClusterMap:
    return attrs.evolve(base, epoch=base.epoch + by, nodes=nodes or base.nodes)


class Heard:
    """The handler of one router's subscription, with no socket behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.harness = Harness()
        self.connected: set[str] = set()
        monkeypatch.setattr(events.sockets, "bus_subscriber", lambda context, topics: None)
        monkeypatch.setattr(events.sockets, "connect", self._connect)
        monkeypatch.setattr(events.sockets, "disconnect", lambda _, endpoint: self.connected.remove(endpoint))
        self.says: Callable[[list[list[bytes]]], None]
        reactor: Any = SimpleNamespace(add_reader=self._reads)
        context: Any = None
        self.events = Events(reactor, context, self.harness.router)

    def _reads(self, socket: object, on_batch: Callable[[list[list[bytes]]], None]) -> None:
        self.says = on_batch

    def _connect(self, socket: object, endpoint: str) -> None:
        if "nonsense" in endpoint:
            raise sockets.ConfigError([])
        assert endpoint not in self.connected
        self.connected.add(endpoint)

    @property
    def epoch(self) -> int:
        return self.harness.router.topology.epoch

    def publish(self, *maps: ClusterMap) -> None:
        self.says([[MAP_TOPIC + one.encode()] for one in maps])

    @property
    def refused(self) -> int:
        return self.harness.count("store_frames_bad")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


class TestMessages:
    def test_the_newest_of_many_is_taken_and_known_ones_are_no_fault(self, heard: Heard) -> None:
        base = heard.harness.map
        heard.publish(base, later(base, 2), later(base, 7), later(base, 3), base)
        assert heard.epoch == 8
        assert heard.refused == 0

    @pytest.mark.parametrize(
        "frames",
        [
            [b""],
            [MAP_TOPIC],
            [MAP_TOPIC + b"\xc1"],
            [b"map"],
            [b"report\0" + Harness().map.encode()],
            [MAP_TOPIC, attrs.evolve(Harness().map, epoch=9).encode()],
            [MAP_TOPIC + attrs.evolve(Harness().map, epoch=9).encode(), b"more"],
            [MAP_TOPIC + attrs.evolve(Harness().map, epoch=9).encode()[:-1]],
            [MAP_TOPIC + attrs.evolve(Harness().map, epoch=9).encode() + b"\xc0"],
            [MAP_TOPIC + ClusterMap.bootstrap("other", 8, 1, STORES).encode().replace(b"\x01", b"\x09", 1)],
            [MAP_TOPIC + attrs.evolve(Harness().map, epoch=9).encode() + bytes(MAP_BYTES_MAX)],
        ],
    )
    def test_what_is_none_is_counted_and_keeps_nobody_from_being_heard(
        self, heard: Heard, frames: list[bytes]
    ) -> None:
        good = [MAP_TOPIC + later(heard.harness.map, 1).encode()]
        heard.says([frames, good, frames])
        assert heard.epoch == 2
        assert heard.refused >= 1

    def test_a_map_of_another_cluster_is_refused(self, heard: Heard) -> None:
        heard.publish(later(ClusterMap.bootstrap("other", 8, 1, STORES), 5))
        assert heard.harness.router.topology.map == heard.harness.map
        assert heard.refused == 1


class TestWhoIsHeard:
    def test_those_of_the_map(self, heard: Heard) -> None:
        one, two = (attrs.evolve(store, events=f"tcp://127.0.0.1:{store.id}") for store in STORES)
        heard.events.follow()
        assert heard.connected == set(), "they publish nothing"
        heard.publish(later(heard.harness.map, 1, one, two))
        heard.events.follow()
        heard.events.follow()
        assert heard.connected == {one.events, two.events}
        moved = attrs.evolve(two, events="tcp://127.0.0.1:9")
        heard.publish(later(heard.harness.map, 2, one, moved))
        heard.events.follow()
        assert heard.connected == {one.events, moved.events}

    def test_an_endpoint_that_is_none_keeps_nobody_else_from_being_heard(self, heard: Heard) -> None:
        one, two = STORES
        bad, good = attrs.evolve(one, events="a nonsense"), attrs.evolve(two, events="tcp://127.0.0.1:2")
        for epochs in (1, 2):
            heard.publish(later(heard.harness.map, epochs, bad, good))
            heard.events.follow()
            assert heard.connected == {good.events}


class World:
    """Real sockets: two stores that publish, and a router's subscription on a loop."""

    def __init__(self) -> None:
        self.context = sockets.context()
        self.reactor = Reactor()
        self.harness = Harness()
        self.publishers = [sockets.bus_publisher(self.context, "tcp://127.0.0.1:*") for _ in STORES]
        self.nodes = tuple(
            attrs.evolve(store, events=sockets.bound_endpoint(publisher))
            for store, publisher in zip(STORES, self.publishers, strict=True)
        )
        self.events = Events(self.reactor, self.context, self.harness.router)
        self.reactor.on_turn_end(self.events.follow)
        self.take(later(self.harness.map, 1, *self.nodes))

    def take(self, newer: ClusterMap) -> None:
        self.harness.router.on_map(newer.encode())
        self.events.follow()

    @property
    def map(self) -> ClusterMap:
        known = self.harness.router.topology.map
        assert known is not None
        return known

    def publish_until_taken(
        self, publisher: zmq.Socket[bytes], newer: ClusterMap, *before: list[bytes]
    ) -> None:
        """Again and again, as stores do: a subscription takes a moment to arrive."""

        until = time.monotonic() + LIMIT_S
        while self.map != newer and time.monotonic() < until:
            for frames in before:
                publisher.send_multipart(frames)
            publisher.send(MAP_TOPIC + newer.encode())
            self.turn()
        assert self.map == newer

    def turn(self) -> None:
        """What has come within a moment is handled."""
        self.reactor.call_later(0.01, lambda: None)
        self.reactor._turn()

    def close(self) -> None:
        self.events.close()
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


class TestRealSockets:
    def test_any_store_of_the_map_is_heard(self, world: World) -> None:
        for publisher in world.publishers:
            world.publish_until_taken(publisher, later(world.map, 1))

    def test_stores_that_leave_while_they_speak_end_nobody(self, world: World) -> None:
        """libzmq aborts the process when a link is taken down between two frames of a message."""
        both, one = world.nodes, world.nodes[:1]
        holders = ((one[0].id,),) * world.map.partition_count
        single = attrs.evolve(world.map, replicas=holders, control=(one[0].id,))
        for turn in range(20):
            for publisher in world.publishers:
                for _ in range(200):
                    publisher.send(MAP_TOPIC + bytes(1000))
            world.take(attrs.evolve(single, epoch=world.map.epoch + 1, nodes=both if turn % 2 else one))
            world.turn()
        world.publish_until_taken(world.publishers[0], later(world.map, 1))

    def test_hostile_payloads_are_counted_and_what_follows_is_heard(self, world: World) -> None:
        hostile = [[MAP_TOPIC + b"\xc1"], [MAP_TOPIC, b"x"], [MAP_TOPIC + bytes(4 << 20)], [b"report\0x"]]
        world.publish_until_taken(world.publishers[1], later(world.map, 1), *hostile)
        assert world.harness.count("store_frames_bad") >= 3
