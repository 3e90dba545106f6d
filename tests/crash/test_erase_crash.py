"""A replica that is erased, after crashes at any step of it, and again while a start brings it to its end.

There is the whole replica, with the log that belongs to it, or nothing of it; and whatever becomes of it,
term and vote are never older than what was durable.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kvclient import protocol
from shared.clock import ManualClock
from storenode.engine import Options, Shared
from storenode.engine.vfs import Vfs
from storenode.engines import ASIDE, Engines
from storenode.erasing import Erasing
from storenode.founding import Founder, open_groups
from storenode.groups import Groups
from storenode.hosting import Hosting
from storenode.raft.configuration import encode_change
from storenode.raft.messages import Change, Entry, EntryKind, Kind, Message, Operation, Transition
from storenode.raftlog import RaftLog
from storenode.replica import commands
from storenode.replica.budget import Budget
from storenode.replica.proposal import Proposal
from tests.crash.oracle import Life, Oracle, Plan, Watch, run_states
from tests.unit.storenode.grouphouse import InlineWriter

STATES_DEFAULT = 150
NODE, LEADER, GROUP = 1, 2, 7


class Expected(NamedTuple):
    """`whole`, `gone`: which of them may be found. `last`: the log's end, if it is the whole."""

    term: int
    vote: int
    last: int
    whole: bool
    gone: bool


class EraseLife(Life[Expected]):
    """One process of a store with one replica, of which another node is the leader."""

    def __init__(self, vfs: Vfs, directory: str, expected: Expected, dice: random.Random) -> None:
        super().__init__(vfs, directory, dice)
        self.found = expected
        self.beside: list[tuple[Callable[[], object], Callable[[Any], None]]] = []

    def expected(self) -> Expected:
        return self.found

    def open(self) -> None:
        self.log = RaftLog(self.vfs, os.path.join(self.directory, "raft"), NODE, segment_bytes=4000)
        self.shared = Shared(self.directory, vfs=self.vfs, workers=1)
        self.engines = Engines(os.path.join(self.directory, "partitions"), Options(), self.shared)
        self.groups = Groups(
            self.log, InlineWriter(self.log), lambda *_: None, ManualClock(9.0), self._die, log_bytes_max=4000
        )
        founder = Founder(NODE, self.log, self.groups, ManualClock(9.0), Budget(1 << 20), lambda *_: None)
        open_groups(founder, self.log, self.engines, {GROUP: (1, 2, 3)}, lambda: random.Random(1))
        self.hosting = Hosting(founder, self.engines.open)
        self.erasing = Erasing(self.groups, self.engines, lambda *job: self.beside.append(job))
        self.look()

    def _die(self, error: Exception) -> None:
        raise error

    def look(self) -> None:
        """What is expected is here, and nothing between."""
        before = self.found
        hard = self.log.group(GROUP).hard_state
        assert hard.term >= before.term
        assert hard.term > before.term or not before.vote or hard.vote == before.vote
        whole = GROUP in self.groups.replicas
        assert before.whole if whole else before.gone
        names = os.listdir(os.path.dirname(self.engines.path(GROUP)))
        if whole:
            assert names == [os.path.basename(self.engines.path(GROUP))]
            assert self.log.group(GROUP).last_index >= before.last
            assert self.engines.open_ones[GROUP].verify() == []
        else:
            assert not [name for name in names if name.endswith(ASIDE)], names
            assert names == []
            assert self.shared.manifest.engines() == []
            assert self.log.group(GROUP).last_index == 0
        last = self.log.group(GROUP).last_index
        self.found = Expected(hard.term, hard.vote, last, whole, not whole)

    def close(self) -> None:
        self.engines.close_all()
        self.shared.close()
        self.log.close()

    def act(self, steps: int) -> None:
        for _ in range(steps):
            if self.found.gone:
                self.host()
            elif self.dice.random() < 0.3:
                self.erase()
            else:
                self.hear()
            self.look()

    def turn(self) -> None:
        self.groups.end_turn()
        beside, self.beside = self.beside, []
        for work, done in beside:
            done(work())

    def settle(self) -> None:
        for _ in range(12):
            self.turn()

    def hear(self) -> None:
        """Entries of a leader, or a request for a vote in a later term."""
        raft = self.groups.replicas[GROUP].raft
        term = raft.term + (1 if raft.term == 0 or self.dice.random() < 0.5 else 0)
        last = raft.last_index
        if last == 0 or self.dice.random() < 0.4:
            message = Message(NODE, 3, Kind.VOTE, raft.term + 1, 1 << 20, raft.term, flag=1)
        else:
            write = Proposal((b"", 0), 0, 0, 0, 0, protocol.encode_put(b"k", os.urandom(8)), 0.0)
            entries = [Entry(term, EntryKind.NORMAL, commands.encode(1, 1, [write]))]
            commit = last + len(entries)
            message = Message(
                NODE, LEADER, Kind.APPEND, term, last, raft.log.term(last), commit, 0, 0, entries
            )
        self.groups.on_messages(message.sender, [(GROUP, message)])
        self.settle()

    def leave(self) -> None:
        """The leader removes this node; a flush follows."""
        raft = self.groups.replicas[GROUP].raft
        last, term = raft.last_index, raft.term + 1
        changes = (Change(Transition.IMPLICIT, ((Operation.REMOVE, NODE),)), Change(Transition.AUTO, ()))
        entries = [Entry(term, EntryKind.CONFIGURATION, encode_change(change)) for change in changes]
        message = Message(NODE, LEADER, Kind.APPEND, term, last, raft.log.term(last), last + 2, 0, 0, entries)
        self.groups.on_messages(LEADER, [(GROUP, message)])
        self.settle()
        self.look()

    def erase(self) -> None:
        replica = self.groups.replicas[GROUP]
        if NODE in replica.raft.configuration.members:
            self.leave()
        told: list[str | None] = []
        self.found = self.found._replace(gone=True)
        self.erasing.erase(replica, told.append)
        self.settle()
        assert told == [None]
        self.found = self.found._replace(whole=False)

    def host(self) -> None:
        told: list[str | None] = []
        self.found = self.found._replace(whole=True, last=0)
        self.hosting.host(GROUP, told.append)
        self.settle()
        assert told == [None]
        self.found = self.found._replace(gone=False)


