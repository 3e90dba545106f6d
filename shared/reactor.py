"""The event loop: one thread, all sockets of the process, drain - batch - flush.

Owns waiting, draining, timers, thread wake-ups and signals. Must not know what a message means: handlers
get batches of frames and put work into outboxes, which `on_turn_end` callbacks flush once per turn.

A turn: wait (zmq.Poller) until something is ready or a timer is due; run fd callbacks and thread callbacks;
drain each ready socket, highest priority first, and hand over one batch per socket; run due timers; run the
turn-end callbacks.

Invariants:
- Only the thread in `run` touches sockets and timers; other threads use `Wakeup.notify` and `stop` only.
- zmq_poll looks at the state of each socket on every call (unlike the edge-triggered ZMQ_FD), so a drain
  that stops at its budget and a send that swallowed a wake-up both lead to another look at once.
- A message is always read to its last frame: a peer that sends more frames than asked cannot shift the next
  message's frames. Of the frames that no message of ours has only FRAMES_KEPT are handed over.
- No handler, however it fails, ends the loop or the drain. What the failed call was given is lost; handlers
  of hostile bytes therefore catch per message.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from shared import logs
from shared.signals import SignalPipe
from shared.timers import Timer, Timers

Frames = list[bytes]
Callback = Callable[[], object]
BatchHandler = Callable[[list[Frames]], object]
NamedBatchHandler = Callable[[list[Frames], list[str]], object]

# What is read from one socket in one turn. Enough messages to pay for the poll and the flush, and little
# enough (about 1 ms of small messages, a few ms of large ones) that one flooding peer delays timers and
# other sockets only a little. A batch ends with the message that reaches either.
BUDGET = 512
BUDGET_BYTES = 16 << 20
# Nothing of ours has more than an identity and two frames; a handler that gets more refuses the message.
FRAMES_KEPT = 4
# A frame beyond the first costs as much time as a message does, so it counts as one, in bytes.
_FRAME_COST = BUDGET_BYTES // BUDGET
# Failures logged per second; all are counted. A handler that fails on every batch must not turn the log
# into the load.
FAILURES_LOGGED = 10

_NOBLOCK = int(zmq.NOBLOCK)  # a plain int: flag arithmetic on the enum costs more than the receive

_log = logs.get("reactor")


class Wakeup:
    """Hands callbacks from any thread to the loop; many at once cost one signal.

    The queue has no bound of its own: a thread that reports finished work can queue no more than it was
    given.
    """

    __slots__ = ("_closed", "_fd", "_lock", "_pending", "_signalled")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pending: deque[Callback] = deque()
        self._signalled = False
        self._closed = False
        self._lock = threading.Lock()

    def notify(self, callback: Callback) -> None:
        """Run `callback` on the loop's thread, in the order of each thread's calls; dropped after `close`."""
        self._pending.append(callback)
        if not self._signalled:
            with self._lock:  # only against close(): the fd's number may belong to somebody else afterwards
                if not self._closed:
                    self._signalled = True
                    os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def _take(self) -> list[Callback]:
        os.eventfd_read(self._fd)
        self._signalled = False  # before looking: whoever appends after the look signals again
        return [self._pending.popleft() for _ in range(len(self._pending))]

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            os.close(self._fd)
        self._pending.clear()


class Reactor:
    """One loop. Made, run and closed by one thread; `turns` and `failures` (of handlers) count up."""

    def __init__(self) -> None:
        self.turns = 0
        self.failures = 0
        self._poller = zmq.Poller()
        self._ready: dict[Any, Callback] = {}
        self._readers: list[tuple[int, zmq.Socket[bytes]]] = []
        self._fds: list[int] = []
        self._turn_end: list[Callback] = []
        self._timers = Timers()
        self._stopping = False
        self._failures_logged = 0
        self._failures_second = 0
        self._signals: SignalPipe | None = None
        self._on_signal: dict[int, Callback] = {}
        self._wakeup = Wakeup()
        self.add_fd(self._wakeup.fileno(), self._run_notified)

    # -- what is waited for

    def add_reader(self, socket: zmq.Socket[bytes], on_batch: BatchHandler, priority: int = 0) -> None:
        """Call `on_batch(messages)` when messages wait: 1 to `BUDGET` of them, each a list of its frames.

        Higher priority is served first within a turn: answers from behind before new requests from the
        front, so that work in progress leaves before more comes in. Remove a socket before closing it.
        """
        drain = drain_router if socket.get(zmq.TYPE) == zmq.ROUTER else drain_plain
        recv = socket.recv

        def serve() -> None:
            messages = drain(recv)
            if messages:
                on_batch(messages)

        serve.__qualname__ = _name(on_batch)  # failures are logged by it
        self._ready[socket] = serve
        self._readers.append((priority, socket))
        self._rebuild()

    def add_named_reader(
        self, socket: zmq.Socket[bytes], on_batch: NamedBatchHandler, priority: int = 0
    ) -> None:
        """As `add_reader`, for a ROUTER whose peers have proven who they are: `on_batch(messages, names)` is
        told the name of each message's sender.
        """
        recv = socket.recv

        def serve() -> None:
            messages, names = drain_named(recv)
            if messages:
                on_batch(messages, names)

        serve.__qualname__ = _name(on_batch)
        self._ready[socket] = serve
        self._readers.append((priority, socket))
        self._rebuild()

    def remove_reader(self, socket: zmq.Socket[bytes]) -> None:
        """Stop reading it; may be called from its own handler. Unknown sockets are ignored."""
        self._ready.pop(socket, None)
        self._readers = [reader for reader in self._readers if reader[1] is not socket]
        self._rebuild()

    def add_fd(self, fd: int, callback: Callback) -> None:
        """Call `callback` while `fd` is readable; it reads without blocking and bears finding nothing."""
        self._ready[fd] = callback
        self._fds.append(fd)
        self._rebuild()

    def remove_fd(self, fd: int) -> None:
        """Stop watching it; do this before closing it. Unknown fds are ignored."""
        if self._ready.pop(fd, None) is not None:
            self._fds.remove(fd)
            self._rebuild()

    def _rebuild(self) -> None:
        """The poller answers in the order of registration, so the order of service costs nothing per turn."""
        self._readers.sort(key=lambda reader: -reader[0])
        self._poller = zmq.Poller()
        for fd in self._fds:
            self._poller.register(fd, zmq.POLLIN)
        for _, socket in self._readers:
            self._poller.register(socket, zmq.POLLIN)

    def on_turn_end(self, callback: Callback) -> None:
        """Run `callback` once after the handlers of every turn, in order of registration: flush here."""
        self._turn_end.append(callback)

    def wakeup(self) -> Wakeup:
        """What other threads use to reach this loop."""
        return self._wakeup

    # -- timers

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Run `callback` once, `seconds` from now or a little later; never inside this call."""
        return self._timers.add(time.monotonic() + seconds, callback)

    def _timeout_ms(self) -> int:
        if self._stopping:
            return 0
        due = self._timers.next_due()
        if due is None:
            return -1
        # Rounded up: rounding down would spin through the last millisecond.
        return max(0, math.ceil((due - time.monotonic()) * 1000))

    # -- signals

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT end `run` after the turn they arrive in; more of them are ignored until `close`.

        Main thread only.
        """
        self.on_signal(signal.SIGTERM, self.stop)
        self.on_signal(signal.SIGINT, self.stop)

    def on_signal(self, number: signal.Signals, callback: Callback) -> None:
        """Run `callback` on the loop when the signal arrives (SIGHUP: reload); undone by `close`.

        Main thread only.
        """
        if self._signals is None:
            self._signals = SignalPipe()
            self.add_fd(self._signals.fileno(), self._run_signalled)
        self._on_signal[number] = callback
        self._signals.catch(number)

    def _run_signalled(self) -> None:
        assert self._signals is not None
        for number in self._signals.take():
            if number in self._on_signal:
                self._call(self._on_signal[number])

    # -- the loop

    def run(self) -> None:
        """Run turns until `stop`; the last one is whole, so that what it answered has been flushed."""
        while not self._stopping:
            self._turn()

    def stop(self) -> None:
        """End `run` after the current turn; any thread, any time. A loop that was stopped stays stopped."""
        self._stopping = True
        self._wakeup.notify(_nothing)

    def close(self) -> None:
        """Give back the loop's fds and the signal handlers it replaced; sockets stay with their owners."""
        if self._signals is not None:
            self._signals.close()
            self._signals = None
        self._wakeup._close()
        self._timers.clear()
        self._turn_end.clear()

    def _turn(self) -> None:
        self.turns += 1
        for source, _ in self._poller.poll(self._timeout_ms()):
            serve = self._ready.get(source)
            if serve is not None:  # an earlier handler of this turn may have removed it
                self._call(serve)
        if len(self._timers):
            for callback in self._timers.take_due(time.monotonic()):
                self._call(callback)
        for flush in self._turn_end:
            self._call(flush)

    def _run_notified(self) -> None:
        for callback in self._wakeup._take():
            self._call(callback)

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the loop outlives every handler
            self._failed(callback)

    def _failed(self, callback: Callback) -> None:
        self.failures += 1
        second = int(time.monotonic())
        if second != self._failures_second:
            self._failures_second, self._failures_logged = second, 0
        self._failures_logged += 1
        if self._failures_logged <= FAILURES_LOGGED:
            _log.exception("handler_failed", handler=_name(callback), failures=self.failures)


