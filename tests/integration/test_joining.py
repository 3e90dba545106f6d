"""Who is who, with real processes: founders that ask each other, stores that join, disks that are refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared.clustermap import Node
from shared.commandline import REFUSED
from storenode import mapfile
from tests.integration.newcomers import FakeCluster, Process, endpoint, wait
from tests.ports import free_ports


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    made = FakeCluster()
    yield made
    made.close()


class House:
    """Processes that end with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []

    def newcomer(self, *seeds: int, cluster: str = "prod", name: str = "store4") -> Process:
        section = {"name": cluster, "join": [endpoint(port) for port in seeds]}
        place = self.directory / "newcomers"
        place.mkdir(exist_ok=True)
        return self._made(Process(place, name, free_ports(3)[0], cluster=section))

    def founders(self, count: int) -> list[Process]:
        ports = [free_ports(3)[0] for _ in range(count)]
        nodes = [
            {"id": number, "name": f"store{number}", "rpc": endpoint(port)}
            for number, port in enumerate(ports, 1)
        ]
        cluster = {"name": "prod", "partitions": 4, "nodes": nodes}
        made = []
        for node, port in zip(nodes, ports, strict=True):
            process = self._made(Process(self.directory, str(node["name"]), port, cluster=cluster))
            process.configure(process.config | {"node": {"id": node["id"], "name": node["name"]}})
            made.append(process)
        return made

    def _made(self, process: Process) -> Process:
        self.processes.append(process)
        return process


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    for process in made.processes:
        process.close()


# -- joining


def test_a_store_that_is_killed_while_it_joins_asks_again_as_the_same(
    house: House, fake: FakeCluster
) -> None:
    store = house.newcomer(fake.port)
    for _ in range(3):
        before = len(fake.heard)
        store.start()
        wait(lambda before=before: len(fake.heard) > before, "the cluster is asked")  # type: ignore[misc]
        store.stop(signal.SIGKILL)
        assert not (store.data / "identity.json").exists()
    fake.says = fake.accept
    store.start()
    store.says("listening")
    assert len({told["incarnation"] for told in fake.heard}) == 1
    assert store.identity["node_id"] == 4
    assert store.identity["incarnation"] == fake.heard[0]["incarnation"]
    kept = mapfile.read(store.data)
    assert kept is not None
    assert kept.node(4).rpc == endpoint(store.port)
    assert not (store.data / "joining.json").exists()


@pytest.mark.parametrize("lost", [("identity.json",), ("identity.json", "map.bin")])
def test_a_crash_between_the_answer_and_its_record_gives_the_same_id(
    house: House, fake: FakeCluster, lost: tuple[str, ...]
) -> None:
    fake.says = fake.accept
    store = house.newcomer(fake.port)
    store.start()
    store.says("listening")
    before = store.identity
    store.stop()
    claim = {"format": 1, "incarnation": before["incarnation"]}
    for path in list(store.data.iterdir()):  # as if nothing behind the claim had been written yet
        if path.is_dir():
            shutil.rmtree(path)
    for name in lost:
        (store.data / name).unlink()
    (store.data / "known.json").unlink(missing_ok=True)
    (store.data / "joining.json").write_text(json.dumps(claim))
    store.start()
    store.says("listening")
    assert store.identity == before


def test_a_store_that_has_joined_starts_without_asking(house: House, fake: FakeCluster) -> None:
    fake.says = fake.accept
    store = house.newcomer(fake.port)
    store.start()
    store.says("listening")
    store.stop()
    asked = len(fake.heard)
    store.start()
    store.says("listening")
    assert len(fake.heard) == asked


def test_a_signal_ends_a_store_that_waits_to_join(house: House, fake: FakeCluster) -> None:
    store = house.newcomer(fake.port)
    store.start()
    wait(lambda: bool(fake.heard), "the cluster is asked")
    store.says("waiting_to_join")
    assert "has not read its state yet" in store.said
    assert store.stop(signal.SIGTERM) == 0


def test_a_name_that_is_taken_is_refused_for_good(house: House, fake: FakeCluster) -> None:
    fake.map = attrs.evolve(fake.map, nodes=(*fake.map.nodes, Node(2, "store4", "tcp://10.0.0.2:7200")))
    fake.says = lambda _: (Status.CONDITION_FAILED, encode_error("the name store4 is taken by node 2"))
    store = house.newcomer(fake.port)
    store.start()
    assert store.ended() == REFUSED
    assert "the name store4 is taken by node 2" in store.said
    assert "kvcli node remove store4 --force" in store.said
    assert not (store.data / "identity.json").exists()


