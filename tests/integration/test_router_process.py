"""A real router process between real sockets; stores are scripted peers that speak the stores' messages."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest
import zmq

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_BARRIER, FLAG_RETRY, Kind, Request
from shared.clustermap import ClusterMap
from shared.messages import Item
from tests.integration.routerworld import PARTITIONS, SECONDS, Answer, World, echo, eventually, put


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def test_the_way_of_requests(world: World) -> None:
    """Before the map, one partition, many partitions, scans, barriers, commands: through real sockets."""
    client = world.client()
    early = client.send(put(b"hello"))
    stores = [world.store(1), world.store(2)]
    response = client.receive()
    assert (response.request_id, response.status) == (early, Status.OK)
    assert protocol.decode_results(response.body)[0][1] == b"hello"

    keys = [b"key%d" % number for number in range(500)]
    results = protocol.decode_results(client.ask(b"".join(map(put, keys))).body)
    assert [result[1] for result in results] == keys
    assert {item.partition for store in stores for item in store.items} == set(range(PARTITIONS))

    assert client.admin("ready").status == Status.OK
    assert sum(item.flags == FLAG_BARRIER for store in stores for item in store.items) == PARTITIONS
    status = msgpack.unpackb(client.admin("status").body)
    assert [(node["name"], node["state"], node["keys"]) for node in status["nodes"]] == [
        ("store1", "up", 7),
        ("store2", "up", 7),
    ]
    assert client.ask(b"", kind=Kind.MAP).body == world.map.encode()
    name, _version, epoch = msgpack.unpackb(client.ask(b"", kind=Kind.PING).body)
    assert (name, epoch) == ("router1", 1)

    assert protocol.decode_results(client.ask(protocol.encode_scan(b"", None, 100), sequence=0).body) == [
        [0, 0, b""]
    ]


def test_thousands_in_flight_are_answered_each_once(world: World) -> None:
    world.store(1)
    world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    missing = {client.send(put(b"key%d" % number)): b"key%d" % number for number in range(900)}
    while missing:
        response = client.receive()
        assert protocol.decode_results(response.body)[0][1] == missing.pop(response.request_id)
    assert not client.socket.poll(50)


def test_a_client_with_4096_requests_in_flight_loses_no_answer(tmp_path: Path) -> None:
    """It reads nothing until all are answered, and the answers fit into no buffer of the kernel's."""
    with ExitStack() as stack:
        world = World(tmp_path, stack, in_flight=4096)
        store = world.store(1)
        store.behave = lambda item: (0, protocol.pack((0, bytes(16 << 10), 1)))
        world.store(2)
        operator, client = world.client(), world.client()
        client.socket.set(zmq.SNDHWM, 0)
        client.socket.set(zmq.RCVHWM, 1)
        client.socket.disconnect(world.endpoint)  # a queue's mark is that of the time of connecting
        client.socket.connect(world.endpoint)
        assert operator.admin("ready").status == Status.OK
        get = protocol.encode_get(world.key(1))
        sent = {client.send(get) for _ in range(4096)}
        eventually(lambda: len([item for item in store.items if item.ops == get]) == len(sent))
        assert operator.admin("ready").status == Status.OK, "behind the answers of the store"
        assert {client.receive().request_id for _ in range(4096)} == sent
        assert world.figures(operator).get("responses_client_full", 0) == 0


