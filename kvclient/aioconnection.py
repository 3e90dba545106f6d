"""The asyncio shell's engine: a session with its sockets, driven by the event loop it was made on.

The sockets' descriptors are readers of the loop. They are edge-triggered, and a send may eat the edge, so
every socket that was touched is drained to EAGAIN in the same or the next pass of the loop. One timer serves
all deadlines.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from kvclient.connection import new_client_id, watch_forks
from kvclient.errors import ClosedError, ConnectError, ForkedError, KVError
from kvclient.pending import Pending
from kvclient.session import Session
from kvclient.transport import Sockets, diagnose, new_context
from kvclient.url import Address, Endpoint

_monotonic = time.monotonic


class AsyncConnection:
    """One session and its sockets, by `endpoints`. Every method runs on the loop it was made on."""

    def __init__(self, address: Address, endpoints: Sequence[Endpoint]) -> None:
        endpoints = list(endpoints)
        random.shuffle(endpoints)
        self.closed = False
        self.address = address
        self.endpoints = endpoints
        self.session = Session([*map(str, endpoints)], new_client_id(), random, _monotonic())
        self._loop = asyncio.get_running_loop()
        self._forked = False
        self._context = new_context()
        self._sockets = Sockets(self._context, endpoints, address)
        self._keys = address.keys
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}
        for router in range(len(endpoints)):
            self._listen(router)
        self._wake()
        watch_forks(self)

    def check(self) -> None:
        """Raises ClosedError or ForkedError when this connection must not be used here."""
        if self.closed:
            raise ClosedError("the client is closed")
        if self._forked:
            raise ForkedError("an AsyncClient does not survive a fork: open one in the child")
        if asyncio.get_running_loop() is not self._loop:
            raise ForkedError(
                "an AsyncClient belongs to the event loop it was opened on: open one on this loop"
            )

    async def run(self, pending: Pending) -> Pending:
        """Send a request and wait for its end; raises its error. Cancelling forgets the request."""
        self.check()
        done = self._loop.create_future()
        pending.on_done = partial(_resolve, done)
        self.start(pending)
        try:
            if not pending.done:
                await done
        except BaseException:
            self.session.abandon(pending)
            raise
        if pending.error is not None:
            raise await self.explained(pending.error)
        return pending

    def start(self, pending: Pending) -> None:
        """Send a request, or let it wait in the session."""
        if self.closed:
            raise ClosedError("the client was closed")
        now = _monotonic()
        self.session.submit(pending, now)
        self._flush(now)
        self._wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at after every pass in which answers came."""
        if condition():
            return
        waiter = self._loop.create_future()
        self._waiters[waiter] = condition
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
        if self.closed and not condition():
            raise ClosedError("the client was closed")

    async def explained(self, error: KVError) -> KVError:
        """The same error, with the reasons when nobody could be reached."""
        if type(error) is not ConnectError:
            return error
        return await self._loop.run_in_executor(None, diagnose, self.endpoints, self._keys)

    def close(self) -> None:
        """Close the sockets; calls under way fail with ClosedError. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._forked:
            return  # the sockets are the parent's
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        if not self._loop.is_closed():
            for descriptor in self._sockets.descriptors:
                self._loop.remove_reader(descriptor)
        self._sockets.close()
        self._context.term()
        self.session.fail_all(lambda: ClosedError("the client was closed"))
        self._check_waiters()

    @property
    def forgotten(self) -> bool:
        """Whether this connection is open, and this process is to blame."""
        return not self.closed and not self._forked

    def abandon_in_child(self) -> object:
        """After a fork, in the child: what to keep so that the parent's sockets are not touched."""
        self._forked = True
        return self

    # In the loop

    def _listen(self, router: int) -> None:
        self._loop.add_reader(self._sockets.descriptors[router], self._readable, router)

    def _readable(self, router: int) -> None:
        self._sockets.touch(router)
        self._pass()

    def _wake(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        """Take in what has come to the touched sockets, act on what is due, send."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self.closed:
            return
        session, sockets = self.session, self._sockets
        now = _monotonic()
        for router in sockets.dirty:
            frames = sockets.drain(router)
            if frames:
                session.receive(router, frames, now)
            session.connection(router, sockets.connected[router], now)
            self._flush(now)
        if now >= session.next_due:
            session.tick(now)
            self._flush(now)
        if sockets.dirty:
            self._wake()
        self._check_waiters()
        self._set_timer()

    def _check_waiters(self) -> None:
        for waiter, condition in list(self._waiters.items()):
            if not waiter.done() and (self.closed or condition()):
                waiter.set_result(None)

    def _flush(self, now: float) -> None:
        session, sockets = self.session, self._sockets
        outbox = session.outbox
        while outbox:
            pending = outbox.popleft()
            if not pending.done and not sockets.send(pending.router, pending.frame):
                session.unsent(pending, now)
        while session.rebuilds:
            router = session.rebuilds.pop()
            self._loop.remove_reader(sockets.descriptors[router])
            sockets.rebuild(router)
            self._listen(router)
            session.connection(router, False, now)

    def _set_timer(self) -> None:
        due = self.session.next_due
        if self._timer is not None:
            if self._timer_due <= due:
                return  # it fires early, finds nothing due and is set again
            self._timer.cancel()
            self._timer = None
        if due != float("inf"):
            self._timer_due = due
            self._timer = self._loop.call_later(max(0.0, due - _monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pass()


def _resolve(done: asyncio.Future[None], _: Pending) -> None:
    if not done.done():
        done.set_result(None)
