"""Five minutes of a real Prometheus beside a cluster under load: rules and dashboard find something all the
time, and being scraped stays quick and small. Prints what was measured: `pytest -m long -s` and this file.

The load is paced, so that the figures are those of a machine that has something to do, not of one that has
far too much.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

import pytest

import kvclient
from kvclient import ops
from kvclient.errors import Conflict
from tests import metricspage
from tests.integration.localcluster import Cluster, resident_bytes
from tests.integration.realprometheus import (
    Prometheus,
    expressions_of_panels,
    needs_prometheus,
    selectors_of_rules,
)

pytestmark = [pytest.mark.long, needs_prometheus]

SECONDS = float(os.environ.get("RINGKV_SCRAPED_SECONDS", "300"))
SCRAPE_BAR_S = 0.150
MEMORY_BAR = 64 << 20
GROWTH_BAR = 4 << 20  # of the monitor, in the second half of the time
ROUND_S = 0.1
WINDOW_S = 60  # of rates
STEP_S = 15
KEYS = 20_000
# Whatever else stands still, these count what the load does.
MOVING = {
    "ringkv_requests_total",
    "ringkv_ops_total",
    "ringkv_request_duration_seconds",
    "ringkv_store_items_total",
    "ringkv_store_answers_total",
    "ringkv_log_write_duration_seconds",
    "ringkv_log_writes_total",
    "ringkv_log_entries_total",
    "ringkv_log_written_bytes_total",
    "ringkv_bus_frames_total",
    "ringkv_bus_bytes_total",
    "ringkv_process_cpu_seconds_total",
    "ringkv_monitor_figures_total",
    "ringkv_monitor_http_requests_total",
}


def every_kind_of_op(db: kvclient.Client[bytes], number: int) -> None:
    """Some 250 ops, in batches and single: a time to live, a condition, a transaction, scans, deletions."""
    names = [b"key%05d" % ((number * 100 + at) % KEYS) for at in range(100)]
    db.put_many(dict.fromkeys(names, b"v" * 1000)).raise_for_errors()
    db.put_many({b"soon%d" % at: b"v" for at in range(10)}, ttl=1)
    db.get_many(names[:50])
    with db.pipeline() as pipeline:
        for at in range(20):
            pipeline.increment(b"count%d" % at)
            pipeline.get(names[at])
            pipeline.touch(names[at], 3600)
    with pytest.raises(Conflict):
        db.put(names[0], b"again", if_absent=True)
    db.txn(then=[ops.put(b"{both}a", b"%d" % number), ops.put(b"{both}b", b"%d" % number)])
    db.get(b"missing")
    db.exists(names[1])
    list(db.scan(b"key", limit=20))
    list(db.scan(b"key", limit=20, reverse=True))
    db.delete_many(names[50:60])


@contextmanager
def load(cluster: Cluster) -> Iterator[None]:
    """A round ten times a second, or as often as the cluster manages to."""
    done = threading.Event()

    def work() -> None:
        with cluster.connect(timeout=30) as db:
            for number in count():
                due = time.monotonic() + ROUND_S
                every_kind_of_op(db, number)
                if done.wait(max(0.0, due - time.monotonic())):
                    return

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield
        finally:
            done.set()
    working.result()


@pytest.mark.timeout(SECONDS + 400)
@pytest.mark.parametrize("partitions", [16, 256])
def test_minutes_under_load(partitions: int, tmp_path: Path) -> None:
    promtool("check", "rules", "--lint-fatal", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")
    cluster = Cluster(tmp_path / "cluster")
    prometheus = None
    try:
        cluster.up("--stores", "3", "--routers", "2", "--partitions", str(partitions))
        prometheus = Prometheus(tmp_path, cluster.monitor)
        wait_until_scraped(prometheus)
        told = [
            f"{partitions} partitions, {SECONDS:.0f} s, scraped as shipped; load {os.getloadavg()[0]:.1f}"
        ]
        with load(cluster):
            time.sleep(SECONDS)
            wait_until_scraped(prometheus)
            told[0] += f" to {os.getloadavg()[0]:.1f}"
            told += what_rules_and_dashboard_tell(prometheus)
            told += what_moved(prometheus)
            scrapes, memory = over_time(prometheus), memory_of(prometheus)
        told += cost(prometheus, scrapes, memory)
        print("\n" + "\n".join(told), flush=True)
        assert resident_bytes(cluster.processes()["monitor"]) <= MEMORY_BAR
        assert max(memory) <= MEMORY_BAR
        assert memory[-1] - memory[len(memory) // 2] <= GROWTH_BAR
        assert percentile(scrapes, 99) <= SCRAPE_BAR_S
    finally:
        if prometheus is not None:
            prometheus.stop()
        cluster.dev("down")


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=metricspage.ALERTS.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_until_scraped(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 60
    while not prometheus.is_up():
        assert time.monotonic() < deadline, "the monitor is not scraped"
        time.sleep(0.25)


def what_rules_and_dashboard_tell(prometheus: Prometheus) -> list[str]:
    """Everything that rules look at is there, they are evaluated without an error; and each panel has a
    series at every step of the time, once its rates have their window.
    """
    rules = prometheus.rules()
    assert rules.keys() == {rule["alert"] for rule in metricspage.alerts()}
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    wanted = list(selectors_of_rules())
    assert [selector for selector in wanted if not prometheus.query(selector)] == []
    for rule in metricspage.alerts():
        prometheus.query(rule["expr"])

    now = time.time()
    begin, steps = now - SECONDS + WINDOW_S, int((SECONDS - WINDOW_S) // STEP_S) + 1
    gaps = {}
    panels = list(expressions_of_panels(f"{WINDOW_S}s"))
    for expression in panels:
        times = {"start": f"{begin:.3f}", "end": f"{now:.3f}", "step": str(STEP_S)}
        series = prometheus.get("query_range", query=expression, **times)["result"]
        seen = {at for one in series for at, _ in one["values"]}
        if len(seen) < steps:
            gaps[expression] = f"{len(seen)} of {steps}"
    assert gaps == {}
    firing = [name for name, rule in rules.items() if rule["state"] == "firing"]
    return [
        f"rules: {len(rules)} evaluated, {len(wanted)} selectors find series; firing: {firing or 'none'}",
        f"dashboard: {len(panels)} expressions find series at each of {steps} steps",
    ]


def what_moved(prometheus: Prometheus) -> list[str]:
    """Which counters counted something in this time."""
    known = metricspage.families()
    names = {name: f"{name}_count" if family.kind == "histogram" else name for name, family in known.items()}
    counters = {name for name, family in known.items() if family.kind != "gauge"}
    moved = {
        name for name in counters if prometheus.query(f"sum(increase({names[name]}[{SECONDS:.0f}s])) > 0")
    }
    assert moved >= MOVING, MOVING - moved
    still = ", ".join(sorted(name.removeprefix("ringkv_") for name in counters - moved))
    rate = f"sum(increase(ringkv_ops_total[{SECONDS:.0f}s])) / {SECONDS:.0f}"
    return [
        f"load: {float(prometheus.query(rate)[0]['value'][1]):,.0f} ops/s in batches, scans not counted",
        f"counters: {len(moved)} of {len(counters)} moved; not: {still}",
    ]


def raw(prometheus: Prometheus, selector: str) -> list[float]:
    """Each sample of one series in this time, in order."""
    (series,) = prometheus.query(f"{selector}[{SECONDS:.0f}s]")
    return [float(value) for _, value in series["values"]]


def over_time(prometheus: Prometheus) -> list[float]:
    """What each scrape took, in Prometheus' eyes; one that was given up took as long as it waited."""
    return raw(prometheus, 'scrape_duration_seconds{job="ringkv"}')


