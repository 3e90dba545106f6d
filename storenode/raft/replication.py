"""The leader's sending side: which member gets which entries, once for all who wait for the same.

Owns the members' progress. Must not know terms that pass, reads, or how leadership is won and lost.

Invariants: entries go to REPLICATE members within their windows, all of which are charged for a broadcast; a
PROBE member gets one APPEND per heartbeat interval or answer; nothing goes to SNAPSHOT members but the
reminder.
"""

from __future__ import annotations

from typing import Final

from storenode.raft.messages import EVERYBODY, Configuration, Entry, Kind, Message
from storenode.raft.progress import Progress, ProgressState
from storenode.raft.quorum import joint_committed_index
from storenode.raft.state import GroupState

APPENDS_PER_TURN: Final = 4
"""To one member in one turn. Four of 1 MiB fill a frame of the bus, and a turn stays short; the answers ask
for more.
"""


class Replication:
    """Progress of all members of a group, this leader included."""

    __slots__ = ("_others", "_state", "progress", "wanted")

    def __init__(self, state: GroupState) -> None:
        self._state = state
        self.progress: dict[int, Progress] = {}
        self._others: list[tuple[int, Progress]] = []
        self.wanted = True
        """There may be something to send."""
        self.follow(state.configuration)

    def follow(self, configuration: Configuration) -> None:
        """Keep progress for the members of `configuration`; new ones are probed from the end of the log."""
        state, progress = self._state, self.progress
        self.progress = {
            node: progress.get(node) or Progress(state.log.last_index + 1, state.settings, state.now)
            for node in sorted(configuration.members)
        }
        self._others = [(node, member) for node, member in self.progress.items() if node != state.node]
        own = self.progress.get(state.node)
        if own is not None:
            own.match = state.log.durable_index
            own.next = state.log.last_index + 1
            own.state = ProgressState.REPLICATE
        self.wanted = True

    @property
    def alone(self) -> bool:
        return not self._others

    def committed(self) -> int:
        """The highest index that a quorum has durably."""
        return joint_committed_index(
            self._state.configuration, {node: member.match for node, member in self.progress.items()}
        )

    def own_durable(self) -> None:
        """Our own disk has caught up."""
        own = self.progress.get(self._state.node)
        if own is not None:
            own.match = self._state.log.durable_index

    def take_reply(self, message: Message) -> bool:
        """An APPEND_REPLY of our term; returns whether it moved the member's match."""
        member = self.progress.get(message.sender)
        if member is None or message.a > self._state.log.last_index:
            return False
        member.hear(self._state.now)
        if message.flag:
            self._take_rejection(member, message)
            return False
        moved = member.acknowledge(message.a)
        if member.state is ProgressState.PROBE:
            joined = message.a == member.match
        else:
            # Any snapshot will do from which the log goes on, not only the one that was named (etcd#10308).
            joined = (
                member.state is ProgressState.SNAPSHOT and member.match + 1 >= self._state.log.first_index
            )
        if joined:
            member.replicate()
        if member.next <= self._state.log.last_index:
            self.wanted = True
        return moved

    def take_heartbeat_reply(self, node: int, member: Progress) -> None:
        """The member is there: if it has said nothing of entries for a whole interval, ask it once. An empty
        APPEND passes even a full window, for its acknowledgements may have been lost (etcd#14633).
        """
        if not member.stalled:
            return
        member.stalled = False
        if member.state is ProgressState.PROBE:
            member.probe_sent = False
            self.wanted = True
        elif member.state is ProgressState.REPLICATE and member.match < self._state.log.last_index:
            if member.next < self._state.log.first_index:
                self._snapshot(node, member)
            else:
                self._append(node, member.next, [])

    def unreachable(self, node: int) -> None:
        """Sending to it, or its pull of a snapshot, failed."""
        member = self.progress.get(node)
        if member is not None and member.state is not ProgressState.PROBE:
            member.probe(member.match + 1)
            self.wanted = True

    def beat(self) -> None:
        """A heartbeat interval has passed."""
        for _, member in self._others:
            member.beat()

    def tick(self) -> None:
        """Remind those that pull a snapshot, for the message may have been lost."""
        for node, member in self._others:
            if member.state is ProgressState.SNAPSHOT:
                member.snapshot_ticks += 1
                if member.snapshot_ticks >= self._state.settings.election_ticks:
                    self._snapshot(node, member)

    def send(self) -> None:
        """Send what waits, as far as the windows allow."""
        self.wanted = False
        last = self._state.log.last_index
        waiting: dict[int, list[tuple[int, Progress]]] = {}
        for node, member in self._others:
            if member.state is ProgressState.REPLICATE:
                if member.next <= last and not member.full:
                    waiting.setdefault(member.next, []).append((node, member))
            elif member.state is ProgressState.PROBE and not member.probe_sent:
                self._probe(node, member)
        for index, members in waiting.items():
            self._stream(index, members)

    def _stream(self, index: int, members: list[tuple[int, Progress]]) -> None:
        log, settings = self._state.log, self._state.settings
        if index < log.first_index:
            for node, member in members:
                self._snapshot(node, member)
            return
        to = members[0][0] if len(members) == 1 else EVERYBODY
        for _ in range(APPENDS_PER_TURN):
            entries = log.entries(index, log.last_index + 1, settings.append_bytes_max)
            self._append(to, index, entries)
            index += len(entries)
            size = sum([len(entry[2]) for entry in entries])
            for _, member in members:
                member.sent(index - 1, size)
            if index > log.last_index or any(member.full for _, member in members):
                return
        self.wanted = True

    def _probe(self, node: int, member: Progress) -> None:
        log = self._state.log
        if member.next < log.first_index:
            self._snapshot(node, member)
            return
        member.probe_sent = True
        entries: list[Entry] = []
        if member.next <= log.last_index:
            entries = log.entries(member.next, log.last_index + 1, self._state.settings.append_bytes_max)
        self._append(node, member.next, entries)

    def _append(self, to: int, index: int, entries: list[Entry]) -> None:
        state = self._state
        log = state.log
        previous = index - 1
        state.messages.append(
            Message(
                to,
                state.node,
                Kind.APPEND,
                state.term,
                previous,
                log.term(previous),
                log.commit,
                0,
                0,
                entries,
            )
        )

    def _snapshot(self, node: int, member: Progress) -> None:
        state = self._state
        index = state.applied_index
        member.snapshot()
        state.messages.append(
            Message(node, state.node, Kind.SNAPSHOT, state.term, index, state.log.term(index))
        )

    def _take_rejection(self, member: Progress, message: Message) -> None:
        if member.state is ProgressState.REPLICATE:
            if message.a > member.match:  # else it is older than what has been acknowledged since
                member.probe(member.match + 1)
                self.wanted = True
        elif member.state is ProgressState.PROBE and message.a == member.next - 1:
            if message.a == member.match:
                # It had been erased and was added again, and an acknowledgement of before came late.
                member.match = 0
            log = self._state.log
            hint = min(message.b, message.a)
            low = max(member.match + 1, log.first_index - 1)
            meet = log.last_at_or_below(message.c, low, hint) if hint >= low else hint
            member.probe(min(message.a, meet + 1))
            self.wanted = True
