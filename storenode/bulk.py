"""The shell of pulled snapshots: links to the nodes that they are pulled from, and the thread that writes.

Owns one DEALER per node, while anything is pulled from it. Must not know what a request says. Loop thread:
sockets, timers and all public calls. The writing thread: the pulls, one call at a time, in order; it is the
disk that it waits for.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final

from kvclient.errors import ProtocolError
from shared import logs, messages, sockets
from shared.clock import Clock
from shared.reactor import Reactor
from shared.timers import Timer
from storenode import bulkprotocol
from storenode.engine.vfs import Vfs
from storenode.snapshotpull import Done, Failed, Pull

SILENT_S: Final = 10.0
"""A link without an answer for so long is made anew: libzmq gives one up for good after a protocol error."""

_JOIN_S: Final = 5.0

_log = logs.get("bulk")

OnDone = Callable[[Done | Failed], object]
Call = Callable[[Pull, float], object]


class _Job:
    """One pull. `ended` is the loop's: what the writing thread still says of it is not heard."""

    def __init__(self, pull: Pull, link: _Link, on_done: OnDone) -> None:
        self.pull = pull
        self.link = link
        self.on_done = on_done
        self.ended = False
        self.timer: Timer | None = None


class _Link:
    """A socket to one node, and the pulls that share it."""

    def __init__(self, client: BulkClient, endpoint: str) -> None:
        self.endpoint = endpoint
        self.jobs: set[_Job] = set()
        self._client = client
        self._open()

    def _open(self) -> None:
        self.socket = sockets.bulk_dealer(self._client.context, self.endpoint)
        self._client.reactor.add_reader(self.socket, partial(self._client.on_frames, self))
        self.heard_at = self._client.clock.monotonic()

    def send(self, body: bytes) -> bool:
        """Whether there is a link that took it."""
        return sockets.send_or_drop(self.socket, (messages.encode_bulk_request(body),)) is None

    def renew_if_silent(self) -> None:
        if self._client.clock.monotonic() - self.heard_at >= SILENT_S:
            self.close()
            self._open()

    def close(self) -> None:
        self._client.reactor.remove_reader(self.socket)
        self.socket.close(0)


class BulkClient:
    """Pulls snapshots for `node`. Made and used on the loop's thread."""

    def __init__(self, reactor: Reactor, context: sockets.Context, node: int, vfs: Vfs, clock: Clock) -> None:
        self.reactor = reactor
        self.context = context
        self.clock = clock
        self.frames_bad = 0
        self._node = node
        self._vfs = vfs
        self._chance = random.Random()
        self._notify = reactor.wakeup().notify
        self._links: dict[str, _Link] = {}
        self._jobs: dict[int, _Job] = {}
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="snapshot-pull", daemon=True)
        self._thread.start()

    def pull(self, group: int, endpoint: str, at_least: int, target: str, on_done: OnDone) -> None:
        """Pull a snapshot of the group, of index `at_least` or more, from the node whose rpc socket is there.

        `on_done` gets the outcome, on the loop. A pull of the same group that is under way is cancelled. What
        an earlier pull to the same `target` left is used, as far as it is of the same snapshot. ConfigError
        for an endpoint that is none.
        """
        self.cancel(group)
        link = self._links.get(endpoint)
        if link is None:
            link = self._links[endpoint] = _Link(self, endpoint)
        made = Pull(group, at_least, self._node, target, self._vfs, self._chance, self.clock.monotonic())
        job = self._jobs[group] = _Job(made, link, on_done)
        link.jobs.add(job)
        self._do(job, _look)

    def cancel(self, group: int) -> None:
        """End a pull without an outcome, if there is one; what there is of it stays on the disk."""
        job = self._jobs.pop(group, None)
        if job is not None:
            self._finish(job)
            self._do(job, _cancel)

    def silent_s(self, group: int) -> float:
        """For how long the node that the group is pulled from has said nothing; 0 if there is no pull."""
        job = self._jobs.get(group)
        return self.clock.monotonic() - job.link.heard_at if job is not None else 0.0

    def close(self) -> bool:
        """End all pulls without an outcome; False if the disk still holds the writing thread."""
        for group in list(self._jobs):
            self.cancel(group)
        self._work.put(None)
        self._thread.join(_JOIN_S)
        return not self._thread.is_alive()

    # -- the loop's side

    def on_frames(self, link: _Link, batch: list[list[bytes]]) -> None:
        """What the node at the other end said."""
        for frame, *_ in batch:
            try:
                message = messages.decode_to_peer(frame)
            except ProtocolError as error:
                message = messages.Fault(error.message)
            if not isinstance(message, messages.BulkReply):
                self._bad(message.message if isinstance(message, messages.Fault) else "no BULK_REPLY")
                continue
            link.heard_at = self.clock.monotonic()
            self._work.put(partial(self._deliver, tuple(link.jobs), message.body))

    def _bad(self, reason: str) -> None:
        self.frames_bad += 1
        _log.warning("bulk_frame_bad", reason=reason[:200], count=self.frames_bad)

    def _do(self, job: _Job, call: Call) -> None:
        self._work.put(partial(self._call, job, call))

    def _after(self, job: _Job, requests: list[bytes], due: float, outcome: Done | Failed | None) -> None:
        """The writing thread has made a call; `requests` are to be sent."""
        if job.ended:
            return
        if outcome is not None:
            self._end(job, outcome, requests)
            return
        if requests:
            job.link.renew_if_silent()
        if not all(job.link.send(body) for body in requests):
            self._do(job, Pull.on_unsent)
        if job.timer is not None:
            job.timer.cancel()
        delay = max(0.0, due - self.clock.monotonic())
        job.timer = self.reactor.call_later(delay, lambda: self._do(job, _look))

    def _end(self, job: _Job, outcome: Done | Failed, goodbye: list[bytes]) -> None:
        for group in [group for group, one in self._jobs.items() if one is job]:
            del self._jobs[group]
        for body in goodbye:
            job.link.send(body)
        self._finish(job)
        job.on_done(outcome)

    def _finish(self, job: _Job) -> None:
        job.ended = True
        if job.timer is not None:
            job.timer.cancel()
        job.link.jobs.discard(job)
        if not job.link.jobs:
            del self._links[job.link.endpoint]
            job.link.close()

    # -- the writing thread's side

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _deliver(self, jobs: tuple[_Job, ...], body: bytes) -> None:
        """An answer goes to the pull that asked; to nobody if it was given up."""
        try:
            answer = bulkprotocol.decode_answer(body)
        except ProtocolError as error:
            self._notify(partial(self._bad, error.message))  # who asked will miss it, and ask again
            return
        for job in jobs:
            if job.pull.expects(answer.token):
                self._call(job, lambda pull, now: pull.on_answer(answer, now))

    def _call(self, job: _Job, call: Call) -> None:
        pull, requests = job.pull, []
        try:
            now = self.clock.monotonic()
            call(pull, now)
            requests = pull.requests(now)
        except Exception as error:  # noqa: BLE001 - the thread outlives every pull
            _log.exception("defect")
            pull.close()
            pull.outcome = Failed(f"a defect of this node, see its log: {type(error).__name__}")
        if isinstance(pull.outcome, Done) and (goodbye := pull.goodbye()):
            requests = [goodbye]
        self._notify(partial(self._after, job, requests, pull.next_due(), pull.outcome))


def _look(pull: Pull, now: float) -> None:
    """It only looks what is due."""


def _cancel(pull: Pull, now: float) -> None:
    pull.close()
    pull.outcome = Failed("cancelled")
