"""The store's configuration: the smallest file, the limits, and what several keys together get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import ConfigError, dump, load
from storenode.config import NodeEntry, StoreConfig

Tree = dict[str, Any]


def node(number: int, **more: Any) -> Tree:
    return {"id": number, "name": f"store{number}", "rpc": f"tcp://127.0.0.1:{7190 + 10 * number}", **more}


def smallest(*nodes: Tree) -> Tree:
    return {
        "node": {"id": 1, "name": "store1"},
        "data": {"dir": "data"},
        "cluster": {"name": "c", "nodes": list(nodes) or [node(1), node(2), node(3)]},
    }


def loaded(tree: Tree, path: Path, **overrides: str) -> StoreConfig:
    path.write_text(yaml.safe_dump(tree))
    return load(StoreConfig, path, {}, {key.replace("__", "."): text for key, text in overrides.items()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.yaml"


def problems(tree: Tree, path: Path, **overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tree, path, **overrides)
    return [f"{error.path}: {error.text}" for error in caught.value.errors]


def test_the_smallest_configuration_has_the_documented_defaults(path: Path) -> None:
    config = loaded(smallest(), path)
    assert (config.cluster.partitions, config.cluster.replicas) == (16, 3)
    assert config.listen.rpc == "tcp://127.0.0.1:7200"
    engine, limits = config.engine, config.limits
    assert (engine.memtable, engine.memtables_total, engine.cache, engine.workers) == (
        8 << 20,
        64 << 20,
        32 << 20,
        1,
    )
    assert (limits.value_bytes, limits.in_flight_bytes) == (1 << 20, 256 << 20)
    assert config.insecure is False
    assert config.cluster.nodes[1] == NodeEntry(
        2, "store2", "tcp://127.0.0.1:7210", "tcp://127.0.0.1:7211", "tcp://127.0.0.1:7212", "default", 1
    )


def test_a_dump_loads_back_to_the_same(path: Path) -> None:
    config = loaded(
        smallest(node(1, zone="a", weight=3, bus="tcp://127.0.0.1:9000")), path, engine__cache="1GiB"
    )
    path.write_text(dump(config))
    assert load(StoreConfig, path) == config


@pytest.mark.parametrize("count", [1, 2, 16, 4096])
def test_powers_of_two_are_partition_counts(path: Path, count: int) -> None:
    assert loaded(smallest(), path, cluster__partitions=str(count)).cluster.partitions == count


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("cluster__partitions", "12", "must be a power of two such as 8 or 16, not 12"),
        ("cluster__partitions", "0", "must be between 1 and 4096, not 0"),
        ("cluster__partitions", "8192", "must be between 1 and 4096, not 8192"),
        ("cluster__replicas", "4", "4 replicas need as many nodes; cluster.nodes has 3"),
        ("cluster__replicas", "0", "must be between 1 and 7, not 0"),
        ("node__id", "7", "7 is not in cluster.nodes (there: 1, 2, 3)"),
        ("node__id", "65535", "must be between 1 and 65534, not 65535"),
        ("node__name", "store2", "cluster.nodes calls node 1 'store1', not 'store2'"),
        ("data__dir", "", "must be a directory, not ''"),
        ("engine__memtables_total", "4MiB", "must be at least engine.memtable"),
        ("engine__workers", "0", "must be between 1 and 64, not 0"),
        ("limits__value_bytes", "9MiB", "must be between 1B and 8MiB, not 9MiB"),
        ("limits__in_flight_bytes", "1MiB", "must be between 16MiB and 1TiB, not 1MiB"),
    ],
)
def test_limits(path: Path, key: str, text: str, words: str) -> None:
    assert problems(smallest(), path, **{key: text}) == [f"{key.replace('__', '.')}: {words}"]


SEEDS = ["tcp://10.0.0.1:7200", "tcp://10.0.0.2:7200"]


def joining(**more: Any) -> Tree:
    return {
        "node": {"name": "store4", **more},
        "data": {"dir": "data"},
        "listen": {"rpc": "tcp://10.0.0.4:7200"},
        "cluster": {"name": "c", "join": SEEDS},
    }


def test_a_cluster_has_nodes_or_is_joined(path: Path) -> None:
    tree = smallest()
    tree["cluster"]["nodes"] = []
    (problem,) = problems(tree, path)
    assert problem.startswith("cluster.nodes: is required on the nodes that a cluster is founded with")
    assert "give cluster.join instead" in problem


def test_founding_and_joining_exclude_each_other(path: Path) -> None:
    tree = smallest()
    tree["cluster"]["join"] = SEEDS
    assert problems(tree, path) == [
        "cluster.join: excludes cluster.nodes: a founder has nodes, a store that joins later has join"
    ]


def test_one_that_joins_is_reached_where_it_listens(path: Path) -> None:
    config = loaded(joining(), path)
    assert (config.node.zone, config.node.weight, config.cluster.join) == ("default", 1, tuple(SEEDS))
    assert config.addresses == tuple(f"tcp://10.0.0.4:{port}" for port in (7200, 7201, 7202))
    path.write_text(dump(config))
    assert load(StoreConfig, path) == config


def test_one_that_listens_everywhere_says_where_it_is_reached(path: Path) -> None:
    tree = joining()
    tree["listen"]["rpc"] = "tcp://0.0.0.0:7200"
    assert [line.split(":")[0] for line in problems(tree, path)] == ["node.rpc", "node.bus", "node.events"]
    tree["node"] |= {"rpc": "tcp://db4:9000", "events": "tcp://db4:9100"}
    addresses = loaded(tree, path).addresses
    assert addresses == ("tcp://db4:9000", "tcp://db4:9001", "tcp://db4:9100")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"id": 4}, "node.id: does not go with cluster.join: the cluster gives the id"),
        ({"rpc": "tcp://*:7200"}, "node.rpc: tcp://*:7200 is no address to connect to: name host and port"),
        ({"weight": 1_000_001}, "node.weight: must be between 0 and 1000000, not 1000001"),
    ],
)
def test_what_one_that_joins_may_say_of_itself(path: Path, more: Tree, words: str) -> None:
    assert problems(joining(**more), path) == [words]


def test_a_cluster_is_founded_with_enough_nodes_that_have_weight(path: Path) -> None:
    tree = smallest(node(1, weight=0))
    assert problems(tree, path) == [
        "cluster.replicas: 1 replicas need as many nodes with weight; cluster.nodes has 0"
    ]


def test_a_seed_can_be_connected_to(path: Path) -> None:
    tree = joining()
    tree["cluster"]["join"] = ["tcp://*:7200"]
    assert problems(tree, path) == [
        "cluster.join: tcp://*:7200 is no address to connect to: name host and port"
    ]


def test_a_founder_has_an_id_and_says_the_rest_in_the_nodes(path: Path) -> None:
    tree = smallest()
    tree["node"] = {"name": "store1"}
    assert problems(tree, path) == ["node.id: is required with cluster.nodes"]
    tree["node"] |= {"id": 1, "zone": "b"}
    assert problems(tree, path) == ["node.zone: goes with cluster.join; a founder's stands in cluster.nodes"]


def test_ids_names_and_endpoints_are_unique_across_all_nodes(path: Path) -> None:
    tree = smallest(node(1), node(2, id=1), node(3, name="store1"), node(4, events="tcp://127.0.0.1:7201"))
    assert problems(tree, path)[:3] == [
        "cluster.nodes: the id 1 is there 2 times",
        "cluster.nodes: the name store1 is there 2 times",
        "cluster.nodes: the endpoint tcp://127.0.0.1:7201 is there 2 times",
    ]


def test_addresses_of_nodes_can_be_connected_to(path: Path) -> None:
    tree = smallest(node(1), node(2, rpc="tcp://0.0.0.0:7300"))
    assert problems(tree, path)[0] == (
        "cluster.nodes[1].rpc: tcp://0.0.0.0:7300 is no address to connect to: name host and port"
    )


@pytest.mark.parametrize("port", ["65534", "65535", "0", "*"])
def test_ports_that_leave_no_room_for_the_other_two_are_refused(path: Path, port: str) -> None:
    tree = smallest(node(1, rpc=f"tcp://127.0.0.1:{port}"))
    assert any(line.startswith("cluster.nodes[0]") for line in problems(tree, path))
