"""All replicas of a node, driven together: one log write, and one flush of the bus, per turn for all of them.

Owns the order of things in a turn, and which replicas have something to do. Knows no socket and no thread:
messages leave through `send(group, message)`, log writes through `submit`. One thread, the loop's.

The end of a turn, for each replica that something happened to: what is pending is proposed; what must be
durable goes into the log's next batch, with that of all others; what is committed is applied and answered;
messages leave. While a batch is being written the loop goes on, and what gathers meanwhile is the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from shared import logs
from shared.clock import Clock
from storenode.engine.errors import EngineFailed
from storenode.raft import Dropped, NotLeader, Role, Unstable
from storenode.raft.messages import NOBODY, HardState, Message
from storenode.raftlog import LogFailed, RaftLog, Record, Written
from storenode.replica.replica import Replica

TICK_S: Final = 0.1
"""Raft's tick; elections begin after ten to fourteen of them without a leader."""

HAND_BACK_TICKS: Final = 20
"""For which leadership stays before it goes to whom the map prefers: twice as long as a store that stops may
take. It was given back to one that had just given it away, and that then was gone.
"""
HEARD_S: Final = 3 * TICK_S
"""Leadership goes back only to who was heard so lately: handed to a dead node, it is nowhere for a second."""
MAINTAIN_S: Final = 1.0
SHORTEN_S: Final = 0.2
"""While the log is too long: flush, cut and the batch that frees segments are a step each, and a store that
ends again and again a second after its start would never come to the last one.
"""

APPLY_BYTES_MAX: Final = 8 << 20
"""Applied in one turn by all replicas together, in equal shares, but at least an entry each: a node that
catches up or replays its log after a start still hears and answers, and its heartbeats leave in time.
"""

CARRY_BYTES: Final = 1 << 20
"""Entries in one record, when they are written once more."""

_log = logs.get("groups")


