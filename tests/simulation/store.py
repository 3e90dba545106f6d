"""A store node in the simulated world, wired as storenode/node.py wires a real one.

Real: service, groups, replicas, Raft, the log, engines, snapshots, frames. Simulated: sockets, the log's and
the engines' threads, clocks, the disk's memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from typing import Any

import attrs

from kvclient.errors import KVError
from shared.clustermap import ClusterMap
from shared.hashing import xxh64
from shared.opstream import Limits
from storenode import engine, founding, raftframes, snapshotfiles
from storenode.groups import TICK_S, Groups
from storenode.raft.messages import EVERYBODY, Message
from storenode.raftlog import LogRefused, RaftLog
from storenode.replica.budget import Budget
from storenode.service import Service
from storenode.snapshots import Snapshots
from tests.simulation.checks import Checks
from tests.simulation.disk import Disk, SimulatedLogWriter
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.settings import Settings
from tests.simulation.snapshots import SimulatedPuller, SimulatedSource
from tests.simulation.world import Violation, World

IN_FLIGHT_BYTES = 1 << 20

SLOWEST_S = 2.0
"""Of one step of a slow disk: what it was told before everything is well must not outlast the time in which
progress is due. A flush once took 28 s (seed 1770).
"""

REFUSALS = (KVError, LogRefused, RuntimeError, ValueError)
"""What the product raises on purpose; anything else is a program that does not work."""


class SimulatedService(Service):
    """Answers leave by the simulated network."""

    leave: Callable[[bytes, bytes], None]

    def _send(self, router: bytes, frame: bytes) -> None:
        self.leave(router, frame)


class SimulatedStore(Machine):
    """One node, over all of its lives."""

    def __init__(
        self,
        world: World,
        network: Network,
        settings: Settings,
        cluster_map: ClusterMap,
        node: int,
        place: str,
        checks: Checks,
    ) -> None:
        super().__init__(world, f"s{node}", settings.turn)
        self.node = node
        self.disk = Disk(world, place, self.name)
        self.slow_disk = 1.0
        self.peers: dict[int, SimulatedStore] = {}
        self.to_router: Callable[[SimulatedStore, str, bytes], None]
        self.on_death: Callable[[SimulatedStore], None]
        self.on_pulled: Callable[[SimulatedStore], None]
        self.on_turn: Callable[[], object] = lambda: None
        self._installed_before = 0
        self._network = network
        self._settings = settings
        self._map = cluster_map
        self._cluster = xxh64(cluster_map.cluster_id.encode())
        self._checks = checks
        self._stack = ExitStack()
        self._jobs_scheduled = False
        self._failed = False
        self.groups: Groups
        self.service: SimulatedService
        self.snapshots: Snapshots

    # -- birth and death

    def start(self) -> None:
        self.begin_life()
        self._stack = ExitStack()
        self._jobs_scheduled = False
        self._failed = False
        with self._ending_is_a_violation("does not start"):
            self._build(self._stack)
        self.world.note(f"{self.name} starts, " + self._position())
        self.after_event()

    def _position(self) -> str:
        return ", ".join(
            f"p{one.partition}: applied {one.raft.applied_index} log ..{one.raft.last_index} "
            f"term {one.raft.term}"
            for one in self.groups.replicas.values()
        )

    @contextmanager
    def _ending_is_a_violation(self, what: str) -> Iterator[None]:
        """The product itself says that something is wrong, and the process ends with that; no fault here may
        lead there, for disks lose only what they may lose.
        """
        try:
            yield
        except REFUSALS as error:
            raise Violation(f"{self.name} {what}: {type(error).__name__}: {error}") from error

    def _begin_turn(self) -> None:
        with self._ending_is_a_violation("ends by itself"):
            super()._begin_turn()

    def die(self, power_lost: bool, why: str) -> None:
        """The process ends here; with `power_lost` the machine loses what was not synced."""
        if not self.up:
            return
        self.world.note(f"{self.name} dies: {why}")
        crash = self.disk.freeze()
        self.close()
        self.disk.survive(crash, power_lost)
        self.on_death(self)

    def close(self) -> None:
        """Nobody uses the files any more."""
        self.end_life()
        self._installed_before += self.snapshots.installed
        self._stack.close()

    @property
    def snapshots_taken(self) -> int:
        return self._installed_before + (self.snapshots.installed if self.up else 0)

    def after_event(self) -> None:
        """Power was lost at a step of the disk within this event, perhaps."""
        if self.up and self.disk.fallen is not None:
            step = self.disk.fallen.step
            self.die(
                True, f"power lost {step.when} {step.kind} of {os.path.relpath(step.path, self.disk.path)}"
            )
        elif self.up and self._failed:
            self.die(False, "its log failed")

    @property
    def speaks(self) -> bool:
        """Whether what this event still does happens to anybody."""
        return self.up and self.disk.fallen is None

    # -- what it is made of

    def _build(self, stack: ExitStack) -> None:
        settings, vfs, path = self._settings, self.disk.vfs, self.disk.path
        random = Random(self.world.random.getrandbits(64))
        log = RaftLog(
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
        writer.on_submit = partial(self._checks.on_log_write, self)
        self.service = SimulatedService(self, self._map, self.node, Limits(1 << 16), self.clock)  # type: ignore[arg-type]
        self.service.leave = self._leave
        self.service.driver = self.groups
        founder = founding.Founder(
            self.node, log, self.groups, self.clock, Budget(IN_FLIGHT_BYTES), self.service.outbox.add
        )
        options = engine.Options(memtable_bytes=settings.memtable_bytes, compression="none")
        for partition in self._map.partitions_of(self.node):
            opened = engine.open_replica(
                os.path.join(path, f"p{partition:04}"),
                options=options,
                shared=self._shared,
                engine_id=partition,
            )
            stack.callback(opened.close)
            founders = self._map.replicas[partition]
            founder.add(partition, opened, founders, Random(random.getrandbits(64)))
        founder.finish()
        self.log = log
        self.service.start(None, self.groups.replicas, dict)  # type: ignore[arg-type]
        self._build_snapshots(stack, random)
        for replica in self.groups.replicas.values():
            raft = replica.raft
            raft.settings = attrs.evolve(raft.settings, append_bytes_max=settings.append_bytes_max)
            self._checks.watch(self, replica)
        self._tick()
        self._maintain()

    def _build_snapshots(self, stack: ExitStack, random: Random) -> None:
        vfs, path = self.disk.vfs, self.disk.path
        puller = SimulatedPuller(self, self._ask_peer, vfs, random)
        stack.callback(puller.close)
        self.snapshots = Snapshots(
            self.groups,
            puller,
            self._map,
            os.path.join(path, "incoming"),
            self._beside,
            lambda directory: snapshotfiles.remove_tree(vfs, directory),
        )
        self.puller = puller
        self.source = SimulatedSource(
            self, self.snapshots.make, os.path.join(path, "outgoing"), vfs, random, self._answer_peer
        )
        self.groups.pinned = self.source.pinned

    def _disk_latency(self) -> float:
        slow = self._settings.disk * self.slow_disk * (0.3 + self.world.random.expovariate(1.5))
        return min(slow, SLOWEST_S)

    def _beside(self, work: Callable[[], object], done: Callable[[Any], None]) -> None:
        def run() -> None:
            try:
                result: object = work()
            except Exception as error:  # noqa: BLE001 - as the real one
                result = error
            self.deliver("notified", partial(done, result))

        self.later(self._disk_latency() * 3, run)

    # -- the reactor's side

    def add_reader(self, socket: object, on_batch: Callable[[list[list[bytes]]], None]) -> None:
        """As the reactor: the service reads its one socket."""
        self._on_rpc = on_batch

    def remove_reader(self, socket: object) -> None:
        self._on_rpc = lambda batch: None

    def stop(self) -> None:
        """The service has nothing to do any more."""

    def handle(self, source: str, items: list[Any]) -> None:
        if source == "bus":
            for sender, rows in items:
                self.groups.on_messages(sender, rows)
        elif source == "rpc":
            self._on_rpc(items)
        elif source == "bulk":
            for peer, body in items:
                self.source.on_request(peer, body)
        else:
            super().handle(source, items)

    def end_turn(self) -> None:
        if self.groups.end_turn():
            self.call_later(0, lambda: None)
        self._flush_bus()
        self.service.end_turn()
        if self.speaks:
            self._checks.after_turn(self)
        self.on_turn()
        if not self._jobs_scheduled:
            self._jobs_scheduled = True
            self.later(self._disk_latency() * 4, self._do_jobs)

    def _do_jobs(self) -> None:
        """What the engines' threads have done meanwhile."""
        self._jobs_scheduled = False
        while self._shared.run_pending():
            pass

    def _tick(self) -> None:
        self.call_later(TICK_S, self._tick)
        self.groups.tick()

    def _maintain(self) -> None:
        self.call_later(self.groups.maintain(), self._maintain)

    def _on_log_failed(self, error: Exception) -> None:
        if self.disk.fallen is None:
            if not self.disk.log_fails:
                raise Violation(f"{self.name}: the log failed on a sound disk") from error
            self._failed = True  # the loop ends with this turn

    # -- messages

    def _send(self, group: int, message: Message) -> None:
        if self.speaks:
            self._checks.on_send(self, group, message)
        self._outgoing.add(group, message)

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
        if self.up:
            found = raftframes.decode(frame, self._cluster)
            if found.rows_dropped:
                raise Violation(f"{self.name} refuses rows of {found.sender}: {frame!r}")
            self.deliver("bus", (found.sender, found.rows))

    def on_rpc(self, router: bytes, frame: bytes) -> None:
        self.deliver("rpc", [router, frame])

    def _leave(self, router: bytes, frame: bytes) -> None:
        if self.speaks:
            self.to_router(self, router.decode(), frame)

    # -- snapshots

    def _ask_peer(self, endpoint: str, body: bytes) -> None:
        peer = next(store for store in self.peers.values() if self._map.node(store.node).rpc == endpoint)
        if self.speaks:
            arrive = partial(peer.deliver, "bulk", (self, body))
            self._network.send(self.name, peer.name, arrive, self.clock.ahead, stream=True)

    def _answer_peer(self, peer: SimulatedStore, body: bytes) -> None:
        if self.speaks:
            wait = self.clock.ahead + self.world.random.choice((0.0, 0.05, 0.5))
            arrive = partial(peer.on_bulk_answer, body)
            self._network.send(self.name, peer.name, arrive, wait, stream=True)

    def on_bulk_answer(self, body: bytes) -> None:
        if self.up:
            self.deliver("notified", partial(self.puller.on_answer, body))