class EraseOracle(Oracle[EraseLife, Expected]):
    plan = Plan(steps=(2, 12), first=Watch(0.06, 6), later=Watch(0.2, 2), kills=0.4, twins=0.4, crashes=2)

    def random_options(self) -> None:
        """There is nothing to choose."""

    def life(self, vfs: Vfs, directory: str, expected: Expected | None) -> EraseLife:
        return EraseLife(vfs, directory, expected or Expected(0, 0, 1, True, False), self.dice)


def test_after_any_crash_there_is_the_whole_replica_or_its_promises_alone(place: Path) -> None:
    run_states(EraseOracle, STATES_DEFAULT, 1, place)


def test_a_crash_at_each_step_of_an_erasure(place: Path) -> None:
    for seed in range(2):
        oracle = EraseOracle(seed, place)
        life = oracle.first_life()
        life.open()
        for _ in range(4):
            life.hear()
            life.look()
        life.leave()
        tree = life.engines.open_ones[GROUP].tree
        life.shared.wait_for(lambda tree=tree: not tree.retired)  # type: ignore[misc]
        life.watch(1.0, 200)
        life.erase()
        life.look()
        life.end()
        found = {(crash.step.kind, expected.whole, expected.gone) for crash, expected in life.crashes}
        assert {"rename", "unlink", "rmdir"} <= {kind for kind, _, _ in found}
        oracle.descend(life, 0)
        assert oracle.states >= 20