def drain_plain(recv: Callable[..., Any]) -> list[Frames]:
    """Read whole messages without blocking until there are none, or the budget is spent.

    `Frame.more` comes with the frame; asking the socket (RCVMORE, as recv_multipart does) costs more than
    the receive.
    """
    messages: list[Frames] = []
    size = 0
    try:
        for _ in range(BUDGET):
            frame = recv(_NOBLOCK, False)
            body = frame.bytes
            messages.append(message := [body])
            size += len(body)
            if frame.more:
                size += _read_on(recv, message)
            if size >= BUDGET_BYTES:
                break
    except zmq.Again:
        pass
    return messages


def drain_router(recv: Callable[..., Any]) -> list[Frames]:
    """`drain_plain` for a ROUTER, whose first frame, the peer's identity, always has another behind it."""
    messages: list[Frames] = []
    size = 0
    try:
        for _ in range(BUDGET):
            identity = recv(_NOBLOCK)
            frame = recv(_NOBLOCK, False)
            body = frame.bytes
            messages.append(message := [identity, body])
            size += len(body)
            if frame.more:
                size += _read_on(recv, message)
            if size >= BUDGET_BYTES:
                break
    except zmq.Again:
        pass
    return messages


def drain_named(recv: Callable[..., Any]) -> tuple[list[Frames], list[str]]:
    """`drain_router`, with the name that the handshake proved of each message's sender: it comes with the
    frame, from the connection itself. An identity says nothing: whoever connects chooses it.
    """
    messages: list[Frames] = []
    names: list[str] = []
    size = 0
    try:
        for _ in range(BUDGET):
            identity = recv(_NOBLOCK)
            frame = recv(_NOBLOCK, False)
            body = frame.bytes
            messages.append(message := [identity, body])
            names.append(frame.get("User-Id"))
            size += len(body)
            if frame.more:
                size += _read_on(recv, message)
            if size >= BUDGET_BYTES:
                break
    except zmq.Again:
        pass
    return messages, names


def _read_on(recv: Callable[..., Any], message: Frames) -> int:
    """Reads the rest of a message; libzmq hands one over only when all of it is there, so it is. What that
    takes from BUDGET_BYTES.
    """
    cost = 0
    more = True
    while more:
        frame = recv(_NOBLOCK, False)
        cost += len(frame) + _FRAME_COST
        if len(message) < FRAMES_KEPT:
            message.append(frame.bytes)
        more = frame.more
    return cost


def _name(callback: object) -> str:
    return getattr(callback, "__qualname__", repr(callback))


def _nothing() -> None:
    """What `stop` notifies: the wake-up itself is the message."""
