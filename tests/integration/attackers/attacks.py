"""What attackers do, and what is watched meanwhile: somebody else's requests, and the processes' memory.

Bounds that are stated here hold for every attack of the suite. They are wide, as the machine may do other
things as well: what they tell apart is a service that goes on from one that stands still or grows.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Final

import zmq

from kvclient import protocol
from kvclient.errors import KVError
from kvclient.keys import ClientKeys
from kvclient.protocol import Kind, Request
from tests.integration.localcluster import Cluster, resident_bytes

SLOWEST_S: Final = 2.0
"""No request of others takes longer during an attack."""
PEAK_BYTES: Final = 96 << 20
"""No process grows by more during an attack by somebody without a key."""
LEFT_BYTES: Final = 48 << 20
"""Nor keeps more when it is over."""
SETTLE_S: Final = 60.0
HANDSHAKE_S: Final = 3.0
"""Who has not proven anything by then is cut off."""

HOST: Final = "127.0.0.1"
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
PING: Final = protocol.encode_request(Request(Kind.PING, 7, 5000, 0, 0, 0, 0, 0, b""))


class Others(threading.Thread):
    """Another client, at work while an attack runs; and what every process of the cluster takes."""

    def __init__(self, cluster: Cluster, peak_bytes: int = PEAK_BYTES) -> None:
        super().__init__(daemon=True)
        self.slowest = 0.0
        self.served = 0
        self.errors: list[KVError] = []
        self._client = cluster.connect()
        self._processes = cluster.processes()
        self._before = self._memory()
        self._peak = dict(self._before)
        self._peak_bytes = peak_bytes
        self._over = threading.Event()

    def _memory(self) -> dict[str, int]:
        return {name: resident_bytes(process) for name, process in self._processes.items()}

    def run(self) -> None:
        with self._client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    self._client.put(b"others", b"value")
                    self._client.get(b"others")
                except KVError as error:
                    self.errors.append(error)
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.served += 1
                for name, size in self._memory().items():
                    self._peak[name] = max(self._peak[name], size)
                time.sleep(0.01)

    def __enter__(self) -> Others:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.join()
        if kind is None:
            assert not self.errors
            assert self.served > 0
            assert self.slowest < SLOWEST_S
            grown = {name: size - self._before[name] for name, size in self._peak.items()}
            assert max(grown.values()) < self._peak_bytes, grown
            self._settle()

    def _settle(self) -> None:
        until = time.monotonic() + SETTLE_S
        while max(size - self._before[name] for name, size in self._memory().items()) > LEFT_BYTES:
            assert time.monotonic() < until, (self._before, self._memory())
            time.sleep(0.2)


def connections(port: int, count: int, says: bytes) -> list[socket.socket]:
    """So many that say this and nothing else."""
    made = []
    for _ in range(count):
        one = socket.create_connection((HOST, port), timeout=10)
        one.sendall(says)
        one.setblocking(False)
        made.append(one)
    return made


def cut_off(attackers: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Those that are still connected when the time is over; reads what they are told."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for one in attackers:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(0.1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                try:
                    if one.recv(65536):
                        continue
                except ConnectionError:
                    pass
                selector.unregister(one)
        left = [key.fileobj for key in selector.get_map().values()]
    return [one for one in left if isinstance(one, socket.socket)]


class Attacker:
    """Sockets with keys that keep to no other rule, until `close`."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def socket(self, port: int, keys: ClientKeys, identity: bytes = b"") -> zmq.Socket[bytes]:
        """One that has been let in."""
        made = self._context.socket(zmq.DEALER)
        self._sockets.append(made)
        made.set(zmq.SNDHWM, 0)
        if identity:
            made.set(zmq.ROUTING_ID, identity)
        router = keys.router(f"{HOST}:{port}")
        assert router is not None
        made.set_string(zmq.CURVE_SERVERKEY, router.public_key)
        made.set_string(zmq.CURVE_PUBLICKEY, keys.pair.public_key)
        made.set_string(zmq.CURVE_SECRETKEY, keys.pair.secret_key)
        made.connect(f"tcp://{HOST}:{port}")
        made.send(PING)
        return made

    def close(self) -> None:
        """At once."""
        self._context.destroy(0)


class Recorder(threading.Thread):
    """Passes one connection on to `port`, and keeps what the client said."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.said = b""
        self._listener = socket.create_server((HOST, 0))
        self._port = port

    @property
    def port(self) -> int:
        number = self._listener.getsockname()[1]
        assert isinstance(number, int)
        return number

    def run(self) -> None:
        with (
            self._listener,
            self._listener.accept()[0] as client,
            socket.create_connection((HOST, self._port)) as server,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while self._pass_on(selector, client):
                pass

    def _pass_on(self, selector: selectors.BaseSelector, client: socket.socket) -> bool:
        for key, _ in selector.select():
            source = key.fileobj
            assert isinstance(source, socket.socket)
            data = source.recv(65536)
            if not data:
                return False
            if source is client:
                self.said += data
            key.data.sendall(data)
        return True


def replay(port: int, said: bytes) -> int:
    """Say it all again; how many bytes come back before the connection ends."""
    with socket.create_connection((HOST, port), timeout=10) as link:
        try:
            link.sendall(said)
        except ConnectionError:
            return 0
        link.settimeout(HANDSHAKE_S + 7)
        heard = 0
        try:
            while data := link.recv(65536):
                heard += len(data)
        except ConnectionError:
            pass
        return heard


def junk(size: int) -> bytes:
    """Bytes that are nothing."""
    return os.urandom(size)
