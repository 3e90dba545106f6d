"""How groups and state differ: rows that are settled otherwise, moves that have begun or ended.

Owns, for each partition, what follows from its newest leader's report; all of it can be found again. Must
not know what is queued or ordered for it. A partition is looked at when its group or its moves have
changed, while one of its moves is under way, and until the state says what the group is.
"""

from __future__ import annotations

from collections import defaultdict

from shared.clustermap import CONTROL_MAX, control_size
from storenode.control.failures import SUSPECT_S, Failures
from storenode.control.moves import Stage, finished, sensible, stage
from storenode.control.placement import Row, moved
from storenode.control.reports import GroupReport
from storenode.control.sightings import Sightings
from storenode.control.state import CONTROL, ControlState, Move


class Tracking:
    """`begun`: by partition, the stages of its moves that have begun, by id; where the leader is not heard
    just now, as they were. `rows`: of partitions that are settled otherwise than the state has them. `over`:
    moves that have ended or make no sense in their group. `strays`: by partition, who has a replica and is
    no member. `learning`: partitions whose groups have learners.
    """

    def __init__(self, state: ControlState, sightings: Sightings, failures: Failures) -> None:
        self._sightings = sightings
        self._failures = failures
        self.moves: dict[int, list[Move]] = {}
        self.begun: dict[int, dict[int, Stage]] = {}
        self.rows: dict[int, Row] = {}
        self.over: set[int] = set()
        self.strays: dict[int, set[int]] = {}
        self.learning: set[int] = set()
        self._open: set[int] = {*range(state.map.partition_count), CONTROL}
        self.state = state
        self._take(state.moves)

    def adopt(self, state: ControlState) -> None:
        """The state in force."""
        before, self.state = self.state, state
        if state.moves != before.moves:
            self._open.update(move.partition for move in {*before.moves} ^ {*state.moves})
            self._take(state.moves)

    def _take(self, moves: tuple[Move, ...]) -> None:
        found: dict[int, list[Move]] = defaultdict(list)
        for move in moves:
            found[move.partition].append(move)
        self.moves = dict(found)

    def row(self, partition: int) -> Row:
        """Who holds it, as the state has it."""
        cluster = self.state.map
        return cluster.control if partition == CONTROL else cluster.replicas[partition]

    def group(self, partition: int, now: float) -> GroupReport | None:
        """What its leader says, if that leader is heard."""
        group = self._sightings.leader(partition)
        if group is None or self._failures.silence(group.leader, now) >= SUSPECT_S:
            return None
        return group

    def known_since(self, moment: float) -> bool:
        """Whether every group with a move has a leader that was heard since then."""
        groups = map(self._sightings.leader, self.moves)
        heard = self._failures.heard_at
        return all(group is not None and heard[group.leader] >= moment for group in groups)

    def look(self, now: float) -> None:
        """Bring everything up to date."""
        changed = self._sightings.changed
        todo = changed | self._open | self.begun.keys()
        self._sightings.changed = set()
        self._open = set()
        for partition in todo:
            if partition == CONTROL or partition < self.state.map.partition_count:
                self._look(partition, now)

    def _look(self, partition: int, now: float) -> None:
        self.rows.pop(partition, None)
        moves = self.moves.get(partition, [])
        self.over.difference_update(move.id for move in moves)
        group = self.group(partition, now)
        if group is None:
            self._open.add(partition)
            self._keep_stages(partition, moves)
            return
        self._find_members(partition, group)
        row = self.row(partition)
        settled = row if group.outgoing else self._settled(row, group, moves)
        stages: dict[int, Stage] = {}
        for move in moves:
            if finished(move, group) or not self._sensible(move, group):
                self.over.add(move.id)
            elif (at := stage(move, group)) is not Stage.WAITING and (move.target or group.outgoing):
                stages[move.id] = at
        self._set_stages(partition, stages)
        if settled != row:
            self.rows[partition] = settled
            self._open.add(partition)
        elif not self.over.isdisjoint(move.id for move in moves):
            self._open.add(partition)

    def _keep_stages(self, partition: int, moves: list[Move]) -> None:
        known = self.begun.get(partition, {})
        self._set_stages(partition, {move.id: known[move.id] for move in moves if move.id in known})

    def _set_stages(self, partition: int, stages: dict[int, Stage]) -> None:
        if stages:
            self.begun[partition] = stages
        else:
            self.begun.pop(partition, None)

    def _find_members(self, partition: int, group: GroupReport) -> None:
        if group.learners:
            self.learning.add(partition)
        else:
            self.learning.discard(partition)
        members = {*group.voters, *group.outgoing, *group.learners}
        strays = self._sightings.holders(partition) - members
        if strays:
            self.strays[partition] = strays
        else:
            self.strays.pop(partition, None)

    def _sensible(self, move: Move, group: GroupReport) -> bool:
        if move.partition == CONTROL:
            return sensible(move, group, control_size(len(self.state.map.nodes)), broken=True)
        broken = (move.partition, move.source) in self._sightings.failed or any(
            member.removing for member in self.state.members if member.node == move.source
        )
        return sensible(move, group, self.state.map.replication_factor, broken=broken)

    def _settled(self, row: Row, group: GroupReport, moves: list[Move]) -> Row:
        """The row as the group is: who came for another has its place. As it was, if no map can say it."""
        voters = set(group.voters)
        new = row
        for move in moves:
            if move.target in voters and move.source in row and move.source not in voters:
                new = moved(new, move)
        known = {node.id for node in self.state.map.nodes}
        held = [node for node in dict.fromkeys(new) if node in voters]
        new = (*held, *(node for node in group.voters if node in known and node not in held))
        most = CONTROL_MAX if group.partition == CONTROL else 2 * self.state.map.replication_factor
        return new if 1 <= len(new) <= most else row
