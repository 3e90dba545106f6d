"""Our cluster: stores and one router as processes of their own, each started again at will."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kvclient
from kvclient.errors import KVError
from tests.benchmark.cluster_bench import data
from tests.benchmark.cluster_bench.load import RawLoad, one_by_one, pipelined
from tests.benchmark.cluster_bench.points import Point, Sample
from tests.benchmark.cluster_bench.processes import Server, wait_until
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[3]
STORES = 3
PARTITIONS = 16
READY_SECONDS = 90.0
"""Of a start on a busy machine, with the log to be read and a leader to be found for every partition."""
REPLICATED_SECONDS = 30.0
CALL_SECONDS = 5.0
FILL_CHUNK = 5000


class OurCluster:
    """Runs when it is made; ends with `stack`."""

    name = "ours"

    def __init__(
        self, stack: ExitStack, directory: Path, replicas: int, partitions: int = PARTITIONS
    ) -> None:
        self.replicas = replicas
        self.partitions = partitions
        self.stores: dict[int, Server] = {}
        directory.mkdir()
        ports = free_ports(3 * STORES + 1)
        self._front = f"tcp://127.0.0.1:{ports[-1]}"
        for node, config in _configs(directory, ports, replicas, partitions).items():
            self.stores[node] = _server(stack, directory, f"store{node}", "storenode", config)
        router = {
            "router": {"name": "router1", "listen": self._front},
            "stores": [f"tcp://127.0.0.1:{ports[3 * number]}" for number in range(STORES)],
        }
        self.router = _server(stack, directory, "router", "router", router)
        for server in (*self.stores.values(), self.router):
            server.start()
        self.client = stack.enter_context(self.connect())
        self._raw = RawLoad(stack, self._front)
        self.wait_ready()

    def connect(self) -> kvclient.Client[bytes]:
        address = self._front.removeprefix("tcp://")
        return kvclient.connect(f"kv://{address}", timeout=CALL_SECONDS, connect_timeout=READY_SECONDS)

    def servers(self) -> dict[str, int]:
        return {server.name: server.pid for server in (*self.stores.values(), self.router)}

    def wait_ready(self) -> None:
        """Until a write in every partition would succeed without any one of the stores: each leads something
        again, and has the same logs as the others.
        """
        wait_until(
            self._ready, READY_SECONDS, "a cluster that is ready", [*self.stores.values(), self.router]
        )

    def wait_writable(self) -> None:
        """Until a write in every partition would succeed, with whichever stores there are."""
        wait_until(self._writable, READY_SECONDS, "writes in every partition", [self.router])

    def figures(self) -> dict[int, dict[str, Any]]:
        """What each store tells of itself; a store that does not answer tells its state only."""
        return {node["id"]: node for node in self.client.admin("status")["nodes"]}

    def leaders(self) -> dict[int, int]:
        """The node that leads each partition, as the stores tell, as soon as every one has a leader."""
        leaders: dict[int, int] = {}

        def all_led() -> bool:
            groups = self.client.admin("status")["groups"]
            leaders.update((int(group["partition"]), int(group["leader"])) for group in groups)
            return all(leaders.values())

        wait_until(all_led, READY_SECONDS, "a leader of every partition", [self.router])
        return leaders

    def syncs(self) -> int | None:
        counts = [figures.get("log") for figures in self.figures().values()]
        if not all(isinstance(count, dict) and "syncs" in count for count in counts):
            return None
        return sum(int(count["syncs"]) for count in counts if count)

    def keys(self) -> dict[int, int]:
        """How many keys each store holds, as it tells; without those that do not answer."""
        try:
            figures = self.figures()
        except KVError:
            return {}
        return {node: int(told["keys"]) for node, told in figures.items() if "keys" in told}

    def fill(self) -> None:
        """Every key of the load, once. TimeoutError if they do not come to all replicas: it would be another
        cluster than the one that is to be measured.
        """
        for first in range(0, data.KEYS, FILL_CHUNK):
            chunk = range(first, min(first + FILL_CHUNK, data.KEYS))
            self.client.put_many(
                (data.key(number), data.value(number)) for number in chunk
            ).raise_for_errors()
        wanted = self.replicas * data.KEYS
        wait_until(
            lambda: sum(self.keys().values()) >= wanted,
            REPLICATED_SECONDS,
            f"{self.replicas} replicas of {data.KEYS:,} keys (without replication: --replicas 1)",
            [*self.stores.values(), self.router],
        )

    def prepare(self, point: Point) -> bool:
        self.run(point, 0.1)
        return True

    def run(self, point: Point, seconds: float) -> Sample:
        """One op at a time and pipelines are the SDK's; other single ops are raw requests."""
        if point.batch > 1:
            return pipelined(self.client, point, seconds)
        if point.in_flight == 1:
            return one_by_one(self.client, point, seconds)
        return self._raw.run(point, seconds)

    def _writable(self) -> bool:
        try:
            self.client.admin("ready")
        except KVError:
            return False
        return True

    def _ready(self) -> bool:
        if not self._writable():
            return False
        try:
            told = self.client.admin("status")
        except KVError:
            return False
        return all(node["state"] == "up" and node["leads"] for node in told["nodes"]) and all(
            len({(replica["term"], replica["last"]) for replica in group["replicas"]}) == 1
            for group in told["groups"]
        )


def _configs(directory: Path, ports: list[int], replicas: int, partitions: int) -> dict[int, dict[str, Any]]:
    """The configuration of each store."""
    nodes: list[dict[str, Any]] = []
    for number in range(STORES):
        rpc, bus, events = (f"tcp://127.0.0.1:{port}" for port in ports[3 * number : 3 * number + 3])
        name = f"store{number + 1}"
        nodes.append({"id": number + 1, "name": name, "rpc": rpc, "bus": bus, "events": events, "zone": name})
    cluster = {"name": "bench", "partitions": partitions, "replicas": replicas, "nodes": nodes}
    return {
        node["id"]: {
            "node": {"id": node["id"], "name": node["name"]},
            "listen": {name: node[name] for name in ("rpc", "bus", "events")},
            "data": {"dir": str(directory / node["name"])},
            "cluster": cluster,
        }
        for node in nodes
    }


def _server(stack: ExitStack, directory: Path, name: str, module: str, config: dict[str, Any]) -> Server:
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", module, "--config", str(path)]
    return Server(stack, name, command, directory / f"{name}.log", ROOT)
