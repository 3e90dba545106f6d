"""One partition on this node: writes in log order, reads from the engine, and the session table between the
two.

Owns the pending writes, their sequence numbers and stamps. Knows no socket and no thread: it is told what the
log did. Answers leave through the callback `answer(router, token, status, body)`; `on_pending(replica)` says
that there is something to seal.

The life of a write: `propose` -> `seal` (log order, sequence numbers, one stamp) -> the log, elsewhere ->
exactly one of `committed`, `refused`, `lost`. Between `seal` and that call nothing else may be sealed.

Invariants
- Sequences are handed out in log order without gaps; the stamp of an entry is never below the stamp of one
  before it.
- A write is looked up in the session table before anything refuses it. So a refusal that says "nothing was
  applied" speaks of every attempt of that write, not only of the one at hand.
- Once an entry may be in the log without having been applied here, nothing is applied after it: the replica
  takes no more writes until the process starts again and the log is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Protocol

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared.clock import Clock
from storenode.replica.budget import Budget
from storenode.replica.proposal import Proposal
from storenode.replica.sessions import SessionTable, Verdict

Answer = Callable[[bytes, int, int, bytes], None]
Entry = tuple[int, int, bytes]  # first sequence, stamp in ms, ops: what the log stores

ROUTES_MAX: Final = 8  # attempts of one write that wait together: more than an SDK makes in one log write
BUSY_RETRY_MS: Final = 20  # a few log writes
PRESSURE_RETRY_MS: Final = 200  # level-0 compactions take this long, not microseconds
PRESSURE_STOP: Final = 2

_TIMEOUT = encode_error("the deadline passed before the write was logged; nothing was applied")
_OVER_BUDGET = encode_error("too many bytes of writes in flight on this store", retry_after_ms=BUSY_RETRY_MS)
_MANY_ATTEMPTS = encode_error("too many attempts of this write wait already", retry_after_ms=BUSY_RETRY_MS)
_PRESSURE = encode_error("compaction is behind, writes wait for it", retry_after_ms=PRESSURE_RETRY_MS)
_VERDICTS = {
    verdict: encode_error(f"this write may or may not have been applied: {verdict.value}")
    for verdict in (Verdict.ACKNOWLEDGED, Verdict.UNKNOWN)
}


class EngineFace(Protocol):
    """What a replica needs of `storenode.engine.Engine`."""

    @property
    def next_sequence(self) -> int: ...
    def append(self, entries: Sequence[Entry]) -> int: ...
    def apply(self, ops: bytes, first_sequence: int, now_ms: int, wal: int) -> bytes: ...
    def read(self, ops: bytes, now_ms: int) -> bytes: ...
    def pressure(self) -> int: ...
    def stats(self) -> dict[str, Any]: ...


class Replica:
    """The state of one partition. One thread, but for the engine's `append`, which the log thread calls
    between `seal` and the outcome.
    """

    def __init__(
        self,
        partition: int,
        engine: EngineFace,
        clock: Clock,
        budget: Budget,
        answer: Answer,
        on_pending: Callable[[Replica], None],
    ) -> None:
        self.partition = partition
        self.engine = engine
        nothing_ever_ran = engine.next_sequence == 1
        self.sessions = SessionTable(-inf if nothing_ever_ran else clock.monotonic())
        self.failure: str | None = None
        self._clock = clock
        self._budget = budget
        self._answer = answer
        self._on_pending = on_pending
        self._pending: list[Proposal] = []
        self._sealed: list[Proposal] = []
        self._first_sequence = 0
        self._stamp = 0

    def read(self, ops: bytes, count: int) -> bytes:
        """Results of a stream of `count` ops that only read, all of one moment.

        Sees every write that was answered; the engine sees to it that time does not go back behind theirs.
        Corruption.
        """
        return self.engine.read(ops, self._clock.wall_ms())

    def propose(
        self,
        route: tuple[bytes, int],
        client_id: int,
        sequence: int,
        acked_below: int,
        retry: bool,
        ops: bytes,
        count: int,
        deadline: float,
        now: float,
    ) -> None:
        """Takes a write of `count` checked ops (0 for a barrier) towards the log, or answers it at once.

        `deadline` and `now` are monotonic seconds. Client id or sequence 0: no session, so a retry can only
        be OUTCOME_UNKNOWN.
        """
        has_session = sequence != 0 and client_id != 0
        if has_session:
            found = self.sessions.look_up(client_id, sequence, acked_below, retry, now)
        else:
            found = Verdict.UNKNOWN if retry else Verdict.EXECUTE
        if found is not Verdict.EXECUTE:
            self._repeat(route, deadline, found)
        elif now >= deadline:
            self._answer(*route, Status.TIMEOUT, _TIMEOUT)
        elif self.failure is not None:
            self._answer(*route, Status.READ_ONLY, encode_error(self.failure))
        elif self.engine.pressure() >= PRESSURE_STOP:
            self._answer(*route, Status.BUSY, _PRESSURE)
        elif not self._budget.take(len(ops)):
            self._answer(*route, Status.BUSY, _OVER_BUDGET)
        else:
            proposal = Proposal(route, client_id, sequence, ops, count, deadline)
            if has_session:
                self.sessions.begin(proposal, acked_below, now)
            self._pending.append(proposal)
            self._on_pending(self)

    def _repeat(self, route: tuple[bytes, int], deadline: float, found: bytes | Proposal | Verdict) -> None:
        """Answers a further attempt of a write that ran, or lets it wait for the one under way."""
        if isinstance(found, Verdict):
            self._answer(*route, Status.OUTCOME_UNKNOWN, _VERDICTS[found])
        elif not isinstance(found, Proposal):
            self._answer(*route, Status.OK, found)
        elif len(found.routes) < ROUTES_MAX:
            found.routes.append(route)
            found.deadline = max(found.deadline, deadline)
        else:
            self._answer(*route, Status.BUSY, _MANY_ATTEMPTS)

    def seal(self, now: float) -> list[Entry]:
        """The entries to log next, in order, for all that is pending and not too late."""
        assert not self._sealed, "one log write at a time"
        self.drop_late(now)
        self._stamp = stamp = max(self._clock.wall_ms(), self._stamp)
        self._first_sequence = sequence = self.engine.next_sequence
        entries: list[Entry] = []
        for proposal in self._pending:
            entries.append((sequence, stamp, proposal.ops))
            sequence += proposal.count
        self._sealed, self._pending = self._pending, []
        return entries

    def drop_late(self, now: float) -> None:
        """Answers TIMEOUT to what is pending and past its deadline. `seal` does so; call it also while a log
        write does not end, or what waits for it holds its bytes of the node's budget.
        """
        late = [proposal for proposal in self._pending if proposal.deadline <= now]
        if late:
            self._pending = [proposal for proposal in self._pending if proposal.deadline > now]
            for proposal in late:
                self._cancel(proposal, Status.TIMEOUT, _TIMEOUT)

    def committed(self, wal: int) -> None:
        """The sealed entries are durable, in the log file `wal`: applies them in order and answers."""
        sealed, self._sealed = self._sealed, []
        sequence, apply, stamp = self._first_sequence, self.engine.apply, self._stamp
        now = self._clock.monotonic()
        applied = 0
        try:
            for proposal in sealed:
                results = apply(proposal.ops, sequence, stamp, wal)
                applied += 1
                sequence += proposal.count
                self._end(proposal, Status.OK, results, results, now)
        except Exception as error:
            # The entries are in the log and will be replayed: going on would make another state than that.
            self._lose(sealed[applied:], f"{type(error).__name__}: {error}")
            raise

    def refused(self, reason: str) -> None:
        """The log wrote nothing of the sealed entries and says so for certain; later writes may succeed."""
        sealed, self._sealed = self._sealed, []
        body = encode_error(reason)
        for proposal in sealed:
            self._cancel(proposal, Status.READ_ONLY, body)

    def lost(self, reason: str) -> None:
        """Nobody knows which of the sealed entries are in the log. They are answered OUTCOME_UNKNOWN, and no
        write is taken any more.
        """
        sealed, self._sealed = self._sealed, []
        self._lose(sealed, reason)

    def _lose(self, proposals: Sequence[Proposal], reason: str) -> None:
        self.failure = f"partition {self.partition} takes no writes until this store is restarted: {reason}"
        body = encode_error(f"this write may or may not have been applied: {reason}")
        now = self._clock.monotonic()
        for proposal in proposals:
            self._end(proposal, Status.OUTCOME_UNKNOWN, body, None, now)
        pending, self._pending = self._pending, []
        refusal = encode_error(self.failure)
        for proposal in pending:
            self._cancel(proposal, Status.READ_ONLY, refusal)

    def _end(self, proposal: Proposal, status: int, body: bytes, outcome: bytes | None, now: float) -> None:
        self._budget.give_back(len(proposal.ops))
        if proposal.session is not None:
            self.sessions.finish(proposal.session, proposal.sequence, outcome, now)
        for router, token in proposal.routes:
            self._answer(router, token, status, body)

    def _cancel(self, proposal: Proposal, status: int, body: bytes) -> None:
        self._budget.give_back(len(proposal.ops))
        if proposal.session is not None:
            self.sessions.cancel(proposal.session, proposal.sequence)
        for router, token in proposal.routes:
            self._answer(router, token, status, body)
