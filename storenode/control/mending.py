"""What the queue of moves should be: the moves that nodes which leave, are lost or are missing ask for.

Pure. Owns which moves queue by themselves (reasons `drain`, `replace`, `control`), where they go, and which
queued moves make no sense any more. Must not know how a move is made.

Invariants: a move is added only if its partition is not right even when all queued moves have been made. A
row loses a holder without a newcomer only if it has too many, or if the holder was told to go and nobody else
can hold the partition. Of the control partition at most one move is queued, and none takes a living node out
if those left would be no living majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from shared.clustermap import Node, control_size
from storenode.control.placement import Row, after, eligible, loads, shares
from storenode.control.state import CONTROL, MOVES_MAX, ControlState, Move

_ORDER: Final = {"control": 0, "replace": 1, "drain": 2, "rebalance": 3}

_ENDING: Final = frozenset({"swap", "settle", "leave"})
"""Stages in which the group's voters change, or have changed: such a move is not dropped."""


@attrs.frozen
class Sight:
    """What is seen of nodes and moves. `lost`: nodes that are being replaced. `silent`: nodes that were not
    heard for 3 s, or not yet, whatever the map calls them. `stages`: of each move that has begun. `failed`:
    (partition, node) of the replicas that say that they have failed.
    """

    lost: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    stages: Mapping[int, str] = attrs.field(factory=dict)
    failed: frozenset[tuple[int, int]] = frozenset()


def mended(state: ControlState, sight: Sight) -> ControlState:
    """The state with the queue that it should have; the same object if it has it. The map stays."""
    return _Mending(state, sight).run()


def retired(state: ControlState) -> frozenset[int]:
    """The nodes that were told to go and may leave the map now: no row names them, and no move."""
    going = {member.node for member in state.members if member.removing}
    if not going:
        return frozenset()
    held = set(loads(state.map.replicas)) | set(state.map.control)
    named = {node for move in state.moves for node in (move.source, move.target)}
    return frozenset(going - held - named)


