"""Changes of a group's members by hand: what is refused before it is proposed, and the words for it.

Owns the rules of safety beyond Raft's own, and the picture that a leader has of its group. Pure: reads a
`Raft`, which leads but for `check_erase`, changes nothing, knows no message, socket or clock; `now` is in the
clock of `Raft.now`.

What is refused is what Raft would take and an operator would regret: a group that cannot commit because too
many of its new voters do not answer, or answer far behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from storenode.raft import Progress, ProgressState, Raft, Role
from storenode.raft.configuration import decode_change, describe
from storenode.raft.messages import Change, Configuration, EntryKind, Operation, Transition

LAG_MAX: Final = 1000
"""Entries that a new voter or leader may be behind: an entry is a turn of the leader's loop, so these are a
few seconds at most, and the group waits no longer for it.
"""

HEARD_S: Final = 1.0
"""A member that has not answered for so long counts as unreachable: ten heartbeats, the shortest time after
which a follower gives its leader up.
"""

SCAN_BYTES: Final = 1 << 20
"""Of entries in memory at a time."""

Name = Callable[[int], str]


class Refused(Exception):
    """The command is refused; nothing was proposed. `passing`: asked again in a moment, it may not be."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Done(Exception):
    """There is nothing to do."""


def add_learner(raft: Raft, node: int, name: Name) -> Change:
    """Refused, Done."""
    _settled(raft)
    configuration = raft.configuration
    if node in configuration.learners:
        raise Done(f"{name(node)} is a learner already")
    if node in configuration.voters:
        raise Refused(f"{name(node)} is a voter already; a learner has no vote")
    return Change(Transition.AUTO, ((Operation.ADD_LEARNER, node),))


def promote(raft: Raft, node: int, name: Name, now: float) -> Change:
    """Refused, Done."""
    _settled(raft)
    configuration = raft.configuration
    if node in configuration.voters:
        raise Done(f"{name(node)} is a voter already")
    if node not in configuration.learners:
        raise Refused(f"{name(node)} is no member: add it as a learner first")
    _up_to_date(raft, node, name, now)
    _majority(raft, configuration.voters | {node}, f"with {name(node)} as a voter", name, now)
    return Change(Transition.IMPLICIT, ((Operation.ADD_VOTER, node),))


def remove(raft: Raft, node: int, name: Name, now: float) -> Change:
    """Refused, Done."""
    _settled(raft)
    configuration = raft.configuration
    if node not in configuration.members:
        raise Done(f"{name(node)} is no member")
    if node in configuration.learners:
        return Change(Transition.AUTO, ((Operation.REMOVE, node),))
    left = configuration.voters - {node}
    if not left:
        raise Refused(f"{name(node)} is the only voter: without it there is no group")
    if node == raft.node:
        raise Refused(f"{name(node)} leads: transfer the leadership to another voter first")
    _majority(raft, left, f"without {name(node)}", name, now)
    return Change(Transition.IMPLICIT, ((Operation.REMOVE, node),))


def replace(raft: Raft, node: int, source: int, name: Name, now: float) -> Change:
    """`node`, a learner, becomes a voter in the place of `source`, in one joint change. Refused, Done."""
    _settled(raft)
    configuration = raft.configuration
    if node == source:
        raise Refused(f"{name(node)} cannot take its own place")
    if node in configuration.voters and source not in configuration.members:
        raise Done(f"{name(node)} is a voter already, and {name(source)} is no member")
    if node not in configuration.learners:
        role = "a voter already" if node in configuration.voters else "no member: add it as a learner first"
        raise Refused(f"{name(node)} is {role}")
    if source not in configuration.voters:
        raise Refused(f"{name(source)} is no voter whose place {name(node)} could take")
    if source == raft.node:
        raise Refused(f"{name(source)} leads: transfer the leadership to another voter first")
    _up_to_date(raft, node, name, now)
    what = f"with {name(node)} in the place of {name(source)}"
    _majority(raft, configuration.voters - {source} | {node}, what, name, now)
    return Change(Transition.IMPLICIT, ((Operation.ADD_VOTER, node), (Operation.REMOVE, source)))


def check_transfer(raft: Raft, node: int, name: Name, now: float) -> None:
    """Refused, Done."""
    configuration = raft.configuration
    if node == raft.node:
        raise Done(f"{name(node)} leads already")
    if node in configuration.learners:
        raise Refused(f"{name(node)} is a learner: promote it first")
    if node not in configuration.voters:
        raise Refused(f"{name(node)} is no voter")
    leadership = raft.leadership
    if leadership is not None and leadership.transferee not in (0, node):
        raise Refused(f"the leadership is being handed to {name(leadership.transferee)}")
    _up_to_date(raft, node, name, now)


def check_erase(raft: Raft, index: int, name: Name) -> None:
    """This node's replica may go, for the configuration of entry `index`, which a majority of its voters have
    in their tables, has not got this node. Refused.

    What this node acknowledged up to its coming back, if it came back, was committed without it. So only what
    lies behind an entry that brings it back counts, whether that is applied or not.
    """
    configuration, me = raft.configuration, name(raft.node)
    if not configuration.voters:
        raise Refused(f"{me} waits to become a member: it has no configuration that it could have left")
    if raft.role is Role.LEADER:
        raise Refused(f"{me} leads, by what it knows", passing=True)
    if raft.applied_index >= index and raft.node in configuration.members:
        raise Refused(
            f"{me} is a member in the configuration {describe(configuration)}, "
            f"and has applied entry {raft.applied_index:,}, beyond {index:,}"
        )
    back = _comes_back(raft, max(raft.applied_index, index) + 1)
    if back:
        raise Refused(f"{me} comes back with entry {back:,}, applied is {raft.applied_index:,}", passing=True)


