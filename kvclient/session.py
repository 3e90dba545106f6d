"""The request machine: what a client does between "send this" and "here is the answer", without any I/O.

Owns request ids, the client id and the sequences, deadlines, attempts and back-off, and the decision how a
request ends. Time is handed in; frames to send are left in `outbox`, sockets to replace in `rebuilds`. Knows
no sockets, threads, event loops or clocks, and no keys or values.

The shell's duties, in every turn of its loop:
1. hand in the frames that came (`receive`) and whether each socket has a connection (`connection`);
2. call `tick` when `next_due` has passed;
3. after each of these, and after `submit`: send what is in `outbox`, call `unsent` for what a socket refused,
   replace the sockets in `rebuilds`.

Invariants: a live request is in `_live` under the id of its current attempt and under the ids of earlier
attempts without an answer (`open`). Each attempt has its own request id and the same sequence. It carries
RETRY if an earlier attempt is open, that is, may have had an effect. While one is open, the ops stay the
same. An attempt that is made while none is open holds only ops that all attempts so far were refused, and no
RETRY: the stores that refused them have not seen the sequence, and one that has just restarted need not
wonder about it. (A partition's ops are refused together.) No attempt reaches a store later than
RETRY_WINDOW_MS after the first of its sequence was sent, so it is given no more time than that; what was
refused until then gets a new sequence. `_acked_below` never passes an unfinished sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgpack

from kvclient import protocol
from kvclient.errors import KVError, ProtocolError, VersionMismatch, from_status
from kvclient.pending import (
    DONE,
    NOT_APPLIED,
    OP_RETRYABLE,
    PARKED,
    PAUSED,
    QUEUED,
    SENT,
    Pending,
    blame,
    cut,
    fail,
    longest_wait_ms,
    merge,
    others_open,
    qualify,
    read_results,
    settle,
)
from kvclient.routers import Routers

# Half of the sockets' send high-water mark: with resends the requests in flight never reach it.
IN_FLIGHT_MAX = 512
# An attempt waits for an eighth of the caller's patience, doubled for each further one: the default of 5 s
# makes tries of 0.6, 1.25 and 2.5 s.
TRY_FRACTION = 0.125
# Below a quarter of a second a busy two-core machine would make healthy requests look lost.
TRY_FLOOR = 0.25
# A large body may take its time: 8 MiB/s is far below any network this runs on.
TRY_SECONDS_PER_BYTE = 1 / (8 << 20)
# An attempt with less time than this is not worth the doubt it leaves about what was refused for certain so
# far.
LAST_TRY_MIN = 0.05
BACKOFF_BASE = 0.01
BACKOFF_MAX = 1.0
PING_PATIENCE = 1.0
# The servers get a little less time than we have left, so that their verdict ("nothing was applied") is here
# before our clock gives up.
VERDICT_SHARE = 0.05
VERDICT_MARGIN_MAX = 0.1

_RETRY_WINDOW = protocol.RETRY_WINDOW_MS / 1000
_FOREVER = float("inf")
_VERSION: Final = protocol.VERSION
_OPS: Final = int(protocol.Kind.OPS)
_RETRY: Final = protocol.FLAG_RETRY
_TIMEOUT_MS_MAX: Final = protocol.TIMEOUT_MS_MAX

_unpack = msgpack.unpackb
_pack = protocol.pack


class RandomSource(Protocol):
    """What the session needs of `random.Random`."""

    def uniform(self, low: float, high: float, /) -> float: ...


class Session:
    """All requests of one client thread (or one event loop) to a list of routers."""

    def __init__(self, endpoints: Sequence[str], client_id: int, random: RandomSource, now: float) -> None:
        assert client_id > 0, "0 means no session on the wire"
        self.endpoints = tuple(endpoints)
        self.client_id = client_id
        self.outbox: deque[Pending] = deque()
        self.rebuilds: list[int] = []
        self.next_due = _FOREVER
        self.dropped_frames = 0
        self._random = random
        self._routers = Routers(len(self.endpoints), now)
        self._live: dict[int, Pending] = {}
        self._queue: deque[Pending] = deque()
        self._parked: dict[Pending, None] = {}  # in order
        self._started = 0
        self._last_id = 0
        self._last_sequence = 0
        self._acked_below = 1
        self._unfinished: set[int] = set()
        self._schedule(self._routers.next_ping())

    # What the application does

    def submit(self, pending: Pending, now: float) -> None:
        """Take a request in; its deadline runs from now. Its frame is in the outbox unless it has to wait."""
        self._last_id = request_id = self._last_id + 1
        pending.request_id = request_id
        pending.deadline = now + pending.timeout
        if pending.writes:
            self._number(pending)
        self._live[request_id] = pending
        if self._started < IN_FLIGHT_MAX or pending.pinned >= 0:
            self._start(pending, now)
        else:
            pending.due = pending.deadline
            self._queue.append(pending)
        if pending.due < self.next_due:
            self.next_due = pending.due

    def abandon(self, pending: Pending) -> None:
        """Forget a request: no answer is wanted any more. It may have been sent, and be executed."""
        if not pending.done:
            pending.on_done = None
            self._finish(pending, 0.0)

    @property
    def live(self) -> list[Pending]:
        """The requests on their way."""
        return [pending for request_id, pending in self._live.items() if request_id == pending.request_id]

    def fail_all(self, make_error: Callable[[], KVError]) -> None:
        """End every request with an error: the sockets are gone."""
        for pending in self.live:
            if not pending.done:
                fail(pending, make_error())
                self._finish(pending, 0.0)

    # What the shell reports

    def unsent(self, pending: Pending, now: float) -> None:
        """The socket refused this frame: it has no connection. The attempt did not happen."""
        if pending.done:
            return
        if pending.attempts == 0:
            pending.first_sent = -1.0
        self._routers.down(pending.router, now)
        if pending.pinned >= 0:
            self._lose_ping(pending, now)
        else:
            self._attempt(pending, self._routers.after(pending.router), now)
        self._schedule(self._routers.next_ping())

    def connection(self, router: int, connected: bool, now: float) -> None:
        """The socket to `router` has a connection, or has none."""
        if connected == self._routers.connected(router):
            return
        if connected:
            self._routers.up(router)
            parked, self._parked = self._parked, {}
            for pending in parked:
                self._attempt(pending, self._routers.primary, now)
            return
        self._routers.down(router, now)
        for pending in list(self._live.values()):
            if pending.state == SENT and pending.router == router:
                self._attempt_lost(pending)
                if pending.pinned >= 0:
                    self._lose_ping(pending, now)
                else:
                    self._attempt(pending, self._routers.after(router), now)
        self._schedule(self._routers.next_ping())

    def receive(self, router: int, frames: list[bytes], now: float) -> None:
        """Frames from `router`, in their order. What answers nothing here is counted and dropped."""
        live = self._live
        for frame in frames:
            try:
                version, _, request_id, status, body = _unpack(frame)
                pending = live.get(request_id)
                if type(status) is not int:
                    raise TypeError("a status is an integer")
            except Exception:  # noqa: BLE001 - any bytes may come; msgpack raises many types on them
                self.dropped_frames += 1
                continue
            if pending is None:
                self.dropped_frames += 1
            elif version != _VERSION:
                error = VersionMismatch(
                    f"the router speaks protocol version {version!r:.20}, this client {protocol.VERSION}"
                )
                self._failed(pending, request_id, error, now)
            elif status == 0:
                self._answered(pending, request_id, body, now)
            else:
                self._refused_whole(pending, request_id, status, body, now)
        self._routers.heard(router, now)

    def tick(self, now: float) -> None:
        """Act on everything that is due by now; sets `next_due`."""
        self.next_due = _FOREVER
        for router in self._routers.due_pings(now):
            self._ping(router, now)
        for request_id, pending in list(self._live.items()):
            if pending.done or request_id != pending.request_id:
                continue
            if pending.due <= now:
                self._overdue(pending, now)
            if not pending.done:
                self._schedule(pending.due)
        self._schedule(self._routers.next_ping())

    # Attempts

    def _start(self, pending: Pending, now: float) -> None:
        self._started += 1
        if pending.pinned >= 0:
            pending.patience = pending.timeout  # a ping asks one router once
            self._attempt(pending, pending.pinned, now)
            return
        patience = pending.timeout * TRY_FRACTION
        if patience < TRY_FLOOR:
            patience = TRY_FLOOR
        pending.patience = patience + len(pending.body) * TRY_SECONDS_PER_BYTE
        self._attempt(pending, self._routers.primary, now)

    def _attempt(self, pending: Pending, router: int, now: float) -> None:
        if router < 0:
            pending.state = PARKED
            pending.due = pending.deadline
            self._parked[pending] = None
            return
        left = pending.deadline - now
        if pending.attempts:
            if pending.writes:
                window = pending.first_sent + _RETRY_WINDOW - now
                if window >= LAST_TRY_MIN:
                    left = min(left, window)
                elif pending.open:  # too late for this sequence; an attempt that is out may still be answered
                    pending.state = PAUSED
                    pending.due = pending.deadline
                    return
                else:
                    self._acknowledge(pending.sequence)
                    self._number(pending)
                    pending.first_sent = now
            if pending.results and not pending.open:
                cut(pending)
        margin = left * VERDICT_SHARE
        timeout_ms = int((left - (margin if margin < VERDICT_MARGIN_MAX else VERDICT_MARGIN_MAX)) * 1000)
        retry = _RETRY if pending.open and pending.writes else 0
        pending.frame = _pack(
            (
                _VERSION,
                pending.kind,
                pending.request_id,
                min(timeout_ms, _TIMEOUT_MS_MAX) if timeout_ms > 0 else 1,
                pending.read_mode,
                retry,
                self.client_id,
                pending.sequence,
                self._acked_below,
                pending.body,
            )
        )
        pending.router = router
        pending.state = SENT
        pending.sent_at = now
        if pending.first_sent < 0:
            pending.first_sent = now
        pending.due = due = min(now + pending.patience, pending.deadline)
        if due < self.next_due:
            self.next_due = due
        self.outbox.append(pending)

    def _attempt_lost(self, pending: Pending) -> None:
        """The current attempt has no answer and may have been delivered; get ready for the next."""
        if not pending.open:
            pending.open = []
        pending.open.append(pending.request_id)
        pending.patience *= 2
        self._next_attempt(pending)

    def _next_attempt(self, pending: Pending) -> None:
        pending.attempts += 1
        self._last_id = pending.request_id = self._last_id + 1
        self._live[pending.request_id] = pending

    def _pause(self, pending: Pending, at_least: float, now: float) -> None:
        ceiling = min(BACKOFF_MAX, BACKOFF_BASE * 2.0 ** min(pending.attempts, 10))
        pending.state = PAUSED
        pending.due = min(now + at_least + self._random.uniform(0.0, ceiling), pending.deadline)
        self._schedule(pending.due)

    def _overdue(self, pending: Pending, now: float) -> None:
        if now >= pending.deadline:
            if pending.pinned >= 0:
                self._lose_ping(pending, now)
            else:
                settle(pending, self.endpoints)
                self._finish(pending, now)
        elif pending.state == SENT:
            self._routers.silent(pending.router, pending.sent_at, now)
            self._attempt_lost(pending)
            self._pause(pending, 0.0, now)
        elif pending.deadline - now < LAST_TRY_MIN:
            pending.due = pending.deadline
        else:
            self._attempt(pending, self._routers.after(pending.router), now)

    # Answers

    def _answered(self, pending: Pending, request_id: int, body: Any, now: float) -> None:
        in_doubt = pending.writes and pending.open and others_open(pending, request_id)
        try:
            if pending.kind == _OPS:
                results, statuses = read_results(body, pending.count)
            else:
                results, statuses = [_unpack(body, strict_map_key=False)], {0}
        except Exception as error:  # noqa: BLE001 - see receive()
            malformed = ProtocolError(f"malformed answer from {self.endpoints[pending.router]}: {error}")
            malformed.maybe_applied = pending.writes
            self._failed(pending, request_id, malformed, now)
            return
        if in_doubt:
            qualify(results)
        if not statuses.isdisjoint(NOT_APPLIED if in_doubt else OP_RETRYABLE):
            self._refused_ops(pending, request_id, results, now)
            return
        if pending.results:
            merge(pending, results)
        else:
            pending.results = results
        self._finish(pending, now)

    def _refused_ops(self, pending: Pending, request_id: int, results: list[Any], now: float) -> None:
        merge(pending, results)
        if not any(result[0] in NOT_APPLIED for result in pending.results):
            self._finish(pending, now)  # the attempts together have answered every op
            return
        self._refused(pending, request_id, longest_wait_ms(results), now)

    def _refused_whole(self, pending: Pending, request_id: int, status: Any, body: Any, now: float) -> None:
        try:
            details = protocol.decode_error(body)
            error = from_status(status, **{str(name): value for name, value in details.items()})
        except Exception:  # noqa: BLE001 - see receive()
            error = ProtocolError(f"malformed refusal from {self.endpoints[pending.router]}")
        if status in NOT_APPLIED:  # TIMEOUT too: what remains of our own deadline decides
            pending.refusal = error
            after = error.retry_after_ms
            self._refused(pending, request_id, after if type(after) is int else 0, now)
            return
        index = error.index
        if pending.count > 1 and type(index) is int and index < pending.count and not pending.open:
            self._live.pop(request_id, None)
            blame(pending, index, error)
            self._next_attempt(pending)
            self._attempt(pending, self._routers.primary, now)
            return
        self._failed(pending, request_id, error, now)

    def _failed(self, pending: Pending, request_id: int, error: KVError, now: float) -> None:
        """This attempt was answered with an error that ends the request."""
        if pending.writes and others_open(pending, request_id):
            error.maybe_applied = True
        fail(pending, error)
        self._finish(pending, now)

    def _refused(self, pending: Pending, request_id: int, retry_after_ms: int, now: float) -> None:
        """This attempt was answered: not now."""
        self._live.pop(request_id, None)
        if request_id != pending.request_id:
            assert isinstance(pending.open, list)
            pending.open.remove(request_id)
            return
        if pending.pinned >= 0:
            self._finish(pending, now)  # a busy router is alive
            return
        self._next_attempt(pending)
        self._pause(pending, max(0, retry_after_ms) / 1000, now)

    # Endings

    def _finish(self, pending: Pending, now: float) -> None:
        live = self._live
        live.pop(pending.request_id, None)
        for request_id in pending.open:
            live.pop(request_id, None)
        if pending.writes:
            self._acknowledge(pending.sequence)
        if pending.state == PARKED:
            self._parked.pop(pending, None)
        if pending.state != QUEUED:
            self._started -= 1
        pending.state = DONE
        pending.done = True
        if self._queue:
            self._start_queued(now)
        if pending.on_done is not None:
            pending.on_done(pending)

    def _number(self, pending: Pending) -> None:
        self._last_sequence = pending.sequence = self._last_sequence + 1
        self._unfinished.add(pending.sequence)

    def _acknowledge(self, sequence: int) -> None:
        unfinished = self._unfinished
        unfinished.discard(sequence)
        below = self._acked_below
        while below <= self._last_sequence and below not in unfinished:
            below += 1
        self._acked_below = below

    def _start_queued(self, now: float) -> None:
        while self._queue and self._started < IN_FLIGHT_MAX:
            waiting = self._queue.popleft()
            if not waiting.done:
                self._start(waiting, now)
                self._schedule(waiting.due)

    # Pings of suspects

    def _ping(self, router: int, now: float) -> None:
        ping = Pending(protocol.Kind.PING, b"", 1, False, 0, PING_PATIENCE)
        ping.pinned = router
        if self._routers.connected(router):
            self.submit(ping, now)
        elif self._routers.ping_lost(router):
            self.rebuilds.append(router)

    def _lose_ping(self, ping: Pending, now: float) -> None:
        self._finish(ping, now)
        if self._routers.ping_lost(ping.pinned):
            self.rebuilds.append(ping.pinned)

    def _schedule(self, due: float) -> None:
        if due < self.next_due:
            self.next_due = due