class _Mending:
    def __init__(self, state: ControlState, sight: Sight) -> None:
        self._state = state
        self._sight = sight
        self._factor = state.map.replication_factor
        self._next_move = state.next_move
        self._going = {member.node for member in state.members if member.removing}
        lost = sight.lost | (self._going & sight.silent)
        self._leaving = {node.id: "drain" for node in state.map.nodes if node.state == "draining"}
        self._leaving |= dict.fromkeys((node.id for node in state.map.nodes if node.id in lost), "replace")
        self._should = {node.id for node in eligible(state, lost)}
        self._lost = lost

    def run(self) -> ControlState:
        data = [self._named(move) for move in self._state.moves if self._sensible(move)]
        data = self._repaired(data)
        queue = [*self._control(), *data, *self._broken(data)]
        moves = tuple(sorted(queue, key=lambda move: (_ORDER[move.reason], move.id))[:MOVES_MAX])
        if moves == self._state.moves:
            return self._state
        return attrs.evolve(self._state, moves=moves, next_move=self._next_move)

    def _new(self, partition: int, source: int, target: int, reason: str) -> Move:
        move = Move(self._next_move, partition, source, target, reason)
        self._next_move += 1
        return move

    # what is queued

    def _sensible(self, move: Move) -> bool:
        """Whether a move of a data partition shall stay queued."""
        if move.partition == CONTROL:
            return False
        if self._sight.stages.get(move.id) in _ENDING:
            return True
        row = self._state.map.replicas[move.partition]
        if (move.source and move.source not in row) or move.target in row:
            return False
        if not move.target and (move.partition, move.source) in self._sight.failed:
            return True
        if move.source not in self._leaving and move.source and move.reason != "rebalance":
            return False
        if not move.target:
            return len(row) > self._factor or self._may_shrink(move.source, row)
        if not move.source and len(row) >= self._factor:
            return False
        return move.target in self._should and not self._hopeless(move, row)

    def _hopeless(self, move: Move, row: Row) -> bool:
        """Whether another target is needed: a move whose target is down waits for it only if all is well
        without it.
        """
        if self._state.map.node(move.target).state != "down":
            return False
        return move.reason != "rebalance" or not self._leaving.keys().isdisjoint(row)

    def _may_shrink(self, holder: int, row: Row) -> bool:
        """Whether a holder goes without a successor: it was told to go, and nobody could succeed it."""
        return holder in self._going and len(row) > 1 and self._should.issubset(row)

    def _named(self, move: Move) -> Move:
        """Rebalancing away from a node that has to be left in any case is not put off any more."""
        if move.reason == "rebalance" and move.source in self._leaving:
            return attrs.evolve(move, reason=self._leaving[move.source])
        return move

    # what has failed, what is missing

    def _broken(self, queued: Sequence[Move]) -> list[Move]:
        """A replica that has failed is taken out, erased, and then missing. One at a time: if disks go, those
        that still hold the others should not be busy with all of them.
        """
        if any(move.reason == "replace" and not (move.source and move.target) for move in queued):
            return []
        moving = {move.partition for move in queued}
        for partition, node in sorted(self._sight.failed):
            row = () if partition == CONTROL else self._state.map.replicas[partition]
            whole = node in row and len(row) >= max(2, self._factor) and node not in self._leaving
            if whole and partition not in moving:
                return [self._new(partition, node, 0, "replace")]
        return []

    def _repaired(self, queued: list[Move]) -> list[Move]:
        """The queue with the repairs that it lacks. Rebalancing that has not begun makes way for them: its
        source is a holder that the partition needs.
        """
        rows, factor, leaving = self._state.map.replicas, self._factor, frozenset(self._leaving)
        wrong = [
            partition
            for partition, row in enumerate(rows)
            if len(row) != factor or not leaving.isdisjoint(row)
        ]
        if not wrong:
            return queued
        future = after(rows, queued)
        short = {
            partition
            for partition in wrong
            if len(future[partition]) < factor or not leaving.isdisjoint(future[partition])
        }
        queued = [move for move in queued if not (move.partition in short and self._puts_off(move))]
        future = after(rows, queued)
        choice = _Choice(self._state, self._lost, self._sight.silent, loads(future))
        new = [move for partition in wrong for move in self._repair(partition, future[partition], choice)]
        return queued + new

    def _puts_off(self, move: Move) -> bool:
        rebalances = move.reason == "rebalance" and move.source and move.target
        return bool(rebalances and move.id not in self._sight.stages)

    def _repair(self, partition: int, row: Row, choice: _Choice) -> list[Move]:
        """The moves after which the row, as the queued moves leave it, is as it should be; fewer if there is
        no node for them. Who holds the partition now is no target: while it leaves, it cannot come.
        """
        now = self._state.map.replicas[partition]
        steps: list[tuple[int, int, str]] = []
        for holder in sorted(
            self._leaving.keys() & set(row), key=lambda node: (node not in self._lost, node)
        ):
            left = tuple(node for node in row if node != holder)
            target = 0 if len(row) > self._factor else choice.take({*left, *now})
            if target or len(row) > self._factor or self._may_shrink(holder, row):
                steps.append((holder, target, self._leaving[holder]))
                row = (*left, target) if target else left
        while len(row) < self._factor and (target := choice.take({*row, *now})):
            steps.append((0, target, "replace"))
            row = (*row, target)
        while len(row) > self._factor:
            holder = choice.give(row)
            steps.append((holder, 0, "rebalance"))
            row = tuple(node for node in row if node != holder)
        return [self._new(partition, *step) for step in steps]

    # the control partition

    def _control(self) -> list[Move]:
        """The one move of the control partition, if it needs any."""
        queued = [move for move in self._state.moves if move.partition == CONTROL]
        stages = self._sight.stages
        nodes = {node.id: node for node in self._state.map.nodes if node.id not in self._leaving}
        for move in queued:
            if stages.get(move.id) in _ENDING:
                return [move]
            target = nodes.get(move.target)
            if move.id in stages and target is not None and target.state != "down":
                return [move]
        wanted = self._control_wanted(nodes)
        if wanted is None:
            return []
        for move in queued:
            if (move.source, move.target) == wanted:
                return [move]
        return [self._new(CONTROL, *wanted, "control")]

    def _control_wanted(self, nodes: Mapping[int, Node]) -> tuple[int, int] | None:
        """The next (source, target); `nodes` are those that may hold it. Who is lost goes before who lives:
        taken out first, a living node would leave the others without a majority. While there are fewer than
        there should be, who only drains waits for its successor.
        """
        holders, silent = self._state.map.control, self._sight.silent
        failed = {node for partition, node in self._sight.failed if partition == CONTROL}
        staying = [node for node in holders if node in nodes and node not in failed]
        leaving = sorted(
            (node for node in holders if node not in staying),
            key=lambda node: (node not in self._lost, node not in silent),
        )
        size = control_size(len(nodes)) if nodes else len(holders)
        sound = {node: nodes[node] for node in nodes if node not in failed}
        if len(staying) < size:
            if spare := self._control_spare(sound, staying):
                return (leaving[0] if leaving else 0, spare)
            leaving = [node for node in leaving if node in self._lost or node in failed]
        for node in leaving[:1] or self._control_surplus(nodes, staying, size):
            left = [holder for holder in holders if holder != node]
            if 2 * sum(holder not in silent for holder in left) > len(left):
                return (node, 0)
        return None

    def _control_spare(self, nodes: Mapping[int, Node], staying: list[int]) -> int:
        zones = Counter(_zone(nodes[node]) for node in staying)
        spare = [
            node
            for node in nodes.values()
            if node.id not in staying and node.state == "up" and node.id not in self._sight.silent
        ]
        best = min(spare, key=lambda node: (zones[_zone(node)], node.id), default=None)
        return best.id if best else 0

    def _control_surplus(self, nodes: Mapping[int, Node], staying: list[int], size: int) -> list[int]:
        """The holder to take out when there are too many: one that is silent, or of the fullest zone. While
        there are no more than data has replicas, nobody goes: a copy less could be the last but one.
        """
        zones = Counter(_zone(nodes[node]) for node in staying)
        ordered = sorted(
            staying, key=lambda node: (node not in self._sight.silent, -zones[_zone(nodes[node])], -node)
        )
        return ordered[:1] if len(staying) > max(size, self._factor) else []


