"""What it costs to grow, to shrink and to lose a store, with data and under load, on real processes.

A few clients get and put single keys at a steady pace, far from what the cluster can do: their latencies are
those of an application, not of a queue. Moved bytes are what the new store's replicas take on its disk; ideal
is a fourth of what all stores hold.
"""

from __future__ import annotations

import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import kvclient
from kvclient.errors import KVError
from tests.integration.localcluster import Cluster

CLIENTS: Final = 4
PAUSE_S: Final = 0.004
VALUE_BYTES: Final = 100
CHUNK: Final = 5000
WAIT_SECONDS: Final = 600
WAIT: Final = f"{WAIT_SECONDS}s"
P99_RATIO_MAX: Final = 3.0


class Clients:
    """Latencies of single gets and puts, half and half."""

    def __init__(self, url: str, keys: int) -> None:
        self.failed: list[str] = []
        self._url = url
        self._keys = keys
        self._latencies: list[float] = []
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._live, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def of(self, work: Callable[[], object]) -> dict[str, float]:
        """What was measured while `work` ran."""
        first = len(self._latencies)
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        ordered = sorted(self._latencies[first:])
        return {
            "seconds": round(seconds, 1),
            "ops": len(ordered),
            "p50_ms": round(statistics.median(ordered) * 1000, 2),
            "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 2),
            "max_ms": round(ordered[-1] * 1000, 1),
        }

    def _live(self, number: int) -> None:
        dice = random.Random(number)
        with kvclient.connect(self._url) as client:
            while not self._stop.wait(PAUSE_S):
                key = key_of(dice.randrange(self._keys))
                began = time.perf_counter()
                try:
                    client.put(key, value_of(dice)) if dice.random() < 0.5 else client.get(key)
                except KVError as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                else:
                    self._latencies.append(time.perf_counter() - began)


def growing(directory: Path, keys: int, seconds: float) -> dict[str, Any]:
    """Rows by what happened, each with the latencies meanwhile."""
    cluster = Cluster(directory)
    cluster.up("--stores", "3", "--routers", "1")
    try:
        with cluster.connect() as client:
            for first in range(0, keys, CHUNK):
                chunk = range(first, min(first + CHUNK, keys))
                dice = random.Random(first)
                client.put_many((key_of(number), value_of(dice)) for number in chunk).raise_for_errors()
        clients = Clients(cluster.url, keys)
        with clients.running():
            clients.of(lambda: time.sleep(seconds))
            before = clients.of(lambda: time.sleep(seconds))
            cluster.dev("add-store", "store4")
            grow = clients.of(lambda: _await(cluster, "rebalance", "start"))
            nodes = _sizes(cluster)
            drain = clients.of(lambda: _await(cluster, "node", "drain", "store1"))
            cluster.kvcli("node", "remove", "store1")
            cluster.dev("stop", "store1")
            replace = clients.of(lambda: _lose(cluster, "store2", "store5"))
        return {
            "keys": keys,
            "before": before,
            "grow": grow | _ratio(grow, before),
            "moved_bytes": nodes["store4"],
            "ideal_bytes": sum(nodes.values()) // len(nodes),
            "drain": drain | _ratio(drain, before),
            "kill_to_full_replication": replace | _ratio(replace, before),
            "failed": len(clients.failed),
            "failures": clients.failed[:5],
        }
    finally:
        cluster.dev("down", "--purge", "--yes")


def key_of(number: int) -> bytes:
    return b"key:%012d" % number


def value_of(dice: random.Random) -> bytes:
    return dice.randbytes(VALUE_BYTES // 2) + bytes(VALUE_BYTES - VALUE_BYTES // 2)


def _sizes(cluster: Cluster) -> dict[str, int]:
    """Bytes by store; a controller that is new knows them with the first report of each."""
    deadline = time.monotonic() + WAIT_SECONDS
    while any(node["bytes"] is None for node in cluster.nodes()):
        assert time.monotonic() < deadline, "a store does not report"
        time.sleep(0.2)
    return {node["name"]: int(node["bytes"]) for node in cluster.nodes()}


def _await(cluster: Cluster, *command: str) -> None:
    cluster.kvcli(*command, "--wait", "--within", WAIT, timeout=WAIT_SECONDS + 20)


def _lose(cluster: Cluster, name: str, instead: str) -> None:
    cluster.dev("kill", name)
    shutil.rmtree(cluster.directory / "data" / name)
    cluster.dev("add-store", instead)
    cluster.wait_until_missed(name)
    cluster.kvcli("--yes", "node", "remove", name, "--force")
    cluster.kvcli("wait", "--healthy", "--timeout", WAIT, timeout=WAIT_SECONDS + 20)


def _ratio(meanwhile: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {"p99_ratio": round(meanwhile["p99_ms"] / before["p99_ms"], 2)}
