"""Keys on real sockets: who gets in, who is kept out, and what a change of the directory does to links."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from kvclient.cli import keyfiles
from kvclient.keys import Certificate, Pair, Role, load
from shared import sockets
from shared.config import ConfigError
from shared.curve import Curve
from shared.reactor import Reactor
from shared.security import DOMAINS, EVENTS, Guard, SecuritySection, open_guard
from tests.ports import free_ports

DEADLINE_S = 20.0


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    keyfiles.init(directory)
    return directory


class Side:
    """A process, as far as keys go: a context with its guard, and a loop that turns while it waits."""

    def __init__(self, directory: Path, name: str, role: Role) -> None:
        self.reactor = Reactor()
        self.context = sockets.context()
        self.guard = Guard(directory, name, role)
        self.curve: Curve = sockets.secure(self.context, self.guard)
        self.curve._reactor = self.reactor  # `watch` is for main threads, whose signals it takes
        self.heard: list[list[bytes]] = []
        self.kept: list[sockets.Socket] = []

    def read(self, socket: sockets.Socket) -> sockets.Socket:
        self.reactor.add_reader(socket, self.heard.extend)
        return self.keep(socket)

    def keep(self, socket: sockets.Socket) -> sockets.Socket:
        self.kept.append(socket)
        return socket

    def turn(self) -> None:
        self.reactor.call_later(0.005, int)
        self.reactor._turn()

    def close(self) -> None:
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def side(keys: Path) -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def make(name: str, role: Role, *addresses: str, directory: Path = keys) -> Side:
        if name not in load(directory).certificates:
            keyfiles.add(directory, Certificate(name, role, "", addresses))
        made.append(Side(directory, name, role))
        for one in made:
            one.curve.look()
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Callable[[], Any], *sides: Side) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        for one in sides:
            one.turn()


def asks(dealer: sockets.Socket, text: bytes, server: Side, *others: Side) -> None:
    """Until the server heard it."""

    def heard() -> bool:
        sockets.send_or_drop(dealer, (text,))
        return any(message[1] == text for message in server.heard)

    until(heard, server, *others)


def test_routers_and_stores_find_each_other(side: Callable[..., Side]) -> None:
    port = free_ports(1)[0]
    store = side("store1", "node", f"127.0.0.1:{port}")
    router = side("router1", "router")
    store.read(sockets.store_router(store.context, f"tcp://127.0.0.1:{port}", batch_bytes_max=1 << 20))
    dealer = router.keep(sockets.bulk_dealer(router.context, f"tcp://127.0.0.1:{port}"))
    asks(dealer, b"hello", store, router)


def test_one_subscriber_expects_another_key_at_each_publisher(side: Callable[..., Side]) -> None:
    ports = free_ports(2)
    publishers = [side(f"store{n}", "node", f"127.0.0.1:{port}") for n, port in enumerate(ports)]
    subscriber = side("store3", "node", "h")
    bound = [
        one.keep(sockets.bus_publisher(one.context, f"tcp://127.0.0.1:{port}"))
        for one, port in zip(publishers, ports, strict=True)
    ]
    socket = subscriber.read(sockets.bus_subscriber(subscriber.context, [b"from"]))
    for port in ports:
        sockets.connect(socket, f"tcp://127.0.0.1:{port}")

    def both() -> bool:
        for number, publisher in enumerate(bound):
            publisher.send(b"from %d" % number)
        return {message[0] for message in subscriber.heard} == {b"from 0", b"from 1"}

    until(both, subscriber)


def raw(context: zmq.Context[Any], port: int, server_key: str, pair: Pair | None) -> sockets.Socket:
    """A peer that keeps to no rule of ours."""
    socket: sockets.Socket = context.socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RECONNECT_IVL, 20)
    if pair is not None:
        socket.set_string(zmq.CURVE_SERVERKEY, server_key)
        socket.set_string(zmq.CURVE_PUBLICKEY, pair.public_key)
        socket.set_string(zmq.CURVE_SECRETKEY, pair.secret_key)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


BINDERS = {
    "front": lambda c, e: sockets.front_router(c, e, request_bytes_max=1 << 20, in_flight=10),
    "rpc": lambda c, e: sockets.store_router(c, e, batch_bytes_max=1 << 20),
}


WELCOME = {"front": ("client", "admin", "monitor"), "rpc": ("router", "node", "monitor")}
"""As the table in docs/security.md has it."""


@pytest.mark.parametrize("domain", BINDERS)
@pytest.mark.parametrize("peer", ["client", "admin", "monitor", "router", "node", "stranger", "nobody"])
def test_only_the_roles_of_a_socket_get_in(
    side: Callable[..., Side], keys: Path, domain: str, peer: str
) -> None:
    port = free_ports(1)[0]
    roles: dict[str, Role] = {"client": "client", "admin": "admin", "monitor": "monitor"}
    roles |= {"router": "router", "node": "node"}
    pair: Pair | None = None
    if peer in roles:
        keyfiles.add(keys, Certificate("peer", roles[peer], "", ("nowhere",) * (peer in ("router", "node"))))
        pair = load(keys).pair("peer")
    elif peer == "stranger":
        pair = Pair(*(half.decode() for half in zmq.curve_keypair()))
    server = side("server", "node" if domain == "rpc" else "router", f"127.0.0.1:{port}")
    server.read(BINDERS[domain](server.context, f"tcp://127.0.0.1:{port}"))
    welcome = peer in WELCOME[domain]
    context: zmq.Context[Any] = zmq.Context()
    socket = raw(context, port, server.guard.pair.public_key, pair)
    try:
        socket.send(b"let me in")
        before = server.curve.zap.refused
        if welcome:
            until(lambda: server.heard, server)
            assert server.heard[0][1] == b"let me in"
        elif pair is not None:
            until(lambda: server.curve.zap.refused > before, server)
        else:
            time.sleep(0.3)  # nothing is to come: any wait will do
            server.turn()
        assert bool(server.heard) == welcome
    finally:
        context.destroy(0)


def test_who_is_revoked_is_thrown_out_and_the_others_come_back(side: Callable[..., Side], keys: Path) -> None:
    port = free_ports(1)[0]
    router = side("router1", "router", f"127.0.0.1:{port}")
    for name in ("good", "bad"):
        keyfiles.add(keys, Certificate(name, "client", ""))
    router.guard.look()
    router.read(BINDERS["front"](router.context, f"tcp://127.0.0.1:{port}"))
    context: zmq.Context[Any] = zmq.Context()
    known = load(keys)
    good, bad = (raw(context, port, router.guard.pair.public_key, known.pair(n)) for n in ("good", "bad"))
    try:
        asks(good, b"good", router)
        asks(bad, b"bad", router)
        keyfiles.revoke(keys, "bad")
        router.curve.look()
        asks(good, b"good again", router)
        router.heard.clear()
        with contextlib.suppress(zmq.Again):  # it has noticed
            bad.send(b"bad again", zmq.NOBLOCK)
        asks(good, b"good still", router)
        assert not [message for message in router.heard if message[1].startswith(b"bad")]
    finally:
        context.destroy(0)


def test_a_link_follows_the_certificate_of_its_other_side(side: Callable[..., Side], keys: Path) -> None:
    """No certificate: no link, until there is one; a replaced one: another link."""
    port = free_ports(1)[0]
    router = side("router1", "router")
    dealer = router.keep(sockets.bulk_dealer(router.context, f"tcp://127.0.0.1:{port}", eager=True))
    store = side("store1", "node", f"127.0.0.1:{port}")
    store.read(sockets.store_router(store.context, f"tcp://127.0.0.1:{port}", batch_bytes_max=1 << 20))
    asks(dealer, b"now", store, router)
    keyfiles.add(keys, Certificate("store1", "node", "", (f"127.0.0.1:{port}",)))
    store.curve.look()
    router.curve.look()
    asks(dealer, b"after its key changed", store, router)


def test_the_directory_is_looked_at_by_itself_and_at_sighup(side: Callable[..., Side], keys: Path) -> None:
    store = side("store1", "node", "h")
    store.curve.watch(store.reactor)
    keyfiles.add(keys, Certificate("soon", "client", ""))
    until(lambda: "soon" in store.guard.keys.certificates, store)
    keyfiles.add(keys, Certificate("now", "client", ""))
    os.kill(os.getpid(), signal.SIGHUP)
    until(lambda: "now" in store.guard.keys.certificates, store)


def test_an_error_in_the_directory_changes_nothing(side: Callable[..., Side], keys: Path) -> None:
    store = side("store1", "node", "h")
    before = store.guard.keys
    (keys / "certificates" / "bad.json").write_text("{}")
    assert not store.guard.look()
    assert store.guard.keys is before
    (keys / "certificates" / "bad.json").unlink()
    assert store.guard.look()


def test_a_guard_needs_a_key_of_its_role(keys: Path) -> None:
    assert open_guard(SecuritySection(), "x", "node") is None
    for name, text in (("store1", "cannot be read"), ("admin", "role admin, this process needs")):
        with pytest.raises(ConfigError, match=text):
            open_guard(SecuritySection(str(keys), name), "x", "node")
    with pytest.raises(ConfigError, match="kvcli keys init"):
        open_guard(SecuritySection(str(keys / "nothing")), "x", "node")


def test_with_keys_any_address_may_be_listened_on(side: Callable[..., Side]) -> None:
    store = side("store1", "node", "h")
    sockets.store_router(store.context, "tcp://0.0.0.0:0", batch_bytes_max=1 << 20).close(0)
    bare = sockets.context()
    try:
        with pytest.raises(ConfigError, match="kvcli keys init"):
            sockets.store_router(bare, "tcp://0.0.0.0:0", batch_bytes_max=1 << 20)
    finally:
        bare.destroy(0)


def test_judging_and_changing_at_once_lets_no_revoked_key_stay(keys: Path) -> None:
    """Whoever was let in by what was loaded before is seen as thrown out after."""
    keyfiles.add(keys, Certificate("store1", "node", "", ("h",)))
    keyfiles.add(keys, Certificate("bad", "node", "", ("i",)))
    guard = Guard(keys, "store1", "node")
    key = load(keys).certificates["bad"].public_key
    admitted: list[bool] = []
    judging = threading.Thread(
        target=lambda: admitted.extend(not guard.judge("bus", key).refusal for _ in range(2000))
    )
    judging.start()
    keyfiles.revoke(keys, "bad")
    guard.look()
    judging.join()
    assert guard.thrown_out("bus") == any(admitted)
    assert not guard.thrown_out("bus")
    assert guard.judge("bus", key).refusal
    assert EVENTS.name in DOMAINS
