"""One store node, put together: cluster map, data directory, log, engines, replicas, bus, service; and taken
apart again in order.

Knows every part and the inside of none. What goes wrong before the loop runs is a CannotStart, one line that
says what to do.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from kvclient.errors import Corruption
from shared import logs, sockets
from shared.clock import SystemClock
from shared.commandline import FAILED, REFUSED, CannotStart
from shared.cuts import CutFile, Cuts
from shared.hashing import xxh64
from shared.memory import Trimmer, settle
from shared.opstream import Limits
from shared.reactor import Reactor
from storenode import engine, founding
from storenode.bulk import BulkClient
from storenode.bus import Bus
from storenode.config import StoreConfig
from storenode.directory import DataDirectory, DirectoryRefused
from storenode.engine.vfs import Vfs
from storenode.figures import Figures, Parts
from storenode.groupcommands import GroupCommands
from storenode.groups import MAINTAIN_S, TICK_S, Groups
from storenode.hosting import Hosting, OnHosted
from storenode.logthread import LogThread
from storenode.noop import NoopReplica
from storenode.raftlog import LogCorrupt, LogFailed, LogRefused, RaftLog
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.service import BATCH_BYTES_MAX, Service
from storenode.snapshots import Snapshots
from storenode.snapshotsource import BulkSource
from storenode.starting import Home, Network, Start, prepare
from storenode.storerequests import Reply, StoreRequests, refusal, to_host

LINGER_MS: Final = 500
"""How long the last answers may take to leave after the loop has ended; a router that does not read gets no
more.
"""

LOG_JOIN_S: Final = 0.2
"""The loop has waited for the log write already; a log thread that is not done by now sits in a system call
that does not return.
"""

_log = logs.get("node")


def run(config: StoreConfig, *, noop: bool) -> int:
    """Runs the node until SIGTERM or SIGINT, or until its log fails; returns the exit code. ConfigError or
    CannotStart before it listens. Main thread only.
    """
    logs.configure(config.log.level, config.log.format, node=config.node.name)
    with ExitStack() as stack:
        try:
            network = _network(config)
            stack.callback(network.context.destroy, 0)
            start = prepare(config, noop, network, stack)
            if start is None:
                return 0
            node = StoreNode(config, start, stack)
        except DirectoryRefused as error:
            raise CannotStart(" ".join(str(error).split()), REFUSED if error.final else FAILED) from error
        except (engine.EngineError, LogCorrupt, LogFailed, LogRefused, Corruption) as error:
            raise CannotStart(" ".join(str(error).split())) from error
        except sockets.ListenError as error:
            raise CannotStart(str(error.strerror)) from error
        except OSError as error:  # of a file system call, which often knows no name
            what = f"cannot use {config.data.dir}: {error.strerror or error}"
            raise CannotStart(f"{what} ({error.filename})" if error.filename else what) from error
        if node.serve():
            return 0
        stack.pop_all()  # a thread still uses the files, or the log failed: left to the next start's recovery
        return 1


def _network(config: StoreConfig) -> Network:
    cuts = Cuts() if config.dev.cuts else None
    context = sockets.context() if cuts is None else cuts.context()

    def bind() -> sockets.Socket:
        return sockets.store_router(
            context, config.listen.rpc, batch_bytes_max=BATCH_BYTES_MAX, insecure=config.insecure
        )

    def watch(reactor: Reactor) -> None:
        if cuts is not None:
            CutFile(config.dev.cuts, cuts, reactor.call_later)

    return Network(context, bind, watch)


class StoreNode:
    """All parts of one node. `stack` takes what has to be closed, in order."""

    def __init__(self, config: StoreConfig, start: Start, stack: ExitStack) -> None:
        self._config = config
        self._node = start.node
        self._first = start.first
        self._map = cluster_map = start.map
        self._cluster = xxh64(cluster_map.cluster_id.encode())
        self._clock = SystemClock()
        self._reactor = Reactor()
        stack.callback(self._reactor.close)
        self._failed = False
        self._log_thread: LogThread | None = None
        start.network.watch(self._reactor)
        self._context = start.network.context
        self._service = Service(
            self._reactor, cluster_map, start.node, Limits(config.limits.value_bytes), self._clock
        )
        self._figures = Figures(start.node, config.node.name, cluster_map, self._service)
        home = start.home
        partitions = self._noop_partitions() if home is None else self._replicas(home, stack)
        stack.callback(self._context.destroy, 0)
        # Last: what arrived before the data is there would wait without anybody counting its deadline down.
        socket = start.network.bind()
        self._service.start(socket, partitions, self._figures.snapshot)
        self._reactor.on_turn_end(self._service.end_turn)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._reactor.on_signal(number, self._service.stop)
        Trimmer(self._reactor.call_later)
        _log.info(
            "listening",
            rpc=sockets.bound_endpoint(socket),
            cluster=cluster_map.name,
            node_id=start.node,
            incarnation="" if home is None else home.identity.incarnation,
            partitions=len(partitions),
            noop=home is None,
        )

    def serve(self) -> bool:
        """Runs until a signal; False if the log failed, or a write of it was still under way when the grace
        for it was over.
        """
        settle()
        self._reactor.run()
        finished = self._log_thread is None or self._log_thread.close(LOG_JOIN_S)
        self._context.destroy(LINGER_MS)
        _log.info("stopped", log_write_finished=finished)
        return finished and not self._failed

    def _noop_partitions(self) -> dict[int, NoopReplica]:
        noop = NoopReplica(self._service.outbox.add)
        return dict.fromkeys(self._map.partitions_of(self._node), noop)

    def _replicas(self, home: Home, stack: ExitStack) -> dict[int, Replica]:
        config, node, directory = self._config, self._node, home.directory
        self._service.on_known = home.registry.answer
        vfs = Vfs()
        log = RaftLog(
            vfs,
            str(directory.path / "raft"),
            node,
            segment_bytes=config.raft.segment,
            cache_bytes=config.raft.cache,
        )
        stack.callback(log.close)
        shared = self._open_shared(directory)
        stack.callback(shared.close)
        thread = self._log_thread = LogThread(log, self._clock, self._reactor.wakeup().notify)
        bus = Bus(
            self._reactor,
            self._context,
            node,
            self._cluster,
            config.listen.bus,
            {one.id: one.bus for one in self._map.nodes if one.bus},
            lambda sender, rows: groups.on_messages(sender, rows),
            insecure=config.insecure,
        )
        stack.callback(bus.close)
        groups = Groups(
            log, thread, bus.send, self._clock, self._on_log_failed, log_bytes_max=config.raft.log_bytes
        )
        budget = Budget(config.limits.in_flight_bytes)
        founder = founding.Founder(node, log, groups, self._clock, budget, self._service.outbox.add)
        options = engine.Options(memtable_bytes=config.engine.memtable)
        engines = stack.enter_context(ExitStack())

        def open_engine(partition: int) -> engine.ReplicaEngine:
            try:
                opened = engine.open_replica(
                    str(directory.partition(partition)), options=options, shared=shared, engine_id=partition
                )
            except ValueError as error:  # an engine of another kind: a repair that lost entries leaves one
                raise Corruption(
                    f"{error}. It is no replica of partition {partition} any more: give this store an empty "
                    "data.dir under a new node id"
                ) from None
            engines.callback(opened.close)
            return opened

        first = self._first
        founded = set() if first is None else set(first.partitions_of(node))
        for partition in sorted(
            founded.union(group for group in log.groups if group < self._map.partition_count)
        ):
            founders = () if first is None or partition not in founded else first.replicas[partition]
            founder.add(partition, open_engine(partition), founders, random.Random())
        founder.finish()
        self._figures.replicas = groups.replicas
        snapshots = self._snapshots(groups, directory, vfs, stack)
        self._figures.parts = Parts(directory, budget, log, thread, bus, snapshots)
        stores = StoreRequests(self._reactor, self._context, self._clock)
        stack.callback(stores.close)
        self._drive(groups, bus, self._commands(groups, stores, Hosting(founder, open_engine)))
        return groups.replicas

    def _commands(self, groups: Groups, stores: StoreRequests, hosting: Hosting) -> GroupCommands:
        nodes = {node.id: node for node in self._map.nodes}

        def ask_host(node: int, partition: int, deadline: float, done: OnHosted) -> None:
            def answered(reply: Reply | None) -> None:
                done(refusal(reply))

            stores.ask(nodes[node].rpc, to_host(self._cluster, partition, node), deadline, answered)

        commands = GroupCommands(
            self._node,
            self._cluster,
            self._map.partition_count,
            {node.id: node.name for node in nodes.values()},
            groups,
            self._clock,
            self._service.answer_group,
            ask_host,
            hosting.host,
        )
        self._service.on_group = commands.on_request
        return commands

    def _snapshots(self, groups: Groups, directory: DataDirectory, vfs: Vfs, stack: ExitStack) -> Snapshots:
        puller = BulkClient(self._reactor, self._context, self._node, vfs, self._clock)
        stack.callback(puller.close)
        snapshots = Snapshots(
            groups,
            puller,
            self._map,
            str(directory.path / "incoming"),
            self._beside,
            lambda path: shutil.rmtree(path, ignore_errors=True),
        )
        source = BulkSource(
            self._reactor,
            snapshots.make,
            self._service.send_bulk,
            str(directory.path / "outgoing"),
            vfs,
            self._clock,
        )
        stack.callback(source.close)
        groups.pinned = source.pinned
        self._service.on_bulk = source.on_request
        return snapshots

    def _drive(self, groups: Groups, bus: Bus, commands: GroupCommands) -> None:
        reactor = self._reactor
        self._service.driver = groups

        def end_turn() -> None:
            if groups.end_turn():
                reactor.call_later(0, _nothing)
            commands.end_turn()
            bus.flush()

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

    def _beside(self, work: Callable[[], object], done: Callable[[Any], None]) -> None:
        """Runs `work` on a thread of its own and then `done(its result or the exception)` on the loop."""
        notify = self._reactor.wakeup().notify

        def run() -> None:
            try:
                result: object = work()
            except Exception as error:  # noqa: BLE001 - the loop decides what it means
                result = error
            notify(partial(done, result))

        threading.Thread(target=run, name="examine", daemon=True).start()

    def _on_log_failed(self, error: Exception) -> None:
        """Nobody can say what is on the disk: this process says nothing more. The others go on."""
        _log.error(
            "log_failed",
            error=f"{type(error).__name__}: {error}",
            directory=str(Path(self._config.data.dir) / "raft"),
            consequence="this store ends; start it again when its disk can be written",
        )
        self._failed = True
        self._reactor.stop()

    def _open_shared(self, directory: DataDirectory) -> engine.Shared:
        budgets = self._config.engine
        return engine.Shared(
            str(directory.path),
            cache_bytes=budgets.cache,
            memtable_bytes=budgets.memtables_total,
            workers=budgets.workers,
        )


def _nothing() -> None:
    """What makes the loop turn once more."""
