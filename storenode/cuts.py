"""Cuts: the content of a partition at one moment, held for a backup and read page by page (docs/raft.md
section 11).

Owns the snapshots that are held for backups, and the thread that reads them. Must not know sockets: answers
leave through `answer(peer, token, status, body)`. Loop thread: all public calls, taking snapshots, and every
answer. The reading thread: pages and the rate limit, one page at a time, in the order of asking.

Invariants:
- A cut is taken between two entries, on a leader whose lease holds and that has applied all it knows to be
  committed: everything acknowledged before it was asked for is in it.
- At most CUTS_MAX exist, none unread for longer than IDLE_S or older than LIFE_S, and at most READS_MAX reads
  wait. What a cut pins, replaced tables and memtables, goes with it.
- Each request is answered once, whatever it holds.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import KVError, Status
from kvclient.protocol import encode_error
from shared import logs
from shared.backupmessages import BackupCommand, BackupRequest
from shared.clock import Clock
from shared.clustermap import BYTES_PER_SECOND
from shared.reactor import Reactor
from storenode.cutpages import read_page
from storenode.engine.errors import EngineClosed
from storenode.engine.limiter import RateLimiter
from storenode.groups import Groups
from storenode.raft import Role
from storenode.raftframes import CONTROL
from storenode.replica.replica import Replica
from storenode.replica.statemachine import Snapshot

CUTS_MAX: Final = 8
"""Two backups with four partitions under way each, if this store leads all of them. Each pins tables that
compactions have replaced, and up to a few memtables.
"""

IDLE_S: Final = 60.0
"""Nobody has read from it for so long: the reader has gone."""

LIFE_S: Final = 3600.0
"""At the default rate of 100 MiB/s, 350 GiB of one partition."""

READS_MAX: Final = 16
"""Waiting at once: one of each cut, and one that was sent again."""

UNREADY_MS: Final = 50
BUSY_MS: Final = 1000
"""When to ask again: for a leader that is not ready yet, and while others have their cuts."""

_CHECK_S: Final = 5.0
_JOIN_S: Final = 5.0

_GONE: Final = encode_error(
    "this store has no such cut: it was closed, unread for a minute, or an hour old, or the store restarted"
)

_log = logs.get("cuts")

Answer = Callable[[bytes, int, int, bytes], None]
_Asker = tuple[bytes, int]


class _Cut:
    """One snapshot that is held. `said` is what `open` answers."""

    def __init__(self, partition: int, snapshot: Snapshot, said: dict[str, int], now: float) -> None:
        self.partition = partition
        self.snapshot = snapshot
        self.said = said
        self.made_at = self.used_at = now


class _Work(NamedTuple):
    asker: _Asker
    cut: _Cut
    start: bytes


class Cuts:
    """Those of one node, of cluster `cluster` (XXH64 of its id). `bytes_per_second` are of all cuts
    together.
    """

    def __init__(
        self,
        reactor: Reactor,
        clock: Clock,
        node: int,
        cluster: int,
        groups: Groups,
        answer: Answer,
        *,
        bytes_per_second: int = BYTES_PER_SECOND,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self._notify = reactor.wakeup().notify
        self._clock = clock
        self._node = node
        self._cluster = cluster
        self._groups = groups
        self._answer = answer
        self._limiter = RateLimiter(bytes_per_second, clock.monotonic)
        self._cuts: dict[int, _Cut] = {}
        self._reads = 0
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cuts", daemon=True)
        self._thread.start()
        self._check = reactor.call_later(_CHECK_S, self._check_idle)

    # -- the loop's side

    def on_request(self, peer: bytes, request: BackupRequest) -> None:
        """Answer now or, a read, later."""
        asker = (peer, request.token)
        if request.cluster != self._cluster:
            self._refuse(asker, Status.INVALID_REQUEST, "this store is of another cluster")
        elif request.command == BackupCommand.OPEN:
            self._open(asker, request)
        elif request.command == BackupCommand.READ:
            self._read(asker, request)
        else:
            self._drop(request.cut)
            self._give(asker, {})

    def limit(self, bytes_per_second: int) -> None:
        """Read at another rate from now on."""
        self._limiter.change(bytes_per_second)

    def drop_old(self) -> None:
        """Let go what nobody reads any more, and what is too old."""
        now = self._clock.monotonic()
        for number, cut in list(self._cuts.items()):
            if now - cut.used_at >= IDLE_S or now - cut.made_at >= LIFE_S:
                age, idle = round(now - cut.made_at), round(now - cut.used_at)
                _log.warning("cut_abandoned", partition=cut.partition, age_s=age, idle_s=idle)
                self._drop(number)

    def close(self) -> bool:
        """Let go everything and end the thread; False if it is still in a read."""
        self._check.cancel()
        for number in list(self._cuts):
            self._drop(number)
        self._closing.set()
        self._work.put(None)
        self._thread.join(_JOIN_S)
        return not self._thread.is_alive()

    def __len__(self) -> int:
        return len(self._cuts)

    def _open(self, asker: _Asker, request: BackupRequest) -> None:
        cut = self._cuts.get(request.cut)
        if cut is not None:  # asked again, since the answer was lost
            self._give(asker, cut.said)
            return
        replica = self._groups.replicas.get(request.partition)
        if replica is None or request.partition == CONTROL:
            text = f"partition {request.partition} is not on this store"
            self._refuse(asker, Status.WRONG_REPLICA, text)
        elif replica.failure is not None or replica.raft.role is not Role.LEADER:
            text = replica.failure or "this store does not lead the partition"
            leader = 0 if replica.failure else replica.raft.leader
            self._answer(*asker, Status.NOT_LEADER, encode_error(text, leader=leader))
        elif not self._is_current(replica):
            text = "the leader has no lease yet, or has entries to apply"
            self._refuse(asker, Status.BUSY, text, UNREADY_MS)
        elif len(self._cuts) >= CUTS_MAX:
            text = f"{CUTS_MAX} cuts are open on this store: another backup is being made"
            self._refuse(asker, Status.BUSY, text, BUSY_MS)
        else:
            self._give(asker, self._take(request.cut, replica))

    def _is_current(self, replica: Replica) -> bool:
        """Whether nothing can have been acknowledged that is not applied here."""
        raft = replica.raft
        return replica.machine.position.index >= raft.commit and self._clock.monotonic() < raft.lease_until

    def _take(self, number: int, replica: Replica) -> dict[str, int]:
        position = replica.machine.position
        said = {
            "node": self._node,
            "index": position.index,
            "term": position.term,
            "taken_ms": self._clock.wall_ms(),
        }
        snapshot = replica.machine.engine.snapshot()
        self._cuts[number] = _Cut(replica.partition, snapshot, said, self._clock.monotonic())
        _log.info("cut_opened", partition=replica.partition, index=position.index)
        return said

    def _read(self, asker: _Asker, request: BackupRequest) -> None:
        cut = self._cuts.get(request.cut)
        if cut is None:
            self._answer(*asker, Status.CONDITION_FAILED, _GONE)
        elif self._reads >= READS_MAX:
            self._refuse(asker, Status.BUSY, "too many reads wait", BUSY_MS)
        else:
            cut.used_at = self._clock.monotonic()
            self._reads += 1
            self._work.put(_Work(asker, cut, request.start))

    def _page_read(self, asker: _Asker, status: int, body: bytes) -> None:
        self._reads -= 1
        self._answer(*asker, status, body)

    def _drop(self, number: int) -> None:
        cut = self._cuts.pop(number, None)
        if cut is not None:
            cut.snapshot.close()

    def _check_idle(self) -> None:
        self._check = self._reactor.call_later(_CHECK_S, self._check_idle)
        self.drop_old()

    def _give(self, asker: _Asker, said: dict[str, int]) -> None:
        self._answer(*asker, Status.OK, _pack(said))

    def _refuse(self, asker: _Asker, status: int, text: str, retry_after_ms: int | None = None) -> None:
        self._answer(*asker, status, encode_error(text, retry_after_ms=retry_after_ms))

    # -- the reading thread's side

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._closing.is_set():
            status, body = _page(work)
            self._notify(partial(self._page_read, work.asker, status, body))
            if status == Status.OK:
                self._pause(self._limiter.take(len(body)))


def _page(work: _Work) -> tuple[int, bytes]:
    """The answer to a read."""
    try:
        count, timed, records, following = read_page(work.cut.snapshot, work.start)
    except EngineClosed:
        return Status.CONDITION_FAILED, _GONE
    except KVError as error:
        return error.status, encode_error(error.message, **error.details)
    except Exception as error:  # noqa: BLE001 - the thread outlives every read, whatever the disk does
        _log.error("cut_unreadable", partition=work.cut.partition, error=f"{type(error).__name__}: {error}")
        return Status.INTERNAL, encode_error(f"the page could not be read: {error}")
    return Status.OK, _pack(
        {
            "count": count,
            "timed": timed,
            "records": records,
            "crc": zlib.crc32(records),
            "next": following,
        }
    )


def _pack(said: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(said)
    return packed
