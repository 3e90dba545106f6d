"""How long writes stand still when a store that leads ends.

In every partition an SDK client of its own puts one key again and again; the node that leads the first of
them gets SIGKILL or SIGTERM, and with it all partitions that it leads lose their leader at once. A
partition's outage is the longest time between two of its acknowledged puts, from the signal until writes
have flowed for a while after the end of the process: after SIGKILL that is the time from the kill to the
first acknowledged write, while a process that ends in order still serves for a moment. The distribution is
that of the partitions which the store led; the longest counts all. Then the store is started again, and the
next outage waits until the cluster is whole. Another node has to lead all those partitions after each end,
or the bar is not met, whatever the times. With one replica the store has to be started for writes to go on:
that is timed too.
"""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from contextlib import ExitStack
from threading import Event, Thread
from typing import Any

from kvclient.errors import KVError
from tests.benchmark.cluster_bench.data import value
from tests.benchmark.cluster_bench.ours import OurCluster
from tests.benchmark.cluster_bench.processes import Server, wait_until

SIGNALS = {"kill -9": (signal.SIGKILL, 2.0), "SIGTERM": (signal.SIGTERM, 0.2)}
"""By name; with the bar, in seconds."""
PUT_SECONDS = 5.0
"""Timeout of a put: the SDK tries again within it."""
PACE_SECONDS = 0.01
"""Between two puts of a partition: the clients are not to fill the cores. It is part of the outage."""
WARM_PUTS = 20
SETTLE_SECONDS = 0.5
"""Writes have to flow so long after the process has ended."""
GIVE_UP_SECONDS = 60.0


class _Writer:
    """Puts one key until it is stopped, on a thread of its own."""

    def __init__(self, stack: ExitStack, cluster: OurCluster, key: bytes) -> None:
        self.acknowledged: list[float] = []
        self._key = key
        self._client = stack.enter_context(cluster.connect())
        self._stopped = Event()
        self._thread = Thread(target=self._run)
        self._thread.start()
        stack.callback(self._stop)

    def outage(self, since: float) -> float:
        """Seconds without an acknowledged put, at most, after `since`."""
        times = list(self.acknowledged)
        return max(
            later - max(earlier, since) for earlier, later in itertools.pairwise(times) if later > since
        )

    def _run(self) -> None:
        while not self._stopped.wait(PACE_SECONDS):
            try:
                self._client.put(self._key, value(1), timeout=PUT_SECONDS)
            except KVError:
                continue
            self.acknowledged.append(time.perf_counter())

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def failover(cluster: OurCluster, kills: int) -> list[dict[str, Any]]:
    """A row for each signal."""
    return [_row(cluster, name, kills) for name in SIGNALS]


def _row(cluster: OurCluster, name: str, kills: int) -> dict[str, Any]:
    number, bar = SIGNALS[name]
    outages: list[float] = []
    others: list[float] = []
    stayed = 0
    keys = _keys_of_partitions(cluster)
    for _ in range(kills):
        cluster.wait_ready()
        leaders = cluster.leaders()
        store = cluster.stores[leaders[0]]
        led = {partition for partition, leader in leaders.items() if leader == leaders[0]}
        with ExitStack() as stack:
            writers = {partition: _Writer(stack, cluster, key) for partition, key in keys.items()}
            longest = _outages(writers, store, number, restart=cluster.replicas == 1)
        outages += [longest[partition] for partition in led]
        others += [outage for partition, outage in longest.items() if partition not in led]
        after = cluster.leaders()
        stayed += sum(after[partition] == leaders[0] for partition in led)
        if not store.running:
            store.start()
    longest_of_all = max(outages + others)
    return {
        "workload": f"failover {name}",
        "in_flight": len(keys),
        "ours": {
            "p50_ms": round(statistics.median(outages) * 1000, 1),
            "max_ms": round(longest_of_all * 1000, 1),
        },
        "peers": {},
        "kills": kills,
        "leaders_stayed": stayed if cluster.replicas > 1 else None,
        "outages_ms": [round(outage * 1000, 1) for outage in sorted(outages)],
        "longest_of_others_ms": round(max(others, default=0.0) * 1000, 1),
        "bar_ms": bar * 1000,
        "met": longest_of_all < bar and not stayed if cluster.replicas > 1 else None,
    }


def _outages(writers: dict[int, _Writer], store: Server, number: int, restart: bool) -> dict[int, float]:
    """Seconds, by partition; TimeoutError if writes do not come back, or the process does not end."""
    wait_until(
        lambda: all(len(writer.acknowledged) > WARM_PUTS for writer in writers.values()),
        GIVE_UP_SECONDS,
        "writes in every partition",
        [store],
    )
    since = time.perf_counter()
    store.signal(number)
    wait_until(lambda: not store.running, GIVE_UP_SECONDS, f"the end of {store.name}", [])
    if restart:
        store.start()
    settled = time.perf_counter() + SETTLE_SECONDS
    wait_until(
        lambda: all(writer.acknowledged and writer.acknowledged[-1] > settled for writer in writers.values()),
        GIVE_UP_SECONDS,
        f"writes in every partition after signal {number}",
        [],
    )
    return {partition: writer.outage(since) for partition, writer in writers.items()}


def _keys_of_partitions(cluster: OurCluster) -> dict[int, bytes]:
    keys: dict[int, bytes] = {}
    for number in itertools.count():
        key = b"failover:%07d" % number
        keys.setdefault(int(cluster.client.admin("route", key)["partition"]), key)
        if len(keys) == cluster.partitions:
            return keys
    raise AssertionError
