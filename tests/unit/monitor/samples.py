"""Status documents as docs/monitor.md section 3 has them, for the tests of the page."""

from __future__ import annotations

import math
from typing import Any, Final

Row = dict[str, Any]

AT_MS: Final = 1_795_444_927_000
GIB: Final = 1 << 30


def healthy(stores: int = 3, partitions: int = 16, factor: int = 3, points: int = 1800) -> Row:
    """All is well, and has been for an hour."""
    nodes = [_node(number, partitions, stores, factor) for number in range(1, stores + 1)]
    return {
        "version": 1,
        "at_ms": AT_MS,
        "monitor": {"name": "monitor1", "version": "0.1.0", "uptime_s": 9000.0, "memory_bytes": 61 << 20},
        "cluster": {
            "name": "orchard",
            "id": "4f1d0c6a9be34b5d",
            "epoch": 12,
            "partitions": partitions,
            "replication_factor": factor,
            "controller": "store1",
            "paused": False,
        },
        "verdict": {"level": "ok", "text": "all is well", "remedy": ""},
        "problems": [],
        "totals": {
            "ops_per_s": 18_432.5, "reads_per_s": 16_500.0, "writes_per_s": 1_932.5, "errors_per_s": 0.0,
            "p50_ms": 1.21, "p99_ms": 6.4, "nodes_up": stores, "nodes": stores, "routers_up": 2, "routers": 2,
            "partitions_ok": partitions, "partitions_degraded": 0, "partitions_down": 0, "keys": 1_204_332,
            "disk_bytes": 3 * GIB // 2, "disk_free_bytes": 120 * GIB, "memory_bytes": 700 << 20,
        },
        "nodes": nodes,
        "routers": [_router("router1"), _router("router2")],
        "partitions": [_partition(number, stores, factor) for number in range(partitions)],
        "moves": [],
        "events": [
            event(0, "ok", "store2 took over partitions 1, 4, 7 from store1"),
            event(340, "ok", "store1 is up again"),
            event(90_000, "warning", "store1 is down"),
        ],
        "history": history(points),
    }  # fmt: skip


def store_down() -> Row:
    """store3 was killed; the others lead what it led."""
    status = healthy(points=400)
    gone = status["nodes"][2]
    known = ("id", "name", "zone", "rpc", "partitions")
    status["nodes"][2] = {name: value if name in known else None for name, value in gone.items()} | {
        "state": "down", "gone": True, "heard_s": 37.2, "controller": False,
    }  # fmt: skip
    for row in status["partitions"]:
        row["state"] = "degraded"
        row["leader"] = "store1" if row["leader"] == "store3" else row["leader"]
        for replica in row["replicas"]:
            if replica["node"] == "store3":
                replica.update(role="gone", state="gone", lag=None)
            elif replica["node"] == row["leader"]:
                replica["role"] = "leader"
    remedy = "Start it again. If it does not come back: kvcli node remove store3 --force"
    lost = "store3 is down: 16 partitions lack it"
    status["verdict"] = {"level": "warning", "text": f"{lost}, and 1 more", "remedy": remedy}
    status["problems"] = [
        {"level": "warning", "text": lost, "remedy": remedy},
        {"level": "warning", "text": "router2 is gone", "remedy": "kvcli dev start router2"},
    ]
    status["totals"].update(nodes_up=2, routers_up=1, partitions_ok=0, partitions_degraded=16)
    status["routers"][1] = dict.fromkeys(status["routers"][1]) | {
        "name": "router2", "front": "tcp://127.0.0.1:7101", "gone": True, "heard_s": 37.2,
    }  # fmt: skip
    status["events"].insert(0, event(0, "warning", "store3 is down"))
    return status


def rebalancing() -> Row:
    """store4 has joined and gets its share."""
    status = healthy(stores=4, points=1100)
    status["moves"] = [
        _move(4, 9, "waiting", None, "store4 is busy with other moves"),
        _move(1, 2, "learner", 0.63),
        _move(2, 5, "swap", 1.0),
        _move(3, 65535, "settle", None) | {"reason": "control"},
        _move(5, 11, "leave", None) | {"target": None},
    ]
    status["partitions"][2]["replicas"].append(
        {"node": "store4", "role": "learner", "state": "learner", "lag": 40_120}
    )
    status["partitions"][5]["replicas"][1].update(state="lagging", lag=12_345)
    status["nodes"][1]["state"] = "draining"
    return status


