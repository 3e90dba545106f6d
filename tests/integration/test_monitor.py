"""A monitor in front of a real cluster: it finds everybody by one store's address, and tells what happens to
them. One cluster for the whole story, since starting one takes the longest.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.localcluster import Cluster

DEADLINE_S = 90.0


class Watch:
    """The cluster, and its monitor as a browser and Prometheus see it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        shape = json.loads((cluster.directory / "cluster.json").read_text())
        self.base = f"http://127.0.0.1:{shape['port_base'] + 200}"

    def get(self, path: str) -> bytes:
        with urlopen(self.base + path, timeout=30) as answer:
            return bytes(answer.read())

    def status(self) -> Any:
        return json.loads(self.get("/api/v1/status?history=60"))

    def series(self, name: str, **labels: str) -> list[float]:
        """The values of a family's series that have these labels."""
        return [
            one.value
            for family in text_string_to_metric_families(self.get("/metrics").decode())
            for one in family.samples
            if one.name == f"ringkv_{name}" and labels.items() <= one.labels.items()
        ]

    def until(self, condition: Callable[[Any], object]) -> Any:
        """The first status document for which it holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition(found := self.status()):
            assert time.monotonic() < deadline, found["problems"]
            time.sleep(0.2)
        return found


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.up("--routers", "2", "--partitions", "8")
        yield Watch(cluster)
    finally:
        cluster.dev("down")


def well(found: Any) -> bool:
    return found["verdict"]["level"] == "ok" and found["totals"]["routers_up"] == 2


def test_a_cluster_is_watched_through_the_loss_of_a_store_and_of_a_router(watch: Watch) -> None:
    found = watch.until(lambda found: well(found) and found["cluster"]["controller"])
    assert [row["name"] for row in found["nodes"]] == ["store1", "store2", "store3"]
    assert [row["name"] for row in found["routers"]] == ["router1", "router2"]
    assert [row["state"] for row in found["partitions"]] == ["ok"] * 8
    assert watch.get("/readyz") == b"ok\n"
    page = watch.get("/").decode()
    assert all(name in page for name in ("store1", "store3", "router2"))
    with pytest.raises(HTTPError, match="404"):
        watch.get("/nothing")

    stop = threading.Event()
    writer = threading.Thread(target=write, args=(watch.cluster, stop))
    writer.start()
    try:
        found = watch.until(
            lambda found: (found["totals"]["writes_per_s"] or 0) > 0 and found["totals"]["p99_ms"]
        )
        assert sum(watch.series("requests_total", op="write", status="ok")) > 0
        assert sum(watch.series("request_duration_seconds_count", op="write")) > 0
        assert sum(watch.series("log_write_duration_seconds_count", node="store2")) > 0
        assert watch.series("node_up", node="store2") == [1]

        watch.cluster.dev("kill", "store2")
        found = watch.until(lambda found: found["nodes"][1]["gone"])
        assert (found["nodes"][1]["state"], found["nodes"][1]["memory_bytes"]) == ("down", None)
        found = watch.until(
            lambda found: all(row["leader"] not in (None, "store2") for row in found["partitions"])
        )
        problem = next(one for one in found["problems"] if one["text"].startswith("store2 is down"))
        assert "Start it again" in problem["remedy"]
        assert "store2 is silent" in [event["text"] for event in found["events"]]
        assert watch.series("node_up", node="store2") == [0]
        assert watch.series("process_resident_memory_bytes", process="store2") == []

        watch.cluster.dev("kill", "router2")
        found = watch.until(lambda found: found["routers"][1]["gone"])
        assert watch.series("router_up", router="router2") == [0]
        again = ("dev", "start", "store2", "router2", "--dir", str(watch.cluster.directory))
        watch.cluster.kvcli(*again, check=False)  # it waits too, on a busy machine not long enough
        found = watch.until(well)
        assert "store2 is heard" in [event["text"] for event in found["events"]]
    finally:
        stop.set()
        writer.join()
    assert len(found["history"]["at_s"]) > 2


def write(cluster: Cluster, stop: threading.Event) -> None:
    with cluster.connect(timeout=60.0) as client:
        number = 0
        while not stop.wait(0.02):
            client.put(f"key{number % 100}", b"value")
            number += 1
