"""What must hold at every moment, seen from inside (Ongaro 2014, figure 3.2, and docs/raft.md section 3).

Owns what was seen so far. Changes nothing: a run without these checks is the same run.

- Election safety: one leader for each group and term; a voter gives one vote in a term, over all its lives.
- Leader append-only: a leader's log only grows.
- Log matching: an entry's group, index and term say what it holds, and the term of the one before it.
- Leader completeness: who leads has every entry that was ever committed or applied anywhere.
- Quorums: what is committed, and who leads, has real majorities (quorums.py).
- State machine safety: what is applied at an index is the same on all replicas, in all their lives.
- Time: neither of the two times of a partition goes back (docs/raft.md section 2).
- Durable before said: who acknowledges entries has them on its disk, and keeps them while the term lasts.
- No false belief: the entries that a leader takes a member to have are on that member's disk.
- Reads see what was applied before they came (readchecks.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from storenode.raft import Role
from storenode.raft.messages import Entry, Kind, Message
from storenode.raftlog import Record
from storenode.replica.replica import Replica
from tests.simulation.quorums import Quorums
from tests.simulation.readchecks import ReadChecks
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from tests.simulation.store import SimulatedStore

LOOK_BACK = 200
"""Entries that a new leader's log is looked through for; its last index shows the rest."""


