"""The synchronous shell's engine: a session with its sockets, driven by whoever waits for an answer; and one
such pair for each thread.

A `Connection` is used under its lock. The lock is free of contention in normal use (every thread has its own
connection); it makes it safe to close a client, or to ask for a pipeline's result, from another thread, and
to close it from a signal handler. There is no background thread: time passes for a session only in calls.
After a fork the child finds all connections of its parent closed, without their sockets having been touched,
and opens its own.
"""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Protocol

import zmq

from kvclient.errors import ClosedError, ConnectError, KVError
from kvclient.names import spread
from kvclient.pending import Pending
from kvclient.session import Session
from kvclient.transport import Sockets, diagnose, new_context
from kvclient.url import Address

# How long a call may overlook that another thread has closed the client.
WAIT_SECONDS_MAX = 0.25

_monotonic = time.monotonic
# What a forked child inherited: kept for its lifetime, because collecting it would touch the parent's
# sockets.
_inherited: list[object] = []


def new_client_id() -> int:
    """A random session id; 0 is taken by "no session"."""
    return int.from_bytes(os.urandom(8), "little") or 1


class Exclusive:
    """A lock that its own thread cannot wait for: a signal handler (or a finalizer) that calls a client which
    it interrupted gets a RuntimeError instead of waiting for ever.
    """

    __slots__ = ("_leaving", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._leaving: Callable[[], None] | None = None

    @property
    def mine(self) -> bool:
        """Whether this thread holds it."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]

    def at_leave(self, callback: Callable[[], None]) -> None:
        """Run `callback` once, alone: now, or when this thread leaves what it was interrupted in."""
        self._leaving = callback
        if not self.mine:
            with self:
                pass

    def __enter__(self) -> None:
        if self.mine:
            raise RuntimeError(
                "a signal handler or finalizer called the client that it interrupted: set a flag there, "
                "or use a client of its own"
            )
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        try:
            if self._leaving is not None:
                callback, self._leaving = self._leaving, None
                callback()
        finally:
            self._lock.release()


class Connection:
    """One session and its sockets."""

    def __init__(self, address: Address, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        endpoints = spread(address.endpoints)
        random.shuffle(endpoints)
        self.lock = Exclusive()
        self.closed = False
        self.endpoints = endpoints
        self.sockets = Sockets(context, endpoints, address)
        self._keys = address.keys
        self.session = Session([*map(str, endpoints)], new_client_id(), random, _monotonic())

    def run(self, pending: Pending) -> Pending:
        """Send a request and wait for its end; raises its error."""
        with self.lock:
            self.start(pending)
            try:
                while not pending.done:
                    self.turn()
            except BaseException:
                self.session.abandon(pending)
                raise
        if pending.error is not None:
            raise self.explained(pending.error)
        return pending

    def start(self, pending: Pending) -> None:
        """Send a request, or let it wait in the session. Under the lock."""
        if self.closed:
            raise ClosedError("the client is closed")
        now = _monotonic()
        self.session.submit(pending, now)
        if self.session.outbox:
            self._flush(now)

    def turn(self) -> None:
        """Take in what has come; sleep first if there is nothing. Under the lock."""
        session, sockets = self.session, self.sockets
        dirty = sockets.dirty
        if not dirty:
            sockets.wait(min(session.next_due - _monotonic(), WAIT_SECONDS_MAX))
            dirty = sockets.dirty
        if self.closed:
            raise ClosedError("the client was closed")
        now = _monotonic()
        for router in dirty:
            frames = sockets.drain(router)
            if frames:
                session.receive(router, frames, now)
            session.connection(router, sockets.connected[router], now)
            self._flush(now)
        if now >= session.next_due:
            session.tick(now)
            self._flush(now)

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Take in answers until the condition holds. Under the lock."""
        while not condition():
            self.turn()

    def _flush(self, now: float) -> None:
        session, sockets = self.session, self.sockets
        outbox = session.outbox
        while outbox:
            pending = outbox.popleft()
            if not pending.done and not sockets.send(pending.router, pending.frame):
                session.unsent(pending, now)
        while session.rebuilds:
            router = session.rebuilds.pop()
            sockets.rebuild(router)
            session.connection(router, False, now)

    def explained(self, error: KVError) -> KVError:
        """The same error, with the reasons when nobody could be reached."""
        return diagnose(self.endpoints, self._keys) if type(error) is ConnectError else error

    def close(self, then: Callable[[], None] | None = None) -> None:
        """Close the sockets, then call `then`. A call under way in another thread notices within
        WAIT_SECONDS_MAX and fails; a call that was interrupted by this one closes the sockets when it fails.
        """
        self.closed = True

        def end() -> None:
            self.sockets.close()
            if then is not None:
                then()

        self.lock.at_leave(end)


class Connections:
    """The connections of one client: one per thread, opened when a thread first calls."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.closed = False
        self._reset()
        watch_forks(self)

    def _reset(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # made when a thread first calls
        self._local = threading.local()
        self._lock = Exclusive()
        self._all: list[tuple[threading.Thread, Connection]] = []

    def current(self) -> Connection:
        """This thread's connection."""
        try:
            return self._local.connection  # type: ignore[no-any-return]
        except AttributeError:
            return self._open()

    def _open(self) -> Connection:
        with self._lock:
            if self.closed:
                raise ClosedError("the client is closed")
            gone = [pair for pair in self._all if not pair[0].is_alive()]
            if self._context is None:
                self._context = new_context()
            connection = Connection(self.address, self._context)
            self._all = [pair for pair in self._all if pair not in gone]
            self._all.append((threading.current_thread(), connection))
        for _, orphan in gone:
            orphan.close()
        self._local.connection = connection
        return connection

    def close(self) -> None:
        """Close all threads' connections and the context. Idempotent."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            connections = [connection for _, connection in self._all]
        for connection in connections:
            connection.closed = True
        # At most one is in use by this thread (in a call that we interrupt); it is closed last, and late.
        connections.sort(key=lambda connection: connection.lock.mine)
        for connection in connections[:-1]:
            connection.close()
        if connections:
            connections[-1].close(then=self._end_context)
        else:
            self._end_context()

    def _end_context(self) -> None:
        if self._context is not None:
            self._context.term()

    def abandon_in_child(self) -> object:
        """After a fork, in the child: begin anew; returns what to keep so that the parent's sockets are not
        touched.
        """
        parents = (self._context, self._all, self._local)
        for _, connection in self._all:
            connection.closed = True
        if not self.closed:
            self._reset()
        return parents

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            warnings.warn(
                "a kvclient.Client was not closed: use it in a with block, or call close()",
                ResourceWarning,
                2,
            )


class _Forkable(Protocol):
    def abandon_in_child(self) -> object: ...


_watched: weakref.WeakSet[_Forkable] = weakref.WeakSet()


def watch_forks(connections: _Forkable) -> None:
    """Call `abandon_in_child` in every forked child; what it returns is kept for the child's lifetime."""
    _watched.add(connections)


def _after_fork_in_child() -> None:
    for connections in list(_watched):
        _inherited.append(connections.abandon_in_child())


os.register_at_fork(after_in_child=_after_fork_in_child)
