"""The composed cluster on a real Docker engine: a Compose project of its own, with ports that are free.

Containers are looked at, killed, paused and cut off by the Docker SDK; Compose starts them as a user would.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

import kvclient
from tests.documents import ROOT, blocks, run
from tests.ports import free_ports

COMPOSE_FILE = ROOT / "compose" / "docker-compose.yml"
AS_WRITTEN = "docker compose -f compose/docker-compose.yml"
IMAGE = "ringkv:test"
PATIENCE_S = 120


def wait_for(what: str, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{seconds} s, and not yet: {what}"
        time.sleep(0.25)


def compose_command() -> list[str]:
    """The oldest Compose that is there: what it accepts, later ones do."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    assert done.returncode == 0, "an engine answers, but there is no Compose: apt-get install docker-compose"
    return ["docker", "compose"]


def block_of_page(words: str) -> str:
    """The only block of docs/deployment.md that has these words."""
    (found,) = (block.text for block in blocks(page=ROOT / "docs" / "deployment.md") if words in block.text)
    return found


class Project:
    """One composed cluster, from nothing to `down`."""

    def __init__(self, engine: docker.DockerClient, name: str, directory: Path) -> None:
        self.engine = engine
        self.name = name
        self._command = [*compose_command(), "-p", name, "-f", str(COMPOSE_FILE)]
        self._added: list[str] = []
        ports = free_ports(2)
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RINGKV_IMAGE": IMAGE,
            "RINGKV_BUILD_NETWORK": "host",
            "RINGKV_PORT1": str(ports[0]),
            "RINGKV_PORT2": str(ports[1]),
            "RINGKV_MONITOR_PORT": "",
            "RINGKV_NETWORK": f"10.213.{os.getpid() % 250}",
        }
        self.keys = directory
        """The operator's keys, once they are copied."""

    def compose(self, *arguments: str, seconds: float = 1200) -> str:
        return run([*self._command, *arguments], self._environment, seconds=seconds)

    def play(self, commands: str, directory: Path) -> str:
        """Commands as a page has them, by a shell in `directory`."""
        shadow = f'compose() {{ {shlex.join(self._command)} "$@"; }}\n'
        script = shadow + commands.replace(AS_WRITTEN, "compose")
        command = ["bash", "-euo", "pipefail", "-c", script]
        return run(command, self._environment, directory=directory, seconds=PATIENCE_S)

    def copy_keys(self) -> None:
        """The operator's directory out of its volume, as who runs this test."""
        packed = subprocess.run(
            [*self._command, "run", "--rm", "-T", "keys", "tar", "-C", "/keys/operator", "-c", "."],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=True,
        )
        unpack = ["tar", "--no-same-owner", "-C", str(self.keys), "-x"]
        subprocess.run(unpack, input=packed.stdout, timeout=PATIENCE_S, check=True)

    def kvcli(self, *arguments: str) -> str:
        """What `kvcli` says in a container of its own."""
        return self.compose("run", "--rm", "-T", "cli", *arguments, seconds=PATIENCE_S)

    def container(self, service: str) -> Any:
        label = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        (found,) = self.engine.containers.list(all=True, filters={"label": label})
        return found

    @contextmanager
    def cut_off(self, service: str) -> Iterator[None]:
        """Away from the network, and back under its address."""
        (network,) = self.engine.networks.list(names=[f"{self.name}_internal"])
        container = self.container(service)
        address = container.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        network.disconnect(container)
        try:
            yield
        finally:
            network.connect(container, aliases=[service], ipv4_address=address)

    def wait_until_healthy(self, *services: str) -> None:
        def all_are() -> bool:
            states = (self.container(service).attrs["State"] for service in services)
            return all(state.get("Health", {}).get("Status") == "healthy" for state in states)

        wait_for(f"{', '.join(services)} healthy", all_are)

    @property
    def url(self) -> str:
        """Where this machine's clients find the routers."""
        return "kv://" + ",".join(f"127.0.0.1:{self.port(router, 7100)}" for router in ("router1", "router2"))

    def connect(self) -> kvclient.Client[str]:
        return kvclient.connect(self.url, keys=str(self.keys), codec="str")

    def port(self, service: str, inside: int) -> int:
        """Where on this machine a port of a service is."""
        return int(self.container(service).ports[f"{inside}/tcp"][0]["HostPort"])

    def listening(self, service: str) -> set[int]:
        """The ports on which others reach a container. Docker's resolver is on its loopback, and is none."""
        said = self.container(service).exec_run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).output.decode()
        rows = [line.split() for line in said.splitlines() if ":" in line.split()[1]]
        listening = [row[1].split(":") for row in rows if row[3] == "0A"]
        return {int(port, 16) for address, port in listening if not address.endswith("7F")}

    def add_file(self, name: str, content: str, directory: Path) -> None:
        """Another Compose file of the operator's, for `play` in `directory`."""
        path = directory / name
        path.write_text(content.replace("../", f"{directory}/"))
        self._added += ["-f", str(path)]

    def down(self) -> None:
        self.compose(*self._added, "down", "-v", "--remove-orphans")


class Writer:
    """Writes keys that nobody else writes, one after the other, until it is stopped; knows which were
    acknowledged.
    """

    def __init__(self, project: Project, prefix: str) -> None:
        self.acknowledged: list[str] = []
        self.failed = 0
        self._connect = project.connect
        self._prefix = prefix
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        number = 0
        with self._connect() as db:
            while not self._done.is_set():
                number += 1
                key = f"{self._prefix}:{number}"
                try:
                    db.put(key, key)
                except kvclient.KVError:
                    self.failed += 1
                else:
                    self.acknowledged.append(key)

    def go_on(self, count: int = 200) -> None:
        """Until so many more writes were acknowledged."""
        goal = len(self.acknowledged) + count
        wait_for(f"{count} more writes", lambda: len(self.acknowledged) >= goal)

    def stop(self) -> None:
        self._done.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def lost(self) -> list[str]:
        """Acknowledged writes that are not there any more."""
        with self._connect() as db:
            found = db.get_many(self.acknowledged)
        return [key for key in self.acknowledged if found.get(key) != key]
