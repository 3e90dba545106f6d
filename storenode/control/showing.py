"""What `show` answers: the state and what is seen of it, for people (docs/control.md section 4).

Owns the words of that answer. None: it is not known.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

from shared.clustermap import Node
from storenode.control.placement import loads, shares
from storenode.control.state import CONTROL, ControlState, Move
from storenode.control.view import View


def show(state: ControlState, view: View) -> dict[str, Any]:
    held = loads(state.map.replicas)
    share = shares(state, view.lost)
    return {
        "cluster": state.map.name,
        "cluster_id": state.map.cluster_id,
        "epoch": state.map.epoch,
        "controller": view.controller,
        "control": list(state.map.control),
        "nodes": [_node(state, view, node, held, share[node.id]) for node in state.map.nodes],
        "moves": [_move(view, move) for move in state.moves],
        "paused": state.paused,
        "settings": attrs.asdict(state.settings),
        "waits": list(view.waits),
    }


def _node(state: ControlState, view: View, node: Node, held: Counter[int], share: float) -> dict[str, Any]:
    report = view.reports.get(node.id)
    foreign = node.id in view.foreign
    member = state.member(node.id)
    return {
        "id": node.id,
        "name": node.name,
        "rpc": node.rpc,
        "zone": node.zone,
        "weight": node.weight,
        "state": "foreign" if foreign else view.states.get(node.id, node.state),
        "removing": member.removing,
        "heard_ms": view.heard_ms.get(node.id),
        "incarnation": member.incarnation,
        "replicas": held[node.id],
        "leads": report and sum(group.leads and group.partition != CONTROL for group in report.groups),
        "bytes": report and sum(group.bytes for group in report.groups),
        "disk_free": report and report.disk_free,
        "software": report and report.software,
        "share": share,
    }


def _move(view: View, move: Move) -> dict[str, Any]:
    seen = view.moves.get(move.id)
    return {
        **attrs.asdict(move),
        "stage": seen.stage if seen else "waiting",
        "bytes": seen.bytes if seen else 0,
        "done": seen.done if seen else None,
        "waits": seen.waits if seen else "",
    }