def test_another_cluster_is_refused_for_good(house: House, fake: FakeCluster) -> None:
    store = house.newcomer(fake.port, cluster="test")
    store.start()
    assert store.ended() == REFUSED
    assert "belongs to cluster prod, the configuration names test" in store.said
    assert not fake.heard


@pytest.mark.parametrize("content", ["somebody", "another"])
def test_a_foreign_disk_is_refused_for_good(house: House, fake: FakeCluster, content: str) -> None:
    store = house.newcomer(fake.port)
    store.data.mkdir(parents=True)
    if content == "somebody":
        (store.data / "holiday.jpg").write_bytes(b"")
    else:
        (store.data / "identity.json").write_text(
            json.dumps(
                {
                    "format": 2,
                    "cluster_name": "other",
                    "cluster_id": "f" * 16,
                    "node_id": 7,
                    "partition_count": 4,
                    "incarnation": "ab" * 16,
                    "founder": False,
                }
            )
        )
    store.start()
    assert store.ended() == REFUSED
    assert f"mv {store.data} {store.data}.aside" in store.said
    assert not fake.heard


# -- founding


def test_one_founder_alone_asks_nobody(house: House) -> None:
    (store,) = house.founders(1)
    store.start()
    store.says("listening")
    assert "waiting_for_founders" not in store.said


def test_founders_that_start_one_by_one_wait_for_a_majority(house: House) -> None:
    first, second, third = house.founders(3)
    first.start()
    first.says("waiting_for_founders")
    assert "store2: no answer yet, store3: no answer yet" in first.said
    assert not (first.data / "identity.json").exists()
    second.start()
    for store in (first, second):
        store.says("listening")
    third.start()
    third.says("listening")
    assert len({store.identity["incarnation"] for store in (first, second, third)}) == 3


def test_a_signal_ends_a_founder_that_waits(house: House) -> None:
    first, *_ = house.founders(3)
    first.start()
    first.says("waiting_for_founders")
    assert first.stop(signal.SIGTERM) == 0
    assert not (first.data / "identity.json").exists()


def knows(store: Process, node: int) -> bool:
    try:
        known: dict[str, Any] = json.loads((store.data / "known.json").read_text())["known"]
    except FileNotFoundError:
        return False
    return str(node) in known


def test_a_founder_whose_disk_was_wiped_is_refused(house: House) -> None:
    """Also after the others have been restarted, and though one of them is down."""
    founders = first, second, third = house.founders(3)
    for store in founders:
        store.start()
    wait(lambda: all(knows(store, 3) for store in (first, second)), "the others hear store3")
    for store in founders:
        assert store.stop() == 0
    before = third.identity["incarnation"]
    shutil.rmtree(third.data)
    second.start()
    second.says("listening")
    third.start()
    assert third.ended() == REFUSED
    assert f"incarnation {before}, says store2" in third.said
    assert re.search(r"\n.*kvcli node remove store3 --force\n", third.said)
    assert f"cluster: {{name: prod, join: [{endpoint(first.port)}, {endpoint(second.port)}]}}" in third.said
    assert not (third.data / "identity.json").exists()


def test_what_the_version_before_has_written_is_taken_over(house: House) -> None:
    (store,) = house.founders(1)
    store.start()
    store.says("listening")
    store.stop()
    old = {name: value for name, value in store.identity.items() if name not in ("incarnation", "founder")}
    (store.data / "identity.json").write_text(json.dumps(old | {"format": 1}))
    store.start()
    store.says("listening")
    assert store.identity["format"] == 2
    assert re.fullmatch("[0-9a-f]{32}", store.identity["incarnation"])


# -- a cluster that runs


def test_a_fourth_store_joins_three_that_run_and_a_taken_name_does_not(house: House) -> None:
    founders = first, second, _ = house.founders(3)
    for store in founders:
        store.start()
    for store in founders:
        store.says("listening")
    fourth = house.newcomer(second.port)
    fourth.start()
    fourth.says("listening")
    assert fourth.identity["node_id"] == 4
    assert fourth.identity["cluster_id"] == first.identity["cluster_id"]
    wait(lambda: all(knows(store, 4) for store in founders), "the founders hear store4")
    again = house.newcomer(first.port, name="store3")
    again.start()
    assert again.ended() == REFUSED
    assert "the name store3 is taken by node 3" in again.said
