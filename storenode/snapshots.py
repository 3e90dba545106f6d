"""Snapshots between nodes: which replica needs one, and what becomes of it (docs/raft.md section 6).

Owns the way of a snapshot from the wish for it to the moment when nothing of it is left but what the engine
took: one at a time for each replica. Loop thread; disks are walked beside it. Must not know chunks or
sockets; `BulkClient` pulls, `BulkSource` gives away, `Groups` puts it in the place of what was there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from kvclient.errors import Unavailable
from shared import logs
from storenode.beside import Beside
from storenode.engine import EngineError, checkpoint_files
from storenode.groups import Arrived, Groups
from storenode.replica.replica import Replica
from storenode.snapshotpull import ANSWER_S, Done, Failed
from storenode.snapshotsource import Made

PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 10.0
"""Before the same leader is asked again after a failure, doubled with each further one: every attempt makes
it flush and sum its tables, and what keeps a receiver from it, a full disk as a rule, lasts until somebody
mends it.
"""

_log = logs.get("snapshots")


class _Pause(NamedTuple):
    """Nothing is asked of `leader` before `until`, in the clock of `Raft.now`; the next failure makes it
    `seconds`.
    """

    leader: int
    until: float
    seconds: float


class Puller(Protocol):
    """`storenode.bulk.BulkClient`, or its twin in simulations."""

    def pull(
        self, group: int, endpoint: str, at_least: int, target: str, on_done: Callable[[Any], None]
    ) -> None: ...
    def cancel(self, group: int) -> None: ...
    def silent_s(self, group: int) -> float: ...


class Snapshots:
    """Of one node. `directory` is where pulls lie until they are installed."""

    def __init__(
        self,
        groups: Groups,
        puller: Puller,
        endpoint: Callable[[int], str | None],
        directory: str,
        beside: Beside,
        remove: Callable[[str], None],
    ) -> None:
        """`endpoint`: where a node is asked for snapshots; None: nobody knows."""
        self.installed = 0
        self.failed = 0
        self._groups = groups
        self._puller = puller
        self._endpoint = endpoint
        self._directory = directory
        self._beside = beside
        self._remove = remove
        self._under_way: dict[int, int] = {}
        """Partition -> node that it comes from: from the wish on until it is installed or has failed."""
        self._pauses: dict[int, _Pause] = {}
        groups.on_wanted = self.want

    def make(self, group: int, directory: str) -> Made:
        """A checkpoint of this node's replica, for another node."""
        replica = self._groups.replicas.get(group)
        if replica is None or replica.failure is not None:
            raise Unavailable(f"this store has no sound replica of partition {group}")
        try:
            replica.machine.engine.checkpoint(directory)
        except EngineError as error:
            raise Unavailable(f"the engine of partition {group} gives no checkpoint: {error}") from error
        engine = replica.machine.engine
        return Made(replica.machine.durable().index, engine.flushed_state, checkpoint_files(directory))

    def want(self, replica: Replica) -> None:
        """The leader has no entries any more that this replica needs. What is pulled from another node, a
        leader before it as a rule, may come to its end, unless that one has fallen silent: the new leader may
        need this replica for its majority.
        """
        wanted = replica.raft.snapshot_wanted
        if wanted is None:
            return
        leader, index, _ = wanted
        source = self._under_way.get(replica.partition, leader)
        if source != leader and self._puller.silent_s(replica.partition) >= ANSWER_S:
            self._puller.cancel(replica.partition)
            _log.warning("snapshot_source_silent", partition=replica.partition, source=source)
        elif replica.partition in self._under_way or self._pausing(replica, leader):
            return
        self._under_way[replica.partition] = leader
        _log.info("snapshot_wanted", partition=replica.partition, leader=leader, index=index)
        target = self._target(replica.partition)

        def pull(_: object) -> None:
            endpoint = self._endpoint(leader)
            if endpoint is None:
                self._pulled(replica, Failed(f"node {leader} is not in the cluster map"))
                return
            self._puller.pull(
                replica.partition, endpoint, index, target, lambda outcome: self._pulled(replica, outcome)
            )

        # A process that ended before it installed a whole snapshot has left it, and nobody pulls over it.
        self._beside(lambda: self._remove(target), pull)

    def _pausing(self, replica: Replica, leader: int) -> bool:
        pause = self._pauses.get(replica.partition)
        return pause is not None and pause.leader == leader and replica.raft.now < pause.until

    def _target(self, group: int) -> str:
        return os.path.join(self._directory, f"{group:04}")

    def _pulled(self, replica: Replica, outcome: Done | Failed) -> None:
        if isinstance(outcome, Failed):
            self._failed(replica, outcome.reason)
            del self._under_way[replica.partition]
            return
        directory = outcome.directory

        def examined(found: Any) -> None:
            if isinstance(found, Exception):
                finished(found)
            else:
                self._groups.install(Arrived(replica, found, finished))

        def finished(error: Exception | None) -> None:
            if error is None:
                self.installed += 1
                self._pauses.pop(replica.partition, None)
                index = replica.machine.position.index
                _log.info("snapshot_installed", partition=replica.partition, index=index)
            else:
                self._failed(replica, f"{type(error).__name__}: {error}")
            self._beside(lambda: self._remove(directory), removed)

        def removed(_: object) -> None:
            del self._under_way[replica.partition]

        self._beside(lambda: replica.machine.engine.examine(directory), examined)

    def _failed(self, replica: Replica, reason: str) -> None:
        self.failed += 1
        replica.raft.snapshot_wanted = None  # the leader says it again
        before = self._pauses.get(replica.partition)
        seconds = before.seconds if before is not None else PAUSE_S
        leader = self._under_way[replica.partition]
        until = replica.raft.now + seconds
        self._pauses[replica.partition] = _Pause(leader, until, min(2 * seconds, PAUSE_S_MAX))
        _log.warning("snapshot_failed", partition=replica.partition, reason=reason)
