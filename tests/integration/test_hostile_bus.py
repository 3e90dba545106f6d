"""100,000 mutated frames to a store's bus, and as many to the side of it that serves snapshots: it stays
alive, answers, does not keep the memory that they took, and its data is what it was.

The bus is a bound PUB, which hears subscriptions, and a SUB, which hears whoever is at a peer's address: the
test takes that place while the peer is down. Frames that pass for a peer's may cost elections meanwhile: what
a peer says is believed, until connections are authenticated.
"""

from __future__ import annotations

import random
import socket as sockets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
import zmq

from shared import messages
from shared.hashing import xxh64
from storenode import bulkprotocol, raftframes
from storenode.raft.messages import EVERYBODY, Entry, EntryKind, Kind, Message
from tests.integration.localcluster import Cluster, resident_bytes
from tests.integration.test_hostile_frames import (
    FRAMES,
    GROWTH_BYTES_MAX,
    PING_ID,
    SETTLED_SECONDS,
    UNTOUCHED,
    flood,
    mutate,
    mutated,
    untouched,
)

PEER = 2
DEADLINE_S = 60.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "3", "--routers", "1")
        with running.connect() as client:
            client.put_many(UNTOUCHED).raise_for_errors()
        yield running
    finally:
        running.dev("down")


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def config_of(cluster: Cluster, process: str) -> dict[str, Any]:
    path = cluster.directory / "config" / f"{process}.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def ask(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, frame: bytes) -> messages.ToRouter:
    with context.socket(zmq.DEALER) as dealer:
        dealer.connect(endpoint)
        dealer.send(frame)
        assert dealer.poll(int(DEADLINE_S * 1000)), "no answer to a valid message any more"
        return messages.decode_to_router(dealer.recv())


