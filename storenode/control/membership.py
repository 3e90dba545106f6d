"""Commands about one node: it joins, is drained, removed, gets another weight (docs/control.md section 4).

Owns what is refused, and the words for it. Pure: from (state, view, arguments) to a new state and an answer.
What follows from the new state (moves, rows turned) is for the controller's next step.
"""

from __future__ import annotations

from typing import Final

import attrs

from shared.clustermap import NODE_ID_MAX, Node
from shared.ring import NODES_MAX
from storenode.control.arguments import Arguments, Busy, Refused
from storenode.control.outcome import Outcome
from storenode.control.placement import loads
from storenode.control.reports import GroupReport
from storenode.control.state import CONTROL, ControlState, Member, Move
from storenode.control.view import DOWN_MS, SUSPECT_MS, View

JOIN_ENDPOINTS: Final = 5
"""That a new store is told to ask: enough that one of them answers."""


def join(state: ControlState, view: View, given: Arguments) -> Outcome:
    name, zone, weight = given.name(), given.zone(), given.weight(1)
    rpc, bus, events = (given.endpoint(field) for field in ("rpc", "bus", "events"))
    incarnation = given.incarnation()
    given.end()
    for member in state.members:
        if member.incarnation == incarnation:
            return _joined(state, member.node, False)
    if len({rpc, bus, events}) < 3:
        raise Refused("rpc, bus and events must be three endpoints, two of them are the same")
    _refuse_taken(state, name, {"rpc": rpc, "bus": bus, "events": events})
    number = state.next_node
    members = (*state.members, Member(number, incarnation, state.map.epoch + 1))
    node = Node(number, name, rpc, bus, events, zone, weight)
    after = state.remap(nodes=(*state.map.nodes, node), members=members, next_node=number + 1)
    return _joined(after, number, True)


def _joined(state: ControlState, node: int, changed: bool) -> Outcome:
    body = {
        "node": node,
        "cluster": state.map.name,
        "cluster_id": state.map.cluster_id,
        "map": state.map.encode(),
        "changed": changed,
    }
    return Outcome(state if changed else None, body)


def node_add(state: ControlState, view: View, given: Arguments) -> Outcome:
    name, rpc = given.name(), given.endpoint("rpc")
    given.zone()
    given.weight(1)
    given.end()
    _refuse_taken(state, name, {"rpc": rpc})
    known = sorted(state.map.nodes, key=lambda node: (view.states.get(node.id, node.state) != "up", node.id))
    body = {"cluster": state.map.name, "join": [node.rpc for node in known[:JOIN_ENDPOINTS]]}
    return Outcome(None, body)


def _refuse_taken(state: ControlState, name: str, endpoints: dict[str, str]) -> None:
    if len(state.map.nodes) >= NODES_MAX:
        raise Refused(f"the cluster has {NODES_MAX} nodes, the most that it can have")
    if state.next_node > NODE_ID_MAX:
        raise Refused(f"all {NODE_ID_MAX} node ids were given, and none is given twice")
    for node in state.map.nodes:
        if node.name == name:
            _taken(state, node, f"the name {name} is taken by node {node.id} at {node.rpc}")
        for field, endpoint in endpoints.items():
            if endpoint in (node.rpc, node.bus, node.events):
                _taken(state, node, f"the endpoint {endpoint} ({field}) is taken by {node.name}")


def _taken(state: ControlState, node: Node, text: str) -> None:
    if state.member(node.id).removing:
        raise Busy(f"{text}, which is being removed: {_left(state, node.id)}")
    raise Refused(
        f"{text}. If that store is gone or has lost its data: kvcli node remove {node.name} --force, "
        "then start this one again",
        node=node.name,
    )


def _left(state: ControlState, node: int) -> str:
    replicas = loads(state.map.replicas)[node]
    also = " and the control partition" if node in state.map.control else ""
    return f"{replicas} replicas{also} to go"


def drain(state: ControlState, view: View, given: Arguments) -> Outcome:
    node = given.node(state)
    given.end()
    replicas = loads(state.map.replicas)[node.id]
    body = {"node": node.id, "changed": node.state != "draining", "replicas": replicas}
    if node.state == "draining":
        return Outcome(None, body)
    _refuse_too_few(state, view, node, "draining")
    return Outcome(_with(state, attrs.evolve(node, state="draining")), body)


def undrain(state: ControlState, view: View, given: Arguments) -> Outcome:
    node = given.node(state)
    given.end()
    if node.state != "draining":
        return Outcome(None, {"node": node.id, "changed": False})
    silence = view.silence_ms[node.id]
    seen = "down" if silence >= DOWN_MS else "suspect" if silence >= SUSPECT_MS else "up"
    after = _with(state, attrs.evolve(node, state=seen))
    members = tuple(
        attrs.evolve(member, removing=False) if member.node == node.id else member for member in after.members
    )
    return Outcome(attrs.evolve(after, members=members), {"node": node.id, "changed": True})


def set_weight(state: ControlState, view: View, given: Arguments) -> Outcome:
    node, weight = given.node(state), given.weight()
    given.end()
    if node.weight == weight:
        return Outcome(None, {"node": node.id, "changed": False})
    if weight == 0:
        _refuse_too_few(state, view, node, "without weight")
    after = _with(state, attrs.evolve(node, weight=weight))
    return Outcome(after, {"node": node.id, "changed": True})


