"""One store node, put together: who it is, what keeps data, service; and taken apart again in order.

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
from shared.commandline import FAILED, REFUSED, CannotStart
from shared.cuts import CutFile, Cuts
from shared.hashing import xxh64
from shared.memory import Trimmer, settle
from shared.opstream import Limits
from shared.reactor import Reactor
from shared.security import open_guard
from storenode import engine
from storenode.config import StoreConfig
from storenode.dataplane import DataPlane, Process
from storenode.directory import DirectoryRefused
from storenode.figures import Figures
from storenode.logthread import LogThread
from storenode.maps import Maps
from storenode.noop import NoopReplica
from storenode.publishing import Publishing
from storenode.raftlog import LogCorrupt, LogFailed, LogRefused
from storenode.replica.replica import Replica
from storenode.service import BATCH_BYTES_MAX, Service
from storenode.starting import Home, Network, Start, prepare

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
    guard = open_guard(config.security, config.node.name, "node")
    cuts = Cuts() if config.dev.cuts else None
    context = sockets.context() if cuts is None else cuts.context()
    curve = None if guard is None else sockets.secure(context, guard)
    if curve is not None:
        # Between two loops nobody hears it; without a handler it ends the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def bind() -> sockets.Socket:
        return sockets.store_router(
            context, config.listen.rpc, batch_bytes_max=BATCH_BYTES_MAX, insecure=config.insecure
        )

    def watch(reactor: Reactor) -> None:
        if cuts is not None:
            CutFile(config.dev.cuts, cuts, reactor.call_later)
        if curve is not None:
            curve.watch(reactor)

    return Network(context, bind, watch, None if guard is None else guard.is_member)


class StoreNode:
    """All parts of one node. `stack` takes what has to be closed, in order."""

    def __init__(self, config: StoreConfig, start: Start, stack: ExitStack) -> None:
        self._config = config
        self._maps = Maps(start.map)
        self._clock = SystemClock()
        self._reactor = Reactor()
        stack.callback(self._reactor.close)
        self._failed = False
        self._log_thread: LogThread | None = None
        start.network.watch(self._reactor)
        self._context = start.network.context
        self._service = Service(
            self._reactor, self._maps, start.node, Limits(config.limits.value_bytes), self._clock
        )
        self._figures = Figures(start.node, config.node.name, self._maps, self._service)
        home = start.home
        partitions = self._noop_partitions(start) if home is None else self._replicas(start, home, stack)
        stack.callback(self._context.destroy, 0)
        # Last: what arrived before the data is there would wait without anybody counting its deadline down.
        socket = start.network.bind()
        self._service.start(socket, partitions, self._figures.snapshot, start.network.is_member)
        self._reactor.on_turn_end(self._service.end_turn)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._reactor.on_signal(number, self._service.stop)
        Trimmer(self._reactor.call_later)
        _log.info(
            "listening",
            rpc=sockets.bound_endpoint(socket),
            cluster=start.map.name,
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

    def _noop_partitions(self, start: Start) -> dict[int, NoopReplica]:
        noop = NoopReplica(self._service.outbox.add)
        return dict.fromkeys(start.map.partitions_of(start.node), noop)

    def _replicas(self, start: Start, home: Home, stack: ExitStack) -> dict[int, Replica]:
        self._service.on_known = home.registry.answer
        process = Process(self._reactor, self._context, self._clock, self._on_log_failed)
        plane = DataPlane(self._config, start, home, process, self._maps, self._service, stack)
        self._figures.replicas, self._figures.parts = plane.groups.replicas, plane.parts
        self._figures.control = plane.control.figures
        cluster = xxh64(start.map.cluster_id.encode())
        say, tell = plane.control.say_figures, self._figures.published
        Publishing(self._reactor.call_later, cluster, start.node, tell, say)
        self._log_thread = plane.parts.log_thread
        home.registry.write_beside(plane.beside)
        return plane.groups.replicas

    def _on_log_failed(self, error: Exception) -> None:
        """Nobody can say what is on the disk, or it has no room: this process says nothing more. The others
        go on.
        """
        log_failed = not isinstance(error, OSError)
        _log.error(
            "log_failed" if log_failed else "no_room_for_tables",
            error=f"{type(error).__name__}: {error}",
            directory=str(Path(self._config.data.dir) / ("raft" if log_failed else "partitions")),
            consequence="this store ends; start it again when its disk can be written",
        )
        self._failed = True
        self._reactor.stop()
