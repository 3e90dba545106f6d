"""`kvcli engine` on the data of a real store: refused while it runs, sound after a kill, repaired after
damage, and served again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient.errors import Exit
from tests.integration.localcluster import KVCLI, Cluster

KEYS = [f"key{number:04}" for number in range(400)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """One store with four partitions that hold KEYS, and its data directory."""
    cluster = Cluster(tmp_path_factory.mktemp("engine"))
    try:
        cluster.up("--stores", "1", "--routers", "1", "--partitions", "4")
        cluster.kvcli("mput", *[text for key in KEYS for text in (key, f"value of {key}")])
        # A second record in each log proves that the first one was durable: damage to it is no torn tail.
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


def test_a_running_store_is_refused_a_killed_one_is_sound_a_damaged_one_is_repaired(
    store: tuple[Cluster, Path],
) -> None:
    cluster, directory = store
    pid = json.loads((cluster.directory / "run" / "store1.pid").read_text())["pid"]
    for arguments in (["verify"], ["stats"], ["dump-manifest"], ["find", KEYS[0]], ["repair", "--yes"]):
        refused = kvcli(*arguments, directory, code=Exit.UNAVAILABLE)
        assert refused.stdout == ""
        assert f"in use by process {pid}." in refused.stderr
        assert refused.stderr.startswith("error: ")

    cluster.dev("kill", "store1")
    checked = document("verify", directory)["checked"]
    assert [row["partition"] for row in checked] == [0, 1, 2, 3]
    assert sum(row["records"] for row in checked) > 0
    (found,) = document("find", KEYS[7], directory)["versions"]
    assert (found["kind"], found["value_size"]) == ("put", len(f"value of {KEYS[7]}"))
    assert document("find", KEYS[7], directory, "--all")["versions"] == [found]
    assert document("repair", directory)["plan"] == []

    # A bit flips in the middle of one partition's log: the store refuses to start, repair says what is lost.
    log = Path(found["file"])
    raw = bytearray(log.read_bytes())
    raw[found["offset"] + 40] ^= 1
    log.write_bytes(raw)
    intact = shutil.copytree(directory, cluster.directory / "intact")
    assert document("verify", directory, code=Exit.DEGRADED)["problems"][0]["file"] == str(log)
    plan = document("repair", directory, code=Exit.DEGRADED)
    assert [row["action"] for row in plan["plan"]] == ["cut"]
    assert log.read_bytes() == (intact / log.relative_to(directory)).read_bytes()
    done = document("repair", directory, "--yes", code=Exit.PARTIAL)
    assert [row["partition"] for row in done["lost"]] == [found["partition"]]
    document("verify", directory)

    cluster.dev("start", "store1")
    cluster.ready()
    there = json.loads(cluster.kvcli("mget", "-o", "json", *KEYS, check=False).stdout)["entries"]
    elsewhere = {key for key in KEYS if partition(cluster, key) != found["partition"]}
    assert elsewhere <= {entry["key"] for entry in there} < set(KEYS)
    assert all(entry["value"] == f"value of {entry['key']}" for entry in there)
    cluster.kvcli("put", "written", "after")


def partition(cluster: Cluster, key: str) -> int:
    from shared.hashing import partition_of

    return partition_of(key.encode(), 2)


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