class _Choice:
    """Targets for single replicas: in the zone that has fewest of the row, the node with the least load."""

    def __init__(
        self, state: ControlState, lost: frozenset[int], silent: frozenset[int], held: Counter[int]
    ) -> None:
        self._share = shares(state, lost)
        self._held = held
        self._zones = {node.id: _zone(node) for node in state.map.nodes}
        self._able = [
            node.id
            for node in eligible(state, lost)
            if node.state == "up" and node.id not in silent and self._share[node.id]
        ]

    def take(self, row: Iterable[int]) -> int:
        """A node that is up for one more replica of a partition that these hold; 0: there is none."""
        row = set(row)
        zones = Counter(self._zones[node] for node in row)
        best = min(
            (node for node in self._able if node not in row),
            key=lambda node: (zones[self._zones[node]], (self._held[node] + 1) / self._share[node], node),
            default=0,
        )
        self._held[best] += 1
        return best

    def give(self, row: Iterable[int]) -> int:
        """The holder that has most for its share."""
        worst = max(
            row,
            key=lambda node: (self._held[node] / self._share[node] if self._share[node] else 1e9, node),
        )
        self._held[worst] -= 1
        return worst


def _zone(node: Node) -> tuple[str, int]:
    """A node without a zone is a zone of its own."""
    return (node.zone, 0 if node.zone else node.id)
