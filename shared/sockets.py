"""The only place that makes sockets and sets their options; what it returns is bound or connected.

Must not know what travels. All sends of ours are NOBLOCK; nothing here waits. Sockets belong to the thread
that made them, contexts are made after any fork.

The numbers, and why (ms, messages, bytes):
- IMMEDIATE 1: a DEALER without a live peer says EAGAIN at once instead of queueing for a dead one and
  delivering late.
- ROUTER_MANDATORY 1: an unknown or full peer is an error we count instead of silence.
- RCVHWM 0: a slow loop must not stop libzmq from reading PINGs and PONGs; what well-behaved peers have in
  flight is bounded by the protocol. On binding sides it is more: libzmq 4.3.5 aborts the process when a peer
  vanishes whose receive queue stood at its mark, at the next PING from either side (stream_engine_base.cpp,
  out_event asserts !_io_error). Messages of up to 16 MiB make a mark no bound for memory anyway.
- SNDHWM on the front, per client: twice the requests that a router has under way, so that one connection may
  have them all and lose no answer. Twice, because libzmq hears of what was read in steps of half the mark. It
  bounds what one that does not read its answers costs, in answers, not in bytes.
- HEARTBEAT_*: the only way to see a black hole. TTL stays under 65536, where libzmq wraps it.
- HANDSHAKE_IVL: a peer that connects and stays silent is closed after this.
- MAXMSGSIZE on binding sides only: on a connecting side one larger frame would end the link for good.
- RECONNECT_IVL random per socket: libzmq's own jitter is too small, and a restarted store must not meet all
  routers at once. On the bus there are only the other stores, and until they hear a restarted one again its
  groups have no replica to spare: they try more often.
- LINGER 0: closing never waits for a dead peer. BACKLOG 1024: room for a reconnect storm.
- The bus (PUB and SUB) has finite marks on both sides, 64 frames. A frame is 4 MiB at most, or one larger
  entry, so a subscriber that hangs holds 256 MiB of its publisher, and each publisher 256 MiB of it, where
  libzmq's 1000 would be 4 GiB; a turn sends two frames to a peer, so 64 bridge a pause of 32 turns, and the
  kernel's buffers more. PUB drops what is beyond for that subscriber alone: Raft repairs losses.
- The bus has no HEARTBEAT_*. SUB, which connects, is no safer than a ROUTER that is bound: with PINGs of its
  own and its queue at a finite mark, libzmq aborts as above when the publisher vanishes. TCP finds what is
  dead instead: KEEPALIVE asks a silent peer every second, and TCP_MAXRT ends a link on which nothing was
  acknowledged for 3 s, also that of a subscriber that hangs: its frames are freed then.
- Bulk: few requests in flight, answers of 1 MiB, otherwise as a router's side of a store.
- Keys: those of `shared.curve`, on every socket of a context that was made `secure`.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import random
import resource
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import zmq
from zmq.backend import Socket as _BareSocket

from shared.config import ConfigError, Problem
from shared.curve import Curve
from shared.security import BUS, FRONT, RPC, Domain, Guard
from shared.units import split_endpoint

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

# Room for the fields around a request's body, and for CURVE's 33 bytes.
FRAME_OVERHEAD = 4096

# Far more clients than a router serves; a descriptor that is not used costs nothing.
DESCRIPTORS = 65_536

_FRONT = {
    zmq.LINGER: 0,
    zmq.ROUTER_MANDATORY: 1,
    zmq.RCVHWM: 0,
    zmq.BACKLOG: 1024,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.HEARTBEAT_IVL: 5000,
    zmq.HEARTBEAT_TIMEOUT: 15000,
    zmq.HEARTBEAT_TTL: 15000,
}
# Few peers, each with thousands of requests in flight.
_STORE = {**_FRONT, zmq.SNDHWM: 10_000}
_BACKEND = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,
    zmq.SNDHWM: 10_000,
    zmq.RCVHWM: 0,
    zmq.CONNECT_TIMEOUT: 1000,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
}
_BULK = {**_BACKEND, zmq.SNDHWM: 64}
_BUS_FRAMES = 64
_BUS = {
    zmq.LINGER: 0,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 1,  # s
    zmq.TCP_KEEPALIVE_INTVL: 1,  # s
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 3000,
}
# All that a subscriber says is a handshake and subscriptions of a few bytes.
_PUBLISHER = {**_BUS, zmq.SNDHWM: _BUS_FRAMES, zmq.BACKLOG: 1024, zmq.MAXMSGSIZE: FRAME_OVERHEAD}
_SUBSCRIBER = {**_BUS, zmq.RCVHWM: _BUS_FRAMES, zmq.CONNECT_TIMEOUT: 1000}
_RECONNECT_IVL = (50, 150)
_RECONNECT_IVL_MAX = (500, 1000)
_BUS_RECONNECT_IVL_MAX = (150, 300)

_SEND = int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

_UP = zmq.Event.HANDSHAKE_SUCCEEDED
_DOWN = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_MONITOR_HEADER = struct.Struct("=HI")


_curves: WeakKeyDictionary[Context, Curve] = WeakKeyDictionary()


class ListenError(OSError):
    """An endpoint cannot be listened on; the text names it and says what to do."""


def context() -> Context:
    """The process's one context; the caller ends it with `destroy(linger=0)`."""
    return prepared(zmq.Context(io_threads=1))  # one per GB/s


