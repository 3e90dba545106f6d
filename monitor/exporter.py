"""A picture as Prometheus families (docs/monitor.md section 2), in a custom collector: nothing is counted
here, and nothing is kept from one scrape to the next but the last answer.

Owns names, labels and the bounds of histograms. A figure that is not known makes no sample; a family without
samples is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from kvclient.errors import Status
from kvclient.health import CRITICAL, WARNING, is_led
from monitor import changes, judgement, reading
from monitor.families import PROCESS, ROUTER, STORE, Family
from monitor.picture import OK, Figures, Picture, StoreSeen, role_of
from shared.clustermap import STATES
from shared.controlview import FOREIGN

PREFIX: Final = "ringkv_"

BITS: Final = range(14, 34)
"""Bounds of histograms: 2^14 ns (16 us) to 2^33 ns (8.6 s)."""

TIMED: Final = ("read", "write", "scan", "barrier")
OPS: Final = (*TIMED, "admin", "map", "ping", "unknown")
STATUSES: Final = tuple(status.name.lower() for status in Status)
STAGES: Final = ("waiting", "learner", "swap", "settle", "leave")
LEVELS: Final = (OK, WARNING, CRITICAL)

Labels = dict[str, str]
Sampled = Iterable[tuple[Labels, float | None]]


class Exporter(Collector):
    """`picture` gives the newest one; `requests` how often each (path, code) was asked for. Any thread."""

    def __init__(
        self, picture: Callable[[], Picture], requests: Callable[[], Mapping[tuple[str, int], int]]
    ) -> None:
        self._picture = picture
        self._requests = requests
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._lock = threading.Lock()
        self._took_s: float | None = None

    def scrape(self) -> bytes:
        """Everything, in the text format. One at a time: a second scrape waits for its turn."""
        with self._lock:
            began = time.perf_counter()
            text: bytes = generate_latest(self._registry)
            self._took_s = time.perf_counter() - began
            return text

    def describe(self) -> Iterable[Metric]:
        """Nothing: whoever registers is not to wait for a collection."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families that have samples."""
        picture = self._picture()
        for metric in (
            *_cluster(picture),
            *_processes(picture),
            *_routers(picture),
            *_stores(picture),
            *_partitions(picture),
            *self._own(picture),
        ):
            if metric.samples:
                yield metric

    def _own(self, picture: Picture) -> Iterator[Metric]:
        own = picture.own
        yield _counter(
            "monitor_figures", "Figures taken",
            [({"role": "store"}, own.stores_heard), ({"role": "router"}, own.routers_heard)],
        )  # fmt: skip
        yield _counter("monitor_refused_figures", "Messages that were none", [({}, own.refused)])
        yield _counter(
            "monitor_http_requests", "Requests answered",
            [({"path": path, "code": str(code)}, n) for (path, code), n in self._requests().items()],
        )  # fmt: skip
        yield _gauge("monitor_scrape_seconds", "What the last scrape took", [({}, self._took_s)])
        yield _gauge("monitor_loop_lag_seconds", "How much too late the last round began", [({}, own.lag_s)])


def _cluster(picture: Picture) -> Iterator[Metric]:
    known, show = picture.map, picture.show
    worst = LEVELS.index(judgement.verdict(picture.problems).level)
    yield _gauge("cluster_verdict", "0 ok, 1 warning, 2 critical", [({}, worst)])
    levels = [problem.level for problem in picture.problems]
    yield _gauge(
        "cluster_problems", "Problems", [({"level": level}, levels.count(level)) for level in LEVELS[1:]]
    )
    if known is not None:
        yield _gauge("cluster_info", "1", [({"name": known.name, "id": known.cluster_id}, 1)])
        yield _gauge("cluster_epoch", "Epoch of the newest map", [({}, known.epoch)])
        yield _gauge("cluster_partitions", "Partitions of the map", [({}, known.partition_count)])
        yield _gauge(
            "cluster_replication_factor", "Replicas that each should have", [({}, known.replication_factor)]
        )
        yield _gauge("controller_up", "1 if a controller answers", [({}, picture.controller != 0)])
    if show is not None:
        stages = [move.get("stage") for move in changes.moves(picture)]
        yield _gauge(
            "moves", "Moves in each stage", [({"stage": stage}, stages.count(stage)) for stage in STAGES]
        )
        yield _gauge("moves_paused", "1 if no move may begin", [({}, show.get("paused") is True)])