def figures(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> dict[str, Any]:
    reply = ask(context, endpoint, messages.encode_status_request(1))
    assert isinstance(reply, messages.StatusReply)
    return reply.figures


def settles(process_id: int, before: int) -> None:
    """It gives back what the flood took."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while (grown := resident_bytes(process_id) - before) >= GROWTH_BYTES_MAX:
        assert time.monotonic() < deadline, f"it kept {grown >> 20} MiB"
        time.sleep(0.1)


def becomes_healthy(house: Cluster) -> None:
    """A router that heard nothing of the store meanwhile hears of it again."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while (status := house.kvcli("status", check=False)).returncode:
        assert time.monotonic() < deadline, status.stderr.decode()


def seed_frames(cluster_hash: int) -> list[bytes]:
    """Frames of PEER: every kind, for groups that the store has, in a term that is over, and for others."""
    outgoing = raftframes.Outgoing(PEER, cluster_hash, 77)
    entries = [Entry(1, int(EntryKind.NORMAL), b"x" * 40), Entry(1, int(EntryKind.CONFIGURATION), b"\x93")]
    frames: list[bytes] = []
    for kind in Kind:
        for to in (1, EVERYBODY):
            for group in (0, 7, 100, 4095):
                held = entries if kind == Kind.APPEND else []
                outgoing.add(group, Message(to, PEER, int(kind), 1, 1, 0, 0, 0, 0, held))
            frames += outgoing.take()
    return frames


def test_mutated_frames_of_a_peer_leave_a_store_alive_correct_and_small(
    house: Cluster, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    rpc = config_of(house, "store1")["listen"]["rpc"]
    with house.connect() as client:
        cluster_hash = xxh64(client.admin("status")["id"].encode())
    seeds = seed_frames(cluster_hash)
    frames = [frame[:2] + mutate(frame[2:], dice) for frame in (dice.choice(seeds) for _ in range(FRAMES))]
    process_id = house.processes()["store1"]
    before = resident_bytes(process_id)

    house.dev("stop", "store2")
    publisher = context.socket(zmq.XPUB)
    publisher.set(zmq.SNDHWM, 0)
    publisher.bind(config_of(house, "store2")["listen"]["bus"])
    subscribed = {publisher.recv() for _ in range(2 * 2)}  # two stores, two topics each
    assert b"\x01" + raftframes.topic_bytes(1) in subscribed
    begin = figures(context, rpc)["bus"]["frames_received"]
    for frame in frames:
        publisher.send(frame)
    deadline = time.monotonic() + DEADLINE_S
    while figures(context, rpc)["bus"]["frames_received"] - begin < FRAMES // 2:
        publisher.send(seeds[0])  # what fits into no queue is lost, as from any peer
        assert time.monotonic() < deadline, "they do not arrive"
    publisher.close(linger=0)

    found = figures(context, rpc)
    assert found["bus"]["frames_bad"] + found["bus"]["rows_bad"] > FRAMES // 10
    assert found["failed"] == {}
    assert found["requests"]["defects"] == 0
    assert house.processes()["store1"] == process_id
    log = (house.directory / "log" / "store1.log").read_text()
    assert "handler_failed" not in log
    settles(process_id, before)
    house.dev("start", "store2")
    house.ready()
    assert untouched(house) == UNTOUCHED


def test_what_no_subscriber_says_leaves_a_publisher_alive_and_small(
    house: Cluster, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    config = config_of(house, "store1")
    process_id = house.processes()["store1"]
    before = resident_bytes(process_id)
    subscriptions = [b"\x01" + raftframes.topic_bytes(topic) for topic in (1, 2, EVERYBODY)]
    attacker = context.socket(zmq.XSUB)
    attacker.set(zmq.SNDHWM, 0)
    attacker.set(zmq.RCVHWM, 100)
    attacker.connect(config["listen"]["bus"])
    for number in range(FRAMES):
        attacker.send(mutate(dice.choice(subscriptions), dice))
        while number % 64 == 0 and attacker.poll(0):
            attacker.recv()
    attacker.close(linger=0)
    address = ("127.0.0.1", int(config["listen"]["bus"].rpartition(":")[2]))
    for _ in range(200):
        with sockets.create_connection(address, timeout=DEADLINE_S) as raw:
            raw.sendall(dice.randbytes(dice.randrange(500)))

    assert isinstance(ask(context, config["listen"]["rpc"], messages.encode_ping(5)), messages.Pong)
    assert house.processes()["store1"] == process_id
    settles(process_id, before)
    with house.connect() as client:
        client.put(b"after", b"all")
    assert untouched(house) == UNTOUCHED
    becomes_healthy(house)


def seed_requests() -> list[bytes]:
    """Requests for snapshots, as one store puts them to another."""
    requests = [
        bulkprotocol.Open(1, 3, 1, PEER),
        bulkprotocol.Open(2, 9, 1 << 40, PEER),
        bulkprotocol.Open(3, 4000, 1, PEER),
        bulkprotocol.Read(4, 77, "000001.sst", 0, 1 << 20),
        bulkprotocol.Read(5, 77, "manifest/data.mdb", 4096, 4096),
        bulkprotocol.Close(6, 77, PEER),
    ]
    bodies = [bulkprotocol.encode_request(request) for request in requests]
    return [messages.encode_bulk_request(body) for body in bodies]


def test_mutated_requests_for_snapshots_change_nothing(
    house: Cluster, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    process_id = house.processes()["store1"]
    before = resident_bytes(process_id)
    attacker = context.socket(zmq.DEALER)
    attacker.set(zmq.SNDHWM, 0)
    rpc = config_of(house, "store1")["listen"]["rpc"]
    attacker.connect(rpc)
    flood(attacker, mutated(seed_requests(), dice), msgpack.packb([1, 4, PING_ID]))
    attacker.close(linger=0)

    found = figures(context, rpc)
    assert found["requests"]["faults_sent"] > FRAMES // 100
    assert found["requests"]["defects"] == 0
    assert found["failed"] == {}
    assert house.processes()["store1"] == process_id
    assert "handler_failed" not in (house.directory / "log" / "store1.log").read_text()
    settles(process_id, before)
    assert untouched(house) == UNTOUCHED
    becomes_healthy(house)