def prepared(context: Context) -> Context:
    """A fresh context as `context` makes it.

    Seeds the C library's rand() first: libzmq draws its peers' routing ids and its reconnect jitter from it
    and never seeds it, so that they would be the same, and guessable, in every process.
    """
    _raise_descriptors()
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
    context.set(zmq.BLOCKY, 0)
    return context


def _raise_descriptors() -> None:
    """As many connections as this process may have: at the end of its descriptors libzmq tries to accept in
    an endless loop, and most systems begin with 1024 unless they are asked.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def secure(context: Context, guard: Guard) -> Curve:
    """Give all sockets that are made in this context from now on the keys of `guard`; the caller has the
    answer `watch` its reactor.
    """
    curve = _curves[context] = Curve(context, guard)
    return curve


def front_router(
    context: Context, endpoint: str, *, request_bytes_max: int, in_flight: int, insecure: bool = False
) -> Socket:
    """The router's bound front. A frame over `request_bytes_max` + `FRAME_OVERHEAD` ends that connection. No
    answer to a client is dropped while at most `in_flight` of them wait to be read.
    """
    options = {
        **_FRONT,
        zmq.SNDHWM: 2 * in_flight,
        zmq.MAXMSGSIZE: request_bytes_max + FRAME_OVERHEAD,
    }
    return _bound(context, zmq.ROUTER, endpoint, options, insecure, FRONT)


def store_router(context: Context, endpoint: str, *, batch_bytes_max: int, insecure: bool = False) -> Socket:
    """The store's bound side. A frame over `batch_bytes_max` + `FRAME_OVERHEAD` ends that connection."""
    options = {**_STORE, zmq.MAXMSGSIZE: batch_bytes_max + FRAME_OVERHEAD}
    return _bound(context, zmq.ROUTER, endpoint, options, insecure, RPC)


def backend_dealer(context: Context, endpoint: str) -> Socket:
    """One connecting socket for one store node. The caller takes its `monitor_events`, and reads them.

    They are recorded from before the first attempt, or the only "up" could be over before anybody watches.
    """
    _require_endpoint(endpoint)
    socket = _made(context, zmq.DEALER, {**_BACKEND, **_reconnecting(_RECONNECT_IVL_MAX)})
    monitor = monitor_events(socket)
    try:
        connect(socket, endpoint)
    except ConfigError:
        monitor.close()
        socket.close(0)
        raise
    return socket


