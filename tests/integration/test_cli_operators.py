"""`kvcli check`, `top`, `support dump` and `config validate` on a real local cluster."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvclient
from kvclient import protocol
from kvclient.errors import Exit
from storenode import engine
from storenode.engines import Engines
from tests.integration.localcluster import Cluster

pytestmark = pytest.mark.timeout(300)

PARTITIONS = 2
KEYS = 400
VALUE = bytes(50_000)  # 10 MB a partition: memtables of 8 MiB have been flushed to tables


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """3 stores, 1 router, with some keys."""
    made = Cluster(tmp_path_factory.mktemp("operators") / "dev")
    made.up("--stores", "3", "--routers", "1", "--partitions", str(PARTITIONS))
    with made.connect() as db:
        db.put_many((f"key{number}", VALUE) for number in range(KEYS)).raise_for_errors()
    yield made
    made.dev("down")


def healthy(cluster: Cluster) -> None:
    cluster.kvcli("wait", "--healthy", "--timeout", "90s")


def check(cluster: Cluster, *arguments: str, code: int = 0) -> Any:
    done = cluster.kvcli("check", *arguments, "-o", "json", check=False)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def test_all_is_well_in_a_healthy_cluster(cluster: Cluster) -> None:
    healthy(cluster)
    assert check(cluster, "health")["level"] == "ok"
    found = check(cluster, "disk", "--warning", "0", "--critical", "0")
    named = {(figure["name"], figure["labels"]["node"]) for figure in found["figures"]}
    for name in ("free_bytes", "size_bytes", "pressure", "stall_seconds", "compaction_debt_bytes"):
        assert {(name, f"store{number}") for number in (1, 2, 3)} <= named
    line = cluster.kvcli("check", "health", "--format", "nagios").stdout.decode()
    assert line.startswith("RINGKV HEALTH OK - 3 of 3 nodes up, 2 of 2 partitions led | ")


def test_the_probe_measures_and_leaves_no_key(cluster: Cluster) -> None:
    arguments = ("--ops", "20", "--warning", "30s", "--critical", "60s")
    figures = {figure["name"]: figure["value"] for figure in check(cluster, "perf", *arguments)["figures"]}
    assert (figures["put_ops"], figures["get_ops"]) == (20, 20)
    with cluster.connect() as db:
        assert db.count() == KEYS


def test_configurations_of_the_cluster_are_valid(cluster: Cluster) -> None:
    for name, role in (("store1", "store"), ("router1", "router")):
        cluster.kvcli("config", "validate", role, str(cluster.directory / "config" / f"{name}.yaml"))


def test_top_shows_every_store_once(cluster: Cluster) -> None:
    shown = json.loads(cluster.kvcli("top", "--once", "-i", "500ms", "-o", "json").stdout)
    assert [node["name"] for node in shown["nodes"]] == ["store1", "store2", "store3"]
    assert (shown["led"], shown["problems"]) == (PARTITIONS, [])


def test_a_support_dump_holds_no_key_and_no_value(cluster: Cluster, tmp_path: Path) -> None:
    """Also not of ops that were refused, nor after a store was killed in the middle of them."""
    with cluster.connect() as db:
        for number in range(20):
            db.put(f"marked-key-{number}", b"marked-value")
        with pytest.raises(kvclient.KVError):
            db.put("marked-key-large", b"marked-value" * 200_000)
        with pytest.raises(kvclient.KVError):
            db.increment("marked-key-1")
        db.delete_many(f"marked-key-{number}" for number in range(20))
    file = tmp_path / "x.tar.gz"
    cluster.kvcli("support", "dump", str(file), "--dir", str(cluster.directory))
    with tarfile.open(file) as archive:
        names = [name.removeprefix("ringkv-support/") for name in archive.getnames()]
        whole = b"".join(stored.read() for one in archive if (stored := archive.extractfile(one)))
    assert {"about.json", "status.json", "control.json", "map.json"} <= set(names)
    assert sum(name.startswith("config/") for name in names) >= 4
    assert sum(name.startswith("log/") for name in names) >= 4
    assert b"marked" not in whole
    assert b"store1" in whole


def spoil(directory: Path, partition: int, key: bytes) -> None:
    """Changes a value in the tables of a store that does not run; the replica's position stays, and all
    checksums are right.
    """
    shared = engine.Shared(str(directory), workers=1)
    try:
        engines = Engines(str(directory / "partitions"), engine.Options(), shared)
        held = engines.open(partition)
        state = held.state
        assert state, "nothing was flushed"
        held.on_retire = lambda: state
        held.apply([protocol.encode_put(key, b"quite another value")], held.next_sequence, held.now_ms)
        held.end_entry()
        held.flush()
        engines.close_all()
    finally:
        shared.close()


def test_a_replica_whose_content_differs_is_named(cluster: Cluster) -> None:
    """Its blocks' checksums are valid: nothing but a comparison with the others can find it."""
    healthy(cluster)
    whole = check(cluster, "data")
    assert whole["level"] == "ok", whole
    figures = {figure["name"]: figure["value"] for figure in whole["figures"]}
    assert (figures["partitions_compared"], figures["entries"]) == (PARTITIONS, KEYS)
    key = b"key7"
    route = json.loads(cluster.kvcli("route", key.decode(), "-o", "json").stdout)
    spoiled = next(replica for replica in route["replicas"] if not replica["leader"])
    cluster.dev("stop", spoiled["name"])
    spoil(cluster.directory / "data" / spoiled["name"], route["partition"], key)
    cluster.dev("start", spoiled["name"])
    healthy(cluster)
    found = check(cluster, "data", code=Exit.DEGRADED)
    (finding,) = found["findings"]
    assert finding["level"] == "critical"
    wanted = f"partition {route['partition']}: the replica on {spoiled['name']} differs from the others"
    assert finding["text"].startswith(wanted)
    line = cluster.kvcli("check", "data", "--format", "nagios", check=False)
    assert line.returncode == 2
    assert wanted.encode() in line.stdout
    assert b"'replicas_differing'=1" in line.stdout


def test_a_store_that_is_down_is_told_by_every_check(cluster: Cluster) -> None:
    cluster.dev("kill", "store3")
    deadline = time.monotonic() + 60
    while check(cluster, "health", code=Exit.DEGRADED)["level"] != "warning":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = check(cluster, "health", code=Exit.DEGRADED)
    assert any("store3 is" in finding["text"] for finding in found["findings"])
    assert cluster.kvcli("check", "disk", "--format", "nagios", check=False).returncode in (1, 2, 3)
    (finding, *_) = check(cluster, "data", "--partition", "0", "--within", "5s", code=Exit.DEGRADED)[
        "findings"
    ]
    assert "store3" in finding["text"]
    assert finding["level"] == "unknown"
    cluster.dev("start", "store3")
    healthy(cluster)
