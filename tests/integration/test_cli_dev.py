"""`kvcli dev` with real servers: start, kill, start again, stop; ports and directories that are taken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from kvclient.errors import Exit

KVCLI = Path(sys.executable).with_name("kvcli")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the cluster goes; stopped at the end whatever happened."""
    path = tmp_path / "cluster"
    yield path
    if path.exists():
        subprocess.run([KVCLI, "dev", "down", "--dir", path], check=True, timeout=60, capture_output=True)


@pytest.fixture
def kv(directory: Path) -> Run:
    """Run kvcli; `dev` commands get --dir, others the cluster's URL."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        options: list[str] = ["--dir", str(directory)] if arguments[0] == "dev" else ["-u", url(directory)]
        done = subprocess.run(
            [KVCLI, *arguments, *options], capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == code, done
        return done

    return run


def shape(directory: Path) -> dict[str, int]:
    return json.loads((directory / "cluster.json").read_text())  # type: ignore[no-any-return]


def url(directory: Path) -> str:
    base = shape(directory)["port_base"]
    return "kv://" + ",".join(f"127.0.0.1:{base + number}" for number in range(shape(directory)["routers"]))


def processes(kv: Run, code: int = 0) -> dict[str, Any]:
    found = json.loads(kv("dev", "status", "-o", "json", code=code).stdout)["processes"]
    return {process["name"]: process for process in found}


UP = ("dev", "up", "--port-base", "0", "--detach")


def test_a_whole_life(kv: Run, directory: Path) -> None:
    said = kv(*UP).stdout
    assert f"export RINGKV_URL={url(directory)}" in said
    assert "kvcli dev down" in said
    assert list(processes(kv)) == ["store1", "store2", "store3", "router1", "router2", "monitor"]
    monitor = f"http://127.0.0.1:{shape(directory)['port_base'] + 200}"
    assert f"at a glance:  {monitor}" in said
    with urlopen(f"{monitor}/healthz", timeout=10) as answer:
        assert answer.status == 200
    kv("wait", "--ready", "--timeout", "5s")
    kv("mput", *[item for number in range(200) for item in (f"k{number}", f"v{number}")])
    before = processes(kv)
    assert all(process["uptime_s"] > 0 and process["memory_bytes"] > 1 << 20 for process in before.values())

    # A store dies: that is said, and costs nothing. Of two, all that they held is unavailable.
    assert "killed store2" in kv("dev", "kill", "store2").stderr
    assert processes(kv, Exit.DEGRADED)["store2"]["state"] == "down"
    assert "store2 is down" in kv("status", code=Exit.DEGRADED).stderr
    kv("wait", "--ready")
    assert kv("count", "k").stdout == "200\n"
    kv("dev", "kill", "store2", code=Exit.NOT_FOUND)
    kv("dev", "stop", "store2", code=Exit.NOT_FOUND)
    assert "stopped store3" in kv("dev", "stop", "store3").stderr
    assert "not ready" in kv("wait", "--timeout", "300ms", code=Exit.UNAVAILABLE).stderr
    kv("dev", "start", "store3")
    kv("wait", "--ready")
    assert "started store2" in kv("dev", "start", "store2").stderr
    assert kv("count", "k").stdout == "200\n"
    after = processes(kv)
    assert after["store2"]["pid"] != before["store2"]["pid"]
    assert after["store1"]["pid"] == before["store1"]["pid"]

    # A router dies: the other one serves.
    kv("dev", "kill", "router1")
    assert kv("get", "k7").stdout == "v7\n"

    # `up` starts what is missing, and only that; without a number the shape is that of the directory.
    kv("dev", "up", "--detach")
    again = processes(kv)
    assert again["router1"]["pid"] != before["router1"]["pid"]
    assert again["router2"]["pid"] == before["router2"]["pid"]
    assert "runs already" in kv("dev", "up", "--detach").stdout

    # Everything dies at once.
    kv("dev", "kill", "all")
    assert {process["state"] for process in processes(kv, Exit.DEGRADED).values()} == {"down"}
    kv("get", "k7", code=Exit.CONNECT)
    kv("dev", "start", "all")
    assert len(kv("mget", *[f"k{number}" for number in range(200)]).stdout.splitlines()) == 200

    # An orderly stop keeps the data.
    assert "stopped 6 processes" in kv("dev", "down").stderr
    kv("dev", "up", "--detach")
    assert kv("get", "k199").stdout == "v199\n"

    kv("dev", "down", "--purge", "--yes")
    assert not directory.exists()


def test_a_taken_port_is_named_and_nothing_is_left_running(kv: Run, directory: Path) -> None:
    kv(*UP, "--stores", "1", "--routers", "1")
    kv("dev", "down")
    port = shape(directory)["port_base"]
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen(1)
        said = kv("dev", "up", "--detach", code=Exit.ERROR).stderr
    assert f"port {port} is in use, router1 needs it" in said
    assert "--port-base 0" in said
    assert {process["state"] for process in processes(kv, Exit.DEGRADED).values()} == {"down"}


def test_a_server_that_cannot_start_shows_its_log(kv: Run, directory: Path) -> None:
    kv(*UP, "--stores", "1", "--routers", "1")
    kv("dev", "down")
    identity = next((directory / "data" / "store1").glob("identity*"))
    identity.write_text('{"cluster_id": "another"}')
    said = kv("dev", "up", "--detach", code=Exit.ERROR).stderr
    assert "store1 ended while starting" in said
    assert "identity" in said
    assert said.endswith("(START_FAILED)\n")
    assert {process["state"] for process in processes(kv, Exit.DEGRADED).values()} == {"down"}


def test_logs(kv: Run) -> None:
    kv(*UP, "--stores", "1", "--routers", "1")
    lines = kv("dev", "logs", "-n", "1").stdout.splitlines()
    assert [line.split(" | ")[0].strip() for line in lines] == ["store1", "router1", "monitor"]
    assert len(kv("dev", "logs", "store1", "-n", "1000").stdout.splitlines()) >= 1
    kv("dev", "logs", "store7", code=Exit.USAGE)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_ends_with_a_signal_and_takes_everything_along(
    kv: Run, directory: Path, number: signal.Signals, tmp_path: Path
) -> None:
    command = [KVCLI, "dev", "up", "--port-base", "0", "--stores", "1", "--routers", "1", "--dir", directory]
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said) as process,
    ):
        text = (tmp_path / "said").read_text
        try:
            wait_until(lambda: "stop it with Ctrl-C" in text())
            kv("put", "k", "v")
            kv("dev", "kill", "store1")
            wait_until(lambda: "store1 ended by signal SIGKILL" in text())
            kv("dev", "start", "store1")
            wait_until(lambda: "store1 is back" in text())
            assert kv("get", "k").stdout == "v\n"
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert {found["state"] for found in processes(kv, Exit.DEGRADED).values()} == {"down"}


def test_servers_are_not_taken_from_where_the_user_stands(directory: Path, tmp_path: Path) -> None:
    for name in ("router", "storenode", "shared"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    command = [KVCLI, *UP, "--stores", "1", "--routers", "1", "--dir", str(directory)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done
