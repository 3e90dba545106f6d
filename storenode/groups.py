"""All replicas of a node, driven together: one log write, and one flush of the bus, per turn for all of them.

Owns the order of things in a turn, and which replicas have something to do. Knows no socket and no thread:
messages leave through `send(group, message)`, log writes through `submit`. One thread, the loop's.

The end of a turn, for each replica that something happened to: what is pending is proposed; what must be
durable goes into the log's next batch, with that of all others; what is committed is applied and answered;
messages leave. While a batch is being written the loop goes on, and what gathers meanwhile is the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from shared import logs
from shared.clock import Clock
from storenode.raft import Role, Unstable
from storenode.raft.messages import EntryKind, Message
from storenode.raftlog import RaftLog, Record, Written
from storenode.replica.replica import Replica

TICK_S: Final = 0.1
"""Raft's tick; elections begin after ten to twenty of them without a leader."""

MAINTAIN_S: Final = 1.0

_log = logs.get("groups")


class LogWriter(Protocol):
    """What writes batches: `storenode.logthread.LogThread`, or its twin in simulations."""

    @property
    def busy(self) -> bool: ...
    def submit(self, records: list[Record], done: Callable[[Written | Exception], object]) -> None: ...


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
        self.strangers = 0
        self._log = log
        self._writer = writer
        self._send = send
        self._clock = clock
        self._on_fatal = on_fatal
        self._log_bytes_max = log_bytes_max
        self._dirty: dict[Replica, None] = {}
        self._unwritten: dict[Replica, None] = {}
        self._cuts: list[Record] = []
        self._last_tick = clock.monotonic()

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

    # -- the end of a turn

    def end_turn(self) -> bool:
        """Does what is due; whether some is left for a further turn at once."""
        if not self._dirty and not self._cuts:
            return False
        dirty, self._dirty = self._dirty, {}
        now = self._clock.monotonic()
        batch: list[tuple[Replica, Unstable]] = []
        busy = self._writer.busy
        left = False
        for replica in dirty:
            if replica.failure is not None:
                continue
            raft = replica.raft
            raft.now = now
            replica.log_pending(now)
            raft.flush()
            if busy:
                self._unwritten[replica] = None
            elif (unstable := raft.take_unstable()) is not None:
                batch.append((replica, unstable))
            left |= replica.apply(now)
            self._send_all(replica)
        if not busy and (batch or self._cuts):
            self._write(batch)
        return left or bool(self._dirty)

    def _send_all(self, replica: Replica) -> None:
        raft = replica.raft
        if raft.messages:
            messages, raft.messages = raft.messages, []
            send, group = self._send, replica.partition
            for message in messages:
                send(group, message)

    def _write(self, batch: list[tuple[Replica, Unstable]]) -> None:
        records, self._cuts = self._cuts, []
        for replica, unstable in batch:
            records.append(
                Record(replica.partition, unstable.hard, None, unstable.first_index, unstable.entries)
            )
        self._writer.submit(records, lambda outcome: self._written(batch, outcome))

    def _written(self, batch: list[tuple[Replica, Unstable]], outcome: Written | Exception) -> None:
        if isinstance(outcome, Exception):
            self._on_fatal(outcome)
            return
        self._log.installed(outcome)
        now = self._clock.monotonic()
        for replica, unstable in batch:
            replica.raft.now = now
            replica.raft.persisted(unstable)
            self._dirty[replica] = None
        self._dirty.update(self._unwritten)
        self._unwritten.clear()

    # -- from time to time

    def maintain(self) -> None:
        """Cuts the log when it is long: behind what the engines have in tables. Flushes what pins it."""
        if self._log.bytes_held > self._log_bytes_max:
            for group in self._log.pinned_by():
                replica = self.replicas.get(group)
                if replica is not None and replica.failure is None and not self._cut(replica):
                    replica.machine.engine.flush(wait=False)
        self._log.collect()
        for replica in self.replicas.values():
            self._hand_back(replica)

    def _cut(self, replica: Replica) -> bool:
        """Whether the log of this group gets shorter."""
        group = self._log.group(replica.partition)
        index, term = replica.machine.durable()
        needed = self._needed_by_others(replica)
        if needed < index:
            index = needed
            if index < group.first_index:
                return False
            term = group.term(index)
        if index < group.first_index:
            return False
        self._cuts.append(Record(replica.partition, None, (index, term), index + 1, []))
        return True

    def _needed_by_others(self, replica: Replica) -> int:
        """Up to where the log may be cut so that nobody who is merely a little behind needs a snapshot, as
        long as there is room for that.
        """
        limit = self.pinned(replica.partition)
        needed = replica.raft.last_index if limit is None else limit
        if replica.raft.role is Role.LEADER and self._log.bytes_held <= 2 * self._log_bytes_max:
            matches = [one.match for one in replica.raft.progress.values() if one.active]
            needed = min(needed, *matches) if matches else needed
        return needed

    def _hand_back(self, replica: Replica) -> None:
        """Leadership goes to the node that the map prefers, once that one has everything."""
        raft, preferred = replica.raft, replica.preferred
        if raft.role is Role.LEADER and preferred != raft.node and preferred in raft.progress:
            progress = raft.progress[preferred]
            if progress.active and progress.match == raft.last_index:
                raft.transfer(preferred)
                self._dirty[replica] = None
