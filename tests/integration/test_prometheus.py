"""A real Prometheus scrapes a real cluster under load: every expression of rules and dashboard finds series.
One store is killed: that is told, and nothing of it goes on looking alive.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import metricspage
from tests.integration.localcluster import Cluster

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"
    ),
    pytest.mark.timeout(400),
]

# A busy machine may need this long to start five processes' figures on their way.
PATIENCE_S = 90
RANGE = "10s"
MONITOR_PORT = 200  # above the cluster's first


class Prometheus:
    """A Prometheus of its own, on a free port, with the shipped rules."""

    def __init__(self, directory: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        shipped = yaml.safe_load((metricspage.ALERTS.parent / "prometheus.yml").read_text())
        (job,) = shipped["scrape_configs"]
        job["static_configs"][0]["targets"] = [target]
        shipped["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        shipped["rule_files"] = [str(metricspage.ALERTS)]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(shipped))
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.query('up{job="ringkv"} == 1'))
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{PATIENCE_S} s, and not yet: {what}"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    base = json.loads((cluster.directory / "cluster.json").read_text())["port_base"]
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{base + MONITOR_PORT}")
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


def selectors_of_rules() -> Iterator[str]:
    """What rules look at; values that a healthy cluster does not show (a status, a role) are left open."""
    known = metricspage.families()
    for rule in metricspage.alerts():
        for selector in metricspage.selectors(rule["expr"]):
            family = known[metricspage.family_of(selector.name, known)]
            fixed = [
                f'{label}{operator}"{value}"'
                for label, operator, value in selector.matchers
                if not family.labels.get(label)
            ]
            yield f"{selector.name}{{{','.join(fixed)}}}"


def expressions_of_panels() -> Iterator[str]:
    for _, expression in metricspage.panels():
        yield expression.replace("$cluster", "ringkv").replace("$__rate_interval", RANGE)


@pytest.mark.usefixtures("load")
def test_every_expression_of_rules_and_dashboard_finds_series(prometheus: Prometheus) -> None:
    wanted = {*selectors_of_rules(), *expressions_of_panels()}
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


def rules(prometheus: Prometheus) -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]}


@pytest.mark.usefixtures("load")
def test_a_healthy_cluster_calls_nobody(prometheus: Prometheus) -> None:
    wait_for(
        "rules are evaluated", lambda: all(rule["lastEvaluation"] for rule in rules(prometheus).values())
    )
    told = rules(prometheus)
    assert told.keys() == {rule["alert"] for rule in metricspage.alerts()}
    assert {name: rule["lastError"] for name, rule in told.items() if rule["health"] == "err"} == {}
    assert [name for name, rule in told.items() if rule["state"] == "firing"] == []


@pytest.mark.usefixtures("load")
def test_a_killed_store_is_told_of_and_its_series_end(cluster: Cluster, prometheus: Prometheus) -> None:
    def told() -> list[dict[str, Any]]:
        alerts = rules(prometheus)["RingkvNodeDown"]["alerts"]
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