def bulk_dealer(context: Context, endpoint: str, *, eager: bool = False) -> Socket:
    """One connecting socket for the snapshots of one store node, and for questions to it. Nobody watches its
    link: who gets no answer closes it and makes another, or asks again. `eager` tries to connect as often as
    the bus does: a store that waits for another to start.
    """
    _require_endpoint(endpoint)
    longest = _BUS_RECONNECT_IVL_MAX if eager else _RECONNECT_IVL_MAX
    socket = _made(context, zmq.DEALER, {**_BULK, **_reconnecting(longest)})
    try:
        connect(socket, endpoint)
    except ConfigError:
        socket.close(0)
        raise
    return socket


def bus_publisher(context: Context, endpoint: str, *, insecure: bool = False, domain: Domain = BUS) -> Socket:
    """The bound side of a node's bus; it hears subscriptions and says frames of `topic, bytes`."""
    return _bound(context, zmq.PUB, endpoint, _PUBLISHER, insecure, domain)


def bus_subscriber(context: Context, topics: Iterable[bytes]) -> Socket:
    """The other side, for all peers; it is told whom to hear by `connect`."""
    socket = _made(context, zmq.SUB, {**_SUBSCRIBER, **_reconnecting(_BUS_RECONNECT_IVL_MAX)})
    for topic in topics:
        socket.set(zmq.SUBSCRIBE, topic)
    return socket


def connect(socket: Socket, endpoint: str) -> None:
    """Begin, or go on, to seek a link to `endpoint`; ConfigError if it is none."""
    _require_endpoint(endpoint)
    socket.set(zmq.IPV6, int("[" in endpoint))
    aim(socket, endpoint)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError([Problem("", "", f"cannot connect to {endpoint}: {error}")]) from None


def disconnect(socket: Socket, endpoint: str) -> None:
    """End the link to `endpoint` and seek no other; what arrived by it and was not read is dropped."""
    curve = _curves.get(socket.context)
    if curve is not None:
        curve.forget(socket, endpoint)
    try:
        socket.disconnect(endpoint)
    except zmq.ZMQError as error:
        if error.errno != errno.ENOENT:  # the session has ended already: nothing to take down
            raise


def reconnect(socket: Socket, endpoint: str) -> None:
    """Start a connecting socket's link afresh; for a link whose last event was `final`.

    After a protocol error libzmq gives up for good, and another connect() alone would do nothing then. On a
    link that is merely down this only restarts the attempts.
    """
    disconnect(socket, endpoint)
    aim(socket, endpoint)
    socket.connect(endpoint)


def aim(socket: Socket, endpoint: str) -> None:
    """Expect at `endpoint` who belongs there; in a context without keys, anybody."""
    curve = _curves.get(socket.context)
    if curve is not None:
        curve.aim(socket, endpoint)


def bound_endpoint(socket: Socket) -> str:
    """Where a bound socket listens, with the port that the kernel chose for port 0."""
    return socket.get_string(zmq.LAST_ENDPOINT)


def require_loopback(endpoint: str, insecure: bool) -> None:
    """ConfigError unless only this machine can reach `endpoint` or the operator said `insecure: true`."""
    host = _require_endpoint(endpoint)
    if not insecure and not _is_loopback(host):
        text = (
            f"refusing to listen on {endpoint} without keys: anybody who can reach that address could read "
            "and write everything. Make keys (kvcli keys init DIR; kvcli keys add DIR NAME --role ROLE for "
            "each process) and set security.keys: DIR; or listen on 127.0.0.1; or set insecure: true if no "
            "stranger can reach it"
        )
        raise ConfigError([Problem("", "", text)])


