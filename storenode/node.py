"""One store node, put together: cluster map, data directory, engines, replicas, group commit, service; and
taken apart again in order.

Knows every part and the inside of none. What goes wrong before the loop runs is a CannotStart, one line that
says what to do.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from kvclient.errors import Corruption
from shared import logs, sockets
from shared.clock import SystemClock
from shared.clustermap import ClusterMap, Node
from shared.commandline import CannotStart
from shared.config import ConfigError, Problem
from shared.memory import Trimmer
from shared.opstream import Limits
from shared.reactor import Reactor
from storenode import engine
from storenode.config import StoreConfig
from storenode.directory import DataDirectory, DirectoryRefused, Identity, open_directory
from storenode.figures import Figures
from storenode.groupcommit import GroupCommit
from storenode.noop import NoopReplica
from storenode.replica.budget import Budget
from storenode.replica.replica import Replica
from storenode.service import BATCH_BYTES_MAX, Service

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
    """Runs the node until SIGTERM or SIGINT; returns the exit code. ConfigError or CannotStart before it
    listens. Main thread only.
    """
    logs.configure(config.log.level, config.log.format, node=config.node.name)
    cluster_map = _cluster_map(config)
    with ExitStack() as stack:
        try:
            node = StoreNode(config, cluster_map, noop, stack)
        except (DirectoryRefused, engine.EngineError, Corruption, OSError) as error:
            raise CannotStart(" ".join(str(error).split())) from error
        if node.serve():
            return 0
        stack.pop_all()  # the log thread still uses the engines: they are left to the next start's recovery
        return 1


class StoreNode:
    """All parts of one node. `stack` takes what has to be closed, in order."""

    def __init__(self, config: StoreConfig, cluster_map: ClusterMap, noop: bool, stack: ExitStack) -> None:
        self._config = config
        self._map = cluster_map
        self._clock = SystemClock()
        self._reactor = Reactor()
        stack.callback(self._reactor.close)
        self._commit = GroupCommit(self._clock, self._reactor.wakeup().notify)
        self._service = Service(
            self._reactor,
            cluster_map,
            config.node.id,
            Limits(config.limits.value_bytes),
            self._clock,
            self._commit,
        )
        self._figures = Figures(config.node, cluster_map, self._service, self._commit)
        partitions = self._noop_partitions() if noop else self._replicas(stack)
        self._context = sockets.context()
        stack.callback(self._context.destroy, 0)
        # Last: what arrived before the data is there would wait without anybody counting its deadline down.
        socket = sockets.store_router(
            self._context, config.listen.rpc, batch_bytes_max=BATCH_BYTES_MAX, insecure=config.insecure
        )
        self._service.start(socket, partitions, self._figures.snapshot)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._reactor.on_signal(number, self._service.stop)
        Trimmer(self._reactor.call_later)
        _log.info(
            "listening",
            rpc=sockets.bound_endpoint(socket),
            cluster=cluster_map.name,
            node_id=config.node.id,
            partitions=len(partitions),
            noop=noop,
        )

    def serve(self) -> bool:
        """Runs until a signal; False if a log write was still under way when the grace for it was over."""
        self._reactor.run()
        finished = self._commit.close(LOG_JOIN_S)
        self._context.destroy(LINGER_MS)
        _log.info("stopped", log_write_finished=finished)
        return finished

    def _noop_partitions(self) -> dict[int, NoopReplica]:
        noop = NoopReplica(self._service.outbox.add)
        return dict.fromkeys(self._map.partitions_of(self._config.node.id), noop)

    def _replicas(self, stack: ExitStack) -> dict[int, Replica]:
        identity = Identity(
            self._map.name, self._map.cluster_id, self._config.node.id, self._map.partition_count
        )
        directory = open_directory(Path(self._config.data.dir), identity)
        stack.callback(directory.close)
        self._figures.directory = directory
        shared = self._open_shared(directory)
        stack.callback(shared.close)
        budget = self._figures.budget = Budget(self._config.limits.in_flight_bytes)
        options = engine.Options(memtable_bytes=self._config.engine.memtable)
        replicas = {}
        for partition in self._map.partitions_of(self._config.node.id):
            opened = engine.open(
                str(directory.partition(partition)), options=options, shared=shared, engine_id=partition
            )
            stack.callback(opened.close)
            replicas[partition] = Replica(
                partition, opened, self._clock, budget, self._service.outbox.add, self._commit.dirty
            )
        self._figures.replicas = replicas
        return replicas

    def _open_shared(self, directory: DataDirectory) -> engine.Shared:
        budgets = self._config.engine
        return engine.Shared(
            str(directory.path),
            cache_bytes=budgets.cache,
            memtable_bytes=budgets.memtables_total,
            workers=budgets.workers,
        )


def _cluster_map(config: StoreConfig) -> ClusterMap:
    section = config.cluster
    nodes = [
        Node(node.id, node.name, node.rpc, node.bus, node.events, node.zone, node.weight)
        for node in section.nodes
    ]
    try:
        return ClusterMap.bootstrap(section.name, section.partitions, section.replicas, nodes)
    except ValueError as error:
        raise ConfigError([Problem("", "cluster", str(error))]) from None
