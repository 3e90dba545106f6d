"""One leadership: it begins when a term is won and is dropped when it is lost.

Owns what only a leader has: members' progress, read rounds and lease, transfer, the cap on uncommitted bytes,
the change of configuration that is pending, the check of the quorum. Must not know how terms and roles
change.

Invariants: only an entry of the own term is committed by counting (dissertation 3.6.2); no read and no change
of configuration before one is (6.4; Ongaro, raft-dev 2015-07); one change at a time.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from storenode.raft.configuration import ConfigurationRefused, apply_change, encode_change
from storenode.raft.contract import Dropped
from storenode.raft.messages import (
    EVERYBODY,
    NOBODY,
    Change,
    Entry,
    EntryKind,
    Kind,
    Message,
    Transition,
)
from storenode.raft.progress import ProgressState
from storenode.raft.quorum import VoteResult, joint_committed_index, vote_result
from storenode.raft.read_only import NEVER, LeaderReads
from storenode.raft.replication import Replication
from storenode.raft.state import GroupState


class _Asked(NamedTuple):
    """A read that a follower has asked for, among the tokens of local ones."""

    node: int
    number: int


class Leadership:
    """The leader's side of one term."""

    def __init__(self, state: GroupState) -> None:
        self._state = state
        self.replication = Replication(state)
        self.ready_reads: list[tuple[int, list[object]]] = []
        self.transferee = NOBODY
        self.ticks = 0
        """For which this term is led."""
        self._first_index = state.log.last_index + 1  # of the own term
        self._pending_change = state.log.last_index  # what came before may hold one that is not applied
        self._reads = LeaderReads()
        self._waiting_reads: list[object] = []
        self._uncommitted: deque[tuple[int, int]] = deque()  # index, bytes
        self._uncommitted_bytes = 0
        self._heartbeat_ticks = 0
        self._quorum_ticks = 0
        self._heartbeat_wanted = True
        self._lease_given_up = False
        state.log.append([Entry(state.term, EntryKind.NORMAL, b"")])

    @property
    def established(self) -> bool:
        """An entry of the own term is committed: the commit index is at least that of all leaders before."""
        return self._state.log.commit >= self._first_index

    @property
    def change_under_way(self) -> int:
        """The index of a change that is not applied here, or of what other leaders left and may be one; 0:
        there is none.
        """
        return self._pending_change if self._pending_change > self._state.applied_index else 0

    @property
    def lease_until(self) -> float:
        """In the clock of `now`; -inf while there is none. Once the order to campaign has left, a late copy
        of it may depose us past every promise, so that there is no lease for the rest of this term.
        """
        if self.transferee or self._lease_given_up or not self.established:
            return NEVER
        seconds = self._state.settings.lease_seconds
        return self._reads.lease_start + seconds if seconds > 0 else NEVER

    # proposals

    def propose(self, data: bytes) -> int:
        state = self._state
        if self.transferee:
            raise Dropped(f"leadership is being handed to node {self.transferee}; ask again")
        size = len(data)
        cap = state.settings.uncommitted_bytes_max
        if self._uncommitted_bytes and self._uncommitted_bytes + size > cap:
            raise Dropped(
                f"{self._uncommitted_bytes} bytes wait for a quorum, {cap} are allowed; ask again later"
            )
        return self._append(EntryKind.NORMAL, data)

    def propose_change(self, change: Change) -> int:
        state = self._state
        if self.transferee:
            raise Dropped(f"leadership is being handed to node {self.transferee}; ask again")
        if not self.established:
            raise ConfigurationRefused("the leader has not committed an entry of its term yet; ask again")
        if self.change_under_way:
            raise ConfigurationRefused(
                f"a change may be pending at index {self._pending_change}, applied is {state.applied_index};"
                " one at a time, ask again when it is applied"
            )
        apply_change(state.configuration, change)
        self._pending_change = self._append(EntryKind.CONFIGURATION, encode_change(change))
        return self._pending_change

    def change_applied(self) -> None:
        """The configuration is a new one. Members that are gone no longer count, so more may be committed;
        and a lease that others have confirmed is void.
        """
        state = self._state
        self.replication.follow(state.configuration)
        self._reads.void_lease()
        if self.transferee and self.transferee not in state.configuration.members:
            self._end_transfer()
        self.commit()
        self._confirm_reads()

    def leave_joint(self) -> None:
        """Propose to leave a joint configuration that is left automatically: asked at each occasion, for one
        may pass while it is not possible (etcd#14538), proposed once (etcd#14545).
        """
        state = self._state
        configuration = state.configuration
        if (
            configuration.joint
            and configuration.auto_leave
            and self._pending_change <= state.applied_index
            and self.established
            and not self.transferee
        ):
            self._pending_change = self._append(
                EntryKind.CONFIGURATION, encode_change(Change(Transition.AUTO, ()))
            )

    def commit(self) -> None:
        """Commit what a quorum has, if that reaches into the own term."""
        log = self._state.log
        index = self.replication.committed()
        if index <= log.commit or index < self._first_index:
            return
        log.commit = min(index, log.last_index)
        waiting = self._uncommitted
        while waiting and waiting[0][0] <= log.commit:
            self._uncommitted_bytes -= waiting.popleft()[1]

    # replies

    def take_append_reply(self, message: Message) -> None:
        if not self.replication.take_reply(message):
            return
        if message.a > self._state.log.commit:
            self.commit()
        if message.sender == self.transferee:
            self._order_campaign()

    def take_heartbeat_reply(self, message: Message) -> None:
        member = self.replication.progress.get(message.sender)
        if member is None or message.context > self._reads.context:
            return
        member.hear(self._state.now)
        if message.context > member.acked_context:
            member.acked_context = message.context
            if message.context > self._reads.confirmed:
                self._confirm_reads()
        self.replication.take_heartbeat_reply(message.sender, member)

    def take_read_index(self, message: Message) -> None:
        if message.sender in self.replication.progress:
            self._waiting_reads.append(_Asked(message.sender, message.context))

    # reads

    def read(self, token: object) -> None:
        self._waiting_reads.append(token)

    def abandon_reads(self) -> list[object]:
        """The local tokens that will not be answered."""
        tokens = self._reads.abandon() + self._waiting_reads
        return [token for token in tokens if not isinstance(token, _Asked)]

    # time

    def tick(self) -> bool:
        """Whether we still lead: false when no quorum was heard of for `election_ticks`."""
        settings = self._state.settings
        self.ticks += 1
        self.replication.tick()
        self._heartbeat_ticks += 1
        if self._heartbeat_ticks >= settings.heartbeat_ticks:
            self._heartbeat_ticks = 0
            self._heartbeat_wanted = True
            self.replication.beat()
        if self.transferee:
            self._order_campaign()  # again: the bus may have lost the order
        self._quorum_ticks += 1
        if self._quorum_ticks >= settings.election_ticks:
            self._quorum_ticks = 0
            if self.transferee:
                self._end_transfer()
            if not self._quorum_active():
                return False
        self.leave_joint()
        return True

    # transfer

    def transfer(self, to: int) -> None:
        state = self._state
        if to in (state.node, self.transferee):
            return
        member = self.replication.progress.get(to)
        if member is None or to not in state.configuration.voters:
            raise Dropped(f"node {to} is no voter of this group; leadership stays")
        if member.state is ProgressState.SNAPSHOT:
            raise Dropped(f"node {to} waits for a snapshot; leadership stays")
        self.transferee = to
        self._quorum_ticks = 0
        if member.match == state.log.last_index:
            self._order_campaign()
        else:
            self.replication.wanted = True

    def hand_over(self) -> None:
        """We are no voter any more: tell the commit index that removed us, and who shall go on."""
        state = self._state
        self._heartbeat()
        voters = [node for node in sorted(state.configuration.voters) if node in self.replication.progress]
        if voters:
            best = max(voters, key=lambda node: self.replication.progress[node].match)
            state.messages.append(Message(best, state.node, Kind.TIMEOUT_NOW, state.term))

    # output

    def flush(self) -> None:
        """Send what the turn has brought: entries, then one heartbeat if reads or the time ask for it."""
        if self.replication.wanted:
            self.replication.send()
        if self._heartbeat_wanted or (self._waiting_reads and self.established):
            self._heartbeat_wanted = False
            self._heartbeat()

    def _heartbeat(self) -> None:
        state = self._state
        log = state.log
        tokens: list[object] = []
        if self.established:
            tokens, self._waiting_reads = self._waiting_reads, tokens
        context = self._reads.begin(state.now, log.commit, tokens)
        own = self.replication.progress.get(state.node)
        if own is not None:
            own.acked_context = context
        if not self.replication.alone:
            state.messages.append(
                Message(
                    EVERYBODY,
                    state.node,
                    Kind.HEARTBEAT,
                    state.term,
                    log.commit,
                    log.term(log.commit),
                    0,
                    0,
                    context,
                )
            )
        if len(state.configuration.voters) == 1:
            self._confirm_reads()

    def _confirm_reads(self) -> None:
        state = self._state
        context = joint_committed_index(
            state.configuration,
            {node: member.acked_context for node, member in self.replication.progress.items()},
        )
        if context <= self._reads.confirmed:
            return
        for index, tokens in self._reads.confirm(context):
            local: list[object] = []
            for token in tokens:
                if isinstance(token, _Asked):
                    state.messages.append(
                        Message(
                            token.node,
                            state.node,
                            Kind.READ_INDEX_REPLY,
                            state.term,
                            index,
                            context=token.number,
                        )
                    )
                else:
                    local.append(token)
            if local:
                self.ready_reads.append((index, local))

    def _append(self, kind: EntryKind, data: bytes) -> int:
        state = self._state
        log = state.log
        log.append((Entry(state.term, kind, data),))
        size = len(data)
        self._uncommitted.append((log.last_index, size))
        self._uncommitted_bytes += size
        self.replication.wanted = True
        return log.last_index

    def _quorum_active(self) -> bool:
        active = {}
        for node, member in self.replication.progress.items():
            active[node] = member.recent_active or node == self._state.node
            member.recent_active = False
        return vote_result(self._state.configuration, active) is VoteResult.WON

    def _order_campaign(self) -> None:
        state = self._state
        if self.replication.progress[self.transferee].match == state.log.last_index:
            self._lease_given_up = True
            state.messages.append(Message(self.transferee, state.node, Kind.TIMEOUT_NOW, state.term))

    def _end_transfer(self) -> None:
        self.transferee = NOBODY
