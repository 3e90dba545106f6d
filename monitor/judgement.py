"""What is wrong, by a picture: the judgement of `kvcli status`, and what only a monitor can tell. Owns the
words for routers and for a monitor that knows too little; all others are `kvclient.health`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvclient.health import CRITICAL, WARNING, Problem, judge
from monitor import reading
from monitor.picture import OK, Figures, RouterSeen, Row, StoreSeen
from shared.controlview import View


def without_map(seeds: Sequence[str]) -> Problem:
    """Nobody has said yet what the cluster is."""
    text = f"there is no cluster map yet: none of {', '.join(seeds)} has answered"
    return Problem(WARNING, text, "Start the stores, or correct `stores` of the monitor's configuration")


def beginning(heard: int, stores: int) -> Problem:
    """The monitor, or the store that it waits for, is too young to be judged."""
    return Problem(
        WARNING, f"the monitor has just begun: it hears {heard} of {stores} stores", "Wait a moment"
    )


def problems(
    stores: Sequence[StoreSeen],
    routers: Sequence[RouterSeen],
    table: list[Row],
    view: View,
) -> list[Problem]:
    """Critical ones first."""
    if all(store.gone for store in stores):
        text = f"no store is heard: {', '.join(store.name for store in stores)}"
        remedy = "Start them, or look for what is between them and the monitor"
        return [Problem(CRITICAL, text, remedy), *_of_routers(routers)]
    answer = {
        "nodes": [_node(store, view.figures(store.id).get("heard_ms")) for store in stores],
        "groups": table,
        "controller": view.controller,
        "control_text": view.text,
        "moves": view.said.get("moves"),
        "paused": view.said.get("paused") is True,
    }
    found = [*judge(answer), *_of_routers(routers)]
    return sorted(found, key=lambda problem: problem.level != CRITICAL)


def verdict(found: Sequence[Problem]) -> Problem:
    """The worst of them, in one sentence."""
    if not found:
        return Problem(OK, "all is well", "")
    worst = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return worst._replace(text=worst.text + more)


def _node(store: StoreSeen, heard_ms: Any) -> Row:
    figures = store.figures
    row: Row = {
        "id": store.id,
        "name": store.name,
        "rpc": store.rpc,
        "state": store.state,
        "partitions": store.partitions,
        "failed": reading.reasons(figures, "failed"),
        "failing_jobs": reading.texts(figures, "failing_jobs"),
        "disk_free_bytes": reading.number(figures, "disk_free_bytes"),
        "disk_size_bytes": reading.number(figures, "disk_size_bytes"),
    }
    if figures:
        row |= {"uptime_s": reading.number(figures, "uptime_s"), "version": _version(figures)}
    return row if heard_ms is None else row | {"heard_ms": heard_ms}


def _version(figures: Figures) -> str:
    return reading.text(figures, "version") or "unknown"


def _of_routers(routers: Sequence[RouterSeen]) -> list[Problem]:
    gone = [router for router in routers if router.gone]
    if gone and len(gone) == len(routers):
        text = f"no router answers: {', '.join(router.name for router in gone)}"
        return [Problem(CRITICAL, text, "Clients reach nothing: start them again")]
    return [
        Problem(
            WARNING,
            f"{router.name} does not answer at {router.front}",
            "Clients use the others. Start it again, unless it was taken away on purpose",
        )
        for router in gone
    ]