def _require_endpoint(endpoint: str) -> str:
    """The host of an endpoint; one that never leaves this machine has the loopback's."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return "localhost"
    try:
        return split_endpoint(endpoint)[0]
    except ValueError as error:
        raise ConfigError([Problem("", "", str(error))]) from None


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name or an interface: only the operator knows what it is
        return False


def _reconnecting(longest: tuple[int, int]) -> dict[zmq.SocketOption, int]:
    return {
        zmq.RECONNECT_IVL: random.randint(*_RECONNECT_IVL),
        zmq.RECONNECT_IVL_MAX: random.randint(*longest),
    }


def _made(context: Context, kind: int, options: Mapping[zmq.SocketOption, int]) -> Socket:
    socket = context.socket(kind)
    for option, value in options.items():
        socket.set(option, value)
    return socket


def _bound(
    context: Context,
    kind: int,
    endpoint: str,
    options: Mapping[zmq.SocketOption, int],
    insecure: bool,
    domain: Domain,
) -> Socket:
    curve = _curves.get(context)
    require_loopback(endpoint, insecure or curve is not None)
    socket = _made(context, kind, options)
    if curve is not None:
        curve.guard_bound(socket, domain)
    socket.set(zmq.IPV6, int("[" in endpoint))
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        raise _listen_error(endpoint, error) from None
    return socket


def _listen_error(endpoint: str, error: zmq.ZMQError) -> ListenError:
    reasons = {
        errno.EADDRINUSE: "another process listens there already: stop it, or choose another port",
        errno.EADDRNOTAVAIL: "this machine does not have that address: use one that `ip address` shows",
        errno.ENODEV: "this machine does not have that address: use one that `ip address` shows",
        errno.EACCES: "no permission: ports below 1024 need privileges, choose a higher one",
    }
    number = error.errno or 0
    return ListenError(number, f"cannot listen on {endpoint}: {reasons.get(number, error.strerror)}")


# -- sending


Drop = Literal["full", "gone"]


def send_or_drop(socket: Socket, frames: Sequence[bytes]) -> Drop | None:
    """Send without blocking; None when queued (never: delivered), otherwise why it was dropped.

    "full": that peer does not read, or a DEALER has no live peer. "gone": a ROUTER knows no such peer.
    Other errors are defects and are raised. libzmq decides at the first frame, so a message goes whole or
    not at all.
    """
    try:
        for frame in frames[:-1]:
            _send(socket, frame, _SEND_MORE)
        _send(socket, frames[-1], _SEND)
    except zmq.Again:
        return "full"
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return "gone"
    return None


_send = _BareSocket.send  # without the layer that looks for draft features at every frame


# -- links


class LinkEvent(NamedTuple):
    """A link came up, went down, or is still down; `reason` is libzmq's event.

    `final`: libzmq has not said that it will try again, see `reconnect`. It says so in the next event, so a
    later event may take it back.
    """

    up: bool
    endpoint: str
    reason: str
    final: bool = False


class LinkMonitor:
    """The ups and downs of a connecting socket's link: hints for routing, never proof of delivery.

    Register `socket` with the reactor and hand its batches to `events`. Close it before the socket it
    watches.
    """

    __slots__ = ("_watched", "socket")

    def __init__(self, watched: Socket) -> None:
        self._watched = watched
        self.socket: Socket = watched.get_monitor_socket(_UP | _DOWN)

    def events(self, messages: Iterable[Sequence[bytes]]) -> list[LinkEvent]:
        """Decode a batch of the monitor socket, in order."""
        found: list[LinkEvent] = []
        for header, endpoint in messages:
            event = zmq.Event(_MONITOR_HEADER.unpack(header)[0])
            if found:
                found[-1] = found[-1]._replace(final=False)
            final = event == zmq.Event.DISCONNECTED
            found.append(LinkEvent(event == _UP, endpoint.decode(), (event.name or "").lower(), final))
        return found

    def close(self) -> None:
        """Stop watching."""
        self._watched.disable_monitor()
        self.socket.close(0)  # disable_monitor only forgets it


def monitor_events(socket: Socket) -> LinkMonitor:
    """The events of a connecting socket's link; asked again, the same stream of events."""
    return LinkMonitor(socket)
