"""Clients in the simulated world: the real request machine (kvclient/session.py), a few things to ask for,
and the record of what they were told.

Every value that is written is unique, so a history says which write a read has seen. Reads that may be stale
are recorded apart, for they are not linearizable. Some writes have a TTL; what becomes of these is only
compared between the replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, NamedTuple

from kvclient import protocol
from kvclient.errors import Status
from kvclient.pending import Pending
from kvclient.session import Session
from tests.linearizability.history import Recorder
from tests.linearizability.models import Conflict, Found
from tests.simulation.network import Network
from tests.simulation.routing import SimulatedRouter
from tests.simulation.settings import Settings
from tests.simulation.world import Event, Violation, World

_READS = 0.5
"""Share of reads in what is asked for."""


class StaleRead(NamedTuple):
    """A read in the mode "stale by at most `bound_ms`"; `version` 0: it found nothing."""

    key: bytes
    called: float
    returned: float
    bound_ms: int
    value: bytes | None
    version: int


class Book:
    """What all clients were told."""

    def __init__(self, world: World) -> None:
        self.recorder = Recorder(lambda: world.now)
        self.stale: list[StaleRead] = []
        self.attempted: dict[bytes, int] = {}
        self.acknowledged: dict[bytes, int] = {}
        """Counter -> sum of what was added."""
        self.answered = 0


class _Op(NamedTuple):
    encoded: bytes
    ticket: int
    on_ok: Callable[[list[Any]], Any]
    key: bytes
    added: int


class Client:
    """One session; `lanes` requests of it are under way at once."""

    def __init__(
        self,
        world: World,
        network: Network,
        settings: Settings,
        number: int,
        routers: list[SimulatedRouter],
        book: Book,
        keys: list[bytes],
    ) -> None:
        self.world = world
        self.name = f"c{number}"
        self.done = 0
        self.think = settings.think
        self.writes = True
        self.modes: tuple[int, ...] = (protocol.LINEARIZABLE, protocol.LEASE)
        self._network = network
        self._settings = settings
        self._routers = world.random.sample(routers, len(routers))  # in the order of its preference
        if settings.one_router:
            self._routers = [routers[number % len(routers)]]
        self._places = {router.number: place for place, router in enumerate(self._routers)}
        self._book = book
        self._keys = keys
        self._random = Random(world.random.getrandbits(64))
        names = [router.name for router in self._routers]
        self._session = Session(names, number + 1, self._random, world.now)
        self._event: Event | None = None
        self._count = 0
        self._active = False
        self._versions: dict[bytes, int] = {}
        self._values: dict[bytes, bytes] = {}
        for router in range(len(self._routers)):
            self._session.connection(router, True, world.now)

    def begin(self) -> None:
        """Asks until `end`."""
        self._active = True
        for _ in range(self._settings.lanes):
            self._think()

    def end(self) -> None:
        self._active = False

    @property
    def idle(self) -> bool:
        return not [one for one in self._session.live if one.kind == protocol.Kind.OPS]

    # -- the shell's duties

    def submit(self, pending: Pending) -> None:
        self._session.submit(pending, self.world.now)
        self._flush()

    def receive(self, router: int, frame: bytes) -> None:
        self._session.receive(self._places[router], [frame], self.world.now)
        self._flush()

    def connection(self, router: int, connected: bool) -> None:
        if router not in self._places:
            return
        self._session.connection(self._places[router], connected, self.world.now)
        self._flush()

    def _flush(self) -> None:
        session = self._session
        while session.outbox:
            pending = session.outbox.popleft()
            if not pending.done:
                router = self._routers[pending.router]
                arrive = partial(router.deliver, "requests", [self.name.encode(), pending.frame])
                self._network.send(self.name, router.name, arrive)
        session.rebuilds.clear()
        if self._event is not None:
            self._event.cancel()
            self._event = None
        if session.next_due < float("inf"):
            self._event = self.world.after(max(0.0, session.next_due - self.world.now), self._tick)

    def _tick(self) -> None:
        self._event = None
        self._session.tick(self.world.now)
        if self._session.next_due <= self.world.now:
            self._session.next_due = self.world.now + 0.001
        self._flush()

    # -- what it asks for

    def _think(self) -> None:
        self.world.after(self._random.uniform(0, self.think), self._next)

    def _next(self) -> None:
        if not self._active:
            return
        choice = self._random.random() * (1.0 if self.writes else _READS)
        if choice < 0.15:
            self._read_stale()
        elif choice < _READS:
            mode = self._random.choice(self.modes)
            self._ask([self._get(key) for key in self._pick(2)], writes=False, mode=mode)
        elif choice < 0.58:
            self._write_expiring()
        else:
            self._ask([self._write(key) for key in self._pick(2)], writes=True, mode=protocol.LINEARIZABLE)

    def _ask(self, ops: list[_Op], writes: bool, mode: int) -> None:
        body = b"".join(op.encoded for op in ops)
        self.submit(
            Pending(
                protocol.Kind.OPS, body, len(ops), writes, mode, self._settings.timeout,
                lambda pending: self._told(pending, ops),
            )
        )  # fmt: skip

    def _pick(self, most: int = 1) -> list[bytes]:
        """Keys of now: from time to time all are replaced by new ones, so that histories stay short."""
        count = min(len(self._keys), self._random.choice((1, 1, 1, most)))
        generation = int(self.world.now / self._settings.key_life)
        return [b"%s.%d" % (key, generation) for key in self._random.sample(self._keys, count)]

    def _get(self, key: bytes) -> _Op:
        def found(result: list[Any]) -> Found | None:
            if result[0] == Status.NOT_FOUND:
                return None
            self._versions[key], self._values[key] = result[2], result[1]
            return Found(result[1], result[2])

        return _Op(protocol.encode_get(key), self._call("get", key), found, key, 0)

    def _write(self, key: bytes) -> _Op:
        random = self._random
        if key.startswith(b"n"):
            delta = random.randint(1, 9)
            self._book.attempted[key] = self._book.attempted.get(key, 0) + delta
            ticket = self._call("increment", key, delta)
            return _Op(protocol.encode_increment(key, delta), ticket, lambda result: result[1], key, delta)
        condition, wire = self._condition(key)
        if random.random() < 0.15:
            ticket = self._call("delete", key, condition)
            return _Op(protocol.encode_delete(key, wire), ticket, _deleted, key, 0)
        self._count += 1
        value = b"%s.%d." % (self.name.encode(), self._count) + b"v" * random.choice((0, 20, 200))
        ticket = self._call("put", key, value, condition)
        return _Op(protocol.encode_put(key, value, None, wire), ticket, _put, key, 0)

    def _condition(self, key: bytes) -> tuple[Any, Any]:
        choice = self._random.random()
        if choice < 0.5:
            return None, None
        if choice < 0.6:
            return ("absent",), protocol.absent()
        if choice < 0.7:
            return ("present",), protocol.present()
        if choice < 0.85 and key in self._versions:
            return ("version", self._versions[key]), protocol.version_equals(self._versions[key])
        if key in self._values:
            return ("value", self._values[key]), protocol.value_equals(self._values[key])
        return None, None

    def _call(self, function: str, key: bytes, *arguments: Any) -> int:
        return self._book.recorder.call(self.name, function, *arguments, key=key)

    def _read_stale(self) -> None:
        key, called, bound = self._pick()[0], self.world.now, self._settings.stale_ms

        def told(pending: Pending) -> None:
            self._think()
            if pending.error is None and pending.results[0][0] in (Status.OK, Status.NOT_FOUND):
                found = pending.results[0]
                value, version = (found[1], found[2]) if found[0] == Status.OK else (None, 0)
                self._book.stale.append(StaleRead(key, called, self.world.now, bound, value, version))

        body = protocol.encode_get(key)
        self.submit(Pending(protocol.Kind.OPS, body, 1, False, bound, self._settings.timeout, told))

    def _write_expiring(self) -> None:
        random = self._random
        key = b"t%d" % random.randrange(8)
        ttl = random.choice((1, 100, 3000, 100000))
        body = random.choice(
            (protocol.encode_put(key, b"%d" % random.randrange(10**9), ttl), protocol.encode_touch(key, ttl))
        )
        self.submit(
            Pending(
                protocol.Kind.OPS, body, 1, True, 0, self._settings.timeout, lambda pending: self._think()
            )
        )

    # -- what it is told

    def _told(self, pending: Pending, ops: list[_Op]) -> None:
        recorder, book = self._book.recorder, self._book
        self.done += 1
        for position, op in enumerate(ops):
            if pending.error is not None:
                status, unknown = int(pending.error.status), pending.error.maybe_applied
            else:
                result = pending.results[position]
                status, unknown = (
                    result[0],
                    getattr(result[1], "maybe_applied", False) if len(result) > 1 else False,
                )
            self.world.trace(self.name, op.ticket, status)
            if status in (Status.INTERNAL, Status.INVALID_REQUEST, Status.CORRUPTION):
                raise Violation(
                    f"{self.name} is told {Status(status).name}: {pending.error or pending.results}"
                )
            if status <= Status.NOT_AN_INTEGER:
                try:
                    recorder.ok(op.ticket, op.on_ok(result))
                except IndexError:
                    raise Violation(f"{self.name} is told {result}, which answers another op") from None
                book.answered += 1
                if op.added:
                    book.acknowledged[op.key] = book.acknowledged.get(op.key, 0) + op.added
            elif pending.writes and (unknown or status == Status.OUTCOME_UNKNOWN):
                recorder.unknown(op.ticket)
            else:
                recorder.fail(op.ticket)
        self._think()


def _deleted(result: list[Any]) -> object:
    return Conflict(result[1]) if result[0] == Status.CONDITION_FAILED else result[0] == Status.OK


def _put(result: list[Any]) -> object:
    return Conflict(result[1]) if result[0] == Status.CONDITION_FAILED else result[1]
