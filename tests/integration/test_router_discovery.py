"""How a router process finds the stores, and follows them while they change: seeds, maps by every way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import msgpack
import pytest
import zmq

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind
from shared import messages
from shared.clustermap import ClusterMap, Node
from shared.messages import MAP_TOPIC
from tests.integration.routerworld import PARTITIONS, Client, Store, World, eventually, put
from tests.ports import free_ports


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def served(client: Client, key: bytes) -> bool:
    [result] = protocol.decode_results(client.ask(put(key)).body)
    return bool(result[0] == 0 and result[1] == key)


def without_first(world: World, *more: Node) -> ClusterMap:
    """The next map: the first store has left, the last one holds everything."""
    nodes = (*world.map.nodes[1:], *more)
    holder = (nodes[-1].id,)
    return attrs.evolve(
        world.map, epoch=world.map.epoch + 1, nodes=nodes, replicas=(holder,) * PARTITIONS, control=holder
    )


def test_any_one_seed_is_enough_and_none_is_needed_afterwards(tmp_path: Path, stack: ExitStack) -> None:
    nobody, by_name = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    world = World(tmp_path, stack, seeds=[nobody, by_name])
    first = world.store(1)
    world.store(2)
    seed = Store(attrs.evolve(world.nodes[0], rpc=by_name), world.map)
    stack.callback(seed.stop)
    client = world.client()
    assert served(client, world.key(1))
    assert served(client, world.key(2))
    assert seed.items == [], "it is the first store by another name, which the map does not have"
    seed.stop()
    first.stop()
    assert served(client, world.key(2))
    world.store(1)
    assert served(client, world.key(1))


def test_a_cluster_that_moved_away_is_found_by_its_seeds(tmp_path: Path, stack: ExitStack) -> None:
    name, elsewhere = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    world = World(tmp_path, stack, seeds=[name])
    seed, first, second = (
        Store(attrs.evolve(world.nodes[0], rpc=name), world.map),
        world.store(1),
        world.store(2),
    )
    client = world.client()
    assert served(client, world.key(1))
    for store in (seed, first, second):
        store.stop()
    moved = attrs.evolve(without_first(world, Node(3, "store3", elsewhere)), epoch=9)
    for node in (Node(3, "store3", elsewhere), Node(3, "store3", name)):
        stack.callback(Store(node, moved).stop)
    assert served(client, world.key(1))


class Publisher:
    """A store's `events` endpoint, on a thread: what it says, it says again and again, as stores do."""

    def __init__(self, endpoint: str, stack: ExitStack) -> None:
        self.says: list[list[bytes]] = []
        self._endpoint = endpoint
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        stack.callback(self.stop)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.PUB)
        socket.bind(self._endpoint)
        while not self._stopping.wait(0.01):
            for frames in self.says:
                socket.send_multipart(frames)
        context.destroy(linger=0)


def epoch(client: Client) -> int:
    return int(msgpack.unpackb(client.ask(b"", kind=Kind.PING).body)[2])


def test_maps_by_subscription(tmp_path: Path, stack: ExitStack) -> None:
    """No store answers MAP with the new one, so that it can only have come by the other way."""
    world = World(tmp_path, stack)
    world.store(1)
    world.store(2)
    publishers = [Publisher(node.events, stack) for node in world.nodes]
    client = world.client()
    assert served(client, world.key(1))
    hostile = [[b"map"], [MAP_TOPIC], [MAP_TOPIC + b"\xc1"], [MAP_TOPIC, world.map.encode()], [b"report\0"]]
    for number, publisher in enumerate(publishers, 2):
        publisher.says = [*hostile, [MAP_TOPIC + attrs.evolve(world.map, epoch=number).encode()]]
        eventually(lambda number=number: epoch(client) == number)  # type: ignore[misc]
    left = attrs.evolve(without_first(world), epoch=4)
    publishers[1].says.append([MAP_TOPIC + left.encode()])
    eventually(lambda: epoch(client) == 4)
    publishers[0].says.append([MAP_TOPIC + attrs.evolve(left, epoch=99).encode()])
    publishers[1].says.append([MAP_TOPIC + attrs.evolve(left, epoch=5).encode()])
    eventually(lambda: epoch(client) == 5)
    assert served(client, world.key(1))
    assert world.process.poll() is None
    assert "handler_failed" not in world.log.read_text()


def test_what_a_store_has_when_it_leaves_is_answered_by_it(tmp_path: Path, stack: ExitStack) -> None:
    """A write without a session can go nowhere else: that its store left the map is no reason to lose it."""
    world = World(tmp_path, stack)
    first, second = world.store(1), world.store(2)
    client = world.client()
    assert served(client, world.key(1))
    release = threading.Event()
    answer = first.behave

    def slowly(item: messages.Item) -> tuple[int, bytes] | None:
        release.wait(10)
        return answer(item)

    first.behave = slowly
    stack.callback(release.set)
    asked = client.send(put(world.key(1)), sequence=0)
    second.map = without_first(world)
    assert served(client, world.key(2))
    eventually(lambda: epoch(client) == 2)
    release.set()
    response = client.receive()
    assert (response.request_id, response.status) == (asked, Status.OK)
    assert protocol.decode_results(response.body)[0][1] == world.key(1)
    assert served(client, world.key(1)), "by the other store"
