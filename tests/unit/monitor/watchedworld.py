"""A cluster as a monitor hears it: figures of made-up stores and routers, said when the test wants it."""

from __future__ import annotations

from typing import Any

from kvclient.errors import Status
from monitor.model import Model
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.controlview import read_view
from shared.figuresmessage import StoreFigures
from shared.hashing import xxh64
from shared.messagefields import pack
from shared.metrics import Histogram

PARTITIONS = 4
SEED = "tcp://127.0.0.1:7200"


def front(number: int) -> str:
    return f"tcp://127.0.0.1:{7099 + number}"


def nodes(count: int) -> tuple[Node, ...]:
    return tuple(
        Node(n, f"store{n}", f"tcp://127.0.0.1:{7190 + 10 * n}", zone=f"z{n}") for n in range(1, count + 1)
    )


class World:
    """Three stores, each of which leads some partitions, and two routers; `second` lets time pass while those
    speak that are not `silent`.
    """

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.clock = ManualClock(monotonic=1000.0)
        self.model = Model("monitor", [SEED], self.clock)
        self.map = ClusterMap.bootstrap("test", partitions, 3, nodes(3))
        self.silent: set[str] = set()
        self.leaders = {partition: 1 + partition % 3 for partition in range(partitions)}
        self.term = 1
        self.moves: list[dict[str, Any]] = []
        self.extra: dict[str, dict[str, Any]] = {}
        self.seconds = 0
        self.show = True
        self.paused = False

    def store(self, node: int) -> dict[str, Any]:
        """What a store publishes."""
        written = Histogram()
        for _ in range(self.seconds * 10):
            written.observe(2_000_000)
        groups = {
            str(partition): {
                "role": "leader" if leader == node else "follower",
                "term": self.term, "leader": leader, "commit": 50, "applied": 50, "last": 50,
                "voters": [1, 2, 3], "learners": [],
                "match": {"1": 50, "2": 50, "3": 50} if leader == node else {},
            }
            for partition, leader in self.leaders.items()
        }  # fmt: skip
        counted = dict.fromkeys(
            ("batches", "items", "faults_sent", "faults_received", "dropped_full", "dropped_gone", "defects"),
            0,
        )
        bus = dict.fromkeys(
            ("frames_sent", "bytes_sent", "frames_received", "bytes_received", "frames_bad", "frames_foreign",
             "frames_stranger", "rows_bad", "send_failed", "frames_lost", "frames_late", "peer_restarts"), 7,
        )  # fmt: skip
        engine = dict.fromkeys(
            ("flushes", "flush_bytes", "compactions", "compaction_bytes_read", "compaction_bytes_written",
             "jobs_failed", "tables", "memtable_bytes", "sessions", "session_bytes", "sessions_evicted",
             "in_flight_bytes", "pressure", "compaction_debt_bytes", "stall_ms"), 3,
        )  # fmt: skip
        control = {
            "steps": 1,
            "writes": 2,
            "orders": 3,
            "orders_refused": 0,
            "failures": 0,
            "sits": node == 2,
        }
        return {
            "node_id": node, "name": f"store{node}", "version": "1.0", "uptime_s": 60.0 + self.seconds,
            "pid": 100 + node, "python": "3.11.2", "memory_bytes": 50 << 20, "cpu_s": 0.5 * self.seconds,
            "open_fds": 40, "max_fds": 1024, "groups": groups, "failed": {}, "failing_jobs": [], "damage": [],
            "requests": counted | {"reads": 100 * self.seconds, "writes": 10 * self.seconds},
            "answers": {"ok": 110 * self.seconds, "busy": 1}, "bus": bus, **engine,
            "controller": 2, "control": control | {"events": {"frames_bad": 1, "reports_foreign": 2}},
            "log": {"groups": 4, "segments": 1, "bytes_held": 9, "bytes_written": 8,
                    "disk_reads": 1, "syncs": 5, "entries": 6},
            "log_write_longest_s": 0.0, "log_write_time": written.snapshot(),
            "snapshots": {"installed": 1, "failed": 0}, "keys": 300,
            "cache": {"bytes": 1, "hits": 2, "misses": 3},
            "disk_bytes": 1 << 20, "disk_free_bytes": 50 << 30, "disk_size_bytes": 100 << 30,
            "routers": [{"name": f"router{n}", "front": front(n)} for n in (1, 2)],
            **self.extra.get(f"store{node}", {}),
        }  # fmt: skip

    def router(self, number: int) -> dict[str, Any]:
        """What a router answers."""
        took = Histogram()
        for _ in range(self.seconds * 10):
            took.observe(1_000_000)
        counters = dict.fromkeys(
            ("parts_retried", "parts_lost", "parts_unsent", "parts_redirected", "parts_expired",
             "answers_stray", "store_frames_bad", "responses_client_gone", "responses_client_full",
             "defects"), 1,
        )  # fmt: skip
        return {
            "name": f"router{number}", "version": "1.0", "epoch": 1, "stores_up": [1, 2, 3],
            "in_flight_parts": 5, "in_flight_bytes": 500, "uptime_s": 60.0 + self.seconds,
            "pid": 200 + number, "python": "3.11.2", "memory_bytes": 40 << 20, "cpu_s": 0.25 * self.seconds,
            "open_fds": 20, "max_fds": 1024,
            "ops": {"read": 1000 * self.seconds, "write": 100 * self.seconds},
            "requests": {"read": {"ok": 50 * self.seconds, "timeout": self.seconds}, "ping": {"ok": 3}},
            "durations": {op: took.snapshot() for op in ("read", "write", "scan", "barrier")}, **counters,
            **self.extra.get(f"router{number}", {}),
        }  # fmt: skip

    def second(self, count: int = 1) -> None:
        """So many seconds pass."""
        for _ in range(count):
            self.clock.advance(1.0)
            self.seconds += 1
            self.model.on_map(self.map.encode())
            for node in self.map.nodes:
                if node.name not in self.silent:
                    figures = StoreFigures(xxh64(self.map.cluster_id.encode()), node.id, self.store(node.id))
                    self.model.on_store(figures)
            for number in (1, 2):
                if f"router{number}" not in self.silent and front(number) in self.model.fronts:
                    self.model.on_router(front(number), self.router(number))
            if self.show:
                said = [
                    {"id": node.id, "state": "up" if node.name not in self.silent else "down", "heard_ms": 10}
                    for node in self.map.nodes
                ]
                body = {"controller": 2, "moves": self.moves, "nodes": said, "paused": self.paused}
                self.model.on_view(read_view(Status.OK, pack(body)))
            self.model.tick(0.001)
