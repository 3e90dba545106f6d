"""Real files through the whole house: exports equal imports byte for byte after sorting."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.localcluster import KVCLI, Cluster

UNICODE_DATA = Path("/usr/share/unicode/UnicodeData.txt")
WORDS = Path("/usr/share/dict/american-english-insane")
UNICODE_LAYOUT = ("--format", "csv", "--delimiter", ";", "--key-column", "1", "--value", "rest")


def needs(path: Path, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"Debian package {package} is not installed")


@pytest.fixture(params=["unicode", "words"])
def corpus(request: pytest.FixtureRequest) -> tuple[str, Path, tuple[str, ...]]:
    path, layout = (
        (UNICODE_DATA, UNICODE_LAYOUT) if request.param == "unicode" else (WORDS, ("--format", "lines"))
    )
    if not path.exists():
        pytest.skip(
            f"{path} is not here: scripts/test installs it as root (Debian unicode-data, wamerican-insane)"
        )
    return request.param, path, layout


@pytest.mark.timeout(300)
def test_export_equals_the_import(
    cluster: Cluster, corpus: tuple[str, Path, tuple[str, ...]], tmp_path: Path
) -> None:
    name, source, layout = corpus
    url = f"{cluster.url}/{name}"
    target = tmp_path / "export"
    cluster.kvcli("-u", url, "import", str(source), *layout, cwd=tmp_path, timeout=280)
    cluster.kvcli("-u", url, "export", "-f", str(target), *layout, timeout=280)
    assert sorted(target.read_bytes().splitlines(True)) == sorted(source.read_bytes().splitlines(True))
    count = int(cluster.kvcli("-u", url, "-o", "plain", "count").stdout)
    assert count == len(set(source.read_bytes().splitlines()))


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that this test may kill."""
    running = Cluster(tmp_path / "cluster")
    try:
        running.up("--stores", "3", "--routers", "2")
        yield running
    finally:
        running.dev("down")


def acknowledged(state: Path) -> int:
    """Records that the state file of a running import calls acknowledged."""
    try:
        return int(re.search(r'"imported":\s*(\d+)', state.read_text())[1])  # type: ignore[index]
    except (OSError, TypeError):
        return 0


@needs(WORDS, "wamerican-insane")
@pytest.mark.timeout(400)
def test_import_survives_kill_of_all_stores(own_cluster: Cluster, tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = (KVCLI, "import", str(WORDS), "--format", "lines", "--resume", str(state), "--retry-for", "1s")
    running = subprocess.Popen(
        command, cwd=tmp_path, env=own_cluster.environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while acknowledged(state) < 50_000:
            assert running.poll() is None, running.stderr and running.stderr.read()
            assert time.monotonic() < deadline, "the import does not get anywhere"
            time.sleep(0.01)
        own_cluster.dev("kill", "stores")
        _, stderr = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            running.wait()
    assert running.returncode in (5, 6, 7, 8), stderr
    assert b"continue:" in stderr
    assert b"--resume" in stderr
    done = acknowledged(state)
    assert done >= 50_000

    own_cluster.dev("start", "stores")
    own_cluster.ready()
    words = WORDS.read_bytes().splitlines()
    with own_cluster.connect() as client:
        there = client.get_many(words[:done])
    assert [word for word in words[:done] if there.get(word) != b""] == []

    summary = own_cluster.kvcli("-o", "json", *command[1:], cwd=tmp_path, timeout=280)
    assert json.loads(summary.stdout)["imported"] == len(words)
    target = tmp_path / "export"
    own_cluster.kvcli("export", "-f", str(target), "--format", "lines", timeout=280)
    assert sorted(target.read_bytes().splitlines()) == sorted(set(words))
