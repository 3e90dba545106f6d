"""The control partition on real processes: there is a controller, it survives its store, and data is served
without any.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
import zmq

import kvclient
from kvclient import protocol
from kvclient.errors import KVError, Status, Unavailable
from shared import messages
from storenode.control.state import CONTROL
from tests.integration.localcluster import Cluster

CALL_S = 30.0
"""Of one call, with all its tries: on a busy machine an election takes its time."""
DEADLINE_S = 120.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Cluster]:
    """Four stores: three of them hold the control partition, and half of the partitions have two replicas on
    the third and the fourth.
    """
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "4", "--routers", "1")
        yield running
    finally:
        running.dev("down")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


def control(client: kvclient.Client[bytes], command: str, **given: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.admin("control", command, msgpack.packb(given), False)
    return found


def shown(client: kvclient.Client[bytes]) -> dict[str, Any] | None:
    try:
        return control(client, "show")
    except KVError:
        return None


def states(client: kvclient.Client[bytes]) -> dict[int, str]:
    found = shown(client)
    return {} if found is None else {node["id"]: node["state"] for node in found["nodes"]}


def ask(house: Cluster, store: str, frame: bytes) -> messages.ToRouter:
    """One message to a store, as a router sends it."""
    config = yaml.safe_load((house.directory / "config" / f"{store}.yaml").read_text())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(config["listen"]["rpc"])
        socket.send(frame)
        assert socket.poll(round(DEADLINE_S * 1000)), f"{store} does not answer"
        return messages.decode_to_router(socket.recv())
    finally:
        socket.close(0)
        context.term()


def figures(house: Cluster, store: str) -> dict[str, Any]:
    reply = ask(house, store, messages.encode_status_request(1))
    assert isinstance(reply, messages.StatusReply)
    return reply.figures


def kill(house: Cluster, *stores: str) -> None:
    processes = house.processes()
    for store in stores:
        os.kill(processes[store], signal.SIGKILL)


def start(house: Cluster, *stores: str) -> None:
    """Again. `kvcli dev` waits for readiness, but on a busy machine not long enough."""
    for store in stores:
        house.kvcli("dev", "start", store, "--dir", str(house.directory), check=False)


def test_a_controller_that_survives_its_store(house: Cluster) -> None:
    with house.connect(timeout=CALL_S) as client:
        until(lambda: set(states(client).values()) == {"up"}, "all stores are heard")
        first = control(client, "show")
        assert first["control"] == [1, 2, 3]
        assert first["controller"] in first["control"]
        until(
            lambda: all(node["incarnation"] for node in control(client, "show")["nodes"]),
            "every disk is known",
        )

        ops = protocol.encode_get(b"state")
        item = messages.Item(1, CONTROL, 5000, protocol.LINEARIZABLE, 0, 0, 0, 0, ops)
        reply = ask(house, "store1", messages.encode_batch(1, [item]))
        assert isinstance(reply, messages.BatchReply)
        assert [answer.status for answer in reply.answers] == [Status.WRONG_REPLICA]

        epoch = control(client, "show")["epoch"]
        assert control(client, "set", bytes_per_second=1 << 20)["changed"]
        stores = ("store1", "store2", "store3", "store4")
        until(
            lambda: all(figures(house, store)["epoch"] > epoch for store in stores),
            "all stores have the new map",
        )

        gone = first["controller"]
        kill(house, f"store{gone}")
        until(lambda: (shown(client) or first)["controller"] != gone, "another controller")
        until(lambda: states(client).get(gone) == "down", "the store that was killed is down")
        second = control(client, "show")
        assert second["settings"]["bytes_per_second"] == 1 << 20
        start(house, f"store{gone}")
        until(lambda: set(states(client).values()) == {"up"}, "it is heard again")


def test_data_is_served_without_the_majority_of_the_control_partition(house: Cluster) -> None:
    with house.connect(timeout=CALL_S) as client:
        house.ready()
        until(lambda: shown(client) is not None, "a controller")
        keys = [f"key{number}" for number in range(40)]
        alive = [
            key
            for key in keys
            if {3, 4} <= {replica["id"] for replica in client.admin("route", key.encode())["replicas"]}
        ]
        assert alive, "some partitions keep their majority"
        for key in alive:
            client.put(key, b"before")
        kill(house, "store1", "store2")
        for written in (b"one", b"two", b"three"):
            for key in alive:
                client.put(key, written)
            assert {client.get(key) for key in alive} == {written}
        with pytest.raises(Unavailable):
            control(client, "show")
        start(house, "store1", "store2")
        until(lambda: set(states(client).values()) == {"up"}, "the cluster is whole again")
        assert {client.get(key) for key in alive} == {b"three"}
