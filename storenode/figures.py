"""What a store tells about itself: the answer to STATUS. Reads the other parts' counters; makes nothing
happen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared.metrics import Histogram
from storenode.bus import Bus
from storenode.directory import DataDirectory
from storenode.logthread import LogThread
from storenode.maps import Maps
from storenode.raft import Role
from storenode.raftframes import CONTROL
from storenode.raftlog import RaftLog
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.service import Service
from storenode.snapshots import Snapshots

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_VERSION: Final = version("ringkv")

_ROLES: Final = {Role.FOLLOWER: "follower", Role.LEADER: "leader"}

_TOTALS: Final = (
    "tables", "flushes", "flush_bytes", "compactions", "compaction_bytes_read", "compaction_bytes_written",
    "jobs_failed",
)  # fmt: skip
"""Figures of the engines that add up to the node's."""


class Parts(NamedTuple):
    """What a store has that a no-op store has not."""

    directory: DataDirectory
    budget: Budget
    log: RaftLog
    log_thread: LogThread
    bus: Bus
    snapshots: Snapshots


class Figures:
    """Gathers the figures of one node when asked. `replicas` and `parts` stay empty on a no-op store."""

    def __init__(self, node: int, name: str, maps: Maps, service: Service) -> None:
        self.replicas: Mapping[int, Replica] = {}
        self.parts: Parts | None = None
        self.control: Callable[[], dict[str, Any]] = dict
        """Figures of the control plane, where there is one."""
        self._node = node
        self._name = name
        self._maps = maps
        self._service = service
        self._started = time.monotonic()

    def snapshot(self) -> dict[str, Any]:
        """Numbers, strings, lists and maps of them; bytes, seconds and counts, as the names say."""
        return {
            "node_id": self._node,
            "name": self._name,
            "version": _VERSION,
            "pid": os.getpid(),
            "epoch": self._maps.map.epoch,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "memory_bytes": _resident_bytes(),
            "partitions": sorted(self.replicas.keys() - {CONTROL})
            or list(self._maps.map.partitions_of(self._node)),
            "failed": {
                str(replica.partition): replica.failure
                for replica in self.replicas.values()
                if replica.failure
            },
            "groups": {str(replica.partition): _group(replica) for replica in self.replicas.values()},
            "requests": self._service.counters.snapshot(),
            "answers": self._service.outbox.answered(),
            **self.control(),
            **({} if self.parts is None else {**_log(self.parts), **self._data(self.parts)}),
        }

    def _data(self, parts: Parts) -> dict[str, Any]:
        stats = [replica.machine.engine.stats() for replica in self.replicas.values()]
        sessions = [replica.machine.sessions for replica in self.replicas.values()]
        return {
            "data_dir": str(parts.directory.path),
            "disk_free_bytes": parts.directory.free_bytes(),
            "keys": sum(
                _keys(figures)
                for partition, figures in zip(self.replicas, stats, strict=True)
                if partition != CONTROL
            ),
            "disk_bytes": sum(figures["table_bytes"] for figures in stats) + parts.log.bytes_held,
            "memtable_bytes": sum(
                figures["memtable_bytes"] + figures["memtables_retired_bytes"] for figures in stats
            ),
            "in_flight_bytes": parts.budget.used,
            "cache": stats[0]["cache"] if stats else {},  # one for all engines
            **{name: sum(figures[name] for figures in stats) for name in _TOTALS},
            "pressure": max((figures["pressure"] for figures in stats), default=0),
            "failing_jobs": sorted({text for figures in stats for text in _failing(figures)}),
            "damage": [figures["damage"] for figures in stats if figures["damage"]],
            "sessions": sum(map(len, sessions)),
            "session_bytes": sum(table.bytes for table in sessions),
            "sessions_evicted": sum(table.evicted for table in sessions),
        }


def _group(replica: Replica) -> dict[str, Any]:
    """One replica's place in its group; indexes of the log."""
    raft, configuration = replica.raft, replica.raft.configuration
    return {
        "role": _role(replica),
        "term": raft.term,
        "leader": raft.leader,
        "commit": raft.commit,
        "applied": raft.applied_index,
        "last": raft.last_index,
        "voters": sorted(configuration.voters | configuration.outgoing),
        "learners": sorted(configuration.learners),
        "match": {str(node): one.match for node, one in raft.progress.items()},
    }


def _role(replica: Replica) -> str:
    if replica.failure is not None:
        return "failed"
    if replica.raft.node in replica.raft.configuration.learners:
        return "learner"
    return _ROLES.get(replica.raft.role, "candidate")


def _log(parts: Parts) -> dict[str, Any]:
    thread = parts.log_thread
    return {
        "log": {**parts.log.stats(), "syncs": thread.writes, "entries": thread.entries},
        "log_write_longest_s": round(thread.longest_s(), 3),
        "log_write_time": _summary(thread.write_time),
        "bus": parts.bus.figures(),
        "snapshots": {"installed": parts.snapshots.installed, "failed": parts.snapshots.failed},
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
