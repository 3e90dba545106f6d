"""Whether majorities were majorities: what is committed lies on the disks of one, who leads has the votes of
one; while a configuration is joint, of both of its halves.

Owns what was committed anywhere, and counts for itself. A replica's configuration changes at the end of a
turn, so that what happened in the turn may be judged by the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from storenode.raft import Role
from storenode.raft.messages import Configuration
from storenode.replica.replica import Replica
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.store import SimulatedStore


class _Seen(NamedTuple):
    """A replica at the end of a turn."""

    life: int
    commit: int
    leading: int
    """The term in which it leads; 0: it does not."""
    configuration: Configuration


class Quorums:
    """Of all groups of one world."""

    def __init__(self) -> None:
        self.committed: dict[int, dict[int, int]] = {}
        """Group -> index -> term, of what any replica knew to be committed."""
        self._seen: dict[tuple[int, int], _Seen] = {}

    def look(self, store: SimulatedStore, replica: Replica) -> None:
        """At the end of a turn: what has been committed in it."""
        raft, place = replica.raft, (replica.partition, store.node)
        leading = raft.term if raft.role is Role.LEADER else 0
        before = self._seen.get(place)
        now = _Seen(store.life, raft.commit, leading, raft.configuration)
        if before == now:
            return
        self._seen[place] = now
        if before is None or before.life != store.life:
            self._remember(store, replica, raft.log.first_index)
        elif raft.commit > before.commit:
            self._remember(store, replica, max(before.commit + 1, raft.log.first_index))
            if leading and leading == before.leading:
                configurations = before.configuration, raft.configuration
                if not any(self._is_stored(store, replica, one) for one in configurations):
                    raise Violation(
                        f"{store.name} commits {raft.commit} of p{replica.partition} in term {leading}, "
                        f"which is not on the disks of a majority of {raft.configuration}"
                    )

    def forget(self, group: int, node: int) -> None:
        """The node has no replica of the group any more; another one may follow."""
        self._seen.pop((group, node), None)

    def check_votes(self, store: SimulatedStore, replica: Replica, voters: set[int]) -> None:
        """Of a new leader, for whom these have voted: before `look` sees it."""
        before = self._seen.get((replica.partition, store.node))
        known = before is not None and before.life == store.life
        configuration = before.configuration if before and known else replica.raft.configuration
        if not _is_quorum(configuration, voters | {store.node}):
            raise Violation(
                f"{store.name} leads p{replica.partition} in term {replica.raft.term} with the votes of "
                f"{sorted(voters)} under {configuration}"
            )

    def _remember(self, store: SimulatedStore, replica: Replica, first: int) -> None:
        committed = self.committed.setdefault(replica.partition, {})
        for index in range(first, replica.raft.commit + 1):
            term = replica.raft.log.term(index)
            if committed.setdefault(index, term) != term:
                raise Violation(
                    f"{store.name} takes {index} of term {term} of p{replica.partition} for committed; "
                    f"that of term {committed[index]} was"
                )

    def _is_stored(self, store: SimulatedStore, replica: Replica, configuration: Configuration) -> bool:
        group, index = replica.partition, replica.raft.commit
        term = replica.raft.log.term(index)
        holders = set()
        for one in (store, *store.peers.values()):
            log = one.log.group(group)  # of who is down: as it was
            if log.last_index >= index and (index < log.first_index - 1 or log.term(index) == term):
                holders.add(one.node)
        return _is_quorum(configuration, holders)


def _is_quorum(configuration: Configuration, nodes: set[int]) -> bool:
    halves = configuration.voters, configuration.outgoing
    return all(2 * len(half & nodes) > len(half) for half in halves if half)
