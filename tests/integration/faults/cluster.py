"""A real cluster to be mistreated: every store and router a process that can be killed, paused, cut off, and
started again.

Owns the processes and their configuration. Knows nothing of what clients do.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack

import kvclient
from kvclient.errors import KVError
from tests.benchmark.cluster_bench.processes import Server
from tests.integration.faults.replicas import SEGMENT_BYTES
from tests.integration.faults.space import MORTAL, ROOT
from tests.ports import free_ports

STORES = (1, 2, 3)
ROUTERS = ("router1", "router2")
PARTITIONS = 4
LOOPBACK = "127.0.0.1"

READY_SECONDS = 60.0
"""For whatever has to happen by itself, on a busy machine."""
STOP_SECONDS = 20.0

_SMALL = {
    "engine": {"memtable": "1MiB", "memtables_total": "4MiB"},
    "raft": {"segment": SEGMENT_BYTES, "log_bytes": "16MiB"},
}
"""So that a run of seconds flushes, cuts the log, and needs new segments."""


class Cluster:
    """Stores, three if nothing else is said, and two routers, running; ends with `stack`.

    By node id, or by name of a router: `hosts`, where they listen, if not on the loopback; `prefixes`, in
    front of their commands; `places`, where stores keep their data, if not in `directory`.
    """

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        *,
        hosts: Mapping[int | str, str] | None = None,
        places: Mapping[int, Path] | None = None,
        prefixes: Mapping[int | str, Sequence[str]] | None = None,
        stores: Sequence[int] = STORES,
    ) -> None:
        self.directories = {node: directory / f"store{node}" for node in stores} | dict(places or {})
        ports = free_ports(3 * len(stores) + len(ROUTERS))
        nodes = [_node(node, (hosts or {}).get(node, LOOPBACK), ports) for node in stores]
        shape = {"name": "faults", "partitions": PARTITIONS, "nodes": nodes}
        self.stores = {
            node["id"]: _server(
                stack,
                directory,
                node["name"],
                "storenode",
                {
                    "node": {"id": node["id"], "name": node["name"]},
                    "listen": {"rpc": node["rpc"]},
                    "data": {"dir": str(self.directories[node["id"]])},
                    "cluster": shape,
                    "insecure": True,
                    **_SMALL,
                },
                (prefixes or {}).get(node["id"], ()),
            )
            for node in nodes
        }
        self.fronts = [
            f"{(hosts or {}).get(name, LOOPBACK)}:{port}"
            for name, port in zip(ROUTERS, ports[-len(ROUTERS) :], strict=True)
        ]
        self.routers = {
            name: _server(
                stack,
                directory,
                name,
                "router",
                {
                    "router": {"name": name, "listen": f"tcp://{front}"},
                    "stores": [node["rpc"] for node in nodes],
                    "insecure": True,
                },
                (prefixes or {}).get(name, ()),
            )
            for name, front in zip(ROUTERS, self.fronts, strict=True)
        }
        for server in (*self.stores.values(), *self.routers.values()):
            server.start()
        url = "kv://" + ",".join(self.fronts)
        self._client = stack.enter_context(kvclient.connect(url, connect_timeout=READY_SECONDS))
        self.wait_writable()

    def leader(self, key: bytes) -> int:
        """The node that leads the key's partition, as soon as a router knows of one."""
        found: list[int] = []

        def leads() -> bool:
            replicas = self._client.admin("route", key)["replicas"]
            found[:] = [replica["id"] for replica in replicas if replica["leader"]]
            return bool(found)

        self.until(leads, "a leader")
        return found[0]

    def holders(self, key: bytes) -> set[int]:
        """The nodes that have the key's partition."""
        return {replica["id"] for replica in self._client.admin("route", key)["replicas"]}

    def control(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What the controller answers to a command of an operator."""
        answer: dict[str, Any] = self._client.admin("control", command, msgpack.packb(arguments), False)
        return answer

    def wait_writable(self) -> None:
        """Until a write in every partition would succeed."""
        self.until(lambda: bool(self._client.admin("ready")), "writes in every partition")

    def wait_whole(self) -> None:
        """Until every store answers as well."""
        self.until(
            lambda: all(node["state"] == "up" for node in self.figures().values()),
            "all stores up",
        )
        self.wait_writable()

    def wait_healthy(self) -> None:
        """Until routers, stores and controller find nothing degraded, and all have the same map."""
        self.until(lambda: bool(self._client.admin("healthy")), "a healthy cluster")
        self.until(lambda: len(self.epochs()) == 1, "one map")

    def epochs(self) -> set[int | None]:
        """Of the maps that the routers, and the stores that answer them, have; None: one does not answer."""
        found: set[int | None] = set()
        for front in self.fronts:
            with kvclient.connect(f"kv://{front}") as client:
                status = client.admin("status")
            found |= {status["epoch"], *(node.get("epoch") for node in status["nodes"])}
        return found

    def figures(self) -> dict[int, dict[str, Any]]:
        """What each store tells of itself."""
        return {node["id"]: node for node in self._client.admin("status")["nodes"]}

    def settled(self) -> dict[int, int]:
        """Waits until all replicas have everything; the index of the entry applied last by partition."""
        found: dict[int, int] = {}

        def settled() -> bool:
            groups = self._client.admin("status")["groups"]
            found.clear()
            for group in groups:
                places = {
                    replica[field] for replica in group["replicas"] for field in ("applied", "commit", "last")
                }
                if len(places) != 1 or None in places or len(group["replicas"]) != len(STORES):
                    return False
                found[group["partition"]] = places.pop()
            return len(found) == PARTITIONS

        self.until(settled, "replicas that have everything")
        return found

    def until(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        """Waits for what the cluster should do by itself; an error of a client says not yet."""
        deadline = time.monotonic() + seconds
        while True:
            problem = ""
            try:
                if condition():
                    return
            except KVError as error:
                problem = str(error)
            assert time.monotonic() < deadline, (
                f"{what}: not within {seconds:.0f} s. {problem}\n{self.tails()}"
            )
            time.sleep(0.02)

    def stop(self) -> None:
        """In order, as an operator would; every store must end with exit code 0."""
        for server in self.routers.values():
            server.stop()
        for store in self.stores.values():
            store.signal(signal.SIGTERM)
        for store in self.stores.values():
            code = store.wait(STOP_SECONDS)
            assert code == 0, f"{store.name} ended with exit code {code}\n{store.tail()}"

    def tails(self) -> str:
        servers = (*self.stores.values(), *self.routers.values())
        return "\n".join(f"--- {server.name}\n{server.tail()}" for server in servers)


class Process(Server):
    """A server that tests end, pause and wait for."""

    _log_begin = 0

    def start(self) -> None:
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        super().start()

    def crash(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait(STOP_SECONDS)

    def wait(self, seconds: float) -> int:
        """The exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def pause(self) -> None:
        """SIGSTOP, and wait until all threads stand still."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while not all(
            (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
            for thread in Path(f"/proc/{self.pid}/task").iterdir()
        ):
            assert time.monotonic() < deadline, f"{self.name} does not stand still"
            time.sleep(0.005)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
        super().stop()

    def output(self) -> str:
        """What it has written since the last start."""
        return self._log.read_bytes()[self._log_begin :].decode(errors="replace")

    def said(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event since the last start."""
        events = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        return [one for one in events if one.get("event") == event]


def _node(number: int, host: str, ports: Sequence[int]) -> dict[str, Any]:
    rpc, bus, events = (f"tcp://{host}:{port}" for port in ports[3 * (number - 1) : 3 * number])
    name = f"store{number}"
    return {"id": number, "name": name, "rpc": rpc, "bus": bus, "events": events, "zone": name}


def _server(
    stack: ExitStack,
    directory: Path,
    name: str,
    module: str,
    config: dict[str, Any],
    prefix: Sequence[str] = (),
) -> Process:
    if module == "storenode":
        node = next(node for node in config["cluster"]["nodes"] if node["name"] == name)
        config["listen"] |= {"bus": node["bus"], "events": node["events"]}
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(config))
    command = [*MORTAL, *prefix, sys.executable, "-m", module, "--config", str(path)]
    return Process(stack, name, command, directory / f"{name}.log", ROOT)
