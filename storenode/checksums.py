"""Whether the replicas of a partition hold the same: cuts and their checksums (docs/raft.md section 10).

Owns the cuts that replicas have made, until they are too old, and the two commands between their arrival and
their answer. Must not know sockets or the bytes of messages. Loop thread, but for `digest_of`, which runs
beside it, one cut at a time and no faster than it is told: the loop never waits for it.

Invariants
- A command is answered once, by its deadline or a page of content later.
- Cuts, commands that wait and sums that wait are bounded in number; a cut is let go when it is old, or there
  is another of its partition.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import Corruption, KVError, Status
from kvclient.protocol import encode_error, encode_scan
from shared.clock import Clock
from shared.groupmessages import GroupCommand, GroupReply, GroupRequest, encode_group_request
from storenode.beside import Beside
from storenode.groups import Groups
from storenode.replica.replica import Replica
from storenode.replica.statemachine import Cut, Snapshot
from storenode.storerequests import Encode, Reply, refusal

CUTS_MAX: Final = 8
"""Of one store: each may keep a partition's replaced tables on the disk."""

KEEP_S: Final = 60.0
"""As long as a request lives at most: who has not asked for a sum by then does not any more."""

COMPARISONS_MAX: Final = 4
WAITING_MAX: Final = 16
"""Sums that wait for their entry or their turn: those of all comparisons that five stores lead."""

BUSY_RETRY_MS: Final = 100
MARGIN_S: Final = 0.5
"""Before the deadline, and at most an eighth of the time, members are given up: the answer has to arrive."""

PAGE_ENTRIES: Final = 1000

Asker = tuple[bytes, int]
Answer = Callable[[bytes, int, int, bytes], None]
Outcome = tuple[int, bytes]
"""(status, body) of a `digest`."""

Ask = Callable[[int, Encode, float, Callable[[Reply | None], object]], None]
"""(node, question, deadline, done): asks another store, once."""


class Digest(NamedTuple):
    """The sum of a cut; `bytes` are those of its entries."""

    entries: int
    bytes: int
    digest: str


class _Wanted(NamedTuple):
    """A sum that waits for its entry."""

    partition: int
    at: int
    deadline: float
    done: Callable[[Outcome], object]


class _Comparison:
    __slots__ = ("asker", "index", "members", "partition", "replica", "term", "waiting")

    def __init__(self, asker: Asker, replica: Replica, index: int) -> None:
        self.asker = asker
        self.replica = replica
        self.partition = replica.partition
        self.index = index
        self.term = replica.raft.term
        self.waiting = set(replica.raft.configuration.members)
        self.members: list[dict[str, Any]] = []