def _comes_back(raft: Raft, first: int) -> int:
    """The index of an entry from `first` on that makes this node a member; 0: there is none."""
    log = raft.log
    first = max(first, log.first_index)
    while first <= log.last_index:
        for entry in log.entries(first, log.last_index + 1, SCAN_BYTES):
            if entry.kind == EntryKind.CONFIGURATION and any(
                node == raft.node and operation != Operation.REMOVE
                for operation, node in decode_change(entry.data).operations
            ):
                return first
            first += 1
    return 0


def after(configuration: Configuration, change: Change) -> Configuration:
    """What is in force when `change` is done, its joint configuration left."""
    voters, learners = set(configuration.voters), set(configuration.learners)
    for operation, node in change.operations:
        voters.discard(node)
        learners.discard(node)
        if operation == Operation.ADD_VOTER:
            voters.add(node)
        elif operation == Operation.ADD_LEARNER:
            learners.add(node)
    return Configuration(frozenset(voters), learners=frozenset(learners))


def picture(raft: Raft, now: float) -> dict[str, Any]:
    """The group as its leader sees it: indexes, milliseconds, node ids (docs/protocol.md section 6)."""
    configuration, leadership = raft.configuration, raft.leadership
    return {
        "leader": raft.node,
        "term": raft.term,
        "commit": raft.commit,
        "applied": raft.applied_index,
        "first": raft.log.first_index,
        "last": raft.last_index,
        "voters": sorted(configuration.voters),
        "outgoing": sorted(configuration.outgoing),
        "learners": sorted(configuration.learners),
        "change": leadership.change_under_way if leadership else 0,
        "transfer": leadership.transferee if leadership else 0,
        "members": [
            {"id": node, "role": _role(raft, node), **_view(raft, node, progress, now)}
            for node, progress in raft.progress.items()
        ],
    }


def _role(raft: Raft, node: int) -> str:
    if node == raft.node:
        return "leader"
    configuration = raft.configuration
    if node in configuration.learners:
        return "learner"
    return "voter" if node in configuration.voters else "outgoing"


def _view(raft: Raft, node: int, progress: Progress, now: float) -> dict[str, Any]:
    heard_at = now if node == raft.node else progress.heard_at
    return {
        "match": progress.match,
        "lag": max(0, raft.commit - progress.match),
        "state": progress.state.name.lower(),
        "heard_ms": None if heard_at is None else max(0, round((now - heard_at) * 1000)),
    }


def _settled(raft: Raft) -> None:
    """No other change is under way, and this leader may propose one."""
    leadership = raft.leadership
    if leadership is None or not leadership.established:
        raise Refused("the leader has not committed an entry of its term yet", passing=True)
    if raft.configuration.joint:
        raise Refused(
            f"another change is under way, in the configuration {describe(raft.configuration)}", passing=True
        )
    if leadership.change_under_way:
        raise Refused(
            f"another change is under way at entry {leadership.change_under_way:,}, "
            f"applied is {raft.applied_index:,}",
            passing=True,
        )
    if leadership.transferee:
        raise Refused(f"the leadership is being handed to node {leadership.transferee}", passing=True)


def _up_to_date(raft: Raft, node: int, name: Name, now: float) -> None:
    progress = raft.progress[node]
    if not _heard(raft, node, now):
        since = now - (progress.since if progress.heard_at is None else progress.heard_at)
        raise Refused(
            f"{name(node)} has not answered for {max(0.0, since):.1f} s, {HEARD_S:g} s are allowed",
            passing=progress.heard_at is None and since < HEARD_S,
        )
    if progress.state is ProgressState.SNAPSHOT:
        raise Refused(
            f"{name(node)} waits for a snapshot: it has entry {progress.match:,}, "
            f"the log begins with {raft.log.first_index:,}"
        )
    lag = raft.last_index - progress.match
    if lag > LAG_MAX:
        raise Refused(
            f"{name(node)} is {lag:,} entries behind, {LAG_MAX:,} are allowed: "
            f"it has entry {progress.match:,} of {raft.last_index:,}"
        )


def _majority(raft: Raft, voters: frozenset[int], what: str, name: Name, now: float) -> None:
    """Enough of `voters` answer to be a majority of them."""
    needed = len(voters) // 2 + 1
    silent = sorted(node for node in voters if not _heard(raft, node, now))
    reachable = len(voters) - len(silent)
    if reachable >= needed:
        return
    progress = raft.progress
    passing = any(progress[node].heard_at is None and now - progress[node].since < HEARD_S for node in silent)
    raise Refused(
        f"{what} the group has {_count(len(voters), 'voter')} and needs {needed} of them, "
        f"but only {reachable} can be reached: no answer from {', '.join(map(name, silent))}",
        passing=passing,
    )


def _heard(raft: Raft, node: int, now: float) -> bool:
    heard_at = raft.progress[node].heard_at
    return node == raft.node or (heard_at is not None and now - heard_at <= HEARD_S)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
