"""One cluster, its clients, and what is done to it: the frame of every test in this room.

A fault is a function of a Trial that breaks something, sees that the cluster does what it promises meanwhile,
and mends it. `endure` runs faults under load and judges everything afterwards.

    python -m pytest -m "not long" tests/integration/faults                         every fault once
    RINGKV_FAULT_SECONDS=600 python -m pytest -m long tests/integration/faults      so long for each test

A run prints its seed; RINGKV_FAULT_SEED gives the same faults in the same order, but no two runs meet them
at the same moment.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from tests.integration.faults.cluster import PARTITIONS, STORES, Cluster, Process
from tests.integration.faults.judgement import judge
from tests.integration.faults.replicas import assert_equal
from tests.integration.faults.workload import Client, Workload

SHORT = 0.0
"""Seconds: every fault once."""

LONG = float(os.environ.get("RINGKV_FAULT_SECONDS", "60"))
"""Seconds of each test that is marked long."""

PRESS_BYTES = 64 << 10
PRESS_SECONDS = 60.0
"""For what needs megabytes of writes, each on three disks."""

KILLED = "killed"
RESUMED_SECONDS_MAX = 6.0
"""After a leader was killed. The bar is 2 s on a machine that does nothing else; here four clients that retry
have the same cores, and so may others."""


class Trial:
    """What a fault works on."""

    def __init__(self, cluster: Cluster) -> None:
        self.seed = int(os.environ.get("RINGKV_FAULT_SEED", random.getrandbits(32)))
        self.dice = random.Random(self.seed)
        self.cluster = cluster
        self.workload = Workload(cluster.fronts, PARTITIONS, self.seed)
        self.resumed: dict[str, list[float]] = defaultdict(list)
        """Seconds from a leader's failure to acknowledged writes, by how it failed."""

    def leader(self) -> int:
        """The node that leads some partition."""
        return self.cluster.leader(self.dice.choice(self.workload.tags))

    def others(self, node: int) -> list[int]:
        """In any order."""
        return self.dice.sample([other for other in STORES if other != node], len(STORES) - 1)

    def store(self, node: int) -> Process:
        return self.cluster.stores[node]

    def press(self, client: Client) -> None:
        """A few hundred kilobytes of writes, on keys that nobody looks at."""
        for tag in self.workload.tags:
            client.put(tag + b"press", self.dice.randbytes(PRESS_BYTES))

    def hold(self, seconds: float) -> None:
        """How long a fault lasts that nothing ends by itself."""
        time.sleep(seconds)


Fault = Callable[[Trial], None]


def endure(trial: Trial, faults: Sequence[Fault], seconds: float) -> None:
    """All faults in any order under load, again for `seconds` and at least once; then the judgement."""
    deadline = time.monotonic() + seconds
    rounds = 0
    print(f"seed {trial.seed}")
    trial.cluster.wait_whole()  # disks are to fail under stores that run, not while one still starts
    while rounds == 0 or time.monotonic() < deadline:
        trial.workload.generation = rounds
        with trial.workload.running():
            for fault in trial.dice.sample(faults, len(faults)):
                trial.workload.wait_for_writes()
                print(f"{time.monotonic():.3f} {fault.__name__}", flush=True)
                fault(trial)
                trial.workload.wait_for_writes()
        rounds += 1
    conclude(trial)
    print(f"{rounds} rounds of {len(faults)} faults")
    for how, times in trial.resumed.items():
        print(f"leader {how}: writes resumed after {', '.join(f'{each:.2f}' for each in sorted(times))} s")
    assert seconds == SHORT or max(trial.resumed[KILLED], default=0.0) < RESUMED_SECONDS_MAX


def conclude(trial: Trial) -> None:
    """Everything is mended and no client is at work: what was promised holds, and all replicas are equal."""
    cluster = trial.cluster
    cluster.wait_whole()
    counts = judge(trial.workload)
    applied = cluster.settled()
    cluster.stop()
    keys = assert_equal(cluster.directories, applied)
    print(f"{dict(counts)}; {keys} keys are equal on {len(STORES)} stores")
    assert counts["ok"] > 0
    assert counts["ledger ok"] > 0
    assert keys > 0