class Checks:
    """All of them, for one world."""

    def __init__(self, world: World) -> None:
        self.leaders: dict[tuple[int, int], int] = {}
        self.agreed: dict[int, dict[int, tuple[int, int]]] = {}
        """Group -> index -> (term, checksum) of what was applied."""
        self.durable_before_said = True
        self._world = world
        self._quorums = Quorums()
        self._reads = ReadChecks()
        self._believed: dict[tuple[int, int, int], tuple[int, int]] = {}
        """(Group, leader, member) -> (term, match) that was looked at last."""
        self._votes: dict[tuple[int, int, int], int] = {}
        self._promised: dict[tuple[int, int], tuple[int, int]] = {}
        """(Group, node) -> (term, match) that it has acknowledged."""
        self._entries: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._written: dict[tuple[int, int, int, int], int] = {}

    def watch(self, store: SimulatedStore, replica: Replica) -> None:
        """Sees everything that this replica applies."""
        machine, group = replica.machine, replica.partition
        agreed = self.agreed.setdefault(group, {})
        apply = machine.apply
        self._reads.watch(store, replica)

        def watched(index: int, term: int, data: bytes) -> object:
            if index != machine.position.index + 1:
                raise Violation(f"{store.name} p{group} applies {index} after {machine.position.index}")
            what = (term, crc32(data))
            if not store.speaks:
                return apply(index, term, data)
            if agreed.setdefault(index, what) != what:
                raise Violation(
                    f"{store.name} p{group} applies {what} at {index}, another replica {agreed[index]}"
                )
            self._world.trace(store.name, group, index, what)
            self._reads.applied(group, index)
            before = machine.stamp_ms, machine.session_ms
            outcomes = apply(index, term, data)
            if machine.stamp_ms < before[0] or machine.session_ms < before[1]:
                raise Violation(
                    f"{store.name} p{group}: time goes back at {index}, from {before} to "
                    f"{(machine.stamp_ms, machine.session_ms)}"
                )
            return outcomes

        machine.apply = watched  # type: ignore[method-assign, assignment]

    def after_turn(self, store: SimulatedStore) -> None:
        """Looks at what was answered, and at who leads."""
        if self._reads.violation is not None:
            raise self._reads.violation
        for group, replica in store.groups.replicas.items():
            if replica.failure is not None:
                raise Violation(f"{store.name}: {replica.failure}")
            raft = replica.raft
            term, match = self._promised.get((group, store.node), (0, 0))
            if term == raft.term and raft.last_index < match:
                raise Violation(
                    f"{store.name} p{group} has acknowledged {match} in term {term}; "
                    f"its log ends at {raft.last_index}"
                )
            if raft.role is Role.LEADER:
                self._check_leader(store, replica)
            self._quorums.look(store, replica)

    def _check_leader(self, store: SimulatedStore, replica: Replica) -> None:
        group, raft = replica.partition, replica.raft
        known = self.leaders.get((group, raft.term))
        if known is None:
            self.leaders[group, raft.term] = store.node
            self._world.note(f"{store.name} leads p{group} in term {raft.term}, log ..{raft.last_index}")
            self._check_complete(store, replica)
            nodes = (store.node, *store.peers)
            votes = {node for node in nodes if self._votes.get((group, raft.term, node)) == store.node}
            self._quorums.check_votes(store, replica, votes)
        elif known != store.node:
            raise Violation(f"term {raft.term} of p{group} has two leaders: {known} and {store.node}")
        self._check_beliefs(store, replica)

    def _check_beliefs(self, store: SimulatedStore, replica: Replica) -> None:
        """A member of no higher term than the leader's has not let go of anything that it said it has."""
        group, raft = replica.partition, replica.raft
        for node, member in raft.progress.items():
            place, believed = (group, store.node, node), (raft.term, member.match)
            peer = store.peers.get(node)
            if peer is None or self._believed.get(place) == believed:
                continue
            self._believed[place] = believed
            if not peer.speaks or group not in peer.groups.replicas:
                continue
            log, match = peer.log.group(group), member.match
            if peer.groups.replicas[group].raft.term > raft.term or match < max(
                log.first_index, raft.log.first_index
            ):
                continue
            if match > log.last_index or log.term(match) != raft.log.term(match):
                raise Violation(f"{store.name} leads p{group} and believes that {peer.name} has {match}")

    def _check_complete(self, store: SimulatedStore, replica: Replica) -> None:
        agreed, raft = self.agreed[replica.partition], replica.raft
        committed = self._quorums.committed.get(replica.partition, {})
        last = max((*agreed, *committed), default=0)
        if raft.last_index < last:
            had = f"its log ends at {raft.last_index}"
            raise Violation(f"{store.name} leads p{replica.partition}; {had}, {last} was committed")
        first = max(last - LOOK_BACK, store.log.group(replica.partition).first_index)
        for index in range(first, last + 1):
            term = agreed[index][0] if index in agreed else committed.get(index)
            if term is not None and raft.log.term(index) != term:
                raise Violation(
                    f"{store.name} leads p{replica.partition} with term {raft.log.term(index)} at {index}; "
                    f"that of term {term} was committed"
                )

    def on_send(self, store: SimulatedStore, group: int, message: Message) -> None:
        """Looks at what is promised."""
        if message.kind == Kind.VOTE_REPLY and not message.flag:
            voter = (group, message.term, store.node)
            if self._votes.setdefault(voter, message.to) != message.to:
                raise Violation(
                    f"{store.name} votes twice in term {message.term} of p{group}: for "
                    f"{self._votes[voter]} and {message.to}"
                )
        elif self.durable_before_said and message.kind == Kind.APPEND_REPLY and not message.flag:
            durable = store.log.group(group).last_index
            if message.a > durable:
                raise Violation(f"{store.name} p{group} acknowledges {message.a}, {durable} is durable")
            self._promise(group, store.node, message)

    def _promise(self, group: int, node: int, message: Message) -> None:
        term, match = self._promised.get((group, node), (0, 0))
        if message.term >= term:
            kept = match if message.term == term else 0
            self._promised[group, node] = message.term, max(kept, message.a)

    def on_log_write(self, store: SimulatedStore, records: list[Record]) -> None:
        """Looks at what goes into the log."""
        for group, _, _, first, entries in records:
            if not entries or group not in store.groups.replicas:  # one that is just being erased
                continue
            raft = store.groups.replicas[group].raft
            if raft.role is Role.LEADER:
                leading = (store.node, store.life, group, raft.term)
                if first <= self._written.get(leading, 0):
                    raise Violation(f"{store.name} leads p{group} and overwrites its own entry {first}")
                self._written[leading] = first + len(entries) - 1
            self._check_entries(store, group, first, entries, raft.log.term(first - 1))

    def _check_entries(
        self, store: SimulatedStore, group: int, first: int, entries: list[Entry], before: int
    ) -> None:
        for index, entry in enumerate(entries, first):
            what = (crc32(entry.data), before)
            before = entry.term
            if self._entries.setdefault((group, index, entry.term), what) != what:
                raise Violation(
                    f"{store.name} p{group}: entry {index} of term {entry.term} differs from another node's"
                )