class Checksums:
    """Those of one node. `bytes_per_second`: what is read for sums at most; 0: as fast as it goes."""

    def __init__(
        self,
        node: int,
        cluster: int,
        groups: Groups,
        clock: Clock,
        beside: Beside,
        answer: Answer,
        ask: Ask,
        bytes_per_second: Callable[[], int],
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._groups = groups
        self._clock = clock
        self._beside = beside
        self._answer = answer
        self._ask = ask
        self._bytes_per_second = bytes_per_second
        self._cuts: dict[int, tuple[Cut, float]] = {}
        """By partition, the oldest first, and when each was made."""
        self._wanted: list[_Wanted] = []
        self._jobs: deque[tuple[_Wanted, Snapshot]] = deque()
        self._summing = False
        self._comparisons: dict[int, _Comparison] = {}
        groups.on_cut = self.keep

    def keep(self, replica: Replica) -> None:
        """Takes the cut that a replica has made."""
        cut, replica.machine.cut = replica.machine.cut, None
        if cut is None:
            return
        self._drop(replica.partition)
        if len(self._cuts) >= CUTS_MAX:
            self._drop(next(iter(self._cuts)))
        self._cuts[replica.partition] = cut, self._clock.monotonic()
        for wanted in [one for one in self._wanted if one.partition == replica.partition]:
            if wanted.at <= cut.at:
                self._wanted.remove(wanted)
                self._look(wanted)

    def _drop(self, partition: int) -> None:
        if partition in self._cuts:
            self._cuts.pop(partition)[0].snapshot.close()

    # -- `digest`: the sum of one cut of this store

    def digest(self, asker: Asker, request: GroupRequest) -> None:
        """Answers when it is summed up."""
        if request.node != self._node:
            text = f"this is node {self._node}, not node {request.node}"
            self._answer(*asker, Status.INVALID_REQUEST, encode_error(text))
            return
        deadline = self._clock.monotonic() + request.timeout_ms / 1000
        done = partial(self._give, asker)
        self._look(_Wanted(request.partition, request.other, deadline, done))

    def _give(self, asker: Asker, outcome: Outcome) -> None:
        self._answer(*asker, *outcome)

    def _look(self, wanted: _Wanted) -> None:
        """Has it summed up, or lets it wait for its entry."""
        held = self._cuts.get(wanted.partition)
        if held is not None and held[0].at == wanted.at:
            if len(self._jobs) >= WAITING_MAX:
                wanted.done(_refused(Status.BUSY, "too many sums wait on this store", BUSY_RETRY_MS))
            else:
                self._jobs.append((wanted, held[0].snapshot))
                self._sum_next()
            return
        replica = self._groups.replicas.get(wanted.partition)
        if replica is None or replica.failure is not None:
            text = "this store has no replica of it" if replica is None else str(replica.failure)
            wanted.done(_refused(Status.UNAVAILABLE, text))
        elif replica.machine.position.index >= wanted.at:
            text = f"entry {wanted.at:,} is applied, and there is no cut of it any more"
            wanted.done(_refused(Status.CONDITION_FAILED, text))
        elif len(self._wanted) >= WAITING_MAX:
            wanted.done(_refused(Status.BUSY, "too many wait for entries on this store", BUSY_RETRY_MS))
        else:
            self._wanted.append(wanted)

    def _sum_next(self) -> None:
        if self._summing or not self._jobs:
            return
        self._summing = True
        wanted, snapshot = self._jobs.popleft()
        read = snapshot.read  # a cut that is closed meanwhile ends this sum
        seconds = wanted.deadline - self._clock.monotonic()
        work = partial(digest_of, read, self._bytes_per_second(), seconds)
        self._beside(work, partial(self._summed, wanted))

    def _summed(self, wanted: _Wanted, found: object) -> None:
        self._summing = False
        if isinstance(found, Digest):
            answer = {"partition": wanted.partition, "index": wanted.at, **found._asdict()}
            wanted.done((Status.OK, msgpack.packb(answer)))
        elif isinstance(found, TimeoutError):
            wanted.done(_refused(Status.TIMEOUT, str(found)))
        elif isinstance(found, KVError):
            wanted.done(_refused(found.status, found.message))
        else:
            wanted.done(_refused(Status.UNAVAILABLE, f"{type(found).__name__}: {found}"))
        self._sum_next()

    # -- `checksum`: those of all members

    def compare(self, asker: Asker, request: GroupRequest, replica: Replica) -> None:
        """Of a replica that leads: answers when all members have told, or cannot."""
        now = self._clock.monotonic()
        busy = replica.partition in self._comparisons or len(self._comparisons) >= COMPARISONS_MAX
        index = 0 if busy else replica.cut(now)
        if not index:
            why = "other checksums are under way" if busy else "the leader's term has nothing applied yet"
            self._answer(*asker, *_refused(Status.BUSY, why, BUSY_RETRY_MS))
            return
        comparison = self._comparisons[replica.partition] = _Comparison(asker, replica, index)
        seconds = request.timeout_ms / 1000
        seconds -= min(seconds / 8, MARGIN_S)
        for node in sorted(comparison.waiting):
            if node == self._node:
                self._look(
                    _Wanted(replica.partition, index, now + seconds, partial(self._told, comparison, node))
                )
            else:
                question = to_digest(self._cluster, replica.partition, node, index, round(seconds * 1000))
                done = partial(self._replied, comparison, node)
                self._ask(node, question, now + seconds + MARGIN_S / 2, done)

    def _replied(self, comparison: _Comparison, node: int, reply: Reply | None) -> None:
        if isinstance(reply, GroupReply):
            self._told(comparison, node, (reply.status, reply.body))
        else:
            why = refusal(reply) or "its answer is none"
            self._told(comparison, node, _refused(Status.UNAVAILABLE, why))

    def _told(self, comparison: _Comparison, node: int, outcome: Outcome) -> None:
        """Of one member."""
        if node not in comparison.waiting:
            return
        comparison.waiting.discard(node)
        comparison.members.append({"id": node, **_read(outcome, comparison.index)})
        if not comparison.waiting and self._comparisons.pop(comparison.partition, None) is comparison:
            answer = {
                "partition": comparison.partition,
                "leader": self._node,
                "index": comparison.index,
                "members": sorted(comparison.members, key=lambda member: int(member["id"])),
            }
            self._answer(*comparison.asker, Status.OK, msgpack.packb(answer))

    # -- time passes

    def end_turn(self) -> None:
        """Ends what is late, lets go what is old."""
        if not (self._cuts or self._wanted or self._comparisons):
            return
        now = self._clock.monotonic()
        for partition in [name for name, (_, made) in self._cuts.items() if now >= made + KEEP_S]:
            self._drop(partition)
        for wanted in [one for one in self._wanted if now >= one.deadline]:
            self._wanted.remove(wanted)
            text = f"entry {wanted.at:,} was not applied in time"
            wanted.done(_refused(Status.TIMEOUT, text))
        for comparison in list(self._comparisons.values()):
            self._look_who_leads(comparison)

    def _look_who_leads(self, comparison: _Comparison) -> None:
        """Nobody says any more that the entry will be committed: whoever leads now begins anew."""
        raft = comparison.replica.raft
        if raft.term != comparison.term and comparison.replica.machine.position.index < comparison.index:
            del self._comparisons[comparison.partition]
            comparison.waiting.clear()
            body = encode_error("this store does not lead the partition any more", leader=raft.leader)
            self._answer(*comparison.asker, Status.NOT_LEADER, body)


def to_digest(cluster: int, partition: int, node: int, index: int, timeout_ms: int) -> Encode:
    """The question for the checksum of the cut at `index` on store `node`."""

    def encode(token: int) -> bytes:
        request = GroupRequest(token, cluster, partition, timeout_ms, 0, GroupCommand.DIGEST, node, index)
        return encode_group_request(request)

    return encode


def digest_of(read: Callable[[bytes], bytes], bytes_per_second: int, seconds: float) -> Digest:
    """Sums up everything that `read` answers to SCANs. Any thread; sleeps so as to read no faster than it is
    told. Corruption: a block is damaged. TimeoutError: it is not done after `seconds`.
    """
    began = time.monotonic()
    hashed = hashlib.blake2b(digest_size=16)
    count = size = 0
    start: bytes | None = b""
    while start is not None:
        status, *rest = msgpack.unpackb(read(encode_scan(start, None, PAGE_ENTRIES)), raw=False)
        if status != Status.OK:
            raise Corruption(f"a page of the content was answered with status {status}: {rest[0]:.200}")
        entries: bytes = rest[1]
        hashed.update(entries)
        count += rest[0]
        size += len(entries)
        start = rest[2] if len(rest) > 2 else None
        spent = time.monotonic() - began
        if spent > seconds:
            raise TimeoutError(f"not summed up in time: {size:,} bytes after {spent:.1f} s")
        if start is not None and bytes_per_second:
            time.sleep(max(0.0, min(size / bytes_per_second, seconds) - spent))
    return Digest(count, size, hashed.hexdigest())


def _refused(status: Status, text: str, retry_after_ms: int | None = None) -> Outcome:
    return status, encode_error(text, retry_after_ms=retry_after_ms)


def _read(outcome: Outcome, index: int) -> dict[str, Any]:
    """What a member said, as far as it is understood."""
    status, body = outcome
    if status != Status.OK:
        return {"error": refusal(GroupReply(0, status, body))}
    try:
        said = msgpack.unpackb(body, raw=False, max_map_len=16)
        if said["index"] == index:
            return {
                "entries": int(said["entries"]),
                "bytes": int(said["bytes"]),
                "digest": str(said["digest"]),
            }
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes; all mean the same here
        pass
    return {"error": "its answer is not understood"}
