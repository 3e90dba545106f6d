"""How long writes stand still when the leader of their partition ends.

An SDK client puts one key again and again; the node that leads it gets SIGKILL or SIGTERM. The outage is the
longest time between two acknowledged puts, from the signal until writes have flowed for a while after the
end of the process: after SIGKILL that is the time from the kill to the first acknowledged write, while a
process that ends in order still serves for a moment. Then the store is started again, and the next outage
waits until the cluster is whole. Another node has to lead after each of them, or the bar is not met, whatever
the times: then it was not the leader that was killed. With one replica the store has to be started for writes
to go on: that is timed too.
"""

from __future__ import annotations

import signal
import statistics
import time
from typing import Any

import kvclient
from kvclient.errors import KVError
from tests.benchmark.cluster_bench.data import value
from tests.benchmark.cluster_bench.ours import OurCluster
from tests.benchmark.cluster_bench.processes import Server

SIGNALS = {"kill -9": (signal.SIGKILL, 2.0), "SIGTERM": (signal.SIGTERM, 0.2)}
"""By name; with the bar, in seconds."""
KEY = b"failover:0000000"
PUT_SECONDS = 5.0
"""Timeout of a put: the SDK tries again within it."""
WARM_PUTS = 50
SETTLE_SECONDS = 0.5
"""Writes have to flow so long after the process has ended."""
GIVE_UP_SECONDS = 60.0


def failover(cluster: OurCluster, kills: int) -> list[dict[str, Any]]:
    """A row for each signal."""
    return [_row(cluster, name, kills) for name in SIGNALS]


def _row(cluster: OurCluster, name: str, kills: int) -> dict[str, Any]:
    number, bar = SIGNALS[name]
    outages, moved = [], 0
    with cluster.connect() as client:
        for _ in range(kills):
            cluster.wait_ready()
            for _ in range(WARM_PUTS):
                client.put(KEY, value(0), timeout=PUT_SECONDS)
            leader = cluster.leader(KEY)
            store = cluster.stores[leader]
            outages.append(_outage(client, store, number, restart=cluster.replicas == 1))
            moved += cluster.leader(KEY) != leader
            if not store.running:
                store.start()
    longest = max(outages)
    return {
        "workload": f"failover {name}",
        "in_flight": 1,
        "ours": {"p50_ms": round(statistics.median(outages) * 1000, 1), "max_ms": round(longest * 1000, 1)},
        "peers": {},
        "kills": kills,
        "leader_moved": moved if cluster.replicas > 1 else None,
        "outages_ms": [round(outage * 1000, 1) for outage in sorted(outages)],
        "bar_ms": bar * 1000,
        "met": longest < bar and moved == kills if cluster.replicas > 1 else None,
    }


def _outage(client: kvclient.Client[bytes], store: Server, number: int, restart: bool) -> float:
    """Seconds; TimeoutError if writes do not come back, or the process does not end."""
    longest = 0.0
    settled: float | None = None
    ended = False
    began = acknowledged = time.perf_counter()
    store.signal(number)
    while settled is None or acknowledged < settled:
        try:
            client.put(KEY, value(1), timeout=PUT_SECONDS)
        except KVError:
            time.sleep(0.001)  # a refusal at once is not to be followed by a thousand others
        else:
            now = time.perf_counter()
            longest = max(longest, now - acknowledged)
            acknowledged = now
            if ended and settled is None:
                settled = now + SETTLE_SECONDS
        if not ended and not store.running:
            ended = True
            if restart:
                store.start()
        if time.perf_counter() > began + GIVE_UP_SECONDS:
            what = "no write was acknowledged" if ended else f"{store.name} did not end"
            raise TimeoutError(f"{what} within {GIVE_UP_SECONDS:.0f} s after signal {number}")
    return longest
