"""What must hold at every moment while a cluster changes, beside what holds for every group
(tests/simulation/checks.py). Changes nothing.

- One replica at a time: a change of members adds one voter at most and takes one away at most, a group has
  one learner at most, and never fewer voters than it was founded with, unless one is not counted on.
- No move costs a quorum: of the voters that a change leads to, a majority has not been away for long.
- The control state: epochs rise with every change of the map, no id of a node or a move is given twice, an
  incarnation is never another's.
- The map of a process never gets older, and maps of one epoch are the same map.
- Who was erased keeps its promises, and may be told again what it had: only its entries are forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvclient import protocol
from storenode.control.state import CONTROL, ControlState, Move
from storenode.raft.configuration import apply_change, describe
from storenode.raft.messages import Change, Configuration
from storenode.replica import membership
from storenode.replica.replica import Replica
from tests.simulation.checks import Checks
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from tests.simulation.elastic.store import ElasticStore
    from tests.simulation.store import SimulatedStore

AWAY_S = 3.5
"""Who is away for longer must not be counted on: a leader asks for an answer within one second, by its own
clock, and a pause of its own comes on top.
"""

STATE_KEY = b"state"


class ElasticChecks(Checks):
    """All of them, for one world."""

    def __init__(self, world: World, voters_min: int) -> None:
        super().__init__(world)
        self.by_node: dict[int, ElasticStore] = {}
        self.newest: ControlState | None = None
        self._version = 0
        self._seen_in_a_turn: Violation | None = None
        self._voters_min = voters_min
        self._positions: dict[tuple[int, int], int] = {}
        self._maps: dict[int, bytes] = {}
        self._epochs: dict[tuple[int, int], int] = {}
        self._nodes: dict[int, tuple[str, str]] = {}
        self._moves: dict[int, Move] = {}

    # -- replicas come and go

    def watch(self, store: SimulatedStore, replica: Replica) -> None:
        super().watch(store, replica)
        raft = replica.raft
        propose = raft.propose_change

        def watched(change: Change) -> int:
            try:
                self._check_change(store, replica, change)
            except Violation as violation:  # the product's own handlers must not get it
                self._seen_in_a_turn = self._seen_in_a_turn or violation
            return propose(change)

        raft.propose_change = watched  # type: ignore[method-assign]

    def erased(self, node: int, group: int) -> None:
        """The node has no replica of the group any more. What it voted is remembered."""
        self._promised.pop((group, node), None)
        self._quorums.forget(group, node)
        self._believed = {place: seen for place, seen in self._believed.items() if place[0] != group}
        self._positions.pop((node, group), None)

    # -- changes of members

    def _check_change(self, store: SimulatedStore, replica: Replica, change: Change) -> None:
        before = replica.raft.configuration
        if not change.operations:
            return
        after = membership.after(before, change)
        apply_change(before, change)
        what = f"{store.name} changes p{replica.partition} from {describe(before)} to {describe(after)}"
        if len(after.voters - before.voters) > 1 or len(before.voters - after.voters) > 1:
            raise Violation(f"{what}: more than one replica at once")
        if len(after.learners) > 1:
            raise Violation(f"{what}: two learners at once")
        if len(after.voters) < min(self._voters_min, len(before.voters)) and not any(
            self._may_go(node) for node in before.voters - after.voters
        ):
            raise Violation(f"{what}: too few voters")
        if after.voters != before.voters and not self._majority_there(after) and self._majority_there(before):
            away = sorted(node for node in after.voters if self._away(node))
            raise Violation(f"{what}: the nodes {away} have been away for long")

    def _majority_there(self, configuration: Configuration) -> bool:
        there = [node for node in configuration.voters if not self._away(node)]
        return 2 * len(there) > len(configuration.voters)

    def _may_go(self, node: int) -> bool:
        """Whether nobody counts on that node: with it or without it, the group has as many voters."""
        nodes = self.newest.map.nodes if self.newest is not None else ()
        return self._away(node) or all(one.id != node or one.state != "up" for one in nodes)

    def _away(self, node: int) -> bool:
        store = self.by_node.get(node)
        return store is None or (not store.up and self._world.now - store.gone_at > AWAY_S)

    # -- after each turn

    def after_turn(self, store: SimulatedStore) -> None:
        super().after_turn(store)
        if self._seen_in_a_turn is not None:
            raise self._seen_in_a_turn
        control = store.groups.replicas.get(CONTROL)
        if control is not None:
            place, index = (store.node, CONTROL), control.machine.position.index
            if self._positions.get(place) != index:
                self._positions[place] = index
                self._look_at_state(store, control)

    def look_at_map(self, store: SimulatedStore, epoch: int, encoded: bytes) -> None:
        """The map that a store has now. The next life may begin with one before: maps are written beside."""
        place = (store.node, store.life)
        before = self._epochs.get(place, 0)
        if epoch < before:
            raise Violation(f"{store.name} goes back from the map of epoch {before} to {epoch}")
        self._epochs[place] = epoch
        if self._maps.setdefault(epoch, encoded) != encoded:
            raise Violation(f"{store.name} has another map of epoch {epoch} than others have")

    def _look_at_state(self, store: SimulatedStore, control: Replica) -> None:
        found = protocol.decode_results(control.machine.engine.read(protocol.encode_get(STATE_KEY), 0))[0]
        if found[0] != 0 or found[2] <= self._version:
            return
        state = ControlState.decode(found[1])
        self._version = found[2]
        if self.newest is None or self.newest.map.epoch != state.map.epoch:
            rows = " ".join("-".join(map(str, row)) for row in state.map.replicas)
            states = " ".join(f"{node.id}:{node.state}" for node in state.map.nodes)
            what = f"rows {rows} control {state.map.control} nodes {states}"
            self._world.note(f"{store.name}: epoch {state.map.epoch} {what}")
        self._check_state(state)
        if self.newest is not None:
            self._compare(self.newest, state)
        self.newest = state

    def _check_state(self, state: ControlState) -> None:
        for member in state.members:
            node = state.map.node(member.node)
            named = self._nodes.setdefault(member.node, (node.name, member.incarnation))
            if named[0] != node.name or (named[1] and named[1] != member.incarnation):
                raise Violation(f"the id {member.node} was {named}, and is {(node.name, member.incarnation)}")
            self._nodes[member.node] = (node.name, member.incarnation)
        for move in state.moves:
            known = self._moves.setdefault(move.id, move)
            if (known.partition, known.source, known.target) != (move.partition, move.source, move.target):
                raise Violation(f"the id of {known} is given to {move}")

    def _compare(self, old: ControlState, new: ControlState) -> None:
        if new.map.epoch < old.map.epoch or (new.map.epoch == old.map.epoch and new.map != old.map):
            raise Violation(f"the map goes from epoch {old.map.epoch} to another of {new.map.epoch}")
        if new.next_node < old.next_node or new.next_move < old.next_move:
            raise Violation(
                f"ids go back: {(old.next_node, old.next_move)} to {(new.next_node, new.next_move)}"
            )
        known = {node.id for node in old.map.nodes}
        for node in new.map.nodes:
            if node.id not in known and node.id < old.next_node:
                raise Violation(f"node {node.id} comes again")


class WatchedReplicas(dict[int, Replica]):
    """The replicas of a store; every one that comes is watched, and every one that goes is told."""

    def __init__(self, checks: ElasticChecks, store: Any) -> None:
        super().__init__()
        self._checks = checks
        self._store = store

    def __setitem__(self, group: int, replica: Replica) -> None:
        self._checks.watch(self._store, replica)
        super().__setitem__(group, replica)

    def __delitem__(self, group: int) -> None:
        super().__delitem__(group)
        self._checks.erased(self._store.node, group)

    def pop(self, group: int, *default: Any) -> Any:
        gone = super().pop(group, *default)
        if isinstance(gone, Replica):
            self._checks.erased(self._store.node, group)
        return gone
