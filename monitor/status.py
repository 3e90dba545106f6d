"""The status document (docs/monitor.md section 3): a picture as JSON. Owns names, types and what is null."""

from __future__ import annotations

from typing import Any, Final

from kvclient.health import LAG_ENTRIES_MAX, Problem, is_led
from monitor import changes, drawing, judgement, reading
from monitor.history import History
from monitor.picture import FAILED, OK, Figures, Picture, RouterSeen, Row, StoreSeen, role_of
from monitor.watched import percentile_ms

VERSION: Final = 1

_DISK: Final = ("keys", "disk_bytes", "disk_free_bytes", "disk_size_bytes")

GONE: Final = "gone"
LAGGING: Final = "lagging"
LEARNER: Final = "learner"
DEGRADED: Final = "degraded"
DOWN: Final = "down"


def document(picture: Picture, history: History, seconds: float) -> dict[str, Any]:
    """With the last `seconds` of the history."""
    names = picture.names
    partitions = [_partition(row, picture, names) for row in picture.table]
    return {
        "version": VERSION,
        "at_ms": picture.at_ms,
        "monitor": {
            "name": picture.own.name,
            "version": picture.own.version,
            "uptime_s": picture.own.figures["uptime_s"],
            "memory_bytes": picture.own.figures["memory_bytes"],
        },
        "cluster": _cluster(picture, names),
        "verdict": _problem(judgement.verdict(picture.problems)),
        "problems": [_problem(problem) for problem in picture.problems],
        "totals": _totals(picture, partitions),
        "nodes": [_node(store) for store in picture.stores],
        "routers": [_router(router) for router in picture.routers],
        "partitions": partitions,
        "moves": [_move(move, names) for move in changes.moves(picture)],
        "events": [event._asdict() for event in picture.events],
        "history": history.last(seconds),
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {"level": problem.level, "text": problem.text, "remedy": problem.remedy}


def _cluster(picture: Picture, names: dict[int, str]) -> dict[str, Any]:
    known, show = picture.map, picture.show
    return {
        "name": known and known.name,
        "id": known and known.cluster_id,
        "epoch": known.epoch if known else 0,
        "partitions": known.partition_count if known else 0,
        "replication_factor": known.replication_factor if known else 0,
        "controller": names.get(picture.controller),
        "paused": None if show is None else show.get("paused") is True,
    }


def _totals(picture: Picture, partitions: list[dict[str, Any]]) -> dict[str, Any]:
    states = [one["state"] for one in partitions]
    return {
        **drawing.totals(picture),
        "nodes_up": sum(bool(store.figures) for store in picture.stores),
        "nodes": len(picture.stores),
        "routers_up": sum(bool(router.figures) for router in picture.routers),
        "routers": len(picture.routers),
        "partitions_ok": states.count(OK),
        "partitions_degraded": states.count(DEGRADED),
        "partitions_down": states.count(DOWN),
    }


def _process(figures: Figures) -> dict[str, Any]:
    return {
        "version": reading.text(figures, "version"),
        "uptime_s": reading.number(figures, "uptime_s"),
        "memory_bytes": reading.whole(figures, "memory_bytes"),
        "open_fds": reading.whole(figures, "open_fds"),
        "max_fds": reading.whole(figures, "max_fds"),
    }


def _node(store: StoreSeen) -> dict[str, Any]:
    figures = store.figures
    return {
        "id": store.id,
        "name": store.name,
        "zone": store.zone,
        "rpc": store.rpc,
        "state": store.state,
        "gone": store.gone,
        "heard_s": store.heard_s,
        "controller": store.controller,
        "partitions": store.partitions,
        "leads": store.leads,
        "lag": store.lag,
        "failed": len(reading.reasons(figures, "failed")) if figures else None,
        "cpu": _rounded(store.cpu),
        **_process(figures),
        **{name: reading.whole(figures, name) for name in _DISK},
        "reads_per_s": _rounded(store.reads_per_s),
        "writes_per_s": _rounded(store.writes_per_s),
        "log_write_p99_ms": store.log_write_p99_ms,
    }


def _router(router: RouterSeen) -> dict[str, Any]:
    figures = router.figures
    reached = figures.get("stores_up")
    return {
        "name": router.name,
        "front": router.front,
        "gone": router.gone,
        "heard_s": router.heard_s,
        "cpu": _rounded(router.cpu),
        **_process(figures),
        "epoch": reading.whole(figures, "epoch"),
        "ops_per_s": _rounded(drawing.summed((router.reads_per_s, router.writes_per_s))),
        "requests_per_s": _rounded(router.requests_per_s),
        "errors_per_s": _rounded(router.errors_per_s),
        "p50_ms": percentile_ms(router.lately, 50),
        "p99_ms": percentile_ms(router.lately, 99),
        "in_flight": reading.whole(figures, "in_flight_parts"),
        "stores_up": len(reached) if isinstance(reached, (list, tuple)) else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _partition(row: Row, picture: Picture, names: dict[int, str]) -> dict[str, Any]:
    figures = {store.id: store.figures for store in picture.stores}
    replicas = []
    for one in row["replicas"]:
        role = role_of(one, figures.get(one["id"], {}), row["partition"]) or GONE
        state = _replica_state(one, role)
        replicas.append({"node": names.get(one["id"]), "role": role, "state": state, "lag": one["lag"]})
    led = is_led(row)
    whole = all(one["state"] in (OK, LEARNER) for one in replicas)
    return {
        "id": row["partition"],
        "leader": names.get(row["leader"]) if led else None,
        "term": row["term"] or None,
        "commit": row["commit"],
        "state": DOWN if not led else OK if whole else DEGRADED,
        "replicas": replicas,
    }


def _replica_state(one: Row, role: str) -> str:
    if role in (GONE, FAILED, LEARNER):
        return role
    return LAGGING if (one["lag"] or 0) > LAG_ENTRIES_MAX else OK


def _move(move: Row, names: dict[int, str]) -> dict[str, Any]:
    done = reading.number(move, "done")
    return {
        "id": move["id"],
        "partition": move["partition"],
        "source": names.get(move["source"]),
        "target": names.get(move["target"]),
        "reason": reading.text(move, "reason") or "",
        "stage": reading.text(move, "stage") or "",
        "bytes": reading.whole(move, "bytes") or 0,
        "done": done,
        "waits": reading.text(move, "waits") or "",
    }