def _processes(picture: Picture) -> Iterator[Metric]:
    every: list[tuple[Labels, Figures]] = [
        *(({"process": one.name, "role": "store"}, one.figures) for one in picture.stores),
        *(({"process": one.name, "role": "router"}, one.figures) for one in picture.routers),
        ({"process": picture.own.name, "role": "monitor"}, picture.own.figures),
    ]
    built = [
        ({**who, **{name: reading.text(figures, name) or "" for name in ("version", "python")}}, 1)
        for who, figures in every
        if figures
    ]
    yield _gauge("build_info", "1", built)
    yield from _families(PROCESS, every)
    started = []
    for who, figures in every:
        uptime = reading.number(figures, "uptime_s")
        started.append((who, None if uptime is None else round(picture.at_ms / 1000 - uptime, 1)))
    yield _gauge("process_start_time_seconds", "Unix time of its start", started)


def _routers(picture: Picture) -> Iterator[Metric]:
    routers = [({"router": one.name}, one.figures) for one in picture.routers]
    yield _gauge(
        "router_up", "1 if it answers the monitor",
        [({"router": one.name}, bool(one.figures)) for one in picture.routers],
    )  # fmt: skip
    yield from _families(ROUTER, routers)
    answered = [
        ({**who, "op": op, "status": status}, count)
        for who, figures in routers
        for op in OPS
        for status, count in _by_status(figures, "requests", op)
    ]
    yield _counter("requests", "Requests answered", answered)
    yield _histogram(
        "request_duration_seconds", "From arrival at the router to the answer", ("router", "op"),
        [
            ((who["router"], op), *_durations(figures, "durations", op))
            for who, figures in routers
            for op in TIMED
        ],
    )  # fmt: skip
    names = picture.names
    reached = []
    for who, figures in routers:
        up = figures.get("stores_up")
        if isinstance(up, (list, tuple)):
            reached += [({**who, "node": name}, node in up) for node, name in names.items()]
    yield _gauge("router_store_up", "1 if the router reaches the store", reached)


def _stores(picture: Picture) -> Iterator[Metric]:
    stores = [({"node": one.name}, one.figures) for one in picture.stores]

    def each(name: str, meaning: str, value: Callable[[StoreSeen], float | None]) -> Metric:
        return _gauge(name, meaning, [({"node": one.name}, value(one)) for one in picture.stores])

    def told(value: Callable[[StoreSeen], float | None]) -> Callable[[StoreSeen], float | None]:
        return lambda one: value(one) if one.figures else None

    yield each("node_up", "1 if the monitor hears it", lambda one: bool(one.figures))
    yield _gauge(
        "node_state", "1 for the state that it has",
        [
            ({"node": one.name, "state": word}, one.state == word)
            for one in picture.stores for word in (*STATES, FOREIGN)
        ],
    )  # fmt: skip
    yield each("node_figures_age_seconds", "Since its last figures", lambda one: one.heard_s)
    yield each("store_partitions", "Replicas that it holds", told(lambda one: one.partitions))
    yield each("store_leads", "Partitions that it leads", lambda one: one.leads)
    yield each("store_failed_replicas", "Replicas that it does not serve", told(_failed))
    yield each("engine_failing", "Kinds of jobs that fail now", told(_failing))
    yield each("engine_damaged", "Engines with damaged bytes", told(_damaged))
    yield each("controller_sits", "1 where the controller runs", told(lambda one: _sits(one.figures)))
    yield from _families(STORE, stores)
    stalls = [(who, reading.number(figures, "stall_ms")) for who, figures in stores]
    seconds = [(who, None if stalled is None else stalled / 1000) for who, stalled in stalls]
    yield _counter("engine_stall_seconds", "Time in which writers were asked to wait", seconds)
    answers = [
        ({**who, "status": status}, count)
        for who, figures in stores
        for status, count in _by_status(figures, "answers")
    ]
    yield _counter("store_answers", "Parts answered", answers)
    refused = []
    for who, figures in stores:
        events = reading.counts(figures, "control", "events")
        known = ("frames_bad", "reports_foreign", "reports_stranger")
        refused.append((who, sum(events.get(name, 0) for name in known) if events else None))
    yield _counter("events_refused", "Reports and maps that were none, or of strangers", refused)
    yield _histogram(
        "log_write_duration_seconds", "A write of the replicated log with its sync", ("node",),
        [((who["node"],), *_durations(figures, "log_write_time")) for who, figures in stores],
    )  # fmt: skip


