"""What a store keeps data with, put together by the product (storenode/dataplane.py), in the simulated world.

Owns what stands in for threads, disks and sockets: log writes and walks of the disk take their time, engines
work when the world says so, the bus and the snapshots travel by the simulated network.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

from storenode import engine, raftframes, snapshotfiles
from storenode.beside import Beside
from storenode.dataplane import DataPlane
from storenode.engines import Engines
from storenode.groups import Groups
from storenode.raft.messages import EVERYBODY, Message
from storenode.raftlog import RaftLog
from storenode.snapshots import Snapshots
from tests.simulation.disk import SimulatedLogWriter
from tests.simulation.elastic.checks import WatchedReplicas
from tests.simulation.snapshots import SimulatedPuller, SimulatedSource

if TYPE_CHECKING:
    from shared.clustermap import ClusterMap
    from tests.simulation.elastic.store import ElasticStore


class SimulatedBus:
    """As `storenode.bus.Bus`: who is no peer is not heard."""

    def __init__(self, store: ElasticStore, cluster: int, peers: dict[int, str]) -> None:
        self.peers = frozenset(peers)
        self._store = store
        self._outgoing = raftframes.Outgoing(store.node, cluster, store.chance().getrandbits(64))

    def send(self, group: int, message: Message) -> None:
        if self._store.speaks:
            self._store.checks.on_send(self._store, group, message)
        self._outgoing.add(group, message)

    def set_peers(self, peers: dict[int, str]) -> None:
        self.peers = frozenset(peers)

    def flush(self) -> None:
        store = self._store
        for frame in self._outgoing.take():
            if not store.speaks:
                return
            store.world.trace(store.name, frame)
            topic = int.from_bytes(frame[:2], "big")
            for node, peer in store.peers.items():
                if topic in (node, EVERYBODY):
                    store.send_frame(peer, frame)


class SimulatedDataPlane(DataPlane):
    """Of one life of one store."""

    def __init__(self, store: ElasticStore, *arguments: Any) -> None:
        self._store = store
        super().__init__(*arguments)

    def _open_beside(self) -> Beside:
        return self._store._beside

    def _random(self) -> Random:
        return self._store.chance()

    def _write_map(self, newest: ClusterMap) -> None:
        self._store.keep_map(newest)

    def _open_groups(self, log: RaftLog, log_thread: Any) -> Groups:
        groups = self._store.groups = super()._open_groups(log, log_thread)
        groups.replicas = WatchedReplicas(self._store.checks, self._store)
        return groups

    def _open_log(self, stack: ExitStack) -> RaftLog:
        self._vfs = self._store.disk.vfs
        return super()._open_log(stack)

    def _open_log_thread(self, log: RaftLog) -> Any:
        writer = SimulatedLogWriter(self._store, log, self._store._disk_latency)
        writer.on_submit = lambda records: self._store.checks.on_log_write(self._store, records)
        self._store.log = log
        return writer

    def _open_engines(self, stack: ExitStack) -> Engines:
        store = self._store
        shared = engine.Shared(
            str(self._path), cache_bytes=1 << 20, memtable_bytes=1 << 20, workers=0, vfs=store.disk.vfs
        )
        store._shared = shared
        stack.callback(shared.close)
        options = engine.Options(memtable_bytes=store.settings.memtable_bytes, compression="none")
        engines = Engines(str(self._path / "partitions"), options, shared)
        stack.callback(engines.close_all)
        return engines

    def _open_bus(self, stack: ExitStack) -> Any:
        peers = {node.id: node.bus for node in self._maps.map.nodes}
        bus = self._store.bus = SimulatedBus(self._store, self._cluster, peers)
        return bus

    def _open_snapshots(self, stack: ExitStack) -> Snapshots:
        store, vfs, random = self._store, self._store.disk.vfs, self._store.chance()
        puller = store.puller = SimulatedPuller(store, store._ask_peer, vfs, random)
        stack.callback(puller.close)
        snapshots = store.snapshots = Snapshots(
            self.groups,
            puller,
            self._endpoint,
            os.path.join(self._path, "incoming"),
            self._store._beside,
            lambda directory: snapshotfiles.remove_tree(vfs, directory),
        )
        outgoing = os.path.join(self._path, "outgoing")
        store.source = SimulatedSource(store, snapshots.make, outgoing, vfs, random, store._answer_peer)
        self.groups.pinned = store.source.pinned
        return snapshots

    def _open_cuts(self, stack: ExitStack) -> None:
        """Nobody makes a backup in the simulated world."""
