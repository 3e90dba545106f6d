"""`kvcli node`, `rebalance`, `map`, `wait`, `dev partition` and `deploy` on a real local cluster."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient.errors import Exit
from tests.integration.localcluster import KVCLI, Cluster

pytestmark = pytest.mark.timeout(600)  # restarts of every process, on a machine that may be busy

PARTITIONS = 8
STEP_SECONDS = 90.0
DEPLOY_SECONDS = 400.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster") / "dev")
    made.up("--stores", "3", "--routers", "2", "--partitions", str(PARTITIONS))
    yield made
    made.dev("down")


def kv(cluster: Cluster, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    seconds = DEPLOY_SECONDS if arguments[0] == "deploy" else STEP_SECONDS
    done = cluster.kvcli(*arguments, check=False, timeout=seconds)
    assert done.returncode == code, done
    return done


def document(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(kv(cluster, *arguments, "-o", "json").stdout)


def nodes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in document(cluster, "node", "ls")["nodes"]}


def healthy(cluster: Cluster) -> None:
    kv(cluster, "wait", "--healthy", "--timeout", f"{STEP_SECONDS - 10:.0f}s")


def test_a_cluster_shows_itself(cluster: Cluster) -> None:
    healthy(cluster)
    found = nodes(cluster)
    assert list(found) == ["store1", "store2", "store3"]
    assert {node["state"] for node in found.values()} == {"up"}
    assert {node["replicas"] for node in found.values()} == {PARTITIONS}
    deadline = time.monotonic() + STEP_SECONDS
    while not all(len(node["incarnation"]) == 32 for node in nodes(cluster).values()):
        assert time.monotonic() < deadline, "a founder was not heard"
    shown = document(cluster, "node", "show", "2")
    assert (shown["name"], shown["moves"]) == ("store2", [])
    kv(cluster, "node", "show", "store7", code=Exit.NOT_FOUND)

    exported = document(cluster, "map", "export")
    assert [node["name"] for node in exported["nodes"]] == list(found)
    assert len(exported["replicas"]) == PARTITIONS
    assert sorted(exported["control"]) == [1, 2, 3]
    assert len(kv(cluster, "map", "show", "-o", "plain").stdout.splitlines()) == PARTITIONS

    status = document(cluster, "status")
    assert status["healthy"]
    assert status["cluster"]["controller"] in (1, 2, 3)
    assert document(cluster, "rebalance", "plan")["moves"] == []
    assert document(cluster, "rebalance", "status")["moves"] == []


def test_what_cannot_be_is_refused_with_a_reason(cluster: Cluster) -> None:
    healthy(cluster)
    for arguments in (
        ("node", "drain", "store1"),
        ("node", "drain", "store1", "--dry-run"),
        ("node", "remove", "store1"),
        ("node", "remove", "store1", "--force", "--yes"),
        ("node", "add", "store1", "--rpc", "tcp://127.0.0.1:9"),
        ("node", "drain", "store7"),
    ):
        done = kv(cluster, *arguments, code=Exit.CONFLICT)
        assert done.stdout == b""
        assert b" is refused: " in done.stderr, arguments
        assert done.stderr.endswith(b"(REFUSED)\n")
    assert {node["state"] for node in nodes(cluster).values()} == {"up"}
    kv(cluster, "node", "remove", "store1", "--force", code=Exit.USAGE)
    kv(cluster, "node", "set-weight", "store1", "-1", code=Exit.USAGE)


def test_settings_and_the_pause_stay(cluster: Cluster) -> None:
    before = document(cluster, "rebalance", "set")
    dry = document(cluster, "rebalance", "set", "--bandwidth", "50MiB", "--dry-run")
    assert dry["bytes_per_second"] == 50 << 20
    assert document(cluster, "rebalance", "set")["bytes_per_second"] == before["bytes_per_second"]
    assert document(cluster, "rebalance", "set", "--replace-after", "1h")["replace_after_ms"] == 3_600_000
    assert document(cluster, "rebalance", "pause")["changed"]
    assert not document(cluster, "rebalance", "pause")["changed"]
    assert document(cluster, "rebalance", "status")["paused"]
    assert document(cluster, "rebalance", "resume")["changed"]
    assert document(cluster, "rebalance", "set")["replace_after_ms"] == 3_600_000


def test_a_store_that_is_cut_off_is_missed_and_heard_again(cluster: Cluster) -> None:
    healthy(cluster)
    cluster.dev("partition", "store3")
    try:
        kv(cluster, "wait", "--ready")
        deadline = time.monotonic() + STEP_SECONDS
        while nodes(cluster)["store3"]["state"] not in ("suspect", "down"):
            assert time.monotonic() < deadline, nodes(cluster)
            time.sleep(0.2)
        kv(cluster, "wait", "--healthy", "--timeout", "200ms", code=Exit.UNAVAILABLE)
        assert b"store3" in kv(cluster, "status", code=Exit.DEGRADED).stderr
        kv(cluster, "put", "while", "cut")
    finally:
        cluster.dev("heal")
    healthy(cluster)
    assert kv(cluster, "get", "while").stdout == b"cut\n"


def test_everything_is_restarted_one_by_one(cluster: Cluster) -> None:
    where = ("--dev", "--dir", str(cluster.directory))
    steps = document(cluster, "deploy", *where, "--dry-run")["steps"]
    assert [step["role"] for step in steps] == ["store"] * 3 + ["router"] * 2
    kv(cluster, "deploy", *where, "store7", code=Exit.USAGE)
    kv(cluster, "put", "before", "all")
    before = cluster.processes()
    done = document(cluster, "deploy", *where)["processes"]
    assert [one["name"] for one in done] == [step["name"] for step in steps]
    after = cluster.processes()
    assert before.pop("monitor") == after.pop("monitor"), "nothing depends on it"
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    assert kv(cluster, "get", "before").stdout == b"all\n"


def test_an_inventory_over_ssh(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ssh` runs the command here."""
    healthy(cluster)
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nexec sh -c "$3"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    where = f"--dir {cluster.directory}"
    restart = f"{KVCLI} dev stop store2 {where} && {KVCLI} dev start store2 {where}"
    inventory = tmp_path / "inventory"
    inventory.write_text(f"store store2 here {restart}\nstore store1 here true\n")
    before = cluster.processes()
    with_file = ("deploy", "--inventory", str(inventory))
    kv(cluster, *with_file, code=Exit.USAGE)  # store3 has no line
    kv(cluster, *with_file, "store2")
    stopped = kv(cluster, *with_file, "--patience", "3s", "store1", code=Exit.UNAVAILABLE)
    assert b"store1 did not come back: the process of before still runs" in stopped.stderr
    after = cluster.processes()
    assert [name for name in before if before[name] != after[name]] == ["store2"]
