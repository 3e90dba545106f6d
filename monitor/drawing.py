"""From what one process said to what is shown of it, and the figures of the whole cluster. Pure functions:
who is gone and what is heard is the model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from monitor import reading
from monitor.picture import Figures, Picture, RouterSeen, Row, StoreSeen
from monitor.watched import Watched, added, percentile_ms
from shared.clustermap import Node
from shared.controlview import View, state

_DATA: Final = ("read", "write", "scan", "barrier")


class Shares(NamedTuple):
    """What the nodes have of the partitions: replicas, leaderships, and the largest lag."""

    held: Counter[int]
    led: Counter[int]
    lag: Mapping[int, int]


def shares(table: Iterable[Row]) -> Shares:
    """By node."""
    held, led, lag = Counter[int](), Counter[int](), dict[int, int]()
    for row in table:
        led[row["leader"]] += 1
        for one in row["replicas"]:
            held[one["id"]] += 1
            if one["up"] and one["lag"] is not None:
                lag[one["id"]] = max(lag.get(one["id"], 0), one["lag"])
    return Shares(held, led, lag)


def store(
    node: Node, watched: Watched, heard: Mapping[int, Figures], view: View, has: Shares, now: float
) -> StoreSeen:
    """`heard` are the figures of those that are."""
    here = node.id in heard

    def rate(*path: str) -> float | None:
        return watched.rate(lambda figures: reading.number(figures, *path)) if here else None

    lately = watched.lately(lambda figures: reading.buckets(figures, "log_write_time")) if here else None
    return StoreSeen(
        id=node.id,
        name=node.name,
        zone=node.zone,
        rpc=node.rpc,
        state=state(node, heard, view),
        gone=watched.is_gone(now),
        heard_s=_ago(watched, now),
        controller=node.id == view.controller,
        partitions=has.held[node.id],
        leads=has.led[node.id] if here else None,
        lag=has.lag.get(node.id) if here else None,
        figures=heard.get(node.id, {}),
        cpu=rate("cpu_s"),
        reads_per_s=rate("requests", "reads"),
        writes_per_s=rate("requests", "writes"),
        log_write_p99_ms=percentile_ms(lately, 99),
    )


def router(name: str, front: str, watched: Watched, now: float) -> RouterSeen:
    """`name` is what no other has."""
    figures = watched.figures(now)

    def rate(read: Callable[[Figures], float | None]) -> float | None:
        return watched.rate(read) if figures else None

    return RouterSeen(
        name=name,
        front=front,
        gone=watched.is_gone(now),
        heard_s=_ago(watched, now),
        figures=figures,
        cpu=rate(lambda one: reading.number(one, "cpu_s")),
        reads_per_s=rate(lambda one: reading.number(one, "ops", "read")),
        writes_per_s=rate(lambda one: reading.number(one, "ops", "write")),
        requests_per_s=rate(lambda one: _answered(one)[0]),
        errors_per_s=rate(lambda one: _answered(one)[1]),
        lately=watched.lately(_durations) if figures else None,
    )


def _ago(watched: Watched, now: float) -> float | None:
    return None if watched.heard_at is None else round(now - watched.heard_at, 3)


def _answered(figures: Figures) -> tuple[int, int]:
    """Requests of clients for data that a router has answered, and those of them that were errors."""
    every = [reading.counts(figures, "requests", op) for op in _DATA]
    total = sum(sum(counts.values()) for counts in every)
    return total, total - sum(counts.get("ok", 0) for counts in every)


def _durations(figures: Figures) -> list[int] | None:
    found = [reading.buckets(figures, "durations", op) for op in _DATA]
    return added([one for one in found if one is not None])


def summed(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def totals(picture: Picture) -> dict[str, float | None]:
    """Figures of the whole cluster, of those that are heard."""
    routers, stores = picture.routers, picture.stores
    lately = added([router.lately for router in routers if router.lately is not None])
    reads, writes = summed(one.reads_per_s for one in routers), summed(one.writes_per_s for one in routers)
    both = [*(one.figures for one in stores), *(one.figures for one in routers)]

    def of_stores(name: str) -> float | None:
        return summed(reading.whole(one.figures, name) for one in stores)

    return {
        "ops_per_s": summed((reads, writes)),
        "reads_per_s": reads,
        "writes_per_s": writes,
        "requests_per_s": summed(one.requests_per_s for one in routers),
        "errors_per_s": summed(one.errors_per_s for one in routers),
        "p50_ms": percentile_ms(lately, 50),
        "p99_ms": percentile_ms(lately, 99),
        "memory_bytes": summed(reading.whole(one, "memory_bytes") for one in both),
        "disk_bytes": of_stores("disk_bytes"),
        "disk_free_bytes": of_stores("disk_free_bytes"),
        "keys": _keys(picture, of_stores("keys")),
    }


def _keys(picture: Picture, everywhere: float | None) -> int | None:
    """Of each partition once: what an average replica has, for all partitions."""
    replicas = sum(store.partitions for store in picture.stores if store.figures)
    if everywhere is None or picture.map is None or not replicas:
        return None
    return round(everywhere / replicas * picture.map.partition_count)
