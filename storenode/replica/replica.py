"""One partition's replica: Raft, the state machine, and those who wait for it.

Owns the writes and reads of this partition between their arrival and their answer. Knows no socket, no file
and no thread: `storenode.groups` drives it once per turn, the log and the bus are behind that. Answers leave
through `answer(router, token, status, body)`; `on_dirty(replica)` says that there is something to do at the
end of this turn.

The life of a write: `propose` -> one entry with all others of its turn -> committed -> applied -> answered.
While leadership passes from one node to another it waits before the entry, so that whoever leads then is
known to the answer.
The life of a linearizable read: `read` -> a heartbeat round -> applied far enough -> read -> answered.

Invariants
- A write is answered OK only from what was applied here, and from the session table when it ran before.
- A refusal that says "nothing was applied" speaks of an attempt that is in no log and will be in none.
- What this node proposed and then lost sight of, because it leads no more, is answered OUTCOME_UNKNOWN with
  `retry_after_ms`: asked again with RETRY, whoever leads then will know.
- Every write in `_pending` or `_logged` holds its bytes of the budget, and every read that waits is in
  `_reading`: whatever becomes of them, each route is answered once.
- Once this copy of the data has shown damage, or something happened that cannot, nothing is applied here any
  more, and nothing is said to peers: the others go on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvclient.errors import KVError, Status
from kvclient.protocol import FLAG_RETRY, encode_error
from shared import logs
from shared.clock import Clock
from storenode.raft import Dropped, NotLeader, Raft, Role
from storenode.raft.configuration import decode_change
from storenode.raft.messages import NOBODY, EntryKind, Kind, Message
from storenode.replica import commands, refusals
from storenode.replica.budget import Budget
from storenode.replica.proposal import Proposal, entries_of
from storenode.replica.reads import Confirmed, Freshness, Read
from storenode.replica.statemachine import Outcome, StateMachine

Answer = Callable[[bytes, int, int, bytes], None]

LEASE: Final = 1
"""The read mode; 0 is linearizable, n >= 2 stale by at most n milliseconds."""

READS_MAX: Final = 4096
"""Reads of a partition that wait for a proof of leadership or for what is to be applied: a round trip of 2 ms
at two million reads a second. When there are more, it is a quorum that they wait for, and it is not there.
"""

HOLD_S: Final = 0.2
"""How long writes wait for a leader where nobody leads. Leadership that is handed over is known within
milliseconds, while a refusal costs its router a pause; it shall look elsewhere if the election takes longer.
"""

ROUTES_MAX: Final = 8  # attempts of one write that wait together: more than an SDK makes in one log write
PRESSURE_STOP: Final = 2

_log = logs.get("replica")


class Replica:
    """One partition on this node. One thread."""

    def __init__(
        self,
        partition: int,
        raft: Raft,
        machine: StateMachine,
        clock: Clock,
        budget: Budget,
        answer: Answer,
        on_dirty: Callable[[Replica], None],
    ) -> None:
        self.partition = partition
        self.raft = raft
        self.machine = machine
        self.failure: str | None = None
        self.kept_term = 0
        """The term in which an operator wants the leadership here, whoever is preferred."""
        self._clock = clock
        self._budget = budget
        self._answer = answer
        self._on_dirty = on_dirty
        self._pending: list[Proposal] = []
        self._hold_until = 0.0  # without a leader
        self._logged: dict[int, tuple[int, list[Proposal]]] = {}
        self._in_flight: dict[tuple[int, int], Proposal] = {}
        self._reading: dict[Read, None] = {}
        self._confirmed = Confirmed()
        self._led_term = 0  # the term in which this node leads and has applied all that was before
        self._led_since = 0.0
        self._session_base = 0
        self._stamp = 0
        self._freshness = Freshness()
        self._followed_term = 0  # whose leader has committed an entry of it: its commit index is no older

    @property
    def idle(self) -> bool:
        """Nobody waits for a write or a read."""
        return not self._pending and not self._logged and not self._reading

    @property
    def takes_writes(self) -> bool:
        """Whether a new write would wait here for its outcome; if not, `propose` says at once who leads."""
        return self.failure is None and (self.raft.role is Role.LEADER or self._seeks_leader)

    # -- from routers

    def read(self, route: tuple[bytes, int], ops: bytes, mode: int, deadline: float, now: float) -> None:
        """Takes checked ops that only read."""
        raft = self.raft
        if self.failure is not None:
            self._refuse(route)
        elif mode > LEASE and self._freshness.since >= now - mode / 1000:
            self._serve(Read(route, ops, deadline))
        elif raft.role is not Role.LEADER:
            self._refuse(route)
        elif mode >= LEASE and raft.lease_until > now:
            self._serve_leased(Read(route, ops, deadline))
        else:
            self._confirm(Read(route, ops, deadline))

    def propose(
        self,
        route: tuple[bytes, int],
        client_id: int,
        sequence: int,
        acked_below: int,
        flags: int,
        ops: bytes,
        deadline: float,
        now: float,
    ) -> None:
        """Takes a write of checked ops (none for a barrier) towards the log, or answers it at once.

        `deadline` and `now` are monotonic seconds. Client id or sequence 0: no session, so a retry can only
        be OUTCOME_UNKNOWN.
        """
        if client_id and sequence:
            results = self.machine.sessions.results_of(client_id, sequence)
            if results is not None:  # applied, so committed: true whoever leads
                self._answer(*route, Status.OK, results)
                return
            under_way = self._in_flight.get((client_id, sequence))
            if under_way is not None:
                self._join(under_way, route, deadline)
                return
        elif flags & FLAG_RETRY:
            self._answer(*route, Status.OUTCOME_UNKNOWN, refusals.NO_SESSION)
            return
        if not self.takes_writes:
            self._refuse(route)
        elif now >= deadline:
            self._answer(*route, Status.TIMEOUT, refusals.TIMEOUT)
        elif self.machine.engine.pressure() >= PRESSURE_STOP:
            self._answer(*route, Status.BUSY, refusals.PRESSURE)
        elif not self._budget.take(len(ops)):
            self._answer(*route, Status.BUSY, refusals.OVER_BUDGET)
        else:
            proposal = Proposal(route, client_id, sequence, acked_below, flags, ops, deadline)
            if client_id and sequence:
                self._in_flight[client_id, sequence] = proposal
            if not self._pending:
                self._hold_until = now + HOLD_S
            self._pending.append(proposal)
            self._on_dirty(self)

    def _join(self, proposal: Proposal, route: tuple[bytes, int], deadline: float) -> None:
        """A further attempt of a write waits for the one under way."""
        if len(proposal.routes) < ROUTES_MAX:
            proposal.routes.append(route)
            proposal.deadline = max(proposal.deadline, deadline)
        else:
            self._answer(*route, Status.BUSY, refusals.MANY_ATTEMPTS)

    def _refuse(self, route: tuple[bytes, int]) -> None:
        self._answer(*route, Status.NOT_LEADER, self._not_leader())

    @property
    def _seeks_leader(self) -> bool:
        """Whether an election is under way, or due, that this node can hear the end of."""
        return self.raft.leader == NOBODY and self.raft.promotable

    def _not_leader(self) -> bytes:
        if self.failure is not None:
            return encode_error(self.failure)
        return encode_error("this store does not lead the partition", leader=self.raft.leader)

    # -- from peers

    def step(self, message: Message, now: float) -> None:
        """Takes a Raft message."""
        if self.failure is not None:
            return
        try:
            self.raft.step(message)
        except Exception as error:  # noqa: BLE001 - this log contradicts the leader's
            self.fail(error)
            return
        kind = message.kind
        if (kind == Kind.APPEND or kind == Kind.HEARTBEAT) and message.term == self.raft.term:
            self._hear_commit(message, now)
        self._on_dirty(self)

    def _hear_commit(self, message: Message, now: float) -> None:
        """What a leader said is committed, which may be more than what is here. Only of a leader that has
        committed an entry of its own term: before, leaders before it may have committed more.
        """
        applied = self.machine.position.index
        if message.kind == Kind.HEARTBEAT:
            if message.b == message.term:
                self._followed_term = message.term
                self._freshness.hear(now, message.a, applied)
        elif self._followed_term == message.term:
            self._freshness.hear(now, message.c, applied)

    def tick(self) -> None:
        """One tick of Raft's time has passed."""
        if self.failure is not None:
            return
        try:
            self.raft.tick()
        except Exception as error:  # noqa: BLE001 - as in `step`
            self.fail(error)
            return
        if self._reading:
            for read in self._confirmed.late(self._clock.monotonic()):
                self._answer_read(read, Status.TIMEOUT, refusals.READ_TIMEOUT)
        self._on_dirty(self)

    # -- once per turn, in this order

    def log_pending(self, now: float) -> None:
        """Proposes what is pending, as few entries as the limits allow."""
        if not self._pending:
            return
        self._drop_late(now)
        leadership = self.raft.leadership
        if leadership is None:
            if not (self._seeks_leader and now < self._hold_until):
                self._refuse_pending()
            return
        if leadership.transferee or self.raft.term != self._led_term:
            return  # and until what other leaders left is applied, nobody knows the partition's time
        times = self._times(now)
        pending, self._pending = self._pending, []
        for some in entries_of(pending):
            self._log(some, commands.encode(*times, some))

    def cut(self, now: float) -> int:
        """Proposes an entry at which all members keep a cut; its index. 0: there can be none now."""
        if self.failure is not None or self.raft.leadership is None or self.raft.term != self._led_term:
            return 0
        try:
            index = self.raft.propose(commands.encode_cut(*self._times(now)))
        except (NotLeader, Dropped):
            return 0
        self._on_dirty(self)
        return index

    def _times(self, now: float) -> tuple[int, int]:
        """The stamp of an entry that is proposed now, and its time of sessions."""
        self._stamp = max(self._clock.wall_ms(), self._stamp)
        return self._stamp, self._session_base + int((now - self._led_since) * 1000)

    def _refuse_pending(self) -> None:
        pending, self._pending = self._pending, []
        body = self._not_leader()
        for proposal in pending:
            self._cancel(proposal, Status.NOT_LEADER, body)

    def _log(self, proposals: list[Proposal], data: bytes) -> None:
        try:
            index = self.raft.propose(data)
        except NotLeader as refusal:
            body = encode_error("this store does not lead the partition", leader=refusal.leader)
            status = Status.NOT_LEADER
        except Dropped as refusal:
            body = encode_error(str(refusal), retry_after_ms=refusals.BUSY_RETRY_MS)
            status = Status.BUSY
        else:
            self._logged[index] = (self.raft.term, proposals)
            return
        for proposal in proposals:
            self._cancel(proposal, status, body)

    def _drop_late(self, now: float) -> None:
        late = [proposal for proposal in self._pending if proposal.deadline <= now]
        if late:
            self._pending = [proposal for proposal in self._pending if proposal.deadline > now]
            for proposal in late:
                self._cancel(proposal, Status.TIMEOUT, refusals.TIMEOUT)

    def apply(self, now: float, bytes_max: int) -> None:
        """Applies what is committed, about `bytes_max` bytes of it, answers, serves the reads that are due.
        Dirty again, if there may be more.
        """
        raft = self.raft
        index, entries = raft.take_committed(bytes_max)
        if entries:
            for entry in entries:
                self._apply_entry(index, *entry)
                index += 1
            raft.applied(index - 1)
            self._freshness.advance(index - 1)
            self._begin_to_lead(now)
            self._on_dirty(self)  # for the rest, and for what Raft makes of what is applied
        if self._reading:
            self._finish_reads()
        if self._logged and raft.role is not Role.LEADER:
            self._lose_sight()

    def _apply_entry(self, index: int, term: int, kind: int, data: bytes) -> None:
        if kind == EntryKind.NORMAL:
            outcomes = self.machine.apply(index, term, data)
            if self._logged:
                self._answer_entry(index, term, outcomes)
        else:
            self.machine.configure(index, term, self.raft.change_applied(decode_change(data)))
            if not self.raft.configuration.joint:
                # Who was removed waits for that (docs/raft.md section 3).
                self.machine.engine.flush(wait=False)

    def _answer_entry(self, index: int, term: int, outcomes: list[Outcome]) -> None:
        logged = self._logged.pop(index, None)
        if logged is None:
            return
        logged_term, proposals = logged
        if logged_term != term:  # another leader's entry has the place: this one will never be applied
            outcomes = [(Status.NOT_LEADER, self._not_leader())] * len(proposals)
        waiting = iter(proposals)
        try:
            for status, body in outcomes:
                self._cancel(next(waiting), status, body)
        except Exception:
            self._logged[index] = logged_term, list(waiting)  # `fail` answers them
            raise

    def _begin_to_lead(self, now: float) -> None:
        raft, position = self.raft, self.machine.position
        if raft.role is Role.LEADER and self._led_term != raft.term == position.term:
            self._led_term = raft.term
            self._led_since = now
            self._session_base = self.machine.session_ms
            self._stamp = self.machine.stamp_ms
            self._on_dirty(self)  # what is pending may be proposed now

    def _lose_sight(self) -> None:
        """Nobody here will hear what becomes of the entries that were proposed."""
        logged, self._logged = self._logged, {}
        for _, proposals in logged.values():
            for proposal in proposals:
                self._cancel(proposal, Status.OUTCOME_UNKNOWN, refusals.LOST)

    # -- reads

    def _confirm(self, read: Read) -> None:
        """Lets it wait until a quorum says that this node leads."""
        if self._hold(read):
            self.raft.read_index(read)
            self._on_dirty(self)

    def _hold(self, read: Read) -> bool:
        """Whether there is room for one more that waits."""
        if len(self._reading) >= READS_MAX:
            self._answer(*read.route, Status.BUSY, refusals.MANY_READS)
            return False
        self._reading[read] = None
        return True

    def _finish_reads(self) -> None:
        raft, confirmed = self.raft, self._confirmed
        for index, reads in raft.take_reads():
            confirmed.add(index, reads)  # type: ignore[arg-type]  # Raft gives back what it was given
        for read in raft.take_failed_reads():
            self._answer_read(read, Status.NOT_LEADER, self._not_leader())  # type: ignore[arg-type]
        for read in confirmed.due(self.machine.position.index):
            self._serve(read)

    def _serve(self, read: Read) -> None:
        """Reads that come in now would see no less."""
        if self._clock.monotonic() >= read.deadline:
            self._answer_read(read, Status.TIMEOUT, refusals.READ_TIMEOUT)
        else:
            self._answer_read(read, *self._results(read.ops))

    def _serve_leased(self, read: Read) -> None:
        """At once, if all is applied here that a client may have heard of: what this leader has committed may
        have been applied elsewhere, and answered there.
        """
        raft = self.raft
        commit = raft.commit
        if self.machine.position.index < commit:
            if self._clock.monotonic() >= raft.lease_until:
                self._confirm(read)
            elif self._hold(read):
                self._confirmed.add(commit, [read])
                self._on_dirty(self)
            return
        status, body = self._results(read.ops)
        if self._clock.monotonic() < raft.lease_until:
            self._answer(*read.route, status, body)
        else:  # this process stood still in between
            self._confirm(read)

    def _answer_read(self, read: Read, status: int, body: bytes) -> None:
        self._reading.pop(read, None)
        self._answer(*read.route, status, body)

    def _results(self, ops: bytes) -> Outcome:
        try:
            return Status.OK, self.machine.engine.read(ops, self._clock.wall_ms())
        except KVError as error:
            return error.status, encode_error(error.message, **error.details)
        except Exception as error:  # noqa: BLE001 - the disk refuses; one read must not cost the others
            _log.error("read_failed", partition=self.partition, error=f"{type(error).__name__}: {error}")
            return Status.INTERNAL, encode_error(f"the read failed on this store: {error}")

    def installed(self, now: float) -> None:
        """A snapshot is in the state machine and the log is cut behind it."""
        machine = self.machine
        self.raft.restore(machine.position.index, machine.position.term, machine.configuration)
        self._freshness.advance(machine.position.index)
        self._lose_sight()
        self._finish_reads()
        self._on_dirty(self)

    # -- the end of things

    def fail(self, error: Exception) -> None:
        """Whatever it is, this replica cannot be trusted to be what the others are: it ends here."""
        if self.failure is not None:
            return
        reason = f"{type(error).__name__}: {error}"
        _log.error("replica_failed", partition=self.partition, error=reason, exc_info=True)
        self.retire(reason)

    def retire(self, reason: str) -> None:
        """It ends here; whoever waits is told."""
        self.failure = f"partition {self.partition} is out of service on this store: {reason}"
        self._lose_sight()
        pending, self._pending = self._pending, []
        body = self._not_leader()
        for proposal in pending:
            self._cancel(proposal, Status.NOT_LEADER, body)
        for read in list(self._reading):
            self._answer_read(read, Status.NOT_LEADER, body)

    def _cancel(self, proposal: Proposal, status: int, body: bytes) -> None:
        """Answers a write; it is under way no more."""
        self._budget.give_back(len(proposal.ops))
        self._in_flight.pop((proposal.client_id, proposal.sequence), None)
        for router, token in proposal.routes:
            self._answer(router, token, status, body)
