"""Which orders leave now: what moves need next, and what was left behind (docs/control.md section 6).

Owns what was sent lately, so that nothing is sent twice while it may be on its way, and the limits: orders a
step, transfers a node, one change of a group at a time. Must not change the state. That a controller dies
with this memory is no harm: the next one gives no orders while the last one's may be on their way.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from shared.groupmessages import GroupCommand
from storenode.control.failures import DOWN_S, SUSPECT_S, Failures
from storenode.control.moves import Order, hears, next_order, take_back
from storenode.control.reports import GroupReport
from storenode.control.sightings import Sightings
from storenode.control.state import CONTROL, ControlState, Move
from storenode.control.tracking import Tracking

ORDERS_MAX: Final = 16
"""In a step. Each is a change of some group, which costs that group a moment."""

REPEAT_S: Final = 2.0
"""An order may be on its way for so long; then it is taken to be lost."""

SEEN_S: Final = 3.0
"""After so long, what an order has brought about is in a report, if that store's reports come."""

_URGENCY: Final = {"control": 0, "replace": 1, "drain": 2, "rebalance": 3}


class _Sent(NamedTuple):
    order: Order
    at: float
    seen: tuple[int, int, int]
    """Leader, term and configuration for which it was meant: with others it is over."""


class Ordering:
    """Of one controller."""

    def __init__(
        self, state: ControlState, sightings: Sightings, tracking: Tracking, failures: Failures
    ) -> None:
        self._sightings = sightings
        self._tracking = tracking
        self._failures = failures
        self._sent: dict[int, _Sent] = {}
        self._asked: dict[int, tuple[int, float]] = {}
        self._erased: dict[tuple[int, int], float] = {}
        self._mute_since: dict[tuple[int, int], float] = {}
        self._given: list[Order] = []
        self.adopt(state)

    def adopt(self, state: ControlState) -> None:
        """The state in force."""
        self._state = state
        self._moves = {move.id: move for move in state.moves}
        self._queue = sorted(state.moves, key=lambda move: _URGENCY[move.reason])

    def orders(self, now: float, over: set[int], avoid: frozenset[int]) -> list[Order]:
        """What to send now. `over`: moves that are as good as gone. `avoid`: who should not lead."""
        self._given = []
        self._erased = {key: at for key, at in self._erased.items() if now - at < SEEN_S}
        self._asked = {
            partition: (node, at)
            for partition, (node, at) in self._asked.items()
            if now - at < DOWN_S and not self._reported(partition, at)
        }
        begun = self._tracking.begun
        self._mute_since = {key: since for key, since in self._mute_since.items() if key[0] in begun}
        busy = self.busy(now)
        for partition in sorted(self._tracking.begun):
            self._go_on(partition, now, over, avoid)
        for partition in sorted(self._tracking.learning):
            self._take_back(partition, now, over)
        for partition in sorted(self._tracking.strays):
            self._erase(partition, now, over)
        if not self._state.paused:
            self._start(now, over, avoid, busy)
        return self._given

    def busy(self, now: float) -> Counter[int]:
        """The transfers that each node has a part in. A source that is silent has none: it copies nothing.
        The control partition is small and counts for nothing. A learner that no move wants is one until it
        has gone.
        """
        busy: Counter[int] = Counter()
        for partition, target in self._copying(now):
            busy[target] += 1
            for move in self._tracking.moves.get(partition, ()):
                if move.target == target and move.source and not self._silent(move.source, now):
                    busy[move.source] += 1
        return busy

    def hindrance(self, move: Move, now: float, busy: Counter[int]) -> str:
        """Why a move that waits cannot begin, for people; "" if it can."""
        if self._state.paused:
            return "paused"
        group = self._tracking.group(move.partition, now)
        if group is None:
            return "no leader of the partition is heard"
        asked = self._asked.get(move.partition, (move.target, now))[0]
        if group.outgoing or group.learners or move.partition in self._tracking.begun or asked != move.target:
            return "another replica of the partition is moving"
        if self._on_its_way(move.partition, group, now) is not None:
            return ""
        if move.target and self._silent(move.target, now):
            return f"{self._name(move.target)} is not heard"
        place = (move.partition, move.target)
        if place in self._sightings.failed or place in self._erased:
            return f"what {self._name(move.target)} still has of the partition is erased first"
        if move.target and move.partition != CONTROL:
            for node in (move.target, move.source):
                if busy[node] >= self._state.settings.transfers_per_node:
                    return f"{self._name(node)} is busy with {busy[node]} transfers"
        return ""

    # -- what has begun

    def _copying(self, now: float) -> set[tuple[int, int]]:
        """(partition, target) of the moves that have begun, of learners that no move wants, and of those that
        may have been added without a report of it.
        """
        found = {
            (partition, self._moves[number].target)
            for partition, stages in self._tracking.begun.items()
            for number in stages
            if number in self._moves
        }
        for partition in self._tracking.learning:
            group = self._sightings.leader(partition)
            if group is not None:
                found.update((partition, learner) for learner in group.learners)
        found.update((partition, node) for partition, (node, at) in self._asked.items() if now - at < DOWN_S)
        return {(partition, target) for partition, target in found if target and partition != CONTROL}

    def _go_on(self, partition: int, now: float, over: set[int], avoid: frozenset[int]) -> None:
        group = self._tracking.group(partition, now)
        if group is None:
            return
        for number in self._tracking.begun[partition]:
            move = self._moves.get(number)
            if move is not None and number not in over:
                order, _ = next_order(move, group, avoid)
                if self._mute(move, group, now):
                    order = take_back(group, move.target)
                if order is not None:
                    self._give(order, group, now)
                return

    def _mute(self, move: Move, group: GroupReport, now: float) -> bool:
        """Whether the move's learner has been silent to its leader for long, while its store lives: it may
        have lost the replica. Taken back it is added afresh.
        """
        learner = move.target in group.learners and not self._silent(move.target, now)
        if not learner or hears(move.target, group):
            self._mute_since.pop((move.partition, move.target), None)
            return False
        return now - self._mute_since.setdefault((move.partition, move.target), now) >= DOWN_S

    def _start(self, now: float, over: set[int], avoid: frozenset[int], busy: Counter[int]) -> None:
        most = self._state.settings.transfers_per_node
        for move in self._queue:
            if len(self._given) >= ORDERS_MAX:
                return
            copied = move.target and move.partition != CONTROL
            if copied and (busy[move.target] >= most or busy[move.source] >= most):
                continue
            if move.id in over or self.hindrance(move, now, busy):
                continue
            group = self._tracking.group(move.partition, now)
            order = next_order(move, group, avoid)[0] if group is not None else None
            if group is None or order is None or not self._give(order, group, now):
                continue
            if copied:
                busy[move.target] += 1
                if move.source and not self._silent(move.source, now):
                    busy[move.source] += 1

    # -- what was left behind

    def _take_back(self, partition: int, now: float, over: set[int]) -> None:
        """A learner that no move wants is removed; in a pause people may have learners of their own."""
        group = self._tracking.group(partition, now)
        if group is None or group.outgoing or self._state.paused:
            return
        wanted = {move.target for move in self._tracking.moves.get(partition, ()) if move.id not in over}
        for learner in group.learners:
            if learner not in wanted:
                self._give(take_back(group, learner), group, now)
                return

    def _erase(self, partition: int, now: float, over: set[int]) -> None:
        """Replicas of nodes that are no members, once a majority of the voters cannot forget that."""
        group = self._tracking.group(partition, now)
        if group is None or group.outgoing:
            return
        replicas = [self._sightings.group(voter, partition) for voter in group.voters]
        durable = sum(replica is not None and replica.durable >= group.config_index for replica in replicas)
        if 2 * durable <= len(group.voters):
            return
        wanted = {move.target for move in self._tracking.moves.get(partition, ()) if move.id not in over}
        for node in sorted(self._tracking.strays[partition]):
            key = (partition, node)
            if node in wanted and key not in self._sightings.failed:
                continue
            if now - self._erased.get(key, now - REPEAT_S) < REPEAT_S or len(self._given) >= ORDERS_MAX:
                continue
            if self._silent(node, now):
                continue
            self._erased[key] = now
            self._given.append(Order(node, partition, GroupCommand.ERASE.value, node, group.config_index))

    # -- sending

    def _give(self, order: Order, group: GroupReport, now: float) -> bool:
        if len(self._given) >= ORDERS_MAX or self._on_its_way(order.partition, group, now) is not None:
            return False
        seen = (group.leader, group.term, group.config_index)
        self._sent[order.partition] = _Sent(order, now, seen)
        if order.command == GroupCommand.ADD_LEARNER:
            self._asked[order.partition] = (order.node, now)
        self._given.append(order)
        return True

    def _on_its_way(self, partition: int, group: GroupReport, now: float) -> Order | None:
        """What was ordered of this group, and has neither come about nor been lost yet."""
        sent = self._sent.get(partition)
        if sent is None or now - sent.at >= REPEAT_S:
            return None
        return sent.order if sent.seen == (group.leader, group.term, group.config_index) else None

    def _reported(self, partition: int, at: float) -> bool:
        """Whether what was ordered then would be in the newest report by now."""
        group = self._sightings.leader(partition)
        return group is not None and self._failures.heard_at[group.leader] >= at + SEEN_S

    def _silent(self, node: int, now: float) -> bool:
        return self._failures.silence(node, now) >= SUSPECT_S

    def _name(self, node: int) -> str:
        known = [other.name for other in self._state.map.nodes if other.id == node]
        return f"node {known[0]}" if known else f"node {node}"
