"""`kvcli engine` on the data of a real, replicated store: refused while it runs, sound after a kill; damage
is named, and what lost something is no replica any more.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient.errors import Exit
from storenode.engines import CONTROL_ENGINE
from tests.integration.localcluster import KVCLI, Cluster

KEYS = [f"key{number:04}" for number in range(400)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[tuple[Cluster, Path]]:
    """Three stores with four partitions that hold KEYS, and the data directory of the first."""
    cluster = Cluster(tmp_path / "engine")
    try:
        cluster.up("--stores", "3", "--routers", "1", "--partitions", "4")
        cluster.kvcli("mput", *[text for key in KEYS for text in (key, f"value of {key}")])
        # A second batch in the log proves that the first one was durable: damage to it is no torn tail.
        cluster.kvcli("mput", *[text for number in range(50) for text in (f"later{number}", "x")])
        yield cluster, cluster.directory / "data" / "store1"
    finally:
        cluster.dev("down")


def kvcli(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [KVCLI, "engine", *map(str, arguments)],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(kvcli(*arguments, "-o", "json", code=code).stdout)  # type: ignore[no-any-return]


def test_a_running_store_is_refused_and_a_killed_one_is_sound(house: tuple[Cluster, Path]) -> None:
    cluster, directory = house
    pid = cluster.processes()["store1"]
    for arguments in (["verify"], ["stats"], ["dump-manifest"], ["find", KEYS[0]], ["repair", "--yes"]):
        refused = kvcli(*arguments, directory, code=Exit.UNAVAILABLE)
        assert refused.stdout == ""
        assert f"in use by process {pid}." in refused.stderr
        assert refused.stderr.startswith("error: ")

    cluster.dev("kill", "store1")
    found = document("verify", directory)
    assert found["problems"] == []
    engines = [0, 1, 2, 3, CONTROL_ENGINE]
    assert [row["partition"] for row in found["checked"]] == engines
    [log] = found["log"]
    assert (log["segments"], log["groups"]) == (1, 5)
    assert log["entries"] >= 10
    assert [row["partition"] for row in document("stats", directory)["engines"]] == engines
    assert document("dump-manifest", directory)["problems"] == []
    assert document("repair", directory)["plan"] == []
    assert not list(directory.rglob("*.wal"))

    (version,) = document("find", KEYS[7], directory)["versions"]
    assert (version["kind"], version["value_size"]) == ("put", len(f"value of {KEYS[7]}"))
    assert version["file"] == str(directory / "raft" / "00000001.log")
    assert version["note"].startswith("entry ")
    assert document("find", KEYS[7], directory, "--all")["versions"] == [version]
    assert document("find", "nowhere", directory, code=Exit.NOT_FOUND)["versions"] == []

    cluster.dev("start", "store1")
    cluster.ready()
    cluster.kvcli("put", KEYS[7], "again")
    cluster.kvcli("del", KEYS[7])
    cluster.dev("stop", "store1")
    versions = document("find", KEYS[7], directory)["versions"]
    assert [version["kind"] for version in versions] == ["delete", "put", "put"], "the newest first"


def test_a_damaged_log_is_named_not_repaired_and_the_others_have_everything(
    house: tuple[Cluster, Path],
) -> None:
    cluster, directory = house
    cluster.dev("kill", "store1")
    (version,) = document("find", KEYS[7], directory)["versions"]
    log = Path(version["file"])
    raw = bytearray(log.read_bytes())
    raw[version["offset"] + 40] ^= 1
    log.write_bytes(raw)

    (problem,) = document("verify", directory, code=Exit.DEGRADED)["problems"]
    assert (problem["file"], problem["offset"]) == (str(log), version["offset"])
    assert document("find", KEYS[7], directory, code=Exit.DEGRADED)["problems"]
    done = kvcli("repair", directory, "--yes", code=Exit.DEGRADED)
    assert f"{log}: " in done.stderr
    assert "cannot be repaired" in done.stderr
    assert log.read_bytes() == raw

    refused = cluster.kvcli("dev", "start", "store1", "--dir", str(cluster.directory), check=False)
    assert refused.returncode == Exit.ERROR
    assert str(log) in refused.stderr.decode()
    assert values(cluster) == {key: f"value of {key}" for key in KEYS}


def test_tables_that_lost_something_are_no_replica_any_more(house: tuple[Cluster, Path]) -> None:
    """A replica with a hole would answer what the others would not."""
    cluster, directory = house
    cluster.dev("stop", "store1")
    config = cluster.directory / "config" / "store1.yaml"
    config.write_text(config.read_text() + '"engine":\n  "memtable": "1MiB"\n')
    cluster.dev("start", "store1")
    with cluster.connect() as client:
        for number in range(40):
            client.put(f"{{large}}{number}", os.urandom(100_000))
        wait_until(lambda: any(directory.rglob("*.sst")))
    cluster.dev("stop", "store1")
    table = sorted(directory.rglob("*.sst"))[0]
    raw = bytearray(table.read_bytes())
    raw[1000] ^= 1
    table.write_bytes(raw)

    assert document("verify", directory, code=Exit.DEGRADED)["problems"][0]["file"] == str(table)
    assert document("repair", directory, code=Exit.DEGRADED)["lost"]
    document("repair", directory, "--yes", code=Exit.PARTIAL)
    refused = cluster.kvcli("dev", "start", "store1", "--dir", str(cluster.directory), check=False)
    assert refused.returncode == Exit.ERROR
    assert "no replica of partition" in refused.stderr.decode()
    assert "Traceback" not in refused.stderr.decode()
    assert values(cluster) == {key: f"value of {key}" for key in KEYS}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def values(cluster: Cluster) -> dict[str, str]:
    found = json.loads(cluster.kvcli("mget", "-o", "json", *KEYS).stdout)["entries"]
    return {entry["key"]: entry["value"] for entry in found}


def test_formats_codes_and_messages_are_passed_through(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    assert kvcli("verify", tmp_path).stdout == "checked\t0\t0\t0\t0\t0\t0\t0\n"
    assert kvcli("verify", tmp_path, "-o", "table").stdout.startswith("problems\n")
    assert kvcli("stats", "-o", "jsonl", tmp_path).stdout.startswith('{"section": "engines", "partition": 0')
    assert "no such thing" not in kvcli("find", "--hex", "6b", tmp_path, code=Exit.NOT_FOUND).stderr
    assert "is not hex" in kvcli("find", "--hex", "xyz", tmp_path, code=Exit.USAGE).stderr
    assert "engine tools write" in kvcli("verify", tmp_path, "-o", "csv", code=Exit.USAGE).stderr
    assert "holds no engine" in kvcli("verify", tmp_path / "manifest", code=Exit.USAGE).stderr
    assert "nothing to repair" in kvcli("repair", tmp_path).stderr
    assert kvcli("repair", "-q", tmp_path).stderr == ""
    assert "does not exist" in kvcli("stats", "--", "-odd", code=Exit.USAGE).stderr


def test_a_reader_that_goes_away_ends_the_tool(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    command = f"'{KVCLI}' engine dump-manifest '{tmp_path}' | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (Exit.OK, Exit.BROKEN_PIPE, Exit.DEGRADED)
    assert done.stderr == ""
