"""Changes to who belongs to a group: one voter at a time, or through a joint configuration.

Owns the rules of Ongaro's dissertation, chapter 4, with learners: which change is legal, what comes of it,
and the bytes of changes and configurations (docs/raft.md sections 2 and 5). Pure: knows nothing of logs,
terms or progress; whoever calls it makes and drops progress by comparing `members` before and after.

Invariants of every configuration that leaves this file by a change or by decoding:
- there is a voter (only a decoded one may have none: a replica that waits for its first snapshot);
- a learner is no voter, neither of the new nor of the outgoing half;
- who waits to become a learner is a voter of the outgoing half only;
- `outgoing` empty means `learners_next` empty and `auto_leave` false.

A voter of the outgoing half that is to be a learner votes there until the joint configuration is left, hence
`learners_next`: otherwise the same node would count and not count at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from storenode.raft.messages import EVERYBODY, NOBODY, Change, Configuration, Operation, Transition

Operations = Iterable[tuple[int, int]]

_TRANSITIONS = frozenset(map(int, Transition))
_OPERATIONS = frozenset(map(int, Operation))

_pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class ConfigurationRefused(ValueError):
    """The change is not legal from this configuration; the text says which and why. Nothing was changed."""


def simple(configuration: Configuration, operations: Operations) -> Configuration:
    """The configuration after changes that together touch at most one voter, taken in one step.

    With one voter more or less, any majority of the old overlaps with any majority of the new (dissertation
    section 4.1), so no joint configuration is needed. Learners may change in any number.

    ConfigurationRefused: it is joint, more than one voter would change, or no voter would be left.
    """
    if configuration.joint:
        raise ConfigurationRefused(
            f"a change in one step is not possible while it is joint: {describe(configuration)}"
        )
    changed = _apply(configuration, operations)
    touched = configuration.voters ^ changed.voters
    if len(touched) > 1:
        raise ConfigurationRefused(
            f"more than one voter would change ({_ids(touched)}): this takes a joint configuration"
        )
    return changed


def enter_joint(configuration: Configuration, operations: Operations, auto_leave: bool) -> Configuration:
    """The joint configuration of what is and of what shall be (dissertation section 4.3).

    With `auto_leave` the leader leaves it on its own as soon as it is in force.

    ConfigurationRefused: it is joint, has no voters, or no voter would be left.
    """
    if configuration.joint:
        raise ConfigurationRefused(f"the configuration is joint already: {describe(configuration)}")
    if not configuration.voters:
        raise ConfigurationRefused("a configuration without voters cannot be made joint")
    entered = configuration._replace(outgoing=configuration.voters)
    return _apply(entered, operations)._replace(auto_leave=auto_leave)


def leave_joint(configuration: Configuration) -> Configuration:
    """The new half alone; ConfigurationRefused if the configuration is not joint."""
    if not configuration.joint:
        raise ConfigurationRefused(
            f"the configuration is not joint and cannot be left: {describe(configuration)}"
        )
    return Configuration(configuration.voters, learners=configuration.learners | configuration.learners_next)


def apply_change(configuration: Configuration, change: Change) -> Configuration:
    """What `change` makes of `configuration`, by the step that its transition asks for; ConfigurationRefused.

    No operations leave the joint configuration; AUTO with one takes it in one step; anything else enters a
    joint configuration, which the leader leaves on its own unless the change is EXPLICIT.
    """
    if not change.operations:
        return leave_joint(configuration)
    if change.transition == Transition.AUTO and len(change.operations) == 1:
        return simple(configuration, change.operations)
    return enter_joint(configuration, change.operations, change.transition != Transition.EXPLICIT)


def describe(configuration: Configuration) -> str:
    """For people: `voters=(1 2 3)&&(1) learners=(4) learners_next=(5) autoleave`, without what is empty."""
    voters, outgoing, learners, learners_next, auto_leave = configuration
    parts = [f"voters=({_ids(voters)})" + (f"&&({_ids(outgoing)})" if outgoing else "")]
    if learners:
        parts.append(f"learners=({_ids(learners)})")
    if learners_next:
        parts.append(f"learners_next=({_ids(learners_next)})")
    if auto_leave:
        parts.append("autoleave")
    return " ".join(parts)


def encode_change(change: Change) -> bytes:
    """The data of a CONFIGURATION entry."""
    return _pack((int(change.transition), [(int(operation), node) for operation, node in change.operations]))


def decode_change(data: bytes) -> Change:
    """The change that `encode_change` made; ProtocolError for any other bytes."""
    fields = frames.decode(data)
    if type(fields) is not tuple or len(fields) != 2 or type(fields[1]) is not tuple:
        raise ProtocolError("a configuration change is an array of transition and operations")
    transition, operations = fields
    if type(transition) is not int or transition not in _TRANSITIONS:
        raise ProtocolError(f"the transition of a configuration change is 0, 1 or 2, not {transition!r:.40}")
    for row in operations:
        if type(row) is not tuple or len(row) != 2:
            raise ProtocolError("an operation of a configuration change is an array of operation and node id")
        if type(row[0]) is not int or row[0] not in _OPERATIONS:
            raise ProtocolError(f"the operation of a configuration change is 0, 1 or 2, not {row[0]!r:.40}")
        _check_node(row[1])
    return Change(Transition(transition), operations)


def encode_configuration(configuration: Configuration) -> bytes:
    """The same bytes for the same configuration on every node."""
    voters, outgoing, learners, learners_next, auto_leave = configuration
    return _pack((sorted(voters), sorted(outgoing), sorted(learners), sorted(learners_next), auto_leave))


def decode_configuration(data: bytes) -> Configuration:
    """The configuration that `encode_configuration` made, its invariants checked; ProtocolError otherwise."""
    fields = frames.decode(data)
    if type(fields) is not tuple or len(fields) != 5 or type(fields[4]) is not bool:
        raise ProtocolError("a configuration is an array of four arrays of node ids and a boolean")
    voters, outgoing, learners, learners_next = map(_node_set, fields[:4])
    configuration = Configuration(voters, outgoing, learners, learners_next, fields[4])
    fault = _broken_invariant(configuration)
    if fault is not None:
        raise ProtocolError(f"a configuration contradicts itself: {fault}: {describe(configuration):.200}")
    return configuration


def _apply(configuration: Configuration, operations: Operations) -> Configuration:
    """The operations in their order, each idempotent; one on NOBODY is void."""
    voters, outgoing, learners, learners_next, auto_leave = configuration
    incoming, learning, staged = set(voters), set(learners), set(learners_next)
    for operation, node in operations:
        if node == NOBODY or (operation == Operation.ADD_LEARNER and node in learning):
            continue
        for members in (incoming, learning, staged):
            members.discard(node)
        if operation == Operation.ADD_VOTER:
            incoming.add(node)
        elif operation == Operation.ADD_LEARNER:
            (staged if node in outgoing else learning).add(node)
    if not incoming:
        raise ConfigurationRefused(f"no voter would be left of {describe(configuration)}")
    changed = Configuration(frozenset(incoming), outgoing, frozenset(learning), frozenset(staged), auto_leave)
    assert _broken_invariant(changed) is None, describe(changed)
    return changed


def _broken_invariant(configuration: Configuration) -> str | None:
    voters, outgoing, learners, learners_next, auto_leave = configuration
    if learners & (voters | outgoing):
        return "a learner is a voter"
    if learners_next - outgoing:
        return "who becomes a learner on leaving is no outgoing voter"
    if learners_next & voters:
        return "who becomes a learner on leaving is a voter of the new half"
    if outgoing and not voters:
        return "it is joint and its new half has no voters"
    if auto_leave and not outgoing:
        return "it is left on its own, but not joint"
    return None


def _node_set(value: Any) -> frozenset[int]:
    """Ascending without repetition, so that a configuration has one encoding only."""
    if type(value) is not tuple:
        raise ProtocolError("the members of a configuration are arrays of node ids")
    before = NOBODY
    for node in value:
        if _check_node(node) <= before:
            raise ProtocolError("the node ids of a configuration ascend")
        before = node
    return frozenset(value)


def _check_node(value: object) -> int:
    if type(value) is not int or not NOBODY < value < EVERYBODY:
        raise ProtocolError(f"a node id is an integer from 1 to {EVERYBODY - 1}, not {value!r:.40}")
    return value


def _ids(nodes: Iterable[int]) -> str:
    return " ".join(map(str, sorted(nodes)))
