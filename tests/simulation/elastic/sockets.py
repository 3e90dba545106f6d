"""Sockets in the simulated world: they stand in for those of shared/sockets.py, the only place that makes
any, so that the product's own shells of control run as they are.

Owns who is bound where. A socket belongs to one life of one machine. What travels may be lost, doubled and
overtaken like everything on the simulated network, and there are further faults for control alone:
`order_loss` of what is asked and answered, `event_loss` of what is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import zmq

from shared import sockets
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.world import World

Batch = Callable[[list[list[bytes]]], object]


class Answering(Protocol):
    """A store, as far as its rpc socket goes."""

    name: str
    node: int
    up: bool
    life: int

    def on_rpc(self, router: bytes, frame: bytes) -> None: ...


class SocketMachine(Machine):
    """A machine whose loop reads simulated sockets."""

    wires: Wires

    def begin_life(self) -> None:
        super().begin_life()
        self._readers: dict[str, Batch] = {}

    def add_reader(self, socket: Any, on_batch: Batch, priority: int = 0) -> None:
        """As of the reactor."""
        self._readers[socket.name] = on_batch

    def remove_reader(self, socket: Any) -> None:
        self._readers.pop(socket.name, None)

    def handle(self, source: str, items: list[Any]) -> None:
        if source.startswith("socket"):
            reader = self._readers.get(source)
            if reader is not None:
                reader(items)
        else:
            super().handle(source, items)


class Socket:
    """One socket of `machine`, which ends with its life."""

    def __init__(self, machine: SocketMachine, kind: int) -> None:
        self.machine = machine
        self.kind = kind
        self.wires = machine.wires
        self.name = f"socket{self.wires.number():06}"
        self.endpoint = ""
        self.peers: dict[str, None] = {}
        self.topics: tuple[bytes, ...] = ()
        self._life = machine.life
        self._closed = False

    @property
    def alive(self) -> bool:
        return not self._closed and self.machine.up and self.machine.life == self._life

    def arrive(self, frames: list[bytes]) -> None:
        if self.alive:
            self.machine.deliver(self.name, frames)

    def get(self, option: int) -> int:
        return self.kind if option == zmq.TYPE else 0

    def close(self, linger: int = 0) -> None:
        self._closed = True
        self.wires.forget(self)


class Wires:
    """All of them in one world."""

    def __init__(self, world: World, network: Network) -> None:
        self.order_loss = 0.0
        self.event_loss = 0.0
        self.stores: dict[str, Answering] = {}
        """Endpoint -> who answers there."""
        self._world = world
        self._network = network
        self._made = 0
        self._dealers: dict[bytes, Socket] = {}
        self._subscribers: dict[str, Socket] = {}

    def number(self) -> int:
        self._made += 1
        return self._made

    def forget(self, socket: Socket) -> None:
        self._dealers.pop(socket.name.encode(), None)
        self._subscribers.pop(socket.name, None)

    def calm(self) -> None:
        self.order_loss = self.event_loss = 0.0

    # -- what shared/sockets.py does

    def bulk_dealer(self, machine: SocketMachine, endpoint: str, *_: Any, **__: Any) -> Socket:
        socket = Socket(machine, zmq.DEALER)
        socket.peers[endpoint] = None
        self._dealers[socket.name.encode()] = socket
        return socket

    def publisher(self, machine: SocketMachine, endpoint: str, *_: Any, **__: Any) -> Socket:
        socket = Socket(machine, zmq.PUB)
        socket.endpoint = endpoint
        return socket

    def subscriber(self, machine: SocketMachine, topics: Iterable[bytes], *_: Any, **__: Any) -> Socket:
        socket = Socket(machine, zmq.SUB)
        socket.topics = tuple(topics)
        self._subscribers[socket.name] = socket
        return socket

    def connect(self, socket: Socket, endpoint: str) -> None:
        socket.peers[endpoint] = None

    def disconnect(self, socket: Socket, endpoint: str) -> None:
        socket.peers.pop(endpoint, None)

    def reconnect(self, socket: Socket, endpoint: str) -> None:
        self.connect(socket, endpoint)

    def send_or_drop(self, socket: Socket, frames: Sequence[bytes]) -> str | None:
        if not socket.alive:
            return "gone"
        if socket.kind == zmq.PUB:
            self._publish(socket, list(frames))
            return None
        (endpoint,) = socket.peers
        store = self.stores.get(endpoint)
        if store is None or not store.up:
            return "full"
        life, identity = store.life, socket.name.encode()

        def arrive() -> None:
            if store.life == life:
                store.on_rpc(identity, frames[-1])

        if not self._lost(self.order_loss):
            self._network.send(socket.machine.name, store.name, arrive, socket.machine.clock.ahead)
        return None

    def _publish(self, publisher: Socket, frames: list[bytes]) -> None:
        for socket in list(self._subscribers.values()):
            if (
                publisher.endpoint in socket.peers
                and frames[0].startswith(socket.topics)
                and socket.alive
                and not self._lost(self.event_loss)
            ):
                self._network.send(
                    publisher.machine.name,
                    socket.machine.name,
                    lambda s=socket: s.arrive(list(frames)),  # type: ignore[misc]
                    publisher.machine.clock.ahead,
                )

    def reply(self, store: Machine, identity: bytes, frame: bytes) -> None:
        """A store answers who asked by a dealer."""
        socket = self._dealers.get(identity)
        if socket is not None and not self._lost(self.order_loss):
            self._network.send(
                store.name, socket.machine.name, lambda: socket.arrive([frame]), store.clock.ahead
            )

    def _lost(self, share: float) -> bool:
        return bool(share) and self._world.random.random() < share


@contextmanager
def simulated() -> Iterator[None]:
    """Within this the product gets such sockets; a machine stands for the context."""

    def of(name: str) -> Callable[..., Any]:
        def call(machine: SocketMachine, *arguments: Any, **options: Any) -> Any:
            return getattr(machine.wires, name)(machine, *arguments, **options)

        return call

    def at(name: str) -> Callable[..., Any]:
        def call(socket: Socket, *arguments: Any, **options: Any) -> Any:
            return getattr(socket.wires, name)(socket, *arguments, **options)

        return call

    stand_ins: Mapping[str, Callable[..., Any]] = {
        "bulk_dealer": of("bulk_dealer"),
        "bus_publisher": of("publisher"),
        "bus_subscriber": of("subscriber"),
        "connect": at("connect"),
        "disconnect": at("disconnect"),
        "reconnect": at("reconnect"),
        "send_or_drop": at("send_or_drop"),
    }
    with mock.patch.multiple(sockets, **stand_ins):
        yield
