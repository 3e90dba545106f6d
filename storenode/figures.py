"""What a store tells about itself: the answer to STATUS, and what it publishes. Reads the other parts'
counters; makes nothing happen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from shared import process
from shared.metrics import Histogram
from storenode.bus import Bus
from storenode.directory import DataDirectory
from storenode.enginefigures import AT_ONCE, EngineFigures
from storenode.logthread import LogThread
from storenode.maps import Maps
from storenode.raft import Role
from storenode.raftframes import CONTROL
from storenode.raftlog import RaftLog
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.service import Service
from storenode.snapshots import Snapshots

_VERSION: Final = version("ringkv")

_ROLES: Final = {Role.FOLLOWER: "follower", Role.LEADER: "leader"}


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
        self._engines = EngineFigures()

    def snapshot(self) -> dict[str, Any]:
        """Numbers, strings, lists and maps of them; bytes, seconds and counts, as the names say."""
        self._engines.look(self.replicas.values(), len(self.replicas))
        return self._gather()

    def published(self) -> dict[str, Any]:
        """The same, where what the engines say may be some seconds old when there are many."""
        self._engines.look(self.replicas.values(), AT_ONCE)
        return self._gather()

    def _gather(self) -> dict[str, Any]:
        return {
            "node_id": self._node,
            "name": self._name,
            "version": _VERSION,
            "epoch": self._maps.map.epoch,
            "uptime_s": round(time.monotonic() - self._started, 3),
            **process.figures(),
            "routers": self._service.routers.figures(),
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
        engines = self._engines.snapshot()
        sessions = [replica.machine.sessions for replica in self.replicas.values()]
        free, size = parts.directory.room()
        return {
            "data_dir": str(parts.directory.path),
            "disk_free_bytes": free,
            "disk_size_bytes": size,
            "disk_bytes": engines["table_bytes"] + parts.log.bytes_held,
            "in_flight_bytes": parts.budget.used,
            **engines,
            "sessions": sum(map(len, sessions)),
            "session_bytes": sum(table.bytes for table in sessions),
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


def _summary(histogram: Histogram) -> dict[str, int | list[int]]:
    """A histogram as people read it, in microseconds, and as it is."""
    return {
        **histogram.snapshot(),
        "p50_us": round(histogram.percentile(50) / 1000),
        "p99_us": round(histogram.percentile(99) / 1000),
    }
