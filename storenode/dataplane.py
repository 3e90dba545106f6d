"""Everything of a store that keeps data, put together: log, engines, replicas, bus, snapshots, commands; and
who of them follows the cluster map.

Knows every part and the inside of none. `stack` takes what has to be closed, in order.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from shared import sockets
from shared.clock import Clock
from shared.clustermap import ClusterMap
from shared.hashing import xxh64
from shared.messages import Fault
from shared.reactor import Reactor
from storenode import engine, founding, mapfile
from storenode.beside import Beside, beside
from storenode.bulk import BulkClient
from storenode.bus import Bus
from storenode.checksums import Checksums
from storenode.config import StoreConfig
from storenode.controlplane import ControlPlane, Listening
from storenode.cuts import Cuts
from storenode.engine.vfs import Vfs
from storenode.engines import Engines
from storenode.erasing import Erasing
from storenode.figures import Parts
from storenode.groupcommands import GroupCommands
from storenode.groups import MAINTAIN_S, TICK_S, Groups
from storenode.hosting import Hosting, OnHosted
from storenode.logthread import LogThread
from storenode.maps import Maps, MapWriter
from storenode.raft.messages import NOBODY
from storenode.raftframes import CONTROL
from storenode.raftlog import RaftLog
from storenode.replica.budget import Budget
from storenode.service import Service
from storenode.snapshots import Snapshots
from storenode.snapshotsource import BulkSource
from storenode.starting import Home, Start
from storenode.storerequests import Encode, OnReply, Reply, StoreRequests, refusal, to_host


class Process(NamedTuple):
    """What all parts of a process share."""

    reactor: Reactor
    context: sockets.Context
    clock: Clock
    on_log_failed: Callable[[Exception], None]


class DataPlane:
    """Lives when it is made. LogCorrupt, LogFailed, LogRefused, EngineError, Corruption, OSError and
    ListenError say why it cannot.
    """

    def __init__(
        self,
        config: StoreConfig,
        start: Start,
        home: Home,
        process: Process,
        maps: Maps,
        service: Service,
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._start = start
        self._path = home.directory.path
        self._process = process
        self._maps = maps
        self._service = service
        self._cluster = xxh64(maps.map.cluster_id.encode())
        self.beside = self._open_beside()
        self._vfs = Vfs()
        log = self._open_log(stack)
        self._engines = self._open_engines(stack)
        log_thread = self._open_log_thread(log)
        self._bus = self._open_bus(stack)
        self.groups = self._open_groups(log, log_thread)
        self.groups.preferred = self._preferred
        budget = Budget(config.limits.in_flight_bytes)
        self._stores = StoreRequests(process.reactor, process.context, process.clock)
        stack.callback(self._stores.close)
        self.control = self._open_control(home, stack)
        self._founder = founding.Founder(
            start.node,
            log,
            self.groups,
            process.clock,
            budget,
            service.outbox.add,
            {CONTROL: self.control.office.key.on_answer},
        )
        founding.open_groups(self._founder, log, self._engines, self._founded(), self._random)
        snapshots = self._open_snapshots(stack)
        self._open_cuts(stack)
        commands = self._open_commands()
        self.parts = Parts(home.directory, budget, log, log_thread, self._bus, snapshots)
        service.driver = self.groups
        service.on_group = commands.on_request
        maps.follow(MapWriter(self._write_map, self.beside).keep)
        maps.follow(lambda newest: self._bus.set_peers(_bus_endpoints(newest)))
        self._drive(commands)
        self.control.start()

    def _founded(self) -> dict[int, Sequence[int]]:
        """The groups that this node was among the founders of, with all of them."""
        node, first = self._start.node, self._start.first
        if first is None:
            return {}
        founded: dict[int, Sequence[int]] = {
            partition: first.replicas[partition] for partition in first.partitions_of(node)
        }
        if node in first.control:
            founded[CONTROL] = first.control
        return founded

    def _preferred(self, group: int) -> int:
        """The node that should lead it."""
        newest = self._maps.map
        if group == CONTROL:
            return newest.control[0]
        return newest.replicas[group][0] if group < newest.partition_count else NOBODY

    # -- its parts; what a simulation has in their place is of the same shape

    def _random(self) -> random.Random:
        return random.Random()

    def _open_beside(self) -> Beside:
        return beside(self._process.reactor.wakeup().notify)

    def _write_map(self, newest: ClusterMap) -> None:
        mapfile.write(self._path, newest)

    def _open_log_thread(self, log: RaftLog) -> LogThread:
        return LogThread(log, self._process.clock, self._process.reactor.wakeup().notify)

    def _open_groups(self, log: RaftLog, log_thread: LogThread) -> Groups:
        return Groups(
            log,
            log_thread,
            self._bus.send,
            self._process.clock,
            self._process.on_log_failed,
            log_bytes_max=self._config.raft.log_bytes,
        )

    def _open_log(self, stack: ExitStack) -> RaftLog:
        raft = self._config.raft
        directory = str(self._path / "raft")
        log = RaftLog(
            self._vfs, directory, self._start.node, segment_bytes=raft.segment, cache_bytes=raft.cache
        )
        stack.callback(log.close)
        return log

    def _open_engines(self, stack: ExitStack) -> Engines:
        budgets = self._config.engine
        shared = engine.Shared(
            str(self._path),
            cache_bytes=budgets.cache,
            memtable_bytes=budgets.memtables_total,
            workers=budgets.workers,
        )
        stack.callback(shared.close)
        options = engine.Options(memtable_bytes=budgets.memtable)
        engines = Engines(str(self._path / "partitions"), options, shared)
        stack.callback(engines.close_all)
        return engines

    def _open_bus(self, stack: ExitStack) -> Bus:
        bus = Bus(
            self._process.reactor,
            self._process.context,
            self._start.node,
            self._cluster,
            self._config.listen.bus,
            _bus_endpoints(self._maps.map),
            lambda sender, rows: self.groups.on_messages(sender, rows),
            insecure=self._config.insecure,
        )
        stack.callback(bus.close)
        return bus

    def _open_control(self, home: Home, stack: ExitStack) -> ControlPlane:
        reactor, context, clock, _ = self._process
        listening = Listening(self._config.listen.events, self._config.insecure)
        return ControlPlane(
            reactor,
            context,
            clock,
            home,
            self._maps,
            self.groups,
            self._service,
            self._stores,
            listening,
            stack,
        )

    def _open_snapshots(self, stack: ExitStack) -> Snapshots:
        reactor, context, clock, _ = self._process
        puller = BulkClient(reactor, context, self._start.node, self._vfs, clock)
        stack.callback(puller.close)
        snapshots = Snapshots(
            self.groups,
            puller,
            self._endpoint,
            str(self._path / "incoming"),
            self.beside,
            lambda directory: shutil.rmtree(directory, ignore_errors=True),
        )
        send, outgoing = self._service.send_bulk, str(self._path / "outgoing")
        source = BulkSource(
            reactor,
            snapshots.make,
            send,
            outgoing,
            self._vfs,
            clock,
            bytes_per_second=self._maps.map.bytes_per_second,
        )
        self._maps.follow(lambda newest: source.limit(newest.bytes_per_second))
        stack.callback(source.close)
        self.groups.pinned = source.pinned
        self._service.on_bulk = source.on_request
        return snapshots

    def _open_cuts(self, stack: ExitStack) -> None:
        cuts = Cuts(
            self._process.reactor,
            self._process.clock,
            self._start.node,
            self._cluster,
            self.groups,
            self._service.answer_backup,
            bytes_per_second=self._maps.map.bytes_per_second,
        )
        self._maps.follow(lambda newest: cuts.limit(newest.bytes_per_second))
        stack.callback(cuts.close)
        self._service.on_backup = cuts.on_request

    def _open_commands(self) -> GroupCommands:
        def ask_host(node: int, partition: int, deadline: float, done: OnHosted) -> None:
            def answered(reply: Reply | None) -> None:
                done(refusal(reply))

            endpoint = self._endpoint(node)
            if endpoint is None:
                done(f"node {node} is not in the cluster map")
            else:
                self._stores.ask(endpoint, to_host(self._cluster, partition, node), deadline, answered)

        return GroupCommands(
            self._start.node,
            self._cluster,
            self._maps,
            self.groups,
            self._process.clock,
            self._service.answer_group,
            ask_host,
            Hosting(self._founder, self._engines.open, self._random).host,
            Erasing(self.groups, self._engines, self.beside),
            self._open_checksums(),
        )

    def _open_checksums(self) -> Checksums:
        def ask(node: int, encode: Encode, deadline: float, done: OnReply) -> None:
            endpoint = self._endpoint(node)
            if endpoint is None:
                done(Fault(f"node {node} is not in the cluster map"))
            else:
                self._stores.ask(endpoint, encode, deadline, done, once=True)

        return Checksums(
            self._start.node,
            self._cluster,
            self.groups,
            self._process.clock,
            self.beside,
            self._service.answer_group,
            ask,
            lambda: self._maps.map.bytes_per_second,
        )

    def _endpoint(self, node: int) -> str | None:
        """Where routers and stores ask that node."""
        known = self._maps.node(node)
        return None if known is None else known.rpc

    def _drive(self, commands: GroupCommands) -> None:
        reactor, groups = self._process.reactor, self.groups

        def end_turn() -> None:
            more = groups.end_turn()
            commands.end_turn()
            if self.control.office.end_turn() or more:
                reactor.call_later(0, _nothing)
            self._bus.flush()

        def tick() -> None:
            reactor.call_later(TICK_S, tick)
            groups.tick()

        def maintain() -> None:
            seconds = MAINTAIN_S
            try:
                seconds = groups.maintain()
            finally:
                reactor.call_later(seconds, maintain)

        reactor.on_turn_end(end_turn)
        tick()
        maintain()


def _bus_endpoints(cluster_map: ClusterMap) -> dict[int, str]:
    return {node.id: node.bus for node in cluster_map.nodes if node.bus}


def _nothing() -> None:
    """What makes the loop turn once more."""
