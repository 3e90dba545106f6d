"""Pulling one snapshot: what to ask next, what to make of the answers, and what to write (docs/raft.md
section 6).

Owns the state of one pull and its files. Must not know sockets or threads; time is handed in. One thread at a
time; calls block for as long as the disk does.

A pull lies in `TARGET.incoming` until it is whole. Its `.journal` says which snapshot it is, durably, before
the first file is begun; what there is of each file is its beginning. Goes on from there after a broken link
or a restart, if the source still has that same snapshot; of another one, nothing is used. A machine that
crashed may have lost bytes out of the middle: the sum of the whole file tells, and that file is pulled again.

Invariants:
- Files are pulled in order, each from its beginning to its end; at most WINDOW chunks are asked for ahead.
- Whatever goes wrong with an answer, all that was asked for is forgotten, and the pull opens the snapshot
  again after a pause: one way back for lost answers, sources that restarted and snapshots that were removed.
- TARGET appears by one rename, when every file has the size and the sum that the source named, durably.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final, NamedTuple

from kvclient.errors import Status
from storenode import bulkprotocol
from storenode.bulkprotocol import (
    CHUNK_BYTES_MAX,
    Answer,
    Chunk,
    Close,
    FileMeta,
    Open,
    Opened,
    Read,
    Refusal,
    Request,
)
from storenode.engine import codec
from storenode.engine.vfs import Vfs
from storenode.incoming import Incoming, Journal

WINDOW: Final = 4
"""Chunks in flight: 4 MiB are 34 ms of a 1 Gbit/s link, several round trips of a rack."""

ANSWER_S: Final = 5.0
"""Without any answer for so long, while some are due, the link, the source or its thread is gone: at the
default rate one comes every 20 ms to each of two receivers, at 1 MiB/s every 2 s.
"""

PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 3.0
"""Before it is opened again: doubled with each failure, and drawn from the upper half, so that the receivers
of a source that restarted do not come all at once.
"""

DAMAGED_MAX: Final = 5
"""Answers or files that were not what was asked for, before the pull ends: links do this once in a while,
sources with a damaged disk or a defect always.
"""

GIVE_UP_S: Final = 60.0
"""Without any answer of the source, after which the pull ends: Raft will name another one."""

REFUSED_S: Final = 10.0
"""Of a source that answers, but that it cannot give the snapshot, after which the pull ends: it may have left
the group, or its replica may have failed, and who leads now names itself.
"""


class Done(NamedTuple):
    """The snapshot is in `directory`, durably; `state` came with it."""

    directory: str
    state: bytes


class Failed(NamedTuple):
    """The pull ended; what there is of it stays for the next one."""

    reason: str


class Pull:
    """A pull of `group` for `node` into `target`, which must not exist. `chance` is for jitter and tokens."""

    def __init__(
        self, group: int, at_least: int, node: int, target: str, vfs: Vfs, chance: random.Random, now: float
    ) -> None:
        self.outcome: Done | Failed | None = None
        self.bytes_pulled = 0
        self.retries = 0
        self._group, self._at_least, self._node = group, at_least, node
        self._incoming = Incoming(target, vfs)
        self._chance = chance
        self._token = chance.getrandbits(32) << 16  # a late answer to an earlier pull fits no request of this
        self._asked: dict[int, Request] = {}
        self._silent_since = now  # while answers are due
        self._opened: Opened | None = None
        self._files: deque[FileMeta] = deque()  # those that are not whole yet
        self._next = (0, 0)  # place in `_files`, offset: what is asked for next
        self._again_at = now
        self._heard_at = now
        self._refused_since: float | None = None
        self._failures = 0
        self._damaged = 0

    def next_due(self) -> float:
        """When to call `requests` again, if nothing happens before."""
        due = self._silent_since + ANSWER_S if self._asked else self._again_at
        return min(due, self._heard_at + GIVE_UP_S)

    def requests(self, now: float) -> list[bytes]:
        """What to send now; call after every other call, and when it is due."""
        if self.outcome is not None:
            return []
        if now - self._heard_at >= GIVE_UP_S:
            self._end(f"the source has not answered for {GIVE_UP_S:.0f} s")
            return []
        if self._asked and now - self._silent_since >= ANSWER_S:
            self._retry(now)
        if now < self._again_at:
            return []
        if self._opened is None:
            if self._asked:
                return []
            return [self._ask(Open(self._new_token(), self._group, self._at_least, self._node), now)]
        return self._reads(self._opened, now)

    def on_unsent(self, now: float) -> None:
        """What `requests` gave did not leave: there is no link yet, or none any more."""
        if self.outcome is None and self._asked:
            self._retry(now)

    def expects(self, token: int) -> bool:
        """Whether the answer to that request is of use; not if it was given up."""
        return token in self._asked

    def on_answer(self, answer: Answer, now: float) -> None:
        """An answer of the source."""
        asked = self._asked.pop(answer.token, None)
        if asked is None:
            return
        self._heard_at = self._silent_since = now
        try:
            self._on_answer(asked, answer, now)
        except OSError as error:
            self._end(f"the disk refused the snapshot: {error}")

    def goodbye(self) -> bytes | None:
        """What tells the source that nobody needs the snapshot any more; None if there is none."""
        if self._opened is None:
            return None
        return bulkprotocol.encode_request(Close(self._new_token(), self._opened.snapshot, self._node))

    def close(self) -> None:
        """Let go of the file; what there is of the snapshot stays."""
        self._incoming.close()

    # -- asking

    def _new_token(self) -> int:
        self._token += 1
        return self._token

    def _ask(self, request: Request, now: float) -> bytes:
        if not self._asked:
            self._silent_since = now
        self._asked[request.token] = request
        return bulkprotocol.encode_request(request)

    def _reads(self, opened: Opened, now: float) -> list[bytes]:
        found = []
        place, offset = self._next
        while len(self._asked) < WINDOW and place < len(self._files):
            file = self._files[place]
            length = min(CHUNK_BYTES_MAX, file.size - offset)
            if length:
                request = Read(self._new_token(), opened.snapshot, file.name, offset, length)
                found.append(self._ask(request, now))
                offset += length
            if offset == file.size:
                place, offset = place + 1, 0
        self._next = (place, offset)
        return found

    def _retry(self, now: float, pause_s: float | None = None) -> None:
        """Forget what was asked for, and open again after a pause."""
        if pause_s is None:
            pause_s = min(PAUSE_S_MAX, PAUSE_S * 2 ** min(self._failures, 10))
            self._failures += 1
        self.retries += 1
        self._asked.clear()
        self._opened = None
        self._again_at = now + pause_s * self._chance.uniform(0.5, 1.0)

    def _damage(self, what: str, now: float) -> None:
        self._damaged += 1
        if self._damaged >= DAMAGED_MAX:
            self._end(f"what the source sends is damaged: {what}")
        else:
            self._retry(now)

    def _end(self, reason: str) -> None:
        self.outcome = Failed(reason)
        self._asked.clear()
        self._incoming.close()

    # -- answers

    def _on_answer(self, request: Request, answer: Answer, now: float) -> None:
        if isinstance(answer, Refusal):
            self._on_refusal(answer, now)
        elif isinstance(request, Open) and isinstance(answer, Opened):
            self._on_opened(answer, now)
        elif isinstance(request, Read) and isinstance(answer, Chunk):
            self._on_chunk(request, answer, now)
        else:
            self._damage("an answer to something else", now)

    def _on_refusal(self, refusal: Refusal, now: float) -> None:
        if refusal.status == Status.BUSY:
            self._refused_since = None
            self._retry(now, max(refusal.retry_after_ms, 1) / 1000)
            return
        since = self._refused_since = now if self._refused_since is None else self._refused_since
        if refusal.status in (Status.NOT_FOUND, Status.UNAVAILABLE) and now - since < REFUSED_S:
            self._retry(now)
        else:
            self._end(f"the source refused with status {refusal.status}: {refusal.message[:200]}")

    def _on_opened(self, opened: Opened, now: float) -> None:
        self._failures = 0
        self._refused_since = None
        self._incoming.begin(Journal(self._group, opened.snapshot, opened.state, opened.files))
        self._opened = opened
        self._files = deque(self._incoming.missing())
        self._next = (0, self._incoming.open(self._files[0]) if self._files else 0)
        if not self._finish_files():
            self._retry(now)  # a crash of this machine took a part of it: from its beginning

    def _on_chunk(self, request: Read, chunk: Chunk, now: float) -> None:
        if len(chunk.data) != request.length or codec.masked_crc32c(chunk.data) != chunk.crc:
            self._damage(f"a part of {request.name} does not have its sum", now)
        elif request.name != self._files[0].name or request.offset != self._incoming.offset:
            self._retry(now)  # one before it was lost
        else:
            self._failures = 0
            self._incoming.append(chunk.data)
            self.bytes_pulled += len(chunk.data)
            if not self._finish_files():
                self._damage(f"{request.name} does not have its sum", now)

    def _finish_files(self) -> bool:
        """Ends the files that are whole, and the pull behind the last one; False if one has another sum."""
        while self._files and self._incoming.offset == self._files[0].size:
            if not self._incoming.finish(self._files[0]):
                return False
            self._files.popleft()
            place, offset = self._next
            self._next = (max(0, place - 1), offset if place else 0)
            if self._files:
                self._incoming.open(self._files[0])
        if not self._files and self._opened is not None:
            self._asked.clear()
            self.outcome = Done(self._incoming.complete(), self._opened.state)
        return True
