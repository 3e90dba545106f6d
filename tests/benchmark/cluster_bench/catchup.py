"""How long a replica takes to catch up that was away while many new keys were written.

It has caught up when its engines hold as many keys as were written: each is written once, and with a replica
of everything on every store they all count the same. What is being flushed is not counted for a moment, so it
is never said too early. The time begins with the start of its process, so it includes that.
"""

from __future__ import annotations

import time
from typing import Any

import kvclient
from kvclient.errors import KVError
from tests.benchmark.cluster_bench.data import key, value
from tests.benchmark.cluster_bench.ours import STORES, OurCluster
from tests.benchmark.cluster_bench.processes import wait_until

CHUNK = 5000
CHUNK_SECONDS = 120.0
"""Of tries, for one chunk."""
CATCH_UP_SECONDS = 900.0


def catchup(cluster: OurCluster, entries: int) -> dict[str, Any]:
    """The row. `cluster` is new, and has as many replicas as stores."""
    assert cluster.replicas == STORES
    away = STORES
    cluster.stores[away].stop()
    cluster.wait_writable()
    began = time.perf_counter()
    for first in range(0, entries, CHUNK):
        _put(cluster.client, first, min(first + CHUNK, entries))
    wrote = time.perf_counter() - began
    began = time.perf_counter()
    cluster.stores[away].start()
    wait_until(
        lambda: cluster.keys().get(away, 0) >= entries,
        CATCH_UP_SECONDS,
        f"a replica with the {entries:,} keys it missed",
        list(cluster.stores.values()),
    )
    seconds = time.perf_counter() - began
    return {
        "workload": f"catchup {entries:,}",
        "in_flight": 0,
        "ours": {"seconds": round(seconds, 2), "ops_per_s": round(entries / seconds)},
        "peers": {},
        "written_in_s": round(wrote, 2),
    }


def _put(client: kvclient.Client[bytes], first: int, last: int) -> None:
    """All of these keys, with as many tries as it takes until CHUNK_SECONDS are over."""
    deadline = time.monotonic() + CHUNK_SECONDS
    left = list(range(first, last))
    while left:
        try:
            result = client.put_many((key(number), value(number)) for number in left)
            left = [left[index] for index, _ in result.errors]
        except KVError:
            pass
        if left and time.monotonic() > deadline:
            raise TimeoutError(f"{len(left)} of {last - first} puts failed for {CHUNK_SECONDS:.0f} s")
