"""The blocks of docs/*.md that run here, run: on a real cluster, in a directory of the test's own.

They run as they stand, but for what is another machine's: its address is replaced by this cluster's, and a
store that it would start is started here; and what asks on a terminal gets its answer as `--yes`. README.md
is played by test_readme.py.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.keys import load as load_keys
from shared.config import load
from storenode.config import StoreConfig
from tests import documents
from tests.documents import ROOT
from tests.integration.localcluster import Cluster

pytestmark = pytest.mark.timeout(400)

RUN = {
    ("README.md", "python"): 2,
    ("README.md", "sh"): 3,
    ("api.md", "python"): 5,
    ("cli.md", "sh"): 1,
    ("cli.md", "txn"): 1,
    ("engine.md", "python"): 7,
    ("operations.md", "sh"): 5,
    ("security.md", "sh"): 1,
}
"""How many blocks of a page and kind are run by the tests below, and by test_readme.py."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.up("--stores", "3", "--routers", "1", "--partitions", "4")
        yield running
    finally:
        running.dev("down")


def texts(page: str, kind: str) -> list[str]:
    return [block.text for block in documents.blocks(kind, ROOT / "docs" / page)]


def run(
    command: list[str], script: str, directory: Path, cluster: Cluster | None = None, **changed: str
) -> str:
    environment = {**(cluster.environment() if cluster else os.environ), "PYTHONPATH": str(ROOT), **changed}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return documents.run(command, environment, script, directory=directory)


def shell(script: str, directory: Path, cluster: Cluster | None = None, **changed: str) -> str:
    return run(["bash", "-euo", "pipefail"], script, directory, cluster, **changed)


def test_every_block_that_runs_is_run() -> None:
    there = Counter((block.page, block.kind) for block in documents.blocks())
    assert {what: count for what, count in there.items() if what[1] in ("python", "sh", "txn")} == RUN


def test_the_engine_as_a_library(tmp_path: Path) -> None:
    """The page says that its blocks are one program."""
    run([sys.executable, "-"], "".join(texts("engine.md", "python")), tmp_path, TMPDIR=str(tmp_path))


def test_keys(tmp_path: Path) -> None:
    (block,) = texts("security.md", "sh")
    *made, revoked = block.splitlines()
    said = shell("\n".join(made), tmp_path)
    assert "app1\tclient" in said
    assert load_keys(tmp_path / "keys").certificates.keys() >= {"store1", "router1", "monitor", "app1"}
    shell(revoked, tmp_path)
    assert "app1" not in load_keys(tmp_path / "keys").certificates


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (0, {"admin", "store1", "router1"}),
        (1, {"admin", "store-1", "store-2", "store-3", "router", "monitor"}),
    ],
)
def test_keys_of_machines_and_pods(number: int, names: set[str], tmp_path: Path) -> None:
    """Of these blocks what needs no other machine: the keys."""
    blocks = [block for block in texts("deployment.md", "sh elsewhere") if block.count("kvcli keys init")]
    assert len(blocks) == 2
    lines = blocks[number].splitlines()
    shell("\n".join(line for line in lines if "kvcli keys " in line), tmp_path)
    assert load_keys(tmp_path / "keys").certificates.keys() == names


def test_the_sdk(cluster: Cluster, tmp_path: Path) -> None:
    """The blocks of the page are one program, too."""
    said = run([sys.executable, "-"], "".join(texts("api.md", "python")), tmp_path, cluster)
    assert said.splitlines()[-1] == "[b'task:0', b'task:1', b'task:10']"
    with cluster.connect() as db:
        assert db.get("visits") == b"100"
        assert db.count("task:") == 100


def test_import_and_export(cluster: Cluster, tmp_path: Path) -> None:
    (block,) = texts("cli.md", "sh")
    points = ["0041;LATIN CAPITAL LETTER A;Lu", "0042;LATIN CAPITAL LETTER B;Lu"]
    (tmp_path / "UnicodeData.txt").write_text("".join(f"{point}\n" for point in points))
    (tmp_path / "words").write_text("zebra\naardvark\n")
    shell(block, tmp_path, cluster, RINGKV_URL=f"{cluster.url}/files:")
    assert (tmp_path / "out.txt").read_text().splitlines() == points
    assert (tmp_path / "words.out").read_text().splitlines() == ["0041", "0042", "aardvark", "zebra"]


def test_a_transaction(cluster: Cluster, tmp_path: Path) -> None:
    """Its file is executed: the mail has another version here than there, so it is the second branch."""
    (block,) = texts("cli.md", "txn")
    with cluster.connect() as db:
        db.put_many({"{ada}name": b"Ada Lovelace", "{ada}mail": b"ada@example.org"}).raise_for_errors()
        db.delete("{ada}title")
        version = db.entry("{ada}mail").version
    (tmp_path / "ada").write_text(block)
    said = cluster.kvcli("txn", str(tmp_path / "ada"), check=False)
    assert (said.returncode, said.stdout) == (4, b"get\t{ada}name\tAda Lovelace\n")
    (tmp_path / "ada").write_text(block.replace("{ada}mail 12", f"{{ada}}mail {version}"))
    said = cluster.kvcli("txn", str(tmp_path / "ada"))
    assert [line.split()[:2] for line in said.stdout.splitlines()] == [
        [b"put", b"{ada}title"],
        [b"put", b"{ada}session"],
        [b"incr", b"{ada}changes"],
    ]


def test_operations(cluster: Cluster, tmp_path: Path) -> None:
    added, drained, lost, wiped, backups = texts("operations.md", "sh")

    *kept, restored = backups.replace("/backup", str(tmp_path)).splitlines()
    with cluster.connect() as db:
        db.delete_many(["hello", "{ada}session"])  # they live for a minute or so
        before = {entry.key: entry.value for entry in db.scan()}
        assert "monday" in shell("\n".join(kept), tmp_path, cluster)
        assert db.delete_many(before) == len(before)
        shell(restored.replace("kv://10.0.9.1:7100", cluster.url), tmp_path, cluster)
        assert {entry.key: entry.value for entry in db.scan()} == before

    configured, started, *moved = added.splitlines()
    shell(configured, tmp_path, cluster)
    assert load(StoreConfig, tmp_path / "store4.yaml", {}).node.name == "store4"
    assert started.startswith("scp store4.yaml kv4: && ssh kv4 kv-store --config store4.yaml")
    cluster.dev("add-store", "store4")
    shell("\n".join(moved), tmp_path, cluster)
    assert [node["name"] for node in cluster.nodes() if node["replicas"]] == [
        "store1",
        "store2",
        "store3",
        "store4",
    ]

    shell(drained, tmp_path, cluster)
    cluster.dev("stop", "store2")
    cluster.dev("add-store", "store5")
    cluster.dev("kill", "store3")
    cluster.wait_until_missed("store3")
    shell(lost.replace("--force", "--force --yes"), tmp_path, cluster)
    assert [node["name"] for node in cluster.nodes()] == ["store1", "store4", "store5"]

    removed, *renewed = wiped.splitlines()
    assert removed.split() == lost.split("#")[0].split()
    shell("\n".join(renewed), tmp_path, cluster)
    assert load(StoreConfig, tmp_path / "store3.yaml", {}).node.name == "store3"
    with cluster.connect() as db:
        assert {entry.key: entry.value for entry in db.scan()} == before
