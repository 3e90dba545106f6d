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


def test_a_cluster_has_nodes(path: Path) -> None:
    tree = smallest()
    tree["cluster"]["nodes"] = []
    assert problems(tree, path) == [
        "cluster.nodes: must name at least one node",
        "node.id: 1 is not in cluster.nodes (there: none)",
    ]


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