def test_a_store_that_dies_and_comes_back(world: World) -> None:
    first, _ = world.store(1), world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    first.behave = lambda _: None
    with_session = client.send(put(world.key(1)))
    without_session = client.send(put(world.key(1)), sequence=0)
    eventually(lambda: [item.sequence for item in first.items][-2:] == [with_session, 0])
    first.stop()
    response = client.receive()
    assert response.request_id == without_session
    assert protocol.decode_results(response.body)[0][0] == Status.OUTCOME_UNKNOWN

    unserved = client.ask(put(world.key(1)), timeout_ms=400)
    [[status, message]] = protocol.decode_results(unserved.body)
    assert status == Status.UNAVAILABLE
    assert "store1" in message
    assert client.ask(put(world.key(2))).status == Status.OK, "the other store's partitions are served"
    not_ready = client.admin("ready", timeout_ms=400)
    assert not_ready.status == Status.UNAVAILABLE
    assert "store1" in protocol.decode_error(not_ready.body)["message"]
    states = [node["state"] for node in msgpack.unpackb(client.admin("status").body)["nodes"]]
    assert states == ["down", "up"]

    reborn = world.store(1)
    response = client.receive()
    assert response.request_id == with_session
    assert protocol.decode_results(response.body)[0][1] == world.key(1)
    assert [item.flags for item in reborn.items] == [FLAG_RETRY]


def test_a_store_that_hangs_is_found_out_by_its_silence(world: World) -> None:
    """The link of a process whose loop is stuck stays up; only unanswered pings tell."""
    first, _ = world.store(1), world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    release = threading.Event()

    def hang(item: Item) -> Answer:
        release.wait(SECONDS)
        return echo(item)

    first.behave = hang
    world.stack.callback(release.set)
    client.send(put(world.key(1)), sequence=0)
    response = client.receive()
    assert protocol.decode_results(response.body)[0][0] == Status.OUTCOME_UNKNOWN
    release.set()
    first.behave = echo
    assert protocol.decode_results(client.ask(put(world.key(1))).body)[0][1] == world.key(1)


def test_a_stranger_at_a_stores_address_is_not_used(world: World) -> None:
    world.store(2)
    client = world.client()
    assert client.ask(put(world.key(2))).status == Status.OK
    stranger = world.store(1, node_id=99)
    [[status, _]] = protocol.decode_results(client.ask(put(world.key(1)), timeout_ms=1000).body)
    assert status == Status.UNAVAILABLE
    assert stranger.items == []
    assert "node 99 answers where the map has node 1" in world.log.read_text()


def test_a_new_map_is_followed(world: World) -> None:
    first, second = world.store(1), world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    old = world.map
    all_on_two = ((2,),) * PARTITIONS
    second.map = ClusterMap(old.name, old.cluster_id, 2, PARTITIONS, 1, old.nodes[1:], all_on_two, (2,))
    first.map = second.map
    first.behave = lambda _: (Status.WRONG_REPLICA, protocol.encode_error("moved"))
    assert protocol.decode_results(client.ask(put(world.key(1))).body)[0][1] == world.key(1)
    assert msgpack.unpackb(client.admin("status").body)["epoch"] == 2


def test_hostile_frames_leave_the_router_alive_correct_and_small(world: World) -> None:
    world.store(1)
    world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    chance = random.Random(20)
    seeds = [
        protocol.encode_request(Request(Kind.OPS, 1, 5000, 0, 0, 0, 0, 0, put(b"k"))),
        protocol.encode_request(
            Request(Kind.ADMIN, 1, 500, 0, 0, 0, 0, 0, protocol.encode_admin("route", b"k"))
        ),
        protocol.encode_request(Request(Kind.OPS, 1, 500, 0, 0, 0, 0, 0, protocol.encode_scan(b"", b"z", 9))),
    ]

    def flood(count: int) -> None:
        attacker = world.client()
        attacker.socket.set(zmq.SNDHWM, 0)
        for number in range(count):
            attacker.socket.send_multipart(mutated(chance, seeds[number % len(seeds)]))
            if number % 500 == 0:
                while attacker.socket.poll(0):
                    attacker.socket.recv_multipart()
        attacker.send(b"", kind=Kind.PING, request_id=1 << 63)
        while attacker.receive().request_id != 1 << 63:
            pass

    flood(10_000)
    before = world.resident_bytes()
    flood(100_000)
    assert world.resident_bytes() - before < 20 << 20
    assert protocol.decode_results(client.ask(put(b"hello")).body)[0][1] == b"hello"
    figures = world.figures(client)
    assert figures["requests_refused"] > 50_000
    assert figures["defects"] == 0
    assert "handler_failed" not in world.log.read_text()


