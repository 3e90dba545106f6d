"""A real Prometheus scrapes a real cluster under load: every expression of rules and dashboard finds series.
One store is killed: that is told, and nothing of it goes on looking alive.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import metricspage
from tests.integration.localcluster import Cluster
from tests.integration.realprometheus import (
    Prometheus,
    expressions_of_panels,
    needs_prometheus,
    selectors_of_rules,
)

pytestmark = [needs_prometheus, pytest.mark.timeout(400)]

# A busy machine may need this long to start five processes' figures on their way.
PATIENCE_S = 90
RANGE = "10s"


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{PATIENCE_S} s, and not yet: {what}"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), cluster.monitor, "1s")
    try:
        wait_for("the monitor is scraped", running.is_up)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def load(cluster: Cluster) -> Iterator[None]:
    """Reads, writes and scans, one after the other, until the module is done."""
    done = threading.Event()

    def work() -> None:
        with cluster.connect() as db:
            while not done.is_set():
                db.put_many({f"key{number}".encode(): b"v" * 100 for number in range(100)})
                db.get(b"key1")
                list(db.scan(b"key", limit=10))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.usefixtures("load")
def test_every_expression_of_rules_and_dashboard_finds_series(prometheus: Prometheus) -> None:
    wanted = {*selectors_of_rules(), *expressions_of_panels(RANGE)}
    assert len(wanted) > 50

    def all_found() -> bool:
        wanted.difference_update([one for one in wanted if prometheus.query(one)])
        return not wanted

    try:
        wait_for("series", all_found)
    except AssertionError:
        pytest.fail("no series for:\n" + "\n".join(sorted(wanted)))


@pytest.mark.usefixtures("load")
def test_every_family_of_the_page_is_scraped_and_no_other(prometheus: Prometheus) -> None:
    known = metricspage.families()
    names = set(prometheus.get("label/__name__/values"))
    scraped = {metricspage.family_of(name, known) for name in names if name.startswith("ringkv_")}
    assert scraped == known.keys()


@pytest.mark.usefixtures("load")
def test_a_healthy_cluster_calls_nobody(prometheus: Prometheus) -> None:
    wait_for(
        "rules are evaluated", lambda: all(rule["lastEvaluation"] for rule in prometheus.rules().values())
    )
    told = prometheus.rules()
    assert told.keys() == {rule["alert"] for rule in metricspage.alerts()}
    assert {name: rule["lastError"] for name, rule in told.items() if rule["health"] == "err"} == {}
    assert [name for name, rule in told.items() if rule["state"] == "firing"] == []


@pytest.mark.usefixtures("load")
def test_a_killed_store_is_told_of_and_its_series_end(cluster: Cluster, prometheus: Prometheus) -> None:
    def told() -> list[dict[str, Any]]:
        alerts = prometheus.rules()["RingkvNodeDown"]["alerts"]
        return [alert for alert in alerts if alert["labels"]["node"] == "store2"]

    cluster.dev("kill", "store2")
    try:
        wait_for("its alert", lambda: bool(told()))
        (alert,) = told()
        assert alert["annotations"]["action"].startswith("kvcli node show store2")
        assert not re.search(r"\{\{|error expanding", str(alert["annotations"]))
        wait_for("its series end", lambda: not prometheus.query('ringkv_store_keys{node="store2"}'))
        assert prometheus.query('ringkv_store_keys{node="store1"}')
        lacking = "ringkv_partition_replicas_up < on (cluster) group_left ringkv_cluster_replication_factor"
        wait_for("partitions lack a replica", lambda: bool(prometheus.query(lacking)))
    finally:
        cluster.dev("start", "store2")
    wait_for("it is heard", lambda: bool(prometheus.query('ringkv_node_up{node="store2"} == 1')))
    wait_for("the alert ends", lambda: not told())
