"""A store of a cluster that changes, wired as storenode/node.py wires a real one.

Real beside what tests/simulation/store.py has: commands for groups, hosting, erasing, maps, events, reports,
the office of the controller. Simulated: their sockets, and who joins.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import attrs

from shared.clustermap import ClusterMap
from shared.opstream import Limits
from storenode import engine, founding, raftframes
from storenode.control.state import CONTROL
from storenode.groupcommands import GroupCommands
from storenode.groups import Groups
from storenode.hosting import Hosting, OnHosted
from storenode.raft.messages import EVERYBODY
from storenode.raftlog import RaftLog
from storenode.replica.budget import Budget
from storenode.storerequests import Reply, StoreRequests, refusal, to_host
from tests.simulation.disk import SimulatedLogWriter
from tests.simulation.elastic.checks import WatchedReplicas
from tests.simulation.elastic.sockets import SocketMachine
from tests.simulation.store import IN_FLIGHT_BYTES, SimulatedService, SimulatedStore

if TYPE_CHECKING:
    from tests.simulation.elastic.cluster import ElasticCluster


class ElasticStore(SocketMachine, SimulatedStore):
    """One node, over all of its lives. `known` is the map that it begins with."""

    def __init__(
        self,
        cluster: ElasticCluster,
        known: ClusterMap,
        node: int,
        name: str,
        place: str,
        incarnation: str,
    ) -> None:
        super().__init__(
            cluster.world, cluster.network, cluster.settings, known, node, place, cluster.checks, name
        )
        self.wires = cluster.wires
        self.incarnation = incarnation
        self.lost = False
        self.gone_at = 0.0
        """When it died the last time."""
        self.control_deaf = 0
        """How many faults keep what is said of the control partition from it."""

    def close(self) -> None:
        self.gone_at = self.world.now
        super().close()

    @property
    def epoch(self) -> int:
        return self._map.epoch

    # -- what it is made of

    def _build(self, stack: ExitStack) -> None:
        settings, vfs, path = self._settings, self.disk.vfs, self.disk.path
        random = Random(self.world.random.getrandbits(64))
        log = self.log = RaftLog(
            vfs,
            os.path.join(path, "raft"),
            self.node,
            segment_bytes=settings.segment_bytes,
            cache_bytes=settings.log_cache_bytes,
        )
        stack.callback(log.close)
        self._shared = engine.Shared(path, cache_bytes=1 << 20, memtable_bytes=1 << 20, workers=0, vfs=vfs)
        stack.callback(self._shared.close)
        writer = SimulatedLogWriter(self, log, self._disk_latency)
        self._outgoing = raftframes.Outgoing(self.node, self._cluster, random.getrandbits(64))
        self.groups = Groups(
            log, writer, self._send, self.clock, self._on_log_failed, log_bytes_max=settings.log_bytes_max
        )
        self.groups.replicas = WatchedReplicas(self._checks, self)  # type: ignore[arg-type]
        writer.on_submit = partial(self._checks.on_log_write, self)
        self.service = SimulatedService(self, self._map, self.node, Limits(1 << 16), self.clock)  # type: ignore[arg-type]
        self.service.leave = self._leave
        self.service.driver = self.groups
        founder = founding.Founder(
            self.node, log, self.groups, self.clock, Budget(IN_FLIGHT_BYTES), self.service.outbox.add
        )
        options = engine.Options(memtable_bytes=settings.memtable_bytes, compression="none")
        engines = stack.enter_context(ExitStack())

        def open_engine(partition: int) -> engine.ReplicaEngine:
            opened = engine.open_replica(
                os.path.join(path, f"p{partition:04}"),
                options=options,
                shared=self._shared,
                engine_id=partition,
            )
            engines.callback(opened.close)
            return opened

        founded = set(self._map.partitions_of(self.node))
        for partition in sorted(founded.union(log.groups)):
            founders = self._map.replicas[partition] if partition in founded else ()
            founder.add(partition, open_engine(partition), founders, Random(random.getrandbits(64)))
        founder.finish()
        self.service.start(None, self.groups.replicas, dict)  # type: ignore[arg-type]
        self._build_snapshots(stack, random)
        self._build_commands(stack, Hosting(founder, open_engine))
        for replica in self.groups.replicas.values():
            replica.raft.settings = attrs.evolve(
                replica.raft.settings, append_bytes_max=settings.append_bytes_max
            )
        self._tick()
        self._maintain()

    def _build_commands(self, stack: ExitStack, hosting: Hosting) -> None:
        stores = StoreRequests(self, self, self.clock)  # type: ignore[arg-type]
        stack.callback(stores.close)

        def ask_host(node: int, partition: int, deadline: float, done: OnHosted) -> None:
            def answered(reply: Reply | None) -> None:
                done(refusal(reply))

            endpoint = self._map.node(node).rpc
            stores.ask(endpoint, to_host(self._cluster, partition, node), deadline, answered)

        self.commands = GroupCommands(
            self.node,
            self._cluster,
            self._map.partition_count,
            {node.id: node.name for node in self._map.nodes},
            self.groups,
            self.clock,
            self.service.answer_group,
            ask_host,
            hosting.host,
        )
        self.service.on_group = self.commands.on_request

    # -- the reactor's side

    def add_reader(self, socket: Any, on_batch: Any, priority: int = 0) -> None:
        if socket is None:
            SimulatedStore.add_reader(self, socket, on_batch)
        else:
            super().add_reader(socket, on_batch, priority)

    def end_turn(self) -> None:
        self.commands.end_turn()
        super().end_turn()

    # -- messages

    def _flush_bus(self) -> None:
        for frame in self._outgoing.take():
            if not self.speaks:
                return
            self.world.trace(self.name, frame)
            topic = int.from_bytes(frame[:2], "big")
            for node, peer in self.peers.items():
                if topic in (node, EVERYBODY):
                    self._network.send(self.name, peer.name, partial(peer.on_frame, frame), self.clock.ahead)

    def on_frame(self, frame: bytes) -> None:
        """A frame of a node that is none of its map is not heard."""
        if not self.up:
            return
        found = raftframes.decode(frame, self._cluster)
        if self.knows(found.sender):
            rows = [row for row in found.rows if row[0] != CONTROL or not self.control_deaf]
            self.deliver("bus", (found.sender, rows))

    def knows(self, node: int) -> bool:
        """Whether its map has that node."""
        return any(one.id == node for one in self._map.nodes)

    def _leave(self, router: bytes, frame: bytes) -> None:
        if not self.speaks:
            return
        if router.startswith(b"socket"):
            self.wires.reply(self, router, frame)
        else:
            self.to_router(self, router.decode(), frame)

    def _ask_peer(self, endpoint: str, body: bytes) -> None:
        peer: Any = self.wires.stores.get(endpoint)
        if self.speaks and peer is not None:
            arrive = partial(peer.deliver, "bulk", (self, body))
            self._network.send(self.name, peer.name, arrive, self.clock.ahead, stream=True)
