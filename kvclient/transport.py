"""The client's sockets: one DEALER per router, every option set here.

Owns sockets, their file descriptors and the wait for them. Knows no message formats and no retries: frames
out, frames in, "has a connection". One thread at a time uses a `Sockets`. The descriptor of a ZeroMQ socket
is edge-triggered, and any call on the socket may eat the edge; so the rule is: a socket that was touched is
*dirty*, and before anybody waits, each dirty socket is drained until its events say that it is empty.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import zmq

from kvclient.errors import ConnectError
from kvclient.url import Address, Endpoint

if TYPE_CHECKING:
    import socket

    from kvclient.keys import ClientKeys

# Frames taken from one socket before others, timers and sends get their turn.
DRAIN_BUDGET = 512
SEND_HIGH_WATER_MARK = 1000
CONNECT_HINT = "is a cluster running? start one with: kvcli dev up"
KEYS_HINT = "see which keys a directory has: kvcli keys ls DIR"
# Finding out why nobody answered must not add noticeably to the time the caller has waited already.
_DIAGNOSIS_SECONDS = 0.5

_GREETING_BYTES = 64
_NOBLOCK = int(zmq.NOBLOCK)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)
_seeded_pid = 0


def _seed_libzmq() -> None:
    """libzmq draws its reconnect jitter from rand() and never seeds it: all clients of a host would come back
    in step.
    """
    global _seeded_pid
    if _seeded_pid != os.getpid():
        import ctypes

        ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
        _seeded_pid = os.getpid()


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context of its own for each client and process; closing never blocks on unsent messages."""
    _seed_libzmq()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.set(zmq.BLOCKY, 0)
    return context