def mutated(chance: random.Random, frame: bytes) -> list[bytes]:
    data = bytearray(frame)
    for _ in range(chance.randrange(1, 4)):
        how = chance.randrange(4)
        at = chance.randrange(len(data) + 1)
        if how == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        else:
            data[at : at + 4] = b"\xdd\xff\xff\xff"
    return [bytes(data)] * (2 if chance.random() < 0.05 else 1)


def test_a_client_that_left_does_not_matter(world: World) -> None:
    first, _ = world.store(1), world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK

    def answer_one_that_left() -> bool:
        """Whether the router has noticed; whether it does so before the answer comes is up to the kernel."""
        asked, answer = threading.Event(), threading.Event()

        def slow(item: Item) -> Answer:
            asked.set()
            answer.wait(SECONDS)
            return echo(item)

        leaver = world.client()
        first.behave = slow
        leaver.send(put(world.key(1)))
        assert asked.wait(SECONDS)
        leaver.close()
        client.ask(b"", kind=Kind.PING)
        first.behave = echo
        answer.set()
        client.ask(put(world.key(1)))
        return world.figures(client)["responses_client_gone"] > 0

    eventually(answer_one_that_left)


def test_sigterm_answers_what_is_under_way(world: World) -> None:
    first, _ = world.store(1), world.store(2)
    client = world.client()
    assert client.admin("ready").status == Status.OK
    asked, answer = threading.Event(), threading.Event()
    world.stack.callback(answer.set)

    def slow(item: Item) -> Answer:
        asked.set()
        answer.wait(SECONDS)
        return echo(item)

    first.behave = slow
    client.send(put(world.key(1)))
    assert asked.wait(SECONDS)
    world.process.send_signal(signal.SIGTERM)
    answer.set()
    assert protocol.decode_results(client.receive().body)[0][1] == world.key(1)
    assert world.process.wait(SECONDS) == 0
    assert "router_stopped" in world.log.read_text()


def test_sigterm_without_stores_stops_at_once(world: World) -> None:
    client = world.client()
    client.ask(b"", kind=Kind.PING)
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(SECONDS) == 0


class TestCommandLine:
    def test_a_port_in_use_is_one_clear_line(self, world: World) -> None:
        world.client().ask(b"", kind=Kind.PING)
        second = world.start()
        assert second.wait(SECONDS) == 1
        assert (
            f"kv-router: cannot listen on {world.endpoint}: another process listens there"
            in world.log.read_text()
        )

    def run(self, world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "router", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    def test_the_configuration_in_force_is_printed(self, world: World) -> None:
        printed = self.run(
            world,
            "--config",
            str(world.config),
            "--set",
            "limits.in_flight=17",
            "--set",
            "log.level=error",
            "--print-config",
        )
        assert printed.returncode == 0
        assert "in_flight: 17" in printed.stdout
        assert "name: router1" in printed.stdout

    def test_all_mistakes_are_named_at_once(self, world: World) -> None:
        refused = self.run(
            world,
            "--config",
            str(world.config),
            "--set",
            "limits.in_flight=many",
            "--set",
            "limits.in_fligt_bytes=1",
        )
        assert refused.returncode == 2
        assert "limits.in_flight" in refused.stderr
        assert "in_flight_bytes" in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_an_open_address_is_refused(self, world: World) -> None:
        refused = self.run(world, "--config", str(world.config), "--set", "router.listen=tcp://0.0.0.0:0")
        assert refused.returncode == 2
        assert "insecure" in refused.stderr

    def test_a_setting_without_a_value(self, world: World) -> None:
        refused = self.run(world, "--config", str(world.config), "--set", "limits.in_flight")
        assert refused.returncode == 2
        assert "section.key=value" in refused.stderr
