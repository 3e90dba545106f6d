"""What a cluster goes through in its life, on real processes and under load: it grows, shrinks, loses a store
for good, and is restarted store by store, while no request of a client fails.

Owns the order of events and what has to hold after them. Everything is done by `kvcli`, as an operator would.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.integration.elastic.load import Load
from tests.integration.faults.judgement import judge
from tests.integration.localcluster import Cluster

PARTITIONS = 16
STEP_SECONDS = 100


class Story:
    """One cluster and what happens to it. `say` gets a line for each event."""

    def __init__(self, directory: Path, seed: int, say: Callable[[str], object]) -> None:
        self._cluster = Cluster(directory)
        self._say = say
        self._began = time.monotonic()
        self._tell("three stores in three zones, two routers")
        self._cluster.up("--stores", "3", "--routers", "2", "--partitions", str(PARTITIONS))
        routers = self._cluster.url.removeprefix("kv://").split(",")
        self._endpoints: dict[str, str] = {}
        self.load = Load(routers, PARTITIONS, seed, lambda: self._endpoints)
        self._learn_stores()

    def short(self) -> None:
        """Three stores become four, then three others."""
        with self.load.running():
            self._grow("store4")
            self._shrink("store1")

    def whole(self) -> None:
        """3 -> 5 -> 4, one lost for good and replaced, 5 -> 4 -> 3, everything restarted."""
        with self.load.running():
            self._grow("store4", "store5")
            self._shrink("store2")
            self._lose_for_good("store3")
            self._shrink("store1")
            self._restart_everything()

    def judge(self) -> None:
        """AssertionError with what was promised and does not hold."""
        load = self.load
        counts = judge(load)
        assert not load.failures, load.failures[:10]
        failed = Counter(
            (operation.function, operation.outcome.value)
            for operation in load.recorder.history()
            if operation.outcome.value != "ok" and not str(operation.process).startswith("direct")
        )
        assert not failed, f"calls failed: {dict(failed)}"
        assert set(load.ledger.values()) == {"ok"}, Counter(load.ledger.values())
        with load.connect() as client:
            for key, acknowledged in load.pipelined.items():
                total = int(client.get(key) or b"0")
                assert total == acknowledged, f"{key!r} is {total}, {acknowledged} were acknowledged"
        assert load.direct["answered"] > 0
        assert load.direct["refused"] > 0
        self._judge_map()
        calls = sum(counts.values()) + sum(load.pipelined.values())
        self._tell(
            f"{calls:,} operations, none failed; {counts['ok']:,} of them have one order;"
            f" asked directly, past the routers: {dict(load.direct)}"
        )

    def end(self) -> None:
        self._cluster.dev("down", "--purge", "--yes")

    # -- what happens

    def _grow(self, *names: str) -> None:
        for name in names:
            self._tell(f"{name} joins, in a zone of its own")
            self._cluster.dev("add-store", name)
        self._learn_stores()
        self._kvcli("rebalance", "start")
        self._settle(f"{len(self._cluster.nodes())} stores, data and leaders spread over them")

    def _shrink(self, name: str) -> None:
        self._tell(f"{name} is drained")
        self._kvcli("node", "drain", name, "--wait", "--within", f"{STEP_SECONDS}s")
        self._kvcli("node", "remove", name)
        self._cluster.dev("stop", name)
        self._settle(f"{name} held nothing any more, and was removed")

    def _lose_for_good(self, name: str) -> None:
        self._tell(f"{name} is killed, and its disk with it")
        self._cluster.dev("kill", name)
        shutil.rmtree(self._cluster.directory / "data" / name)
        self._tell("another one joins for it")
        self._cluster.dev("add-store", "store6")
        self._learn_stores()
        self._cluster.wait_until_missed(name)
        self._kvcli("node", "remove", name, "--force", "--yes")
        self._settle(f"{name} was replaced: every partition has all its replicas again")

    def _restart_everything(self) -> None:
        self._tell("every store and every router is restarted, one at a time")
        self._kvcli("deploy", "--dev", "--dir", str(self._cluster.directory))
        self._settle("everything was restarted")

    # -- what has to hold

    def _settle(self, what: str) -> None:
        self._kvcli("wait", "--healthy", "--timeout", f"{STEP_SECONDS}s")
        self.load.wait_for_writes()
        self._tell(what)

    def _judge_map(self) -> None:
        """Every partition has three replicas, on the nodes that its row names and no others."""
        told = json.loads(self._kvcli("group", "ls", "-o", "json"))
        nodes = {node["name"] for node in self._cluster.nodes()}
        for group in told["groups"] if isinstance(told, dict) else told:
            holders = set(group["voters"])
            assert len(holders) == 3, f"partition {group['partition']} is held by {holders}"
            assert holders <= nodes, f"partition {group['partition']} is held by {holders}, there are {nodes}"

    # -- kvcli

    def _kvcli(self, *arguments: str) -> bytes:
        return bytes(self._cluster.kvcli(*arguments, timeout=STEP_SECONDS + 20).stdout)

    def _learn_stores(self) -> None:
        """Who has been a store once is asked to the end, whether it answers or not."""
        self._endpoints = {**self._endpoints, **{node["name"]: node["rpc"] for node in self._cluster.nodes()}}

    def _tell(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.1f} s  {what}")