class LogWriter(Protocol):
    """What writes batches: `storenode.logthread.LogThread`, or its twin in simulations."""

    @property
    def busy(self) -> bool: ...
    def submit(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None: ...


class Arrived(NamedTuple):
    """A snapshot to install: what the engine found in it, and whom to tell: None, or why it was refused."""

    replica: Replica
    examined: Any
    done: Callable[[Exception | None], object]


class Groups:
    """The replicas of one node."""

    def __init__(
        self,
        log: RaftLog,
        writer: LogWriter,
        send: Callable[[int, Message], None],
        clock: Clock,
        on_fatal: Callable[[Exception], None],
        *,
        log_bytes_max: int,
    ) -> None:
        self.replicas: dict[int, Replica] = {}
        self.pinned: Callable[[int], int | None] = lambda group: None
        """The lowest index that a snapshot under way still needs of a group; None: there is no such."""
        self.on_wanted: Callable[[Replica], None] = lambda replica: None
        """Called when a replica needs a snapshot."""
        self.on_cut: Callable[[Replica], None] = lambda replica: None
        """Called when a replica has a cut to take."""
        self.preferred: Callable[[int], int] = lambda group: NOBODY
        """The node that should lead a group when it can."""
        self.strangers = 0
        self._log = log
        self._writer = writer
        self._send = send
        self._clock = clock
        self._on_fatal = on_fatal
        self._log_bytes_max = log_bytes_max
        self._dirty: dict[Replica, None] = {}
        self._unwritten: dict[Replica, None] = {}
        self._records: list[Record] = []
        """For the next write, beside what Raft has to say: cuts, and groups that begin."""
        self._arrived: list[Arrived] = []
        self._installing: dict[Replica, Arrived] = {}
        self._after_write: list[Callable[[], object]] = []
        """For when the next write, with what is in `_records`, is durable."""
        self._flushing: dict[Replica, int] = {}
        """Up to which index a flush was asked for that lets the log be cut."""
        self._carried: dict[Replica, None] = {}
        """Whose entries shall be written once more, since they hold up the log and nothing can be done."""
        self._handing_over = False
        self._handed_over: set[Replica] = set()
        self._dead = False

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer, and no log write is under way."""
        return not self._writer.busy and all(replica.idle for replica in self.replicas.values())

    @property
    def log_is_long(self) -> bool:
        """Whether it should be cut."""
        return self._log.bytes_held > self._log_bytes_max

    @property
    def leading(self) -> bool:
        """Whether this node leads a group that others could lead, or is about to: leadership was on its way
        here, and without us its voters would wait for a whole timeout. Or it has handed one over and does not
        know yet to whom: then it holds writes, which are to be told.
        """
        return any(
            replica.failure is None
            and (
                len(replica.raft.configuration.voters) > 1
                if replica.raft.role is Role.LEADER
                else replica.raft.standing or (replica in self._handed_over and replica.raft.leader == NOBODY)
            )
            for replica in self.replicas.values()
        )

    # -- what happens during a turn

    def dirty(self, replica: Replica) -> None:
        """Something happened to `replica`."""
        self._dirty[replica] = None

    def on_messages(self, sender: int, rows: Iterable[tuple[int, Message]]) -> None:
        """Raft messages of a peer."""
        now = self._clock.monotonic()
        for group, message in rows:
            replica = self.replicas.get(group)
            if replica is None:
                self.strangers += 1
            else:
                replica.raft.now = now
                replica.step(message, now)

    def tick(self) -> None:
        """Time passes, for all groups in the same turn: their heartbeats share a frame. At most one tick
        however long the last one is ago: leases count on it that nobody's time runs faster than the clock.
        """
        now = self._clock.monotonic()
        for replica in self.replicas.values():
            replica.raft.now = now
            replica.tick()
        if self._handing_over:
            self._give_away()  # what could not be given before, or was won since

    # -- the end of a turn

    def end_turn(self) -> bool:
        """Does what is due; whether some is left for a further turn at once."""
        if self._dead:
            return False
        busy = self._writer.busy
        if self._arrived and not busy:
            self._install()
        if not self._dirty and not self._records and not self._carried:
            return False
        dirty, self._dirty = self._dirty, {}
        now = self._clock.monotonic()
        share = APPLY_BYTES_MAX // (len(dirty) or 1)
        batch: list[tuple[Replica, Unstable]] = []
        for replica in dirty:
            if replica.failure is not None or replica in self._installing:
                continue
            try:
                self._end_turn_of(replica, now, share, None if busy else batch)
            except Exception as error:  # noqa: BLE001 - the others of this node have their turn
                replica.fail(error)
        if not busy and (batch or self._records or self._carried):
            self._write(batch)
        return bool(self._dirty)

    def _end_turn_of(
        self, replica: Replica, now: float, share: int, batch: list[tuple[Replica, Unstable]] | None
    ) -> None:
        """`batch` gets what must be written; None while a write is under way."""
        raft = replica.raft
        raft.now = now
        replica.log_pending(now)
        raft.flush()
        if batch is None:
            self._unwritten[replica] = None
        elif (unstable := raft.take_unstable()) is not None:
            batch.append((replica, unstable))
        replica.apply(now, share)
        if replica.machine.cut is not None:
            self.on_cut(replica)
        self._send_all(replica)
        if raft.snapshot_wanted is not None:
            self.on_wanted(replica)

    def _send_all(self, replica: Replica) -> None:
        raft = replica.raft
        if raft.messages:
            messages, raft.messages = raft.messages, []
            send, group = self._send, replica.partition
            for message in messages:
                send(group, message)

    def _write(self, batch: list[tuple[Replica, Unstable]]) -> None:
        records = self._carry()
        records += self._records
        self._records = []
        after, self._after_write = self._after_write, []
        for replica, unstable in batch:
            records.append(
                Record(replica.partition, unstable.hard, None, unstable.first_index, unstable.entries)
            )
        self._writer.submit(records, lambda outcome: self._written(batch, after, outcome))

    def _carry(self) -> list[Record]:
        """First in a batch, made when all before are installed: what else the batch says of these entries,
        or has said since they were found, is the newer word. A leader's entries wait for its followers; it
        never writes one twice.
        """
        carried, self._carried = self._carried, {}
        records = []
        for replica in carried:
            if replica.raft.role is Role.LEADER:
                continue
            try:
                records += self._tail_of(replica.partition)
            except Exception as error:  # noqa: BLE001 - what it cannot read must not cost the others their batch
                replica.fail(error)
        return records

    def _tail_of(self, partition: int) -> list[Record]:
        """All entries that the log holds of this group, as records."""
        group = self._log.group(partition)
        records = []
        index = group.first_index
        while index <= group.last_index:
            entries = group.entries(index, group.last_index + 1, CARRY_BYTES)
            records.append(Record(partition, None, None, index, entries))
            index += len(entries)
        return records

    def _written(
        self,
        batch: list[tuple[Replica, Unstable]],
        after: list[Callable[[], object]],
        outcome: Written | Exception,
    ) -> None:
        if isinstance(outcome, Exception):
            self._die(outcome)
            return
        self._log.installed(outcome)
        now = self._clock.monotonic()
        for replica, unstable in batch:
            try:
                replica.raft.now = now
                replica.raft.persisted(unstable)
            except Exception as error:  # noqa: BLE001 - the others' writes are durable as well
                replica.fail(error)
            self._dirty[replica] = None
        installing, self._installing = self._installing, {}
        for arrived in installing.values():
            self._installed(arrived, now)
        self._dirty.update(self._unwritten)
        self._unwritten.clear()
        for call in after:
            call()

    # -- replicas come and go

    def join(self, replica: Replica, done: Callable[[], object]) -> None:
        """Takes in a replica without a past, but perhaps with promises of one that was erased. The log knows
        the group before anything is said in it, so that the next start opens the replica again.
        """

        def lives() -> None:
            self.replicas[replica.partition] = replica
            done()

        promised = HardState(replica.raft.term, replica.raft.vote, 0)
        self._records.append(Record(replica.partition, promised, None, 1, []))
        self._after_write.append(lives)

    def installing(self, replica: Replica) -> bool:
        """Whether a snapshot is taking the place of its state."""
        return replica in self._installing

    def withdraw(self, replica: Replica) -> None:
        """Nothing reaches the replica any more, and nothing is asked of it."""
        del self.replicas[replica.partition]
        self._carried.pop(replica, None)
        self._flushing.pop(replica, None)

    def forget(self, partition: int, promised: HardState, done: Callable[[], object]) -> None:
        """Of a group without a replica the log keeps what was promised, and nothing else; `done` follows when
        that is durable.
        """
        self._records.append(self._log.forget(partition))
        self._records.append(Record(partition, promised, None, 1, []))
        self._after_write.append(done)

    def _die(self, error: Exception) -> None:
        """Nobody can say what is on the disk: from here on this node says nothing, to nobody."""
        if not self._dead:
            self._dead = True
            self._on_fatal(error)

    # -- snapshots

    def install(self, arrived: Arrived) -> None:
        """Puts a snapshot in the place of a replica's state, when no log write is under way."""
        self._arrived.append(arrived)

    def _install(self) -> None:
        """Engine first, then the log, which begins anew behind the snapshot; Raft when that is durable."""
        waiting, self._arrived = self._arrived, []
        for arrived in waiting:
            replica = arrived.replica
            try:
                self._check(replica)
                replica.machine.install(arrived.examined)
            except EngineFailed as error:
                replica.fail(error)
                arrived.done(error)
                continue
            except Exception as error:  # noqa: BLE001 - the replica is as it was; the leader offers again
                arrived.done(error)
                continue
            at = replica.machine.position
            self._records.append(Record(replica.partition, None, (at.index, at.term), at.index + 1, []))
            self._installing[replica] = arrived

    def _check(self, replica: Replica) -> None:
        if replica.failure is not None:
            raise ValueError(replica.failure)
        if replica in self._installing:
            raise ValueError("another snapshot is being installed")
        if replica.raft.role >= Role.CANDIDATE:
            raise ValueError("the replica leads, or could win an election before its log is cut")

    def _installed(self, arrived: Arrived, now: float) -> None:
        try:
            arrived.replica.raft.now = now
            arrived.replica.installed(now)
        except Exception as error:  # noqa: BLE001 - engine and log have moved on, Raft has not
            arrived.replica.fail(error)
            arrived.done(error)
        else:
            arrived.done(None)

    # -- from time to time

    def hand_over(self) -> None:
        """Gives all leadership away that somebody else can take; ticks go on with it."""
        self._handing_over = True
        self._give_away()

    def _give_away(self) -> None:
        for replica in self.replicas.values():
            raft = replica.raft
            if raft.role is not Role.LEADER or replica.failure is not None:
                continue
            others = [
                (progress.match, node)
                for node, progress in raft.progress.items()
                if node != raft.node and node in raft.configuration.voters and progress.recent_active
            ]
            if others:
                self._handed_over.add(replica)
                self._transfer(replica, max(others)[1])

    def _transfer(self, replica: Replica, node: int) -> None:
        try:
            replica.raft.transfer(node)
        except (Dropped, NotLeader):
            return  # a transfer is under way, or that node must catch up by a snapshot first
        self._dirty[replica] = None

    def maintain(self) -> float:
        """Cuts the log when it is long: behind what the engines have in tables. Flushes what pins it. Returns
        the seconds after which it wants to be called again.
        """
        for hosted in self.replicas.values():
            if (error := hosted.machine.engine.out_of_room) is not None:
                self._die(error)  # it would lead on and refuse all writes, which the others could take
        long = self.log_is_long
        if long:
            for group in self._log.pinned_by():
                replica = self.replicas.get(group)
                if replica is not None and replica.failure is None and replica not in self._installing:
                    self._shorten(replica)
        try:
            self._log.collect()
        except LogFailed as error:
            self._die(error)
        if not self._handing_over:
            for replica in self.replicas.values():
                self._hand_back(replica)
        return SHORTEN_S if long else MAINTAIN_S

    def _shorten(self, replica: Replica) -> None:
        """Cuts the log of this group; flushes if the engine holds it up. Not if others do: each flush would
        make a small table, and free nothing. Entries that cannot be applied, for the group has gone on
        without this replica, are carried to the log's end: until it gets a snapshot, or for ever if it was
        removed, all that the other groups write would pile up behind them.
        """
        group = self._log.group(replica.partition)
        index = replica.machine.durable().index
        if index < group.first_index:
            applied = replica.machine.position.index
            if applied == index and replica.raft.commit <= applied:
                self._carried[replica] = None
            elif self._flushing.get(replica, 0) <= index:
                self._flushing[replica] = applied
                replica.machine.engine.flush(wait=False)
            return
        index = min(index, self._needed_by_others(replica))
        if index >= group.first_index:
            self._records.append(Record(replica.partition, None, (index, group.term(index)), index + 1, []))

    def _needed_by_others(self, replica: Replica) -> int:
        """Up to where the log may be cut so that nobody who could do with entries needs a snapshot, as long
        as there is room for that.
        """
        limit = self.pinned(replica.partition)
        needed = replica.raft.last_index if limit is None else limit
        if replica.raft.role is Role.LEADER and self._log.bytes_held <= 2 * self._log_bytes_max:
            held = self._log.group(replica.partition).first_index - 1
            matches = [one.match for one in replica.raft.progress.values() if one.match >= held]
            needed = min([needed, *matches])
        return needed

    def _hand_back(self, replica: Replica) -> None:
        """Leadership goes to the node that the map prefers, once that one has everything; unless an operator
        wants it here, or members are about to change: who leads meanwhile was chosen for that.
        """
        raft, leadership = replica.raft, replica.raft.leadership
        if leadership is None or replica.kept_term == raft.term or leadership.ticks < HAND_BACK_TICKS:
            return
        configuration = raft.configuration
        if configuration.joint or configuration.learners or leadership.change_under_way:
            return
        preferred = self.preferred(replica.partition)
        if preferred != raft.node and preferred in configuration.voters:
            progress = raft.progress[preferred]
            heard_at = progress.heard_at
            lately = heard_at is not None and self._clock.monotonic() - heard_at <= HEARD_S
            if lately and progress.match == raft.last_index:
                self._transfer(replica, preferred)
