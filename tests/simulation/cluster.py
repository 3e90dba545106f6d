"""One run: a cluster, its clients, a time of faults, a time in which all must become well, the verdict."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from kvclient import protocol
from kvclient.pending import Pending
from shared.clustermap import ClusterMap, Node
from shared.hashing import partition_of
from storenode.raft import Raft
from storenode.raft.quorum import VoteResult, vote_result
from tests.linearizability.checker import Verdict, check_by_key
from tests.linearizability.history import Outcome
from tests.linearizability.models import KeyValue
from tests.simulation import scenarios, staleness
from tests.simulation.checks import Checks
from tests.simulation.clients import Book, Client
from tests.simulation.network import Network
from tests.simulation.routing import SimulatedRouter
from tests.simulation.store import SimulatedStore
from tests.simulation.world import Violation, World

FAULTS_S = 12.0
"""How long things go wrong, by default."""

SETTLE_S = 3.0
"""After that, clients go on for so long."""

PROGRESS_S = 20.0
"""In which a write through each partition must succeed, and the replicas become equal: a few elections, and
the pauses of those who have failed before.
"""

WORK_MAX = 60_000
"""Steps for each key, a few tenths of a second: histories with very many lost answers cannot be judged."""

TTL_LATER_MS = 4_000_000_000_000
_MEMORY = "/dev/shm"


class Cluster:
    """The world of one seed."""

    def __init__(self, world: World, place: str) -> None:
        self.world = world
        self.settings = settings = scenarios.draw(world)
        world.note(str(settings))
        self.network = Network(world, settings)
        self.checks = Checks(world)
        self.book = Book(world)
        nodes = [
            Node(number, f"s{number}", f"tcp://store:{7000 + number}", f"tcp://store:{8000 + number}")
            for number in range(1, settings.stores + 1)
        ]
        self.map = ClusterMap.bootstrap("simulation", settings.partitions, settings.replicas, nodes)
        self.stores = {
            node.id: SimulatedStore(world, self.network, settings, self.map, node.id, place, self.checks)
            for node in nodes
        }
        for store in self.stores.values():
            store.peers = {node: other for node, other in self.stores.items() if other is not store}
            store.to_router = self._to_router
            store.on_death = self._store_died
        self.routers = [
            SimulatedRouter(world, self.network, settings, self.map, number, self.stores)
            for number in range(settings.routers)
        ]
        keys = [b"k%d" % number for number in range(settings.keys)]
        self.keys = keys + [b"n%d" % number for number in range((settings.keys + 1) // 2)]
        self.clients = [self._client(number) for number in range(settings.clients)]
        self.nemesis = scenarios.nemesis_of(settings)(
            world,
            self.network,
            settings,
            list(self.stores.values()),
            self.routers,
            self.clients,
            SimulatedStore.start,
            self._restart_router,
        )

    def _client(self, number: int) -> Client:
        return Client(self.world, self.network, self.settings, number, self.routers, self.book, self.keys)

    # -- what ties the machines together

    def _to_router(self, store: SimulatedStore, identity: str, frame: bytes) -> None:
        number = int(identity[1:].partition(".")[0])
        self.routers[number].on_reply(store, identity, frame)

    def _to_client(self, router: SimulatedRouter, client: bytes, frame: bytes) -> None:
        one, life = self.clients[int(client[1:])], router.life

        def arrive() -> None:
            if router.life == life:
                one.receive(router.number, frame)

        self.network.send(router.name, one.name, arrive, router.clock.ahead)

    def _store_died(self, store: SimulatedStore) -> None:
        for router in self.routers:
            self.network.send(store.name, router.name, lambda r=router: r.on_farewell(store.node))  # type: ignore[misc]
        self.nemesis.revive(store)

    def _restart_router(self, router: SimulatedRouter) -> None:
        router.die()
        router.start()
        for client in self.clients:
            client.connection(router.number, False)
            self.world.after(0.01, lambda c=client: c.connection(router.number, True))  # type: ignore[misc]

    # -- the run

    def run(self, faults_s: float) -> None:
        """Violation: what must not happen has happened."""
        world = self.world
        for store in self.stores.values():
            store.start()
        for router in self.routers:
            router.respond = self._to_client
            router.start()
        for client in self.clients:
            client.begin()
        self.nemesis.begin()
        world.run_until(faults_s)
        self.nemesis.end()
        world.note("all is well from here on")
        world.run_until(world.now + SETTLE_S)
        deafened = self._deafen() if self.settings.deaf_leader else []
        self._check_progress()
        self.network.unblock(deafened)
        self._check_replicas_agree()
        self._judge()

    def _deafen(self) -> list[tuple[str, str]]:
        """Cut the links towards a leader, not those from it, if the others can go on without it."""
        for store in self.stores.values():
            if store.groups.leading and all(
                self._can_spare(replica.raft, store.node)
                for other in self.stores.values()
                for replica in other.groups.replicas.values()
            ):
                pairs = [(peer.name, store.name) for peer in store.peers.values()]
                self.network.block(pairs)
                self.world.note(f"{store.name} hears no other store")
                return pairs
        return []

    @staticmethod
    def _can_spare(raft: Raft, node: int) -> bool:
        """Whether the other voters are a quorum, as far as this replica knows."""
        configuration = raft.configuration
        votes = {voter: voter != node for voter in configuration.members}
        return vote_result(configuration, votes) is VoteResult.WON

    def _check_progress(self) -> None:
        for client in self.clients:
            client.end()
        proof = self._client(len(self.clients))
        self.clients.append(proof)
        left = set(range(self.settings.partitions))

        def ask(partition: int) -> None:
            def told(pending: Pending) -> None:
                if pending.error is None and pending.results[0][0] == 0:
                    left.discard(partition)
                else:
                    self.world.note(f"p{partition} refuses: {pending.error or pending.results}")
                    ask(partition)

            body = protocol.encode_put(self._key_of(partition), b"proof")
            proof.submit(Pending(protocol.Kind.OPS, body, 1, True, 0, 2.0, told))

        for partition in range(self.settings.partitions):
            ask(partition)
        if not self.world.run_until(self.world.now + PROGRESS_S, lambda: not left):
            raise Violation(f"no write to the partitions {sorted(left)} within {PROGRESS_S} s of health")

    def _key_of(self, partition: int) -> bytes:
        return next(
            key
            for key in (b"proof%d" % n for n in range(1000))
            if partition_of(key, self.map.bits) == partition
        )

    def _check_replicas_agree(self) -> None:
        def quiet() -> bool:
            return all(client.idle for client in self.clients) and all(
                len(set(self._positions(partition))) == 1 for partition in range(self.settings.partitions)
            )

        if not self.world.run_until(self.world.now + PROGRESS_S, quiet):
            positions = {number: self._positions(number) for number in range(self.settings.partitions)}
            raise Violation(f"replicas do not come together within {PROGRESS_S} s: {positions}")
        for partition, holders in enumerate(self.map.replicas):
            contents = [self._content(self.stores[node], partition) for node in holders]
            for node, content in zip(holders, contents, strict=True):
                for what, value in content.items():
                    if value != contents[0][what]:
                        other = f"s{holders[0]} {contents[0][what]!r}"
                        raise Violation(f"p{partition}: {what} of s{node} is {value!r}, of {other}")

    def _positions(self, partition: int) -> list[tuple[int, int]]:
        machines = [
            self.stores[node].groups.replicas[partition].machine for node in self.map.replicas[partition]
        ]
        return [(machine.position.index, machine.position.term) for machine in machines]

    def _content(self, store: SimulatedStore, partition: int) -> dict[str, Any]:
        machine = store.groups.replicas[partition].machine
        scan = protocol.encode_scan(b"\x00", None, 10_000)
        return {
            "entries": machine.engine.read(scan, 0),
            "entries later": machine.engine.read(scan, TTL_LATER_MS),
            "sessions": machine.sessions.dump(),
            "time": (machine.stamp_ms, machine.session_ms),
            "next sequence": machine.engine.next_sequence,
        }

    # -- the verdict

    def _judge(self) -> None:
        history = self.book.recorder.history()
        judgement = check_by_key(history, KeyValue(), work_max=WORK_MAX)
        if judgement.verdict is Verdict.VIOLATION:
            raise Violation(f"the history is not linearizable: {judgement}")
        if judgement.verdict is Verdict.UNKNOWN:
            self.world.note(f"the history could not be judged: {judgement}")
        for key in sorted(self.book.attempted):
            self._check_counter(key)
        staleness.check(self.book.stale, history)
        self.world.trace(*(str(one) for one in history))

    def _check_counter(self, key: bytes) -> None:
        partition = partition_of(key, self.map.bits)
        store = self.stores[self.map.replicas[partition][0]]
        results = store.groups.replicas[partition].machine.engine.read(protocol.encode_get(key), 0)
        found = protocol.decode_results(results)[0]
        total = int(found[1]) if found[0] == 0 else 0
        low, high = self.book.acknowledged.get(key, 0), self.book.attempted.get(key, 0)
        if not low <= total <= high:
            raise Violation(f"{key!r} is {total}; {low} was acknowledged, {high} asked for")

    def summary(self) -> str:
        counts = dict.fromkeys(Outcome, 0)
        for operation in self.book.recorder.history():
            counts[operation.outcome] += 1
        installed = sum(store.snapshots_taken for store in self.stores.values())
        return (
            f"{counts[Outcome.OK]} ok, {counts[Outcome.FAIL]} failed, {counts[Outcome.UNKNOWN]} unknown, "
            f"{len(self.book.stale)} stale reads, {self.nemesis.begun} faults, {installed} snapshots, "
            f"{len(self.checks.leaders)} leaders, {self.world.events} events"
        )

    def close(self) -> None:
        for store in self.stores.values():
            if store.up:
                store.close()


def simulate(
    seed: int,
    faults_s: float = FAULTS_S,
    tell: Callable[[str], None] | None = None,
    make: Callable[[World, str], Cluster] = Cluster,
) -> tuple[World, str, BaseException | None]:
    """Runs a seed in the cluster that `make` makes: its world, a summary, and what went wrong."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    collecting = gc.isenabled()
    gc.disable()  # finalizers must not run when it pleases the collector
    place = tempfile.mkdtemp(prefix="ringkv-simulation-", dir=parent)
    world = World(seed, tell)
    error: BaseException | None = None
    summary = ""
    try:
        cluster = make(world, place)
        try:
            cluster.run(faults_s)
            summary = cluster.summary()
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is what the seed has found
            error = caught
        finally:
            cluster.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if collecting:
            gc.enable()
    return world, summary, error
