"""Stores that came later, and those that are gone, without servers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgpack
import pytest
import yaml

from kvclient.cli import devmembers
from kvclient.cli.devcluster import DevCluster, Shape
from kvclient.cli.devmembers import ADDED_FILE, Added
from kvclient.cli.failure import Failure
from shared.clustermap import ClusterMap, Node
from storenode import mapfile


@pytest.fixture
def cluster(tmp_path: Path) -> DevCluster:
    made = DevCluster(tmp_path / "dev", Shape(3, 1, 16, 7100))
    made.save()
    return made


def again(cluster: DevCluster) -> DevCluster:
    loaded = DevCluster.load(cluster.directory)
    assert loaded is not None
    return loaded


def test_an_added_store_is_there_at_the_next_look_with_ports_and_zone_of_its_own(cluster: DevCluster) -> None:
    member = cluster.add(None, None)
    assert (member.name, member.ports) == ("store4", (7230, 7231, 7232))
    assert cluster.add("other", "rack2").ports == (7240, 7241, 7242)
    loaded = again(cluster)
    assert [store.name for store in loaded.stores] == ["store1", "store2", "store3", "store4", "other"]
    assert [store.name for store in loaded.select(("stores",))][-1] == "other"
    assert list(loaded.added.values()) == [Added("store4", 4, "zone4"), Added("other", 5, "rack2")]


def test_its_configuration_joins_and_those_of_the_founders_stay(cluster: DevCluster) -> None:
    before = [store.config_file.read_text() for store in cluster.founders]
    member = cluster.add("other", None)
    config = yaml.safe_load(member.config_file.read_text())
    assert config["node"] == {"name": "other", "zone": "zone4"}
    assert config["cluster"] == {
        "name": "dev",
        "join": ["tcp://127.0.0.1:7200", "tcp://127.0.0.1:7210", "tcp://127.0.0.1:7220"],
    }
    again(cluster).save()
    assert [store.config_file.read_text() for store in cluster.founders] == before
    assert yaml.safe_load(member.config_file.read_text()) == config


def test_routers_that_start_after_all_founders_have_left_find_an_added_store(cluster: DevCluster) -> None:
    member = cluster.add(None, None)
    config = yaml.safe_load(cluster.routers[0].config_file.read_text())
    assert f"tcp://127.0.0.1:{member.ports[0]}" in config["stores"]


@pytest.mark.parametrize("name", ["store2", "router1", "all", "stores"])
def test_a_name_is_given_once(cluster: DevCluster, name: str) -> None:
    with pytest.raises(Failure, match=f"the name '{name}' is taken"):
        cluster.add(name, None)
    assert not (cluster.directory / ADDED_FILE).exists()


def test_one_that_never_joined_leaves_nothing(cluster: DevCluster) -> None:
    member = cluster.add(None, None)
    member.data.mkdir(parents=True)
    cluster.forget(member)
    assert not member.data.exists()
    assert not member.config_file.exists()
    assert [store.name for store in again(cluster).stores] == ["store1", "store2", "store3"]
    assert cluster.add(None, None).name == "store4"


@pytest.mark.parametrize(
    "text", ["{", "{}x", '[{"name": "a"}]', '[{"name": "a/b", "number": 4, "zone": "z"}]', "7"]
)
def test_a_damaged_file_is_named(cluster: DevCluster, text: str) -> None:
    (cluster.directory / ADDED_FILE).write_text(text)
    with pytest.raises(Failure, match=rf"{ADDED_FILE} is damaged"):
        DevCluster.load(cluster.directory)


def identity(data: Path, node: int) -> None:
    data.mkdir(parents=True, exist_ok=True)
    (data / "identity.json").write_text(json.dumps({"node_id": node}))


def written(data: Path, epoch: int, *ids: int) -> None:
    nodes = tuple(Node(node, f"n{node}", f"tcp://h{node}:1") for node in ids)
    cluster_map = ClusterMap("dev", "c", epoch, 1, 1, nodes, ((ids[0],),), (ids[0],))
    mapfile.write(data, cluster_map)


def test_who_is_gone_stands_in_the_newest_map(cluster: DevCluster) -> None:
    cluster.add(None, None)
    cluster.add(None, None)
    assert cluster.removed == set(), "nothing was written yet"
    data = {store.name: store.data for store in cluster.stores}
    for node in (1, 2, 3, 4):  # the fifth is still joining
        identity(data[f"store{node}"], node)
    assert cluster.removed == set()
    written(data["store4"], 5, 1, 2, 3, 4)  # the last that it heard
    written(data["store1"], 6, 1, 2, 3)
    assert cluster.removed == {"store4"}
    assert devmembers.has_joined(data["store4"])
    assert not devmembers.has_joined(data["store5"])


@pytest.mark.parametrize("content", [b"", b"ringmap2", b"ringmap2" + struct.pack("<I", 1) + msgpack.packb(7)])
def test_a_damaged_map_tells_nothing(cluster: DevCluster, content: bytes) -> None:
    data = cluster.stores[0].data
    identity(data, 1)
    (data / "map.bin").write_bytes(content)
    assert cluster.removed == set()