def unknown() -> Row:
    """A cluster of which nothing is known but its map: no store and no router is heard."""
    status = healthy(points=0)
    for name in ("nodes", "routers"):
        keep = ("id", "name", "zone", "rpc", "front", "partitions")
        status[name] = [
            {key: value if key in keep else None for key, value in row.items()}
            | {"gone": True, "controller": False, **({"state": "down"} if name == "nodes" else {})}
            for row in status[name]
        ]
    for row in status["partitions"]:
        row.update(leader=None, term=None, commit=None, state="down")
        for replica in row["replicas"]:
            replica.update(role="gone", state="gone", lag=None)
    counted = {"nodes_up": 0, "nodes": 3, "routers_up": 0, "routers": 2, "partitions_ok": 0}
    status["totals"] = dict.fromkeys(status["totals"]) | counted | {
        "partitions_degraded": 0, "partitions_down": 16,
    }  # fmt: skip
    status["cluster"].update(controller=None, paused=None)
    status["verdict"] = {
        "level": "critical",
        "text": "no store is heard",
        "remedy": "kvcli status asks the routers; see whether the stores run",
    }
    status["problems"] = [{**status["verdict"]}]
    status["history"] = {
        name: [AT_MS // 1000 - 2, AT_MS // 1000] if name == "at_s" else [None, None]
        for name in status["history"]
    }
    return status


def started() -> Row:
    """The monitor was just started: no map yet."""
    status = unknown()
    status["cluster"] = {
        "name": None, "id": None, "epoch": 0, "partitions": 0, "replication_factor": 0, "controller": None,
        "paused": None,
    }  # fmt: skip
    status["verdict"] = {"level": "warning", "text": "there is no cluster map yet", "remedy": ""}
    status["problems"] = [dict(status["verdict"])]
    for name in ("nodes", "routers", "partitions", "moves", "events"):
        status[name] = []
    status["totals"] |= {"nodes": 0, "routers": 0, "partitions_down": 0}
    status["history"] = history(0)
    return status


def history(points: int) -> Row:
    """A busy hour with a dip where no router answered."""
    times = [AT_MS // 1000 - 2 * (points - 1 - index) for index in range(points)]
    silent = [points // 2 <= index < points // 2 + 12 for index in range(points)]
    wave = [
        None if away else 16_000 + 4_000 * math.sin(index / 90) + 900 * math.sin(index * 1.7)
        for index, away in enumerate(silent)
    ]
    return {
        "at_s": times,
        "ops_per_s": wave,
        "errors_per_s": [None if value is None else 0.0 for value in wave],
        "p50_ms": [None if value is None else 1.2 + 0.2 * math.sin(i / 60) for i, value in enumerate(wave)],
        "p99_ms": [
            None if value is None else 6 + 1.5 * math.sin(i / 70) + (i % 97 == 0) * 9
            for i, value in enumerate(wave)
        ],
        "memory_bytes": [7e8] * points,
        "disk_bytes": [1.6e9] * points,
    }


def event(seconds_ago: int, level: str, text: str) -> Row:
    return {"at_ms": AT_MS - seconds_ago * 1000, "level": level, "text": text}


def _node(number: int, partitions: int, stores: int, factor: int) -> Row:
    return {
        "id": number, "name": f"store{number}", "zone": "abc"[number % 3],
        "rpc": f"tcp://127.0.0.1:{7200 + number}", "state": "up", "gone": False, "heard_s": 0.4,
        "controller": number == 1, "partitions": partitions * factor // stores, "leads": partitions // stores,
        "lag": number % 3, "failed": 0, "version": "0.1.0", "uptime_s": 8_990.0, "cpu": 0.42,
        "memory_bytes": 180 << 20, "open_fds": 96, "max_fds": 1024, "keys": 401_444, "disk_bytes": GIB // 2,
        "disk_free_bytes": 40 * GIB, "disk_size_bytes": 100 * GIB, "reads_per_s": 5_500.0,
        "writes_per_s": 644.2, "log_write_p99_ms": 2.31,
    }  # fmt: skip


def _router(name: str) -> Row:
    return {
        "name": name, "front": f"tcp://127.0.0.1:{7099 + int(name[-1])}", "gone": False, "heard_s": 0.2,
        "version": "0.1.0", "uptime_s": 8_990.0, "cpu": 0.61, "memory_bytes": 70 << 20, "open_fds": 41,
        "max_fds": 1024, "epoch": 12, "ops_per_s": 9_216.2, "errors_per_s": 0.0, "p50_ms": 1.2,
        "p99_ms": 6.3, "in_flight": 128, "stores_up": 3,
    }  # fmt: skip


def _partition(number: int, stores: int, factor: int) -> Row:
    holders = [f"store{(number + index) % stores + 1}" for index in range(factor)]
    return {
        "id": number, "leader": holders[0], "term": 3, "commit": 120_000 + number, "state": "ok",
        "replicas": [
            {"node": node, "role": "follower" if index else "leader", "state": "ok", "lag": index}
            for index, node in enumerate(holders)
        ],
    }  # fmt: skip


def _move(number: int, partition: int, stage: str, done: float | None, waits: str = "") -> Row:
    return {
        "id": number, "partition": partition, "source": "store1", "target": "store4", "reason": "rebalance",
        "stage": stage, "bytes": 96 << 20, "done": done, "waits": waits,
    }  # fmt: skip
