"""Raft for one group: the pure state machine that callers see.

Owns the transitions of role and term, and which part answers which message: `Election`, `following`,
`Leadership`. Must not know sockets, files, threads, clocks; randomness and time are handed in. The caller's
duties, in their order, are in the package's docstring.

Invariants: term and commit index never go down; a vote of a term, once given, stays; nothing leaves in
`messages` whose promise is not durable.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from storenode.raft import following
from storenode.raft.configuration import apply_change
from storenode.raft.contract import NotLeader, Settings, Unstable
from storenode.raft.election import Election
from storenode.raft.leadership import Leadership
from storenode.raft.messages import NOBODY, Change, Configuration, Entry, HardState, Kind, Message
from storenode.raft.progress import Progress
from storenode.raft.quorum import VoteResult
from storenode.raft.read_only import NEVER, ForwardedReads
from storenode.raft.state import GroupState, Role
from storenode.raft.storage import Storage

_FROM_LEADER: Final = frozenset({int(Kind.APPEND), int(Kind.HEARTBEAT), int(Kind.SNAPSHOT)})
_REQUESTS_FOR_VOTES: Final = frozenset({int(Kind.PRE_VOTE), int(Kind.VOTE)})
_ANSWERS_WITH_VOTES: Final = frozenset({int(Kind.PRE_VOTE_REPLY), int(Kind.VOTE_REPLY)})


class Raft(GroupState):
    """One node's part in one group. Not thread-safe; no call blocks.

    Inputs: `now`, `tick`, `step`, `propose`, `propose_change`, `read_index`, `transfer`, `campaign`,
    `unreachable`, `persisted`, `applied`, `change_applied`, `restore`. Outputs, once per turn: `flush`,
    `take_unstable`, `messages`, `take_committed`, `take_reads`, `take_failed_reads`, `snapshot_wanted`.
    """

    def __init__(
        self,
        node: int,
        storage: Storage,
        configuration: Configuration,
        applied: int,
        settings: Settings,
        random: Random,
    ) -> None:
        """`applied` is the index that the state machine has; `configuration` the one in force there.

        ValueError: the log does not join `applied`, or has lost entries that were committed.
        """
        super().__init__(node, storage, configuration, applied, settings, random)
        self._storage = storage
        self._election = Election(self)
        self._leadership: Leadership | None = None
        self._handed_out = applied
        self._hard_written = storage.hard_state
        self._writing: Unstable | None = None
        self._ordered_term = 0  # in which the leader told us to stand
        self._ticks = 0
        self._reads_to_forward: list[object] = []
        # A restarted process must not take answers to questions of the one before for answers to its own.
        self._forwarded = ForwardedReads(random.getrandbits(48))
        self._ready_reads: list[tuple[int, list[object]]] = []
        self._failed_reads: list[object] = []
        self._handlers: dict[int, Callable[[Message], None]] = {
            Kind.APPEND: self._on_append,
            Kind.APPEND_REPLY: self._on_append_reply,
            Kind.HEARTBEAT: self._on_heartbeat,
            Kind.HEARTBEAT_REPLY: self._on_heartbeat_reply,
            Kind.PRE_VOTE_REPLY: self._on_pre_vote_reply,
            Kind.VOTE_REPLY: self._on_vote_reply,
            Kind.SNAPSHOT: self._on_snapshot,
            Kind.TIMEOUT_NOW: self._on_timeout_now,
            Kind.READ_INDEX: self._on_read_index,
            Kind.READ_INDEX_REPLY: self._on_read_index_reply,
        }

    # what it is

    @property
    def commit(self) -> int:
        return self.log.commit

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def lease_until(self) -> float:
        """Until when, in the clock of `now`, reads at `commit` need no round; -inf if there is no lease."""
        return self._leadership.lease_until if self._leadership else NEVER

    @property
    def leadership(self) -> Leadership | None:
        """What only a leader has."""
        return self._leadership

    @property
    def standing(self) -> bool:
        """Whether this node stands for election, or will by order once it has applied what is committed."""
        return self.role is Role.CANDIDATE or 0 < self._ordered_term == self.term

    @property
    def progress(self) -> dict[int, Progress]:
        """Every member's progress; empty if this node does not lead."""
        return self._leadership.replication.progress if self._leadership else {}

    # inputs

    def tick(self) -> None:
        """One unit of time has passed."""
        self._ticks += 1
        self.rejected_this_tick = False
        if self._leadership:
            if not self._leadership.tick():
                self._become_follower(self.term, NOBODY)
            return
        if self._election.tick():
            self.campaign()
        if self._forwarded.waiting:
            self._failed_reads += self._forwarded.late(self._ticks - self.settings.election_ticks)

    def step(self, message: Message) -> None:
        """Take a message of another node; own broadcasts that come back are ignored."""
        if message.sender == self.node:
            return
        if message.kind in _REQUESTS_FOR_VOTES:
            self._on_request_for_vote(message)
            return
        if message.kind in _ANSWERS_WITH_VOTES and not self._leadership:
            following.learn_commit(self, message)  # true in any term
        if message.term == self.term or self._settle_term(message):
            self._handlers[message.kind](message)

    def propose(self, data: bytes) -> int:
        """Append an entry; returns its index. It is committed when `take_committed` returns an entry of this
        term at that index, and lost when it returns one of another term. Raises NotLeader, Dropped.
        """
        return self._lead().propose(data)

    def propose_change(self, change: Change) -> int:
        """Append a change of configuration; returns its index. It is in force when `change_applied` is
        called.

        Raises NotLeader, Dropped, and ConfigurationRefused if it is illegal, another one is not applied yet,
        or the leader has committed nothing in its term.
        """
        return self._lead().propose_change(change)

    def read_index(self, token: object) -> None:
        """Ask from which applied index on a read that begins now is linearizable; the answer is in
        `take_reads`, or `token` in `take_failed_reads`. All reads of a turn share one round.
        """
        if self._leadership:
            self._leadership.read(token)
        else:
            self._reads_to_forward.append(token)

    def transfer(self, to: int) -> None:
        """Hand leadership to `to`; meanwhile proposals are dropped. Given up after `election_ticks`. Raises
        NotLeader, and Dropped if `to` is no voter or waits for a snapshot.
        """
        self._lead().transfer(to)

    def campaign(self) -> None:
        """Ask for votes, as when the timeout passes: unless a leader was heard less than `election_ticks`
        ago, this node is no voter, or a committed change of configuration is not applied yet.
        """
        if self._leadership or self._election.loyal or not self._may_stand():
            return
        self._stand(Role.PRE_CANDIDATE)

    def unreachable(self, node: int) -> None:
        """What was sent to `node` is lost, or its pull of a snapshot failed."""
        if self._leadership:
            self._leadership.replication.unreachable(node)

    def persisted(self, unstable: Unstable) -> None:
        """What `take_unstable` returned is durable: its replies may go, and the leader counts itself."""
        if unstable is not self._writing:
            raise RuntimeError("persisted what was not being written: at most one write is out")
        self._writing = None
        if unstable.hard:
            self._hard_written = unstable.hard
        self.log.persisted()
        if self._leadership:
            self._leadership.replication.own_durable()
            self._leadership.commit()
        self._release(unstable.replies)

    def applied(self, index: int) -> None:
        """The state machine has everything up to `index`."""
        if not self.applied_index <= index <= self._handed_out:
            had, given = self.applied_index, self._handed_out
            raise ValueError(f"applied index {index} is not between {had}, applied before, and {given}")
        self.applied_index = index
        if self.log.changes:
            self.log.forget_changes(index)
        if self._leadership:
            if self.configuration.joint:
                self._leadership.leave_joint()
        elif self._ordered_term and self._ordered_term == self.term:
            self._obey()

    def change_applied(self, change: Change) -> Configuration:
        """Put the change of a CONFIGURATION entry in force while it is applied, before `applied` is called
        for it; returns the new configuration. A leader that is no voter any more hands over and steps down.
        """
        self.configuration = apply_change(self.configuration, change)
        if self._leadership:
            self._leadership.change_applied()
            if not self.promotable:
                self._leadership.hand_over()
                self._become_follower(self.term, NOBODY)
        return self.configuration

    def restore(self, index: int, term: int, configuration: Configuration) -> None:
        """The state machine is now a snapshot of `index`, and the storage has been cut there, durably. Takes
        no write between the cut and this call. Tells the leader.

        ValueError: the snapshot is older than what is applied. RuntimeError: a log write with entries is out.
        """
        if index <= self.applied_index or self._leadership:
            raise ValueError(f"snapshot of index {index} is older than what is applied, {self.applied_index}")
        self.log.restored(index, term)
        self.applied_index = index
        self._handed_out = max(self._handed_out, index)
        self.configuration = configuration
        self.snapshot_wanted = None
        if self.leader:
            self.acknowledge(self.leader, index)

    # outputs

    def flush(self) -> None:
        """End of the turn's inputs: entries, heartbeat and read round go to `messages`."""
        if self._leadership:
            self._leadership.flush()
        elif self._reads_to_forward:
            tokens, self._reads_to_forward = self._reads_to_forward, []
            if not self.leader:
                self._failed_reads += tokens
                return
            number = self._forwarded.ask(self._ticks, tokens)
            self.messages.append(Message(self.leader, self.node, Kind.READ_INDEX, self.term, context=number))

    def take_unstable(self) -> Unstable | None:
        """What to write next; None if there is nothing or a write is out. If there is nothing at all to wait
        for, what waited for durability goes to `messages`.
        """
        if self._writing:
            return None
        hard = HardState(self.term, self.vote, self.log.commit)
        written = self._hard_written
        entries = self.log.unstable
        if not entries and hard.term == written.term and hard.vote == written.vote:
            if self.pending_replies:
                replies, self.pending_replies = self.pending_replies, []
                self._release(replies)
            return None
        first_index, taken = self.log.take()
        replies, self.pending_replies = self.pending_replies, []
        self._writing = Unstable(first_index, taken, None if hard == written else hard, replies)
        return self._writing

    def take_committed(self, bytes_max: int) -> tuple[int, list[Entry]]:
        """The next committed entries that are durable here, and the index of the first; about `bytes_max`
        bytes of data, at least one entry if there is one.
        """
        first = self._handed_out + 1
        stop = min(self.log.commit, self.log.durable_index) + 1
        if first >= stop:
            return first, []
        entries = self._storage.entries(first, stop, bytes_max)
        self._handed_out += len(entries)
        return first, entries

    def take_reads(self) -> list[tuple[int, list[object]]]:
        """(index that must be applied here, tokens) of reads that are confirmed."""
        if self._leadership and self._leadership.ready_reads:
            ready, self._leadership.ready_reads = self._leadership.ready_reads, []
            self._ready_reads += ready
        if not self._ready_reads:
            return []
        reads, self._ready_reads = self._ready_reads, []
        return reads

    def take_failed_reads(self) -> list[object]:
        """Tokens that get no answer here: leadership was lost, or no leader is known or answers."""
        failed, self._failed_reads = self._failed_reads, []
        return failed

    # terms and roles

    def _settle_term(self, message: Message) -> bool:
        """Bring a message of another term in line; whether it is to be handled."""
        if message.term > self.term:
            if message.kind == Kind.PRE_VOTE_REPLY and not message.flag:
                return True  # it carries the term that was asked for
            if self._leadership and message.sender not in self.configuration.members:
                return False  # who was removed deposes nobody
            leader = message.sender if message.kind in _FROM_LEADER else NOBODY
            self._become_follower(message.term, leader)
            return True
        if message.kind in _FROM_LEADER and not self.rejected_this_tick:
            # A leader of an old term must learn that it is one, or this node would stay without (etcd#8501).
            self.rejected_this_tick = True
            self.messages.append(
                Message(message.sender, self.node, Kind.APPEND_REPLY, self.term, message.a, flag=1)
            )
        return False

    def _become_follower(self, term: int, leader: int) -> None:
        if term > self.term:
            self.term = term
            self.vote = NOBODY
        if self._leadership:
            self._failed_reads += self._leadership.abandon_reads()
            self._ready_reads += self._leadership.ready_reads
            self._leadership = None
            self._election.release()
        if leader != self.leader:
            self._leave_leader()
        self.role = Role.FOLLOWER
        self.leader = leader
        self._election.reset()

    def _leave_leader(self) -> None:
        """The leader that was followed is none any more: what was asked of it is void."""
        self._failed_reads += self._forwarded.abandon()
        self.snapshot_wanted = None
        self.leader = NOBODY

    def _stand(self, role: Role, transfer: bool = False) -> None:
        """Begin a round of pre-votes or votes."""
        self._leave_leader()
        self.role = role
        self._election.reset()
        if role is Role.PRE_CANDIDATE:
            self._election.ask_again_soon()
            self._election.ask(Kind.PRE_VOTE, self.term + 1, transfer)
        else:
            self.term += 1
            self.vote = self.node
            self._election.ask(Kind.VOTE, self.term, transfer)
        self._judge(self._election.result())

    def _judge(self, result: VoteResult) -> None:
        if result is VoteResult.LOST:
            self._become_follower(self.term, NOBODY)
        elif result is VoteResult.WON:
            if self.role is Role.PRE_CANDIDATE:
                self._stand(Role.CANDIDATE)
            else:
                self.role = Role.LEADER
                self.leader = self.node
                self._leadership = Leadership(self)
                self._reads_to_forward, waiting = [], self._reads_to_forward
                for token in waiting:
                    self._leadership.read(token)

    def _may_stand(self) -> bool:
        return self.promotable and not self.log.change_waits(self.applied_index)

    def _obey(self) -> None:
        """Stand by order of the leader, now or as soon as what is committed has been applied: the order may
        come together with the commit of the change that removed the leader.
        """
        if self._may_stand():
            self._ordered_term = 0
            self._stand(Role.CANDIDATE, transfer=True)

    def _lead(self) -> Leadership:
        if self._leadership is None:
            raise NotLeader(self.leader)
        return self._leadership

    def _hear(self, message: Message) -> bool:
        """Follow the sender, who leads our term; false if we do, which no sound node makes us doubt."""
        if self._leadership:
            return False
        if self.leader != message.sender or self.role is not Role.FOLLOWER:
            self._become_follower(self.term, message.sender)
        self._election.heard_leader()
        return True

    def _release(self, replies: list[Message]) -> None:
        """What they promise is durable: send them; our own vote counts."""
        for message in replies:
            if message.to != self.node:
                self.messages.append(message)
            elif self.role is Role.CANDIDATE and message.term == self.term:
                self._judge(self._election.count(self.node, granted=True))

    # messages

    def _on_request_for_vote(self, message: Message) -> None:
        if not self.configuration.voters:
            return  # erased, it may have had entries that the sender lacks: without them it cannot judge
        if not message.flag and (self._leadership or self._election.loyal):
            return
        if message.term < self.term:
            kind = Kind.PRE_VOTE_REPLY if message.kind == Kind.PRE_VOTE else Kind.VOTE_REPLY
            commit = self.log.commit
            self.messages.append(
                Message(message.sender, self.node, kind, self.term, commit, self.log.term(commit), flag=1)
            )
            return
        if message.term > self.term and message.kind == Kind.VOTE:
            self._become_follower(message.term, NOBODY)
        self._election.answer(message)

    def _on_append(self, message: Message) -> None:
        if self._hear(message):
            following.take_append(self, message)

    def _on_heartbeat(self, message: Message) -> None:
        if self._hear(message):
            following.take_heartbeat(self, message)

    def _on_snapshot(self, message: Message) -> None:
        if self._hear(message):
            following.take_snapshot(self, message)

    def _on_append_reply(self, message: Message) -> None:
        if self._leadership:
            self._leadership.take_append_reply(message)

    def _on_heartbeat_reply(self, message: Message) -> None:
        if self._leadership:
            self._leadership.take_heartbeat_reply(message)

    def _on_pre_vote_reply(self, message: Message) -> None:
        if self.role is Role.PRE_CANDIDATE and (message.flag or message.term == self.term + 1):
            self._judge(self._election.count(message.sender, not message.flag))

    def _on_vote_reply(self, message: Message) -> None:
        if self.role is Role.CANDIDATE:
            self._judge(self._election.count(message.sender, not message.flag))
            if message.flag:
                self._election.retry_by_rank()

    def _on_timeout_now(self, message: Message) -> None:
        if self._leadership is None and message.sender == self.leader:
            self._ordered_term = self.term
            self._obey()

    def _on_read_index(self, message: Message) -> None:
        if self._leadership:
            self._leadership.take_read_index(message)

    def _on_read_index_reply(self, message: Message) -> None:
        tokens = self._forwarded.answered(message.context)
        if tokens:
            self._ready_reads.append((message.a, tokens))
