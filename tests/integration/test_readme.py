"""The code blocks of README.md do what the text around them says, on a real cluster.

They run as they stand, but for what would make two test runs meet on the machine: `scripts/up --detach` is
left out (the fixture has started the same cluster, on free ports), the address in the Python block is
replaced by that cluster's, and its directory is the default one of a state directory of the test's own. The
block on the engine needs no cluster, and runs in a directory of the test's own. The block on containers is
played by tests/compose, where a Docker engine is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.errors import Exit
from tests import documents
from tests.documents import run

URL = "kv://127.0.0.1:7100,127.0.0.1:7101"


def blocks(kind: str) -> list[str]:
    return [block.text for block in documents.blocks(kind, documents.README)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the reader's shell has after `scripts/up --detach`."""
    state = tmp_path_factory.mktemp("state")
    binaries = Path(sys.executable).parent
    variables = os.environ | {"XDG_STATE_HOME": str(state), "PATH": f"{binaries}:{os.environ['PATH']}"}
    variables.pop("RINGKV_URL", None)

    def dev(*arguments: str) -> bytes:
        command = ["kvcli", "dev", *arguments]
        return subprocess.run(command, env=variables, check=True, timeout=90, stdout=subprocess.PIPE).stdout

    started = dev("up", "--detach", "--port-base", "0", "-o", "json")
    variables["RINGKV_URL"] = json.loads(started)["url"]
    yield variables
    dev("down", "--purge", "--yes")
    assert list((state / "ringkv").iterdir()) == []


def shell(script: str, environment: dict[str, str]) -> str:
    return run(["bash", "-euo", "pipefail", "-c", script], environment)


def test_python_block(environment: dict[str, str]) -> None:
    block, _ = blocks("python")
    assert URL in block
    script = block.replace(URL, environment["RINGKV_URL"]) + "    assert hits[-1].result() == 100\n"
    lines = run([sys.executable, "-"], environment, script).splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["b'user:1'", "Ada"], ["b'user:2'", "Grace"]]
    assert lines[2].startswith("it is there, in version ")


def test_the_block_on_the_engine(tmp_path: Path) -> None:
    _, block = blocks("python")
    lines = run([sys.executable, "-"], dict(os.environ), block, directory=tmp_path).splitlines()
    assert lines == ["b'cherry' b'red'", "b'apple' b'red'"]
    assert (tmp_path / "fruit").is_dir()


def test_the_asyncio_twin(environment: dict[str, str]) -> None:
    match = re.search(
        r"`(async with await kvclient\.aconnect\(url\) as db: .*?)`", documents.README.read_text()
    )
    assert match is not None
    script = f"import asyncio, kvclient\nurl = None\nasync def main():\n    {match[1]}\nasyncio.run(main())\n"
    run([sys.executable, "-"], environment, script)


@pytest.mark.timeout(600)  # the third block restarts every process
def test_shell_blocks(environment: dict[str, str]) -> None:
    quickstart, crash, grow = blocks("sh")
    first, *lines = quickstart.splitlines()
    assert first.startswith("scripts/up --detach ")
    *lines, last = lines
    assert last.startswith("kvcli dev down ")
    assert shell("\n".join(lines), environment).splitlines()[1] == "world"
    # The second block goes on with the cluster of the first.
    said = shell(crash, environment)
    assert "again" in said.splitlines()
    assert "down" in said
    # And so does the third, which takes a store away and brings another.
    stores = [line.split()[0] for line in shell(grow, environment).splitlines() if line.startswith("store")]
    assert {"store1", "store3", "store4"} <= set(stores)
    left = json.loads(run(["kvcli", "node", "ls", "-o", "json"], environment))["nodes"]
    assert [node["name"] for node in left] == ["store1", "store3", "store4"]
    assert all(node["replicas"] for node in left)
    shell(last, environment)
    run(["kvcli", "dev", "status"], environment, code=Exit.DEGRADED)