def _failed(store: StoreSeen) -> int:
    return len(reading.reasons(store.figures, "failed"))


def _failing(store: StoreSeen) -> int:
    return len(reading.texts(store.figures, "failing_jobs"))


def _damaged(store: StoreSeen) -> int:
    return len(reading.texts(store.figures, "damage"))


def _sits(figures: Figures) -> bool:
    return reading.flag(figures, "control", "sits")


def _partitions(picture: Picture) -> Iterator[Metric]:
    names, table = picture.names, picture.table
    figures = {one.id: one.figures for one in picture.stores}
    numbers = [{"partition": str(row["partition"])} for row in table]

    def each(name: str, meaning: str, values: Iterable[float | None]) -> Metric:
        return _gauge(name, meaning, zip(numbers, values, strict=True))

    roles, applied, lags, up = [], [], [], []
    for row in table:
        number, well = str(row["partition"]), 0
        for one in row["replicas"]:
            role = role_of(one, figures.get(one["id"], {}), row["partition"])
            if role is None:
                continue
            who = {"node": names.get(one["id"], str(one["id"])), "partition": number}
            well += role != "failed"
            roles.append(({**who, "role": role}, 1))
            applied.append((who, one["applied"]))
            lags.append((who, one["lag"]))
        up.append(well)
    yield each("partition_has_leader", "1 if a store that is heard leads it", map(is_led, table))
    yield each("partition_term", "Term of its leader", [row["term"] or None for row in table])
    yield each("partition_commit_index", "Committed entries", [row["commit"] for row in table])
    yield each("partition_replicas", "Members of its group", [len(row["replicas"]) for row in table])
    yield each("partition_replicas_up", "Members that are heard and well", up)
    yield _counter(
        "partition_leader_changes", "Changes of leader or term that the monitor saw",
        zip(numbers, (picture.leader_changes[row["partition"]] for row in table), strict=True),
    )  # fmt: skip
    yield _gauge("raft_replica", "1, with the role that it has", roles)
    yield _gauge("raft_applied_index", "Entries applied", applied)
    yield _gauge("raft_lag_entries", "Committed entries that it has not applied, or not got", lags)


# -- samples


def _gauge(name: str, meaning: str, samples: Sampled) -> Metric:
    return _metric(name, "gauge", meaning, samples)


def _counter(name: str, meaning: str, samples: Sampled) -> Metric:
    return _metric(name, "counter", meaning, samples)


def _metric(name: str, kind: str, meaning: str, samples: Sampled) -> Metric:
    metric = Metric(PREFIX + name, meaning, kind)
    sample = metric.name + ("_total" if kind == "counter" else "")
    for labels, value in samples:
        if value is not None:
            metric.add_sample(sample, labels, value)
    return metric


def _families(families: Iterable[Family], processes: list[tuple[Labels, Figures]]) -> Iterator[Metric]:
    for family in families:
        samples = [
            ({**who, family.label: key} if family.label else who, reading.number(figures, *path))
            for who, figures in processes
            for key, path in family.values
        ]
        yield _metric(family.name, family.kind, family.meaning, samples)


def _by_status(figures: Figures, *path: str) -> list[tuple[str, int]]:
    told = reading.counts(figures, *path)
    return [(status, told[status]) for status in STATUSES if status in told]


Durations = tuple[list[int] | None, float]


def _durations(figures: Figures, *path: str) -> Durations:
    """Buckets, and the sum in seconds."""
    total = reading.number(figures, *path, "total_ns")
    return (None, 0.0) if total is None else (reading.buckets(figures, *path), total / 1e9)


def _histogram(
    name: str, meaning: str, labels: tuple[str, ...], rows: list[tuple[Any, list[int] | None, float]]
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, meaning, labels=labels)
    for values, buckets, seconds in rows:
        if buckets is not None:
            family.add_metric(values, _cumulative(buckets), seconds)
    return family


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Bucket n of ours counts what is below 2^n ns."""
    below, found = sum(buckets[: BITS.start]), []
    for bits in BITS:
        below += buckets[bits]
        found.append((repr((1 << bits) / 1e9), float(below)))
    return [*found, ("+Inf", float(sum(buckets)))]
