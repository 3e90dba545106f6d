"""How far a move has got, by what the group's leader reports, and what to order next (docs/control.md
section 6).

Owns the stages. Pure functions of a move and one report: nothing is remembered, so that whoever comes next
sees the same. `group` is always a leader's report, `group.leader` the node that leads.
"""

from __future__ import annotations

import enum
from collections.abc import Container
from typing import Final, NamedTuple

from shared.groupmessages import GroupCommand
from storenode.control.reports import GroupReport, Progress
from storenode.control.state import Move

LAG_MAX: Final = 1000
HEARD_MS: Final = 1000
"""What a leader asks of a new voter, or of its successor: docs/raft.md section 9. Ordering what it would
refuse helps nobody.
"""

SNAPSHOT: Final = 2
"""`Progress.state` of a member that waits for a snapshot."""


class Stage(enum.StrEnum):
    """As in docs/control.md section 6."""

    WAITING = "waiting"
    LEARNER = "learner"
    SWAP = "swap"
    SETTLE = "settle"
    LEAVE = "leave"


class Order(NamedTuple):
    """A GROUP command for the store of node `to`: `add-learner`, `transfer-leader`, `replace`, `promote`,
    `remove` (`to` leads the partition; `node` is whom it is about; `other` is the source of `replace`, of
    `remove` the index of the configuration that it is meant for, else 0) or `erase` (`node` is `to`, `other`
    the index of the configuration). Whatever is answered, reports decide.
    """

    to: int
    partition: int
    command: str
    node: int
    other: int


def stage(move: Move, group: GroupReport) -> Stage:
    """Where the move is. A joint configuration that the target votes in belongs to SWAP until it is left."""
    if not move.target:
        return Stage.SETTLE if finished(move, group) else Stage.LEAVE
    if move.target in group.voters:
        if group.outgoing:
            return Stage.SWAP
        return Stage.LEAVE if move.source in group.voters else Stage.SETTLE
    if move.target not in group.learners:
        return Stage.WAITING
    return Stage.SWAP if up_to_date(move.target, group) else Stage.LEARNER


def finished(move: Move, group: GroupReport) -> bool:
    """The group is as the move wants it, and not joint."""
    if group.outgoing or (move.target and move.target not in group.voters):
        return False
    return move.source not in group.voters and move.source not in group.learners


def sensible(move: Move, group: GroupReport, factor: int, *, broken: bool) -> bool:
    """Whether going on with it makes the group what it should be: `factor` voters. `broken`: the source's
    replica has failed or its node is to go whatever that costs, so that a voter fewer is no voter fewer.
    """
    if group.outgoing or finished(move, group):
        return True
    voters = group.voters
    if move.source and move.source not in voters:
        return False
    if move.target and move.target not in voters:
        return bool(move.source) or len(voters) < factor
    return len(voters) > factor or broken


def next_order(move: Move, group: GroupReport, avoid: Container[int]) -> tuple[Order | None, str]:
    """What the move needs next of the leader, once it has begun or may begin; if nothing, then what it waits
    for, "" if that comes by itself. Leadership goes to none of `avoid` where another voter can have it.
    """
    at = stage(move, group)
    if group.outgoing or at in (Stage.LEARNER, Stage.SETTLE):
        return None, ""
    if at is Stage.WAITING:
        return _order(group, GroupCommand.ADD_LEARNER, move.target), ""
    if move.source == group.leader:
        successor = _successor(group, avoid)
        if not successor:
            return None, f"node {move.source} leads, and no other voter is up to date"
        return _order(group, GroupCommand.TRANSFER_LEADER, successor), ""
    left = [node for node in group.voters if node != move.source]
    if at is Stage.SWAP:
        left.append(move.target)
    answering = _answering(left, group)
    if 2 * answering <= len(left):
        return None, f"only {answering} of {len(left)} voters answer the leader"
    if at is Stage.LEAVE:
        return _order(group, GroupCommand.REMOVE, move.source, group.config_index), ""
    if move.source:
        return _order(group, GroupCommand.REPLACE, move.target, move.source), ""
    return _order(group, GroupCommand.PROMOTE, move.target), ""


def take_back(group: GroupReport, learner: int) -> Order:
    """Removes a learner that no move wants. For this configuration only: in the next one it may vote."""
    return _order(group, GroupCommand.REMOVE, learner, group.config_index)


def done(move: Move, group: GroupReport) -> float | None:
    """The fraction of the group's entries that the target has; None where that is not known."""
    at = stage(move, group)
    if at is Stage.WAITING:
        return 0.0
    if at is not Stage.LEARNER:
        return 1.0
    row = _progress(move.target, group)
    return None if row is None or not group.commit else min(1.0, row.match / group.commit)


def hears(node: int, group: GroupReport) -> bool:
    """Whether that member answers its leader."""
    row = _progress(node, group)
    return row is not None and row.heard_ms <= HEARD_MS


def up_to_date(node: int, group: GroupReport) -> bool:
    """As far as the leader would have a new voter or its successor."""
    row = _progress(node, group)
    return (
        row is not None
        and row.state != SNAPSHOT
        and row.heard_ms <= HEARD_MS
        and group.commit - row.match <= LAG_MAX
    )


def _order(group: GroupReport, command: GroupCommand, node: int, other: int = 0) -> Order:
    return Order(group.leader, group.partition, command.value, node, other)


def _progress(node: int, group: GroupReport) -> Progress | None:
    return next((row for row in group.progress if row.node == node), None)


def _successor(group: GroupReport, avoid: Container[int]) -> int:
    """The voter with the most, 0 if none is up to date."""
    rows = [row for row in group.progress if row.node in group.voters and up_to_date(row.node, group)]
    best = max(rows, key=lambda row: (row.node not in avoid, row.match, -row.node), default=None)
    return 0 if best is None else best.node


def _answering(nodes: list[int], group: GroupReport) -> int:
    heard = {row.node for row in group.progress if row.heard_ms <= HEARD_MS} | {group.leader}
    return sum(node in heard for node in nodes)
