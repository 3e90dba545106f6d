"""The controller: what is heard goes in, what shall be written and ordered comes out (docs/control.md).

Owns nothing that matters: whatever it remembers, a new one learns from the state and the reports. Must not
know how reports come, where the state is kept, how orders travel. `now` is in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import attrs

from shared.clustermap import Node
from shared.hashing import xxh64
from storenode.control.commands import Outcome, execute
from storenode.control.failures import DOWN_S, SUSPECT_S, Failures
from storenode.control.leaders import turned
from storenode.control.mending import Sight, mended, retired
from storenode.control.moves import Order, Stage, done, next_order, stage
from storenode.control.orders import SEEN_S, Ordering
from storenode.control.placement import Row, shares
from storenode.control.reports import Report
from storenode.control.sightings import Sightings
from storenode.control.state import CONTROL, ControlState, Member, Move
from storenode.control.tracking import Tracking
from storenode.control.view import MoveView, View

__all__ = ["Controller", "Order", "Step"]


class Step(NamedTuple):
    """What to do now. `state`: to be written in place of the one that the controller has, None: nothing is.
    `orders`: to be sent, at most 16, whatever becomes of the write.
    """

    state: ControlState | None
    orders: list[Order]


class Controller:
    """One life of a controller: made by who has won the control partition and read its state.

    `step` is called once a second, and 100 ms after a `hear` that said True; not while a write of its state
    is under way. `node` is the store on which it runs; its own reports are to be heard like those of others.
    `ignored` counts reports by why they were.
    """

    def __init__(self, node: int, state: ControlState, now: float) -> None:
        self.node = node
        self.state = state
        self.ignored: Counter[str] = Counter()
        self._cluster = xxh64(state.map.cluster_id.encode())
        self._failures = Failures(now, [node.id for node in state.map.nodes])
        self._sightings = Sightings()
        self._tracking = Tracking(state, self._sightings, self._failures)
        self._ordering = Ordering(state, self._sightings, self._tracking, self._failures)
        self._incarnations: dict[int, str] = {}
        self._foreign: dict[int, float] = {}
        self._acquainted = False
        self._even: tuple[object, ...] = ()

    def hear(self, report: Report, now: float) -> bool:
        """Takes a report; whether it changes something that a step would look at. Never raises: what is of
        another cluster, of an unknown node, foreign or old is ignored and counted.
        """
        why = self._wrong(report)
        if why:
            self.ignored[why] += 1
            if why == "foreign":
                self._foreign[report.node] = now
            return False
        node = self.state.map.node(report.node)
        self._foreign.pop(node.id, None)
        news = self._failures.liveness(node, now) != "up" or node.id not in self._failures.heard_at
        self._failures.heard(node.id, now)
        if report.incarnation and not self.state.member(node.id).incarnation:
            news |= self._incarnations.get(node.id) != report.incarnation
            self._incarnations[node.id] = report.incarnation
        return self._sightings.take(report) or news or self._advanced(node.id)

    def step(self, now: float) -> Step:
        """What follows from the state, the reports and the time. Remembers which orders it has given."""
        self._tracking.look(now)
        lost, _ = self._failures.lost(self.state, now)
        state = self._seen(now, lost)
        orders: list[Order] = []
        if self._settled(now):
            state = mended(state, self._sight(now, lost))
            kept = {move.id for move in state.moves}
            over = {move.id for move in self.state.moves if move.id not in kept}
            avoid = frozenset(node.id for node in state.map.nodes if node.state != "up")
            orders = self._ordering.orders(now, over, avoid)
        return Step(state if state is not self.state else None, orders)

    def adopt(self, state: ControlState) -> None:
        """The state that is in force: after a write of it was committed, or after it was read again."""
        for node in self.state.map.nodes:
            if node not in state.map.nodes and all(node.id != other.id for other in state.map.nodes):
                self._sightings.forget(node.id)
                self._failures.forget(node.id)
                self._foreign.pop(node.id, None)
        self.state = state
        self._incarnations = {
            node: incarnation
            for node, incarnation in self._incarnations.items()
            if any(member.node == node and not member.incarnation for member in state.members)
        }
        self._tracking.adopt(state)
        self._ordering.adopt(state)

    def view(self, now: float) -> View:
        """The picture for people and commands."""
        self._tracking.look(now)
        lost, waits = self._failures.lost(self.state, now)
        busy = self._ordering.busy(now)
        heard = self._failures.heard_at
        return View(
            controller=self.node,
            reports=dict(self._sightings.reports),
            heard_ms={node: round((now - at) * 1000) for node, at in heard.items()},
            states={node.id: self._node_state(node, now) for node in self.state.map.nodes},
            foreign=frozenset(node for node, at in self._foreign.items() if now - at < DOWN_S),
            leaders=self._sightings.leaders(),
            moves={move.id: self._move_view(move, now, busy) for move in self.state.moves},
            waits=waits,
            silence_ms={
                node.id: round(self._failures.silence(node.id, now) * 1000) for node in self.state.map.nodes
            },
            lost=lost,
        )

    def command(self, name: str, arguments: object, dry_run: bool, now: float) -> Outcome:
        """What a command comes to; its state, if it has one, is to be written like a step's. Refused."""
        return execute(self.state, self.view(now), name, arguments, dry_run)

    # -- reports

    def _wrong(self, report: Report) -> str:
        """Why a report is not to be heard; "" if it is."""
        if report.cluster != self._cluster:
            return "cluster"
        known = next((member for member in self.state.members if member.node == report.node), None)
        if known is None:
            return "node"
        if report.incarnation != known.incarnation and (known.incarnation or self._taken(report)):
            return "foreign"
        last = self._sightings.reports.get(report.node)
        if last is not None and last.started_ms == report.started_ms and last.sequence >= report.sequence:
            return "old"
        return ""

    def _taken(self, report: Report) -> bool:
        """Whether this node's incarnation is heard for the first time, and another node has it, or this one
        was heard under another.
        """
        incarnation, node = report.incarnation, report.node
        others = {member.incarnation for member in self.state.members if member.node != node}
        others |= {value for other, value in self._incarnations.items() if other != node}
        return incarnation in others or self._incarnations.get(node, incarnation) != incarnation

    def _advanced(self, node: int) -> bool:
        """Whether a move in a group that this node leads is further than it was."""
        for partition, stages in self._tracking.begun.items():
            group = self._sightings.group(node, partition)
            if group is not None and group.leads:
                for move in self._tracking.moves.get(partition, ()):
                    if move.id in stages and stage(move, group) is not stages[move.id]:
                        return True
        return False

    # -- the state as it should be

    def _settled(self, now: float) -> bool:
        """Whether this controller knows enough to order and to queue anything: by then every store that lives
        has been heard, and of every group with a move what the controller before this one has ordered. Groups
        that nobody leads are waited for a while only.
        """
        age = now - self._failures.began
        if not self._acquainted:
            known = self._tracking.known_since(self._failures.began + SEEN_S)
            self._acquainted = age >= SEEN_S and (age >= DOWN_S or known)
        return self._acquainted

    def _sight(self, now: float, lost: frozenset[int]) -> Sight:
        nodes = self.state.map.nodes
        return Sight(
            lost=lost,
            silent=frozenset(
                node.id
                for node in nodes
                if node.id not in self._failures.heard_at or self._failures.silence(node.id, now) >= SUSPECT_S
            ),
            stages={
                number: at.value for stages in self._tracking.begun.values() for number, at in stages.items()
            },
            failed=self._failed(),
        )

    def _failed(self) -> frozenset[tuple[int, int]]:
        partitions = self.state.map.partition_count
        return frozenset(
            (partition, node)
            for partition, node in self._sightings.failed
            if partition == CONTROL or partition < partitions
        )

    def _seen(self, now: float, lost: frozenset[int]) -> ControlState:
        """The state with what is seen of nodes, groups and moves; the same object if that is what it says."""
        state = self.state
        members = tuple(self._known(member) for member in state.members)
        if members != state.members:
            state = attrs.evolve(state, members=members)
        changes: dict[str, Any] = {}
        if self._tracking.over:
            kept = tuple(move for move in state.moves if move.id not in self._tracking.over)
            if len(kept) != len(state.moves):
                changes["moves"] = kept
        cluster = state.map
        nodes = self._nodes(now)
        going = frozenset((move.partition, move.source) for move in state.moves if not move.target)
        replicas = self._turned(self._rows(), nodes, lost, going)
        control = self._control(nodes, lost, going)
        if (nodes, replicas, control) != (cluster.nodes, cluster.replicas, cluster.control):
            if nodes != cluster.nodes:
                changes["nodes"] = nodes
            return state.remap(replicas=replicas, control=control, **changes)
        return attrs.evolve(state, **changes) if changes else state

    def _known(self, member: Member) -> Member:
        incarnation = self._incarnations.get(member.node, "")
        if member.incarnation or not incarnation:
            return member
        return attrs.evolve(member, incarnation=incarnation)

    def _nodes(self, now: float) -> tuple[Node, ...]:
        gone = self._gone()
        return tuple(
            node if (state := self._node_state(node, now)) == node.state else attrs.evolve(node, state=state)
            for node in self.state.map.nodes
            if node.id not in gone
        )

    def _node_state(self, node: Node, now: float) -> str:
        return node.state if node.state == "draining" else self._failures.liveness(node, now)

    def _gone(self) -> frozenset[int]:
        """The nodes to take out of the map: told to go, and nothing and nobody has them any more."""
        gone = retired(self.state)
        if not gone or self._tracking.rows or not self._acquainted:
            return frozenset()
        for partition in (*range(self.state.map.partition_count), CONTROL):
            group = self._sightings.leader(partition)
            if group is not None:
                gone -= {*group.voters, *group.outgoing, *group.learners}
        return gone

    def _rows(self) -> tuple[Row, ...]:
        replicas = self.state.map.replicas
        seen = {partition: row for partition, row in self._tracking.rows.items() if partition != CONTROL}
        if not seen:
            return replicas
        return tuple(seen.get(partition, row) for partition, row in enumerate(replicas))

    def _control(
        self, nodes: tuple[Node, ...], lost: frozenset[int], going: frozenset[tuple[int, int]]
    ) -> Row:
        """Who holds the control partition; the first should lead it. Weights are of data."""
        row = self._tracking.rows.get(CONTROL, self.state.map.control)
        share = dict.fromkeys((node.id for node in nodes if node.id not in lost), 1.0)
        leaving = {(0, node) for partition, node in going if partition == CONTROL}
        return turned((row,), nodes, share, 0, leaving)[0]

    def _turned(
        self,
        rows: tuple[Row, ...],
        nodes: tuple[Node, ...],
        lost: frozenset[int],
        going: frozenset[tuple[int, int]],
    ) -> tuple[Row, ...]:
        """The rows with leaders spread; nothing is looked at again that was even the last time."""
        now = (rows, tuple((node.id, node.state, node.weight) for node in nodes), lost, going)
        if now == self._even:
            return rows
        new = turned(rows, nodes, shares(self.state, lost), going=going)
        self._even = now if new == rows else ()
        return rows if new == rows else new

    # -- words

    def _move_view(self, move: Move, now: float, busy: Counter[int]) -> MoveView:
        group = self._tracking.group(move.partition, now)
        at = self._tracking.begun.get(move.partition, {}).get(move.id)
        if group is None:
            waits = "no leader of the partition is heard"
            return MoveView((at or Stage.WAITING).value, 0, None, waits)
        if at is None:
            waits = self._ordering.hindrance(move, now, busy)
            shown = Stage.WAITING if move.target else stage(move, group)
            return MoveView(shown.value, group.bytes, done(move, group), waits)
        waits = next_order(move, group, ())[1]
        if at is Stage.LEARNER and self._failures.silence(move.target, now) >= SUSPECT_S:
            waits = f"node {self.state.map.node(move.target).name} is not heard"
        return MoveView(at.value, group.bytes, done(move, group), waits)
