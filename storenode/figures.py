"""What a store tells about itself: the answer to STATUS. Reads the other parts' counters; makes nothing
happen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from shared.clustermap import ClusterMap
from shared.metrics import Histogram
from storenode.config import NodeSection
from storenode.directory import DataDirectory
from storenode.groupcommit import GroupCommit
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.service import Service

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_VERSION: Final = version("ringkv")

_TOTALS: Final = (
    "tables", "flushes", "flush_bytes", "compactions", "compaction_bytes_read", "compaction_bytes_written",
    "jobs_failed",
)  # fmt: skip
"""Figures of the engines that add up to the node's."""


class Figures:
    """Gathers the figures of one node when asked. `replicas`, `directory` and `budget` stay
    empty on a no-op store.
    """

    def __init__(
        self, node: NodeSection, cluster_map: ClusterMap, service: Service, commit: GroupCommit
    ) -> None:
        self.replicas: Mapping[int, Replica] = {}
        self.directory: DataDirectory | None = None
        self.budget: Budget | None = None
        self._node = node
        self._map = cluster_map
        self._service = service
        self._commit = commit
        self._started = time.monotonic()

    def snapshot(self) -> dict[str, Any]:
        """Numbers, strings, lists and maps of them; bytes, seconds and counts, as the names say."""
        return {
            "node_id": self._node.id,
            "name": self._node.name,
            "version": _VERSION,
            "pid": os.getpid(),
            "epoch": self._map.epoch,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "memory_bytes": _resident_bytes(),
            "partitions": list(self._map.partitions_of(self._node.id)),
            "read_only": {
                str(replica.partition): replica.failure
                for replica in self.replicas.values()
                if replica.failure
            },
            "requests": self._service.counters.snapshot(),
            "answers": self._service.outbox.answered(),
            **self._log(),
            **self._data(),
        }

    def _log(self) -> dict[str, Any]:
        return {
            "log_writes": self._commit.writes,
            "log_entries": self._commit.entries,
            "log_writes_refused": self._commit.refused,
            "log_writes_failed": self._commit.failed,
            "log_write_longest_s": round(self._commit.longest_s(), 3),
            "append_time": _summary(self._commit.append_time),
            "apply_time": _summary(self._commit.apply_time),
        }

    def _data(self) -> dict[str, Any]:
        if self.directory is None or self.budget is None:
            return {}
        stats = [replica.engine.stats() for replica in self.replicas.values()]
        return {
            "data_dir": str(self.directory.path),
            "disk_free_bytes": self.directory.free_bytes(),
            "keys": sum(map(_keys, stats)),
            "disk_bytes": sum(figures["table_bytes"] + figures["log_bytes"] for figures in stats),
            "memtable_bytes": sum(
                figures["memtable_bytes"] + figures["memtables_retired_bytes"] for figures in stats
            ),
            "in_flight_bytes": self.budget.used,
            "cache": stats[0]["cache"] if stats else {},  # one for all engines
            **{name: sum(figures[name] for figures in stats) for name in _TOTALS},
            "pressure": max((figures["pressure"] for figures in stats), default=0),
            "failing_jobs": sorted({text for figures in stats for text in _failing(figures)}),
            "damage": [figures["damage"] for figures in stats if figures["damage"]],
            "sessions": sum(len(replica.sessions) for replica in self.replicas.values()),
            "session_bytes": sum(replica.sessions.bytes for replica in self.replicas.values()),
            "sessions_evicted": sum(replica.sessions.evicted for replica in self.replicas.values()),
        }


def _keys(stats: Mapping[str, Any]) -> int:
    """An estimate: a key counts once for each of its versions that compaction has not merged yet."""
    entries: int = stats["memtable_entries"] + stats["table_entries"] - 2 * stats["table_deletions"]
    return max(0, entries)


def _failing(stats: Mapping[str, Any]) -> list[str]:
    """What keeps flushes and compactions from getting done: writes end when it lasts."""
    return [f"{kind}: {failure['error']}" for kind, failure in stats["failures"].items()]


def _summary(histogram: Histogram) -> dict[str, int]:
    """A histogram as people read it; in microseconds."""
    return {
        "count": histogram.count,
        "p50_us": round(histogram.percentile(50) / 1000),
        "p99_us": round(histogram.percentile(99) / 1000),
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
