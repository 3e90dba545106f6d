"""monitor/exporter.py: the families are those of the page, they parse, and series end with their process."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from monitor.exporter import Exporter
from tests.unit.monitor.watchedworld import World

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "monitor.md").read_text()
ROW = re.compile(r"^\| `(ringkv_\w+)` \| (gauge|counter|histogram) \|", re.MULTILINE)
MOVE = {"id": 1, "partition": 2, "source": 1, "target": 3, "reason": "drain", "stage": "learner"}


def exporter(world: World) -> Exporter:
    made = Exporter(lambda: world.model.picture, lambda: {("/metrics", 200): 3})
    made.scrape()  # what the last one took is known from the second on
    return made


def scrape(world: World) -> list[Sample]:
    families = text_string_to_metric_families(exporter(world).scrape().decode())
    return [sample for family in families for sample in family.samples]


def named(samples: list[Sample], name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for sample in samples
        if sample.name == f"ringkv_{name}" and labels.items() <= sample.labels.items()
    ]


def test_the_families_are_those_of_the_page() -> None:
    """Of the same types: neither has one that the other has not."""
    world = World()
    world.second(4)
    families = {}
    for family in text_string_to_metric_families(exporter(world).scrape().decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        families[name] = family.type
    assert families == dict(ROW.findall(PAGE))


def test_no_series_is_there_twice_and_every_one_is_ours() -> None:
    world = World()
    world.second(4)
    samples = scrape(world)
    assert len({(one.name, *sorted(one.labels.items())) for one in samples}) == len(samples)
    assert {one.name.split("_")[0] for one in samples} == {"ringkv"}


def test_figures_arrive_under_their_names() -> None:
    world = World()
    world.moves = [MOVE]
    world.second(4)
    samples = scrape(world)
    assert named(samples, "ops_total", router="router1", op="read") == [4000]
    assert named(samples, "requests_total", router="router2", op="read", status="timeout") == [4]
    assert named(samples, "store_items_total", node="store1", kind="write") == [40]
    assert named(samples, "raft_replica", node="store1", partition="0") == [1]
    assert named(samples, "partition_replicas_up", partition="3") == [3]
    assert named(samples, "moves", stage="learner") == [1]
    assert named(samples, "process_cpu_seconds_total", process="store1", role="store") == [2]
    assert named(samples, "events_refused_total", node="store1") == [3]
    assert named(samples, "monitor_http_requests_total", path="/metrics", code="200") == [3]


def test_histograms_are_cumulative_and_their_bounds_are_powers_of_two() -> None:
    world = World()
    world.second(4)
    samples = [
        one
        for one in scrape(world)
        if one.labels.get("router") == "router1" and one.labels.get("op") == "read"
    ]
    buckets = {one.labels["le"]: one.value for one in samples if one.name.endswith("duration_seconds_bucket")}
    bounds = [float(bound) for bound in buckets]
    assert bounds[0] == 2**14 / 1e9
    assert all(after == 2 * before for before, after in pairwise(bounds[:-1]))
    assert len(bounds) == 21
    counts = list(buckets.values())
    assert counts == sorted(counts)
    # 40 requests took 1 ms each: they are below 2^20 ns, and not below 2^19.
    assert buckets[repr(2**20 / 1e9)] == 40
    assert buckets[repr(2**19 / 1e9)] == 0
    assert named(samples, "request_duration_seconds_count") == [40]
    assert named(samples, "request_duration_seconds_sum") == [pytest.approx(0.04)]


def test_the_series_of_who_is_gone_end() -> None:
    world = World()
    world.second(3)
    world.silent |= {"store3", "router1"}
    world.second(6)
    samples = scrape(world)
    assert named(samples, "node_up", node="store3") == [0]
    assert named(samples, "node_state", node="store3", state="down") == [1]
    assert named(samples, "router_up", router="router1") == [0]
    left = {one.name for one in samples if one.labels.get("node") == "store3" and "router" not in one.labels}
    assert left == {"ringkv_node_up", "ringkv_node_state", "ringkv_node_figures_age_seconds"}
    assert {one.name for one in samples if one.labels.get("router") == "router1"} == {"ringkv_router_up"}
    assert not [one for one in samples if one.labels.get("process") in ("store3", "router1")]
    assert named(samples, "partition_has_leader") == [1, 1, 0, 1]
    assert named(samples, "cluster_verdict") == [2]


def test_before_there_is_a_map_a_scrape_says_so() -> None:
    samples = scrape(World())
    assert named(samples, "cluster_verdict") == [1]
    assert named(samples, "cluster_epoch") == []


@pytest.mark.parametrize(
    "value", [None, "x", [1], {"ok": {"ok": 1}}, float("inf"), 1 << 70, {"buckets": [1]}]
)
def test_whatever_is_said_the_answer_can_be_read(value: object) -> None:
    world = World()
    world.second(2)
    for name, figures in (("store1", world.store(1)), ("router1", world.router(1))):
        world.extra[name] = dict.fromkeys(figures, value)
    world.second(2)
    assert named(scrape(world), "node_up", node="store1") == [1]
