"""Keys on the sockets of one context: every one is encrypted and proves who it is, and follows its guard when
keys change (docs/security.md section 6).

Owns the CURVE options, and which endpoints the context's sockets are bound and connected to. Must not know
what travels, or who may do what. ZeroMQ cannot end one of a bound socket's connections, so to throw somebody
out the socket stops listening and begins again, which ends all of them. One thread, the sockets'.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakKeyDictionary

import zmq

from shared import logs
from shared.reactor import Reactor
from shared.security import Domain, Guard
from shared.zap import ZapThread

Socket = zmq.Socket[bytes]

LOOK_S: Final = 1.0
"""Between two looks at the key directory: stat of its files."""
REBIND_S: Final = 0.005
"""libzmq closes the listening socket on its own thread; that takes less, nearly always."""
REBIND_TRIES_QUIET: Final = 200

_log = logs.get("curve")


class Curve:
    """Of one context, of which it answers the questions about keys from now on."""

    def __init__(self, context: zmq.Context[Socket], guard: Guard) -> None:
        self.guard = guard
        self.zap = ZapThread(context, guard)
        self._own = guard.pair
        self._nobody = zmq.curve_keypair()[0].decode()
        """Whom a link waits for whose other side is not known: nobody has the private half."""
        self._bound: WeakKeyDictionary[Socket, Domain] = WeakKeyDictionary()
        self._links: WeakKeyDictionary[Socket, dict[str, str]] = WeakKeyDictionary()
        """Endpoint -> the key that is expected there."""
        self._reactor: Reactor | None = None

    # -- sockets

    def guard_bound(self, socket: Socket, domain: Domain) -> None:
        """Before a socket is bound."""
        self._speak_as_own(socket)
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set_string(zmq.ZAP_DOMAIN, domain.name)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._bound[socket] = domain

    def aim(self, socket: Socket, endpoint: str) -> None:
        """Before each attempt to connect a socket to `endpoint`."""
        certificate = self.guard.expected(endpoint)
        if certificate is None:
            _log.warning("no_certificate", endpoint=endpoint, consequence="not connected until there is one")
        key = self._nobody if certificate is None else certificate.public_key
        self._links.setdefault(socket, {})[endpoint] = key
        self._speak_as_own(socket)
        socket.set_string(zmq.CURVE_SERVERKEY, key)

    def forget(self, socket: Socket, endpoint: str) -> None:
        """The socket is not to be connected there any more."""
        self._links.get(socket, {}).pop(endpoint, None)

    def _speak_as_own(self, socket: Socket) -> None:
        socket.set_string(zmq.CURVE_PUBLICKEY, self.guard.pair.public_key)
        socket.set_string(zmq.CURVE_SECRETKEY, self.guard.pair.secret_key)

    # -- changes

    def watch(self, reactor: Reactor) -> None:
        """Look at the directory every LOOK_S, and at SIGHUP, while `reactor` runs. Main thread only."""
        self._reactor = reactor
        reactor.on_signal(signal.SIGHUP, self.look)
        reactor.call_later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        assert self._reactor is not None
        self._reactor.call_later(LOOK_S, self._look_again)
        self.look()

    def look(self) -> None:
        """Follow the directory if it has changed."""
        if self.guard.look():
            self._follow()

    def _follow(self) -> None:
        own_changed = self.guard.pair != self._own
        self._own = self.guard.pair
        for socket, domain in list(self._bound.items()):
            if not socket.closed and (self.guard.thrown_out(domain.name) or own_changed):
                _log.info("connections_ended", socket=domain.name, reason="keys that were let in are gone")
                self._begin_anew(socket)
        for socket, links in list(self._links.items()):
            for endpoint, key in list(links.items()):
                certificate = self.guard.expected(endpoint)
                now = self._nobody if certificate is None else certificate.public_key
                if not socket.closed and (own_changed or now != key):
                    with suppress(zmq.ZMQError):  # its session has ended already
                        socket.disconnect(endpoint)
                    self.aim(socket, endpoint)
                    socket.connect(endpoint)

    def _begin_anew(self, socket: Socket) -> None:
        self._speak_as_own(socket)
        endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        socket.unbind(endpoint)
        self._bind_again(socket, endpoint, 0)

    def _bind_again(self, socket: Socket, endpoint: str, tries: int) -> None:
        if socket.closed:
            return
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or tries % REBIND_TRIES_QUIET == REBIND_TRIES_QUIET - 1:
                _log.error("not_listening", endpoint=endpoint, reason=str(error))
            self._later(REBIND_S, lambda: self._bind_again(socket, endpoint, tries + 1))
            return
        # The ends of the connections wait until the socket is looked at, which a publisher may not be.
        self._later(REBIND_S, lambda: None if socket.closed else socket.get(zmq.EVENTS))

    def _later(self, seconds: float, callback: Callable[[], object]) -> None:
        assert self._reactor is not None, "what changes while nobody watches is not seen"
        self._reactor.call_later(seconds, callback)