def _refuse_too_few(state: ControlState, view: View, node: Node, what: str) -> None:
    """Refused if `node`'s replicas would have nowhere to go."""
    if node.weight == 0 or node.state == "draining":
        return
    factor = state.map.replication_factor
    left = [
        other
        for other in state.map.nodes
        if other.id != node.id and other.weight and other.state != "draining" and other.id not in view.lost
    ]
    down = [other.name for other in left if view.states.get(other.id, other.state) == "down"]
    if len(left) - len(down) >= factor:
        return
    silent = f" that are not down ({', '.join(down[:5])})" if down else ""
    raise Refused(
        f"with {node.name} {what}, {len(left) - len(down)} nodes with weight would be left{silent}, but each "
        f"partition has {factor} replicas: add a store first (kvcli node add)"
    )


def remove(state: ControlState, view: View, given: Arguments) -> Outcome:
    node, force = given.node(state), given.flag("force")
    given.end()
    if node.id not in view.heard_ms and not view.silent(node.id):
        raise Busy(f"the controller has not heard of {node.name} yet")
    lost = force and view.silent(node.id)
    holds = node.id in loads(state.map.replicas) or node.id in state.map.control
    if holds or (lost and _votes(view, node.id)):
        return _remove_holder(state, view, node, force)
    if len(state.map.nodes) == 1:
        raise Refused(f"{node.name} is the only node of the cluster")
    moves = _without(state, view, node)
    if not lost:
        _refuse_member(state, view, node)
    nodes = tuple(other for other in state.map.nodes if other.id != node.id)
    after = state.remap(nodes=nodes, moves=moves)
    return Outcome(after, {"node": node.id, "changed": True, "pending": False})


def _without(state: ControlState, view: View, node: Node) -> tuple[Move, ...]:
    """The queue without the moves to that node; Refused if one of them has begun."""
    concerned = [move for move in state.moves if node.id in (move.source, move.target)]
    begun = [move for move in concerned if move.id in view.moves and view.moves[move.id].begun]
    if begun and not view.silent(node.id):
        raise Refused(
            f"{len(begun)} moves of {node.name} are under way (partition {begun[0].partition}): wait for "
            "them, or drain it: kvcli node drain " + node.name
        )
    return tuple(move for move in state.moves if move not in concerned)


def _led(view: View) -> dict[int, GroupReport]:
    """By partition, what its leader says of it, where one is known."""
    return {
        group.partition: group
        for leader, report in view.reports.items()
        for group in report.groups
        if group.leads and view.leaders.get(group.partition) == leader
    }


def _votes(view: View, node: int) -> bool:
    """Whether a group has the node as a voter, though no row may name it yet. Out of the map it would be one
    for ever: rows name nodes of the map only, and so do moves.
    """
    return any(node in (*group.voters, *group.outgoing) for group in _led(view).values())


def _refuse_member(state: ControlState, view: View, node: Node) -> None:
    """Refused while a group may have the node as a member, whatever the rows say."""
    partitions = (*range(state.map.partition_count), CONTROL)
    groups = _led(view)
    unknown = [partition for partition in partitions if partition not in groups]
    if unknown:
        raise Busy(
            f"of {len(unknown)} partitions (such as {unknown[0]}) no leader has told yet whether {node.name} "
            "is a member"
        )
    member = [
        partition
        for partition, group in groups.items()
        if node.id in (*group.voters, *group.outgoing, *group.learners)
    ]
    if member:
        raise Refused(
            f"{node.name} is still a member of {len(member)} groups (such as partition {member[0]}), which "
            "will be mended soon: try again"
        )


def _remove_holder(state: ControlState, view: View, node: Node, force: bool) -> Outcome:
    left = _left(state, node.id)
    if not force:
        if node.state == "draining":
            raise Refused(f"{node.name} is still being drained: {left}")
        raise Refused(f"{node.name} holds data: {left}. Drain it first: kvcli node drain {node.name}")
    if state.member(node.id).removing:
        return Outcome(None, {"node": node.id, "changed": False, "pending": True})
    if not view.silent(node.id):
        raise Refused(
            f"{node.name} lives, it was heard {view.silence_ms[node.id]} ms ago: drain it instead "
            f"(kvcli node drain {node.name}), or stop it and wait {SUSPECT_MS // 1000} s"
        )
    _refuse_lost_quorum(state, view, node)
    after = _with(state, attrs.evolve(node, state="draining"))
    members = tuple(
        attrs.evolve(member, removing=True) if member.node == node.id else member for member in after.members
    )
    body = {"node": node.id, "changed": True, "pending": True}
    return Outcome(attrs.evolve(after, members=members), body)


def _refuse_lost_quorum(state: ControlState, view: View, node: Node) -> None:
    """Refused if a group of the node has no majority without it: no change of its members could be made."""
    rows = {partition: row for partition, row in enumerate(state.map.replicas) if node.id in row}
    if node.id in state.map.control:
        rows[CONTROL] = state.map.control
    stuck = [
        partition
        for partition, row in rows.items()
        if 2 * sum(holder != node.id and not view.silent(holder) for holder in row) <= len(row)
    ]
    if stuck:
        others = sorted({holder for partition in stuck for holder in rows[partition]} - {node.id})
        silent = [state.map.node(other).name for other in others if view.silent(other)]
        missing = (
            f"{', '.join(silent[:5])} must answer first" if silent else "it holds the only other replica"
        )
        raise Refused(
            f"{len(stuck)} partitions (such as {stuck[0]}) have no majority without {node.name}: {missing}"
        )


def _with(state: ControlState, node: Node) -> ControlState:
    return state.remap(nodes=tuple(node if other.id == node.id else other for other in state.map.nodes))
