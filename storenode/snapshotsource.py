"""Snapshots that this node gives away: made when asked for, read in chunks, removed when nobody reads them
(docs/raft.md section 6).

Owns the directory that they lie in, and the thread that reads them. Must not know sockets, nor how a snapshot
is made. Loop thread: all public calls, `make`, and every answer. The reading thread: vfs and the rate limit,
nothing else; it does one piece of at most 1 MiB at a time, in the order of asking.

Invariants:
- A snapshot is answered when its files are summed; until then who asks is told to come back.
- A directory is removed by the reading thread, behind all reads that were taken for it.
- At most SERVED_MAX snapshots exist, and what they pin on the disk and in the log with them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Final, NamedTuple

from kvclient.errors import KVError, Status
from shared import logs
from shared.clock import Clock
from shared.clustermap import BYTES_PER_SECOND
from shared.reactor import Reactor
from storenode import bulkprotocol, snapshotfiles
from storenode.bulkprotocol import Answer, Chunk, Close, Closed, FileMeta, Open, Opened, Read, Refusal
from storenode.engine import codec
from storenode.engine.limiter import RateLimiter
from storenode.engine.vfs import Vfs

SERVED_MAX: Final = 2
"""Each pins tables that compactions have replaced, and the log behind it."""

IDLE_S: Final = 60.0
"""Nobody has asked for a part of it for so long: the receiver has gone, or found another source."""

READS_MAX: Final = 64
"""Waiting at once, 1 MiB each in the answer: several times what the receivers of SERVED_MAX have in flight.
"""

PREPARING_MS: Final = 200
BUSY_MS: Final = 1000
"""When to ask again: for a snapshot that is being summed, and while others are served."""

_CHECK_S: Final = 5.0  # an idle snapshot may stay that much longer
_JOIN_S: Final = 5.0

_log = logs.get("snapshots")


class Made(NamedTuple):
    """What `make` made: the state at index `applied`, and the bytes that go with it."""

    applied: int
    state: bytes
    files: list[tuple[str, int]]
    """(name, bytes) of each that is to be given away."""


Make = Callable[[int, str], Made]
"""make(group, directory): writes the group's checkpoint into `directory`, which does not exist, at most one
directory deep. Runs on the loop. KVError: a refusal that the asking node gets as it is; OSError: the disk's.
"""


class _Served:
    """One snapshot. `files` is None until they are summed."""

    def __init__(self, number: int, group: int, directory: str, made: Made, now: float) -> None:
        self.number = number
        self.group = group
        self.directory = directory
        self.index = made.applied
        self.state = made.state
        self.listed = made.files
        self.files: dict[str, FileMeta] | None = None
        self.readers: set[int] = set()
        self.used_at = now


class BulkSource:
    """Answers BULK requests. `send(peer, body)` takes the body of a BULK_REPLY; what it cannot deliver is
    lost, and asked for again. `bytes_per_second` are of all snapshots together, summing included. `directory`
    is the source's alone: what an earlier process left in it is removed. OSError: it cannot be made or
    emptied.
    """

    def __init__(
        self,
        reactor: Reactor,
        make: Make,
        send: Callable[[bytes, bytes], object],
        directory: str,
        vfs: Vfs,
        clock: Clock,
        *,
        bytes_per_second: int = BYTES_PER_SECOND,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.bytes_sent = 0
        self.made = 0
        self.failed = 0
        self._reactor = reactor
        self._notify = reactor.wakeup().notify
        self._make = make
        self._send = send
        self._directory = directory
        self._vfs = vfs
        self._clock = clock
        self._limiter = RateLimiter(bytes_per_second, clock.monotonic)
        self._served: dict[int, _Served] = {}
        self._reads = 0
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        vfs.make_directory(directory)
        for name in vfs.listdir(directory):
            snapshotfiles.remove_tree(vfs, os.path.join(directory, name))
        self._work: SimpleQueue[Iterator[int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()
        self._check = reactor.call_later(_CHECK_S, self._check_idle)

    # -- the loop's side

    def on_request(self, peer: bytes, body: bytes) -> None:
        """Answer the body of a BULK now or later; ProtocolError if it is no request."""
        request = bulkprotocol.decode_request(body)
        if isinstance(request, Open):
            self._answer(peer, self._open(request))
        elif isinstance(request, Read):
            self._read(peer, request)
        else:
            self._answer(peer, self._close(request))

    def limit(self, bytes_per_second: int) -> None:
        """Read at another rate from now on."""
        self._limiter.change(bytes_per_second)

    def pinned(self, group: int) -> int | None:
        """The lowest index of a snapshot of the group that is being pulled; its log stays from there on."""
        return min((one.index for one in self._served.values() if one.group == group), default=None)

    def figures(self) -> dict[str, int]:
        """Counts since the start, and how many there are now."""
        return {
            "snapshots_served": len(self._served),
            "snapshots_made": self.made,
            "snapshots_failed": self.failed,
            "snapshot_bytes_sent": self.bytes_sent,
        }

    def drop_idle(self) -> None:
        """Remove the snapshots that nobody has read from for IDLE_S; their summing does not count as that."""
        now = self._clock.monotonic()
        for one in list(self._served.values()):
            if one.files is not None and now - one.used_at >= IDLE_S:
                _log.warning("snapshot_abandoned", partition=one.group, idle_s=round(now - one.used_at))
                self._drop(one)

    def close(self) -> bool:
        """Serve no more and end the thread; False if it is still in a system call. What there is stays for
        the next start to remove.
        """
        self._check.cancel()
        self._closing.set()
        self._work.put(None)
        self._thread.join(_JOIN_S)
        return not self._thread.is_alive()

    def _answer(self, peer: bytes, answer: Answer) -> None:
        self._send(peer, bulkprotocol.encode_answer(answer))

    def _open(self, request: Open) -> Answer:
        now = self._clock.monotonic()
        of_group = [one for one in self._served.values() if one.group == request.group]
        fitting = [one for one in of_group if one.index >= request.at_least]
        for one in of_group:
            if one not in fitting:  # of no use any more to who asks: it restarted, and has missed more since
                self._leave(one, request.node)
        if not fitting:
            made = self._begin(request, now)
            if isinstance(made, Refusal):
                return made
            fitting = [made]
        one = fitting[0]
        one.readers.add(request.node)
        one.used_at = now
        if one.files is None:
            return Refusal(request.token, Status.BUSY, "the snapshot is being prepared", PREPARING_MS)
        return Opened(request.token, one.number, one.state, tuple(one.files.values()))

    def _begin(self, request: Open, now: float) -> _Served | Refusal:
        if len(self._served) >= SERVED_MAX:
            return Refusal(request.token, Status.BUSY, f"{SERVED_MAX} snapshots are being served", BUSY_MS)
        number = secrets.randbits(63)  # never one of an earlier process
        directory = os.path.join(self._directory, f"{request.group:04}-{number:016x}")
        try:
            made = self._make(request.group, directory)
        except (KVError, OSError) as error:
            self.failed += 1
            self._work.put(self._remove(directory))
            status, text = Status.UNAVAILABLE, f"the snapshot could not be made: {error}"
            if isinstance(error, KVError):
                status, text = error.status, error.message
            return Refusal(request.token, status, text, BUSY_MS)
        if made.applied < request.at_least:
            self.failed += 1
            self._work.put(self._remove(directory))
            text = f"this node is at index {made.applied}, below {request.at_least}"
            return Refusal(request.token, Status.UNAVAILABLE, text, BUSY_MS)
        self.made += 1
        one = self._served[number] = _Served(number, request.group, directory, made, now)
        self._work.put(self._sum(one))
        return one

    def _read(self, peer: bytes, request: Read) -> None:
        one = self._served.get(request.snapshot)
        file = one.files.get(request.name) if one is not None and one.files is not None else None
        if one is None or file is None:
            self._answer(peer, Refusal(request.token, Status.NOT_FOUND, "no such file of a snapshot here"))
        elif request.offset + request.length > file.size:
            text = f"{request.name} has {file.size} bytes"
            self._answer(peer, Refusal(request.token, Status.INVALID_REQUEST, text))
        elif self._reads >= READS_MAX:
            self._answer(peer, Refusal(request.token, Status.BUSY, "too many reads wait", BUSY_MS))
        else:
            one.used_at = self._clock.monotonic()
            self._reads += 1
            self._work.put(self._chunk(one, peer, request))

    def _close(self, request: Close) -> Answer:
        one = self._served.get(request.snapshot)
        if one is not None:
            self._leave(one, request.node)
        return Closed(request.token)

    def _leave(self, one: _Served, node: int) -> None:
        one.readers.discard(node)
        if not one.readers:
            self._drop(one)

    def _drop(self, one: _Served) -> None:
        if self._served.pop(one.number, None) is not None:
            self._work.put(self._remove(one.directory))

    def _check_idle(self) -> None:
        self._check = self._reactor.call_later(_CHECK_S, self._check_idle)
        self.drop_idle()

    def _summed(self, one: _Served, files: dict[str, FileMeta]) -> None:
        one.files = files
        one.used_at = self._clock.monotonic()

    def _chunk_read(self, peer: bytes, answer: Answer) -> None:
        self._reads -= 1
        if isinstance(answer, Chunk):
            self.bytes_sent += len(answer.data)
        self._answer(peer, answer)

    def _unreadable(self, one: _Served, error: str) -> None:
        self.failed += 1
        _log.error("snapshot_unreadable", partition=one.group, error=error)
        self._drop(one)

    # -- the reading thread's side: work is done in steps, each of which says how many bytes it has read

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._closing.is_set():
            try:
                count = next(work, None)
            except Exception:  # noqa: BLE001 - the thread outlives every snapshot
                _log.exception("defect")
                continue
            if count is not None:
                self._pause(self._limiter.take(count))
                self._work.put(work)  # a long one does not hold up the others

    def _sum(self, one: _Served) -> Iterator[int]:
        files = {}
        try:
            for name, size in one.listed:
                crc = 0
                with contextlib.closing(self._vfs.open(os.path.join(one.directory, name))) as file:
                    for crc, count in snapshotfiles.sum_steps(file, size):  # noqa: B007 - the last one counts
                        yield count
                files[name] = FileMeta(name, size, bulkprotocol.mask(crc))
        except OSError as error:
            self._notify(partial(self._unreadable, one, str(error)))
        else:
            self._notify(partial(self._summed, one, files))

    def _chunk(self, one: _Served, peer: bytes, request: Read) -> Iterator[int]:
        answer: Answer
        try:
            with contextlib.closing(self._vfs.open(os.path.join(one.directory, request.name))) as file:
                data = snapshotfiles.read_at(file, request.offset, request.length)
            answer = Chunk(request.token, data, codec.masked_crc32c(data))
        except OSError as error:
            answer = Refusal(request.token, Status.UNAVAILABLE, f"{request.name} cannot be read: {error}")
            self._notify(partial(self._unreadable, one, str(error)))
        self._notify(partial(self._chunk_read, peer, answer))
        if isinstance(answer, Chunk):
            yield request.length

    def _remove(self, directory: str) -> Iterator[int]:
        try:
            snapshotfiles.remove_tree(self._vfs, directory)
        except OSError as error:
            _log.error("snapshot_not_removed", error=str(error))
        yield from ()
