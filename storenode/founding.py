"""How the replicas of a node come to life: engine and log are brought together, or the group begins, or the
node joins a group.

Owns the rules for what a start finds. Everybody begins a group in the same way, without asking anybody: its
first configuration is what the cluster map said when the cluster was founded, its log is cut at index 1 of
term 0. Who was no founder begins with an empty log and no configuration, and is sent a snapshot when the
group has taken it in. The loop thread: `add` and `finish` before it runs, `join` while it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, Protocol

from kvclient.errors import Corruption
from shared.clock import Clock
from storenode.groups import TICK_S, Groups
from storenode.raft import Raft, Settings
from storenode.raft.messages import Configuration
from storenode.raftlog import RaftLog, Record
from storenode.replica.budget import Budget
from storenode.replica.replica import Answer, Replica
from storenode.replica.statemachine import FOUNDED, EngineFace, StateMachine

CLOCK_DRIFT: Final = 0.05
"""Bound on how much faster one node's clock may run than another's: a hundred times that of a bad quartz."""

_ELECTION_TICKS: Final = 10

SETTINGS: Final = Settings(
    election_ticks=_ELECTION_TICKS, lease_seconds=(_ELECTION_TICKS - 1) * TICK_S * (1 - CLOCK_DRIFT)
)


class Engines(Protocol):
    """What is needed of `storenode.engines.Engines`."""

    def open(self, group: int) -> EngineFace: ...
    def exists(self, group: int) -> bool: ...
    def groups_aside(self) -> list[int]: ...
    def bring_back(self, group: int) -> None: ...
    def remove(self, group: int) -> None: ...


class Founder:
    """Makes the replicas of node `node`: `add` each of them, then `finish`, before anything else happens."""

    def __init__(
        self,
        node: int,
        log: RaftLog,
        groups: Groups,
        clock: Clock,
        budget: Budget,
        answer: Answer,
        answers: Mapping[int, Answer] | None = None,
    ) -> None:
        """`answer` hears what replicas answer, but for the groups in `answers`."""
        self._node = node
        self._log = log
        self._groups = groups
        self._clock = clock
        self._budget = budget
        self._answer = answer
        self._answers = answers or {}
        self._cuts: list[Record] = []
        self._found: list[tuple[int, StateMachine, Random]] = []

    def add(self, partition: int, engine: EngineFace, founders: Sequence[int], random: Random) -> None:
        """A partition whose engine is open; `founders` are empty if this node is none of them. Corruption:
        its log and its engine do not belong together.
        """
        machine = StateMachine(engine, Configuration(frozenset(founders)))
        log = self._log.group(partition)
        index, term = machine.position.index, machine.position.term
        if index < log.first_index - 1:
            raise Corruption(
                f"partition {partition}: the data ends with entry {index}, but the log begins with "
                f"{log.first_index}: entries between them are lost. Give this store an empty data.dir under "
                "a new node id"
            )
        if index > FOUNDED.index and log.hard_state.term == 0:
            raise Corruption(
                f"partition {partition}: the data ends with entry {index}, but the log knows nothing of this "
                "partition: it was lost, and with it what this node has promised. Give this store an empty "
                "data.dir under a new node id"
            )
        if index > log.last_index or log.term(index) != term:
            # A group that begins; or a snapshot was installed, and the process died before its log was cut.
            self._cuts.append(Record(partition, None, (index, term), index + 1, []))
        self._found.append((partition, machine, random))

    def finish(self) -> None:
        """Make durable how the groups begin, and let the replicas live."""
        long = self._groups.log_is_long
        if long:
            self._cut_log()
        if self._cuts:
            self._log.installed(self._log.write(self._cuts))
        if long:
            self._free_segments()
        for partition, machine, random in self._found:
            replica = self._groups.replicas[partition] = self._replica(partition, machine, random)
            if self._groups.preferred(partition) == self._node:
                replica.raft.campaign()
                self._groups.dirty(replica)

    def _cut_log(self) -> None:
        """Behind what the engines have. A store that ends soon after each start, for its disk is full, would
        never come to that otherwise, and leave a longer log each time.
        """
        cut = {record.group for record in self._cuts}
        for partition, machine, _ in self._found:
            at = machine.position
            if partition not in cut and at.index >= self._log.group(partition).first_index:
                self._cuts.append(Record(partition, None, (at.index, at.term), at.index + 1, []))

    def _free_segments(self) -> None:
        """A batch says which ones nobody needs, then they go."""
        self._log.collect()
        self._log.installed(self._log.write([]))
        self._log.collect()

    def join(self, partition: int, engine: EngineFace, random: Random, done: Callable[[], object]) -> None:
        """A new partition whose engine is open and empty; `done` follows when its replica lives."""
        machine = StateMachine(engine, Configuration(frozenset()))
        self._groups.join(self._replica(partition, machine, random), done)

    def _replica(self, partition: int, machine: StateMachine, random: Random) -> Replica:
        raft = Raft(
            self._node,
            self._log.group(partition),
            machine.configuration,
            machine.position.index,
            SETTINGS,
            random,
        )
        answer = self._answers.get(partition, self._answer)
        dirty = self._groups.dirty
        return Replica(partition, raft, machine, self._clock, self._budget, answer, dirty)


def open_groups(
    founder: Founder,
    log: RaftLog,
    engines: Engines,
    founded: Mapping[int, Sequence[int]],
    random: Callable[[], Random],
) -> None:
    """All groups that the log knows, and those that begin, come to life. `founded`: the groups that this
    node is a founder of, with all founders. What a process before was erasing is brought to its end, or
    taken back if the log still has the group. Errors as of `add` and of the engines.
    """
    known = set(log.groups)
    # Founded groups are cut at 1 at least, so of these the log has promises only: they are joined, or erased.
    bare = {group for group in known if log.group(group).last_index == 0}
    for group in engines.groups_aside():
        if group in bare:
            engines.remove(group)
        else:
            engines.bring_back(group)
    for group in sorted(known | founded.keys()):
        if group not in bare:
            founder.add(group, engines.open(group), founded.get(group, ()), random())
        elif engines.exists(group):
            founder.add(group, engines.open(group), (), random())
    founder.finish()