def _dealer(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint, router_key: str, keys: ClientKeys | None
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    if keys is not None:
        socket.set_string(zmq.CURVE_SERVERKEY, router_key)
        socket.set_string(zmq.CURVE_PUBLICKEY, keys.pair.public_key)
        socket.set_string(zmq.CURVE_SECRETKEY, keys.pair.secret_key)
    jitter = int.from_bytes(os.urandom(2), "little")
    for option, value in (
        # No connection = EAGAIN at once, instead of a queue that delivers stale requests later.
        (zmq.IMMEDIATE, 1),
        # Nobody waits for what is still unsent at close.
        (zmq.LINGER, 0),
        (zmq.SNDHWM, SEND_HIGH_WATER_MARK),
        # Answers are bounded by our requests in flight; a full queue would leave heartbeats unread.
        (zmq.RCVHWM, 0),
        (zmq.HEARTBEAT_IVL, 2000),
        (zmq.HEARTBEAT_TIMEOUT, 6000),
        (zmq.HEARTBEAT_TTL, 6000),
        # The kernel alone would try for two minutes.
        (zmq.CONNECT_TIMEOUT, 2000),
        (zmq.HANDSHAKE_IVL, 3000),
        (zmq.RECONNECT_IVL, 100 + jitter % 201),
        (zmq.RECONNECT_IVL_MAX, 2000 + jitter % 3001),
        (zmq.TCP_MAXRT, 10_000),
        (zmq.IPV6, int(":" in endpoint.host)),
    ):
        socket.setsockopt(option, value)
    socket.connect(f"tcp://{endpoint}")
    return socket


def _router_key(address: Address, endpoint: Endpoint) -> str:
    """Of the router at an endpoint, which may be one of the addresses that a name of `address` stands for."""
    if address.keys is None:
        return ""
    names = [] if endpoint in address.endpoints else address.endpoints
    for known in (endpoint, *(name for name in names if name.port == endpoint.port)):
        certificate = address.keys.router(str(known))
        if certificate is not None:
            return certificate.public_key
    raise AssertionError("ClientKeys.require_routers has not been asked")


class Sockets:
    """A connected (or connecting) DEALER per endpoint, by index; with the keys of `address`, if any."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Sequence[Endpoint], address: Address
    ) -> None:
        self._keys = address.keys
        self._router_keys = [_router_key(address, endpoint) for endpoint in endpoints]
        self.connected = [False] * len(endpoints)
        self.descriptors: list[int] = []
        self._context = context
        self._endpoints = endpoints
        self._sockets: list[zmq.Socket[bytes]] = []
        self._send: list[Callable[[bytes, int], object]] = []
        self._dirty: set[int] = set()
        self._index: dict[int, int] = {}
        self._poll = select.poll()
        for index in range(len(endpoints)):
            self._open(index)

    def _open(self, index: int) -> None:
        router_key = self._router_keys[index]
        socket = _dealer(self._context, self._endpoints[index], router_key, self._keys)
        descriptor: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]
        # The compiled send itself: the wrapper around it handles options that a DEALER does not have.
        send = super(zmq.Socket, socket).send
        if index < len(self._sockets):
            self._sockets[index], self.descriptors[index], self._send[index] = socket, descriptor, send
        else:
            self._sockets.append(socket)
            self.descriptors.append(descriptor)
            self._send.append(send)
        self.connected[index] = False
        self._index[descriptor] = index
        self._poll.register(descriptor, select.POLLIN)
        self._dirty.add(index)

    def _drop(self, index: int) -> None:
        self._poll.unregister(self.descriptors[index])
        del self._index[self.descriptors[index]]
        self._sockets[index].close(0)

    def rebuild(self, index: int) -> None:
        """Replace a socket that libzmq may have given up on; what was in it is lost."""
        self._drop(index)
        self._open(index)

    def send(self, index: int, frame: bytes) -> bool:
        """Queue a frame for a router; False if there is no connection to it (or its queue is full)."""
        self._dirty.add(index)
        try:
            self._send[index](frame, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def touch(self, index: int) -> None:
        """The descriptor of this socket has fired."""
        self._dirty.add(index)

    @property
    def dirty(self) -> list[int]:
        """The sockets to drain before anybody may wait."""
        return list(self._dirty)

    def drain(self, index: int) -> list[bytes]:
        """The frames that wait, at most DRAIN_BUDGET; the socket is clean, and `connected` up to date, once
        all were taken.
        """
        socket = self._sockets[index]
        frames: list[bytes] = []
        append, recv = frames.append, socket.recv
        while True:
            events: int = socket.getsockopt(_EVENTS)  # type: ignore[assignment]
            if not events & _POLLIN:
                self.connected[index] = bool(events & _POLLOUT)
                self._dirty.discard(index)
                return frames
            # An answer often comes alone, and EAGAIN (an exception, and two system calls) costs more than a
            # look at the events: so one frame first, and only then all that there are.
            wanted = DRAIN_BUDGET - len(frames) if frames else 1
            try:
                for _ in range(wanted):
                    append(recv(_NOBLOCK))
            except zmq.Again:
                continue
            if len(frames) >= DRAIN_BUDGET:
                return frames

    def wait(self, seconds: float) -> None:
        """Sleep until a socket has something to say, at most `seconds`."""
        for descriptor, _ in self._poll.poll(max(0.0, seconds) * 1000 + 0.5):
            self._dirty.add(self._index[descriptor])

    def close(self) -> None:
        """Close all sockets at once; unsent frames are dropped."""
        for index in range(len(self._sockets)):
            self._drop(index)
        self._sockets.clear()


def diagnose(endpoints: Sequence[Endpoint], keys: ClientKeys | None) -> ConnectError:
    """Why nobody could be reached, found out with plain TCP: ZeroMQ only knows that it keeps trying. Blocks
    for half a second at most.
    """
    until = time.monotonic() + _DIAGNOSIS_SECONDS
    attempts = [(str(endpoint), _reason(endpoint, keys, until)) for endpoint in endpoints]
    tried = ", ".join(f"{endpoint}: {reason}" for endpoint, reason in attempts)
    hint = KEYS_HINT if any("key" in reason for _, reason in attempts) else CONNECT_HINT
    return ConnectError(f"cannot reach any router (tried {tried})", attempts=attempts, hint=hint)


def _reason(endpoint: Endpoint, keys: ClientKeys | None, until: float) -> str:
    import socket

    def left() -> float:
        return max(0.05, until - time.monotonic())

    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=left()) as link:
            link.settimeout(left())
            return _greeted(link, keys)
    except socket.gaierror:
        return "the name does not resolve here"
    except TimeoutError:
        return "no answer"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()


def _greeted(link: socket.socket, keys: ClientKeys | None) -> str:
    """What whoever listens there says of keys: after signature and version it names its mechanism."""
    link.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01")
    heard = b""
    while len(heard) < _GREETING_BYTES and (more := link.recv(_GREETING_BYTES - len(heard))):
        heard += more
    theirs = heard[12:32].rstrip(b"\0")
    if theirs == b"CURVE" and keys is not None:
        return f"it does not take the key {keys.name}, or is not the router that the certificate is of"
    if theirs == b"CURVE":
        return "it wants a key: give keys=DIR, RINGKV_KEYS or --keys"
    if theirs == b"NULL" and keys is not None:
        return "it has no keys, and is not talked to in the clear"
    return "connected, but no answer in time"