def memory_of(prometheus: Prometheus) -> list[float]:
    return raw(prometheus, 'ringkv_process_resident_memory_bytes{role="monitor"}')


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many of them do not exceed."""
    return sorted(values)[-(-len(values) * int(percent) // 100) - 1]


def cost(prometheus: Prometheus, scrapes: Sequence[float], memory: Sequence[float]) -> list[str]:
    (cpu,) = prometheus.query(
        f'rate(ringkv_process_cpu_seconds_total{{role="monitor"}}[{SECONDS:.0f}s])',
    )
    (samples,) = prometheus.query('scrape_samples_scraped{job="ringkv"}')
    first, middle, last, most = (
        size / (1 << 20) for size in (memory[0], memory[len(memory) // 2], memory[-1], max(memory))
    )
    return [
        f"scrapes: {len(scrapes)} of {samples['value'][1]} samples; median {median(scrapes) * 1e3:.0f} ms, "
        f"p99 {percentile(scrapes, 99) * 1e3:.0f} ms (bar: {SCRAPE_BAR_S * 1e3:.0f} ms), "
        f"longest {max(scrapes) * 1e3:.0f} ms",
        f"monitor: {float(cpu['value'][1]) * 1e3:.0f} ms of CPU a second; resident {first:.1f} MiB at first, "
        f"{middle:.1f} in the middle, {last:.1f} at the end, {most:.1f} at most "
        f"(bar: {MEMORY_BAR >> 20} MiB, and {GROWTH_BAR >> 20} more in the second half)",
    ]
