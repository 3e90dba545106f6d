"""The commands that a controller is given (docs/control.md section 4).

Pure: from (state, view, command, arguments) to a new state and an answer; Refused, whose `status` says in
which way. Nothing else is raised, whatever the arguments are. Must not know how commands come or states are
written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from shared.clustermap import BYTES_PER_SECOND_MAX, BYTES_PER_SECOND_MIN
from storenode.control import membership
from storenode.control.arguments import Arguments, Busy, Invalid, Refused
from storenode.control.outcome import Outcome
from storenode.control.placement import TooFewNodes, after, deviation, loads, rebalanced, shares
from storenode.control.showing import show
from storenode.control.state import (
    MOVES_MAX,
    REPLACE_AFTER_MS_MAX,
    REPLACE_AFTER_MS_MIN,
    TRANSFERS_MAX,
    ControlState,
)
from storenode.control.view import View

__all__ = ["Busy", "Invalid", "Outcome", "Refused", "execute"]

Command = Callable[[ControlState, View, Arguments], Outcome]

_SETTINGS: Final = {
    "replace_after_ms": (REPLACE_AFTER_MS_MIN, REPLACE_AFTER_MS_MAX),
    "transfers_per_node": (1, TRANSFERS_MAX),
    "bytes_per_second": (BYTES_PER_SECOND_MIN, BYTES_PER_SECOND_MAX),
}


def execute(
    state: ControlState, view: View, command: str, arguments: object, dry_run: bool = False
) -> Outcome:
    """What the command comes to; on a dry run the same answer, and no state to write. Refused."""
    carry_out = _COMMANDS.get(command)
    if carry_out is None:
        raise Invalid(f"there is no command {command!r:.40}")
    outcome = carry_out(state, view, Arguments(command, arguments))
    return attrs.evolve(outcome, state=None) if dry_run else outcome


def _show(state: ControlState, view: View, given: Arguments) -> Outcome:
    given.end()
    return Outcome(None, show(state, view))


def _plan(state: ControlState, view: View, given: Arguments) -> Outcome:
    given.end()
    return attrs.evolve(_planned(state, view), state=None)


def _start(state: ControlState, view: View, given: Arguments) -> Outcome:
    given.end()
    outcome = _planned(state, view)
    outcome.body["changed"] = outcome.state is not None
    return outcome


def _planned(state: ControlState, view: View) -> Outcome:
    begun = {move_id for move_id, move in view.moves.items() if move.begun}
    try:
        kept, planned = rebalanced(state, view.lost, begun)
    except TooFewNodes as error:
        raise Refused(f"{error.args[0]}: add a store first (kvcli node add)") from None
    planned = planned[: MOVES_MAX - len(kept)]
    dropped = [move for move in state.moves if move not in kept]
    same = [(move.partition, move.source, move.target) for move in dropped] == planned
    changed = attrs.evolve(state, moves=tuple(kept)).queue((*move, "rebalance") for move in planned)
    return Outcome(None if same else changed, _plan_body(state, view, changed, planned))


def _plan_body(
    state: ControlState, view: View, changed: ControlState, planned: list[tuple[int, int, int]]
) -> dict[str, Any]:
    sizes: dict[int, int] = {}
    for report in view.reports.values():
        for group in report.groups:
            sizes[group.partition] = max(group.bytes, sizes.get(group.partition, 0))
    moves = [
        {"partition": partition, "source": source, "target": target, "bytes": sizes.get(partition, 0)}
        for partition, source, target in planned
    ]
    share = shares(state, view.lost)
    before = loads(state.map.replicas)
    then = loads(after(state.map.replicas, changed.moves))
    return {
        "moves": moves,
        "bytes": sum(sizes.get(partition, 0) for partition, _, _ in planned),
        "balance": {"before": deviation(before, share), "after": deviation(then, share)},
        "loads": [
            {"node": node.id, "before": before[node.id], "after": then[node.id]} for node in state.map.nodes
        ],
    }


def _pause(paused: bool) -> Command:
    def carry_out(state: ControlState, view: View, given: Arguments) -> Outcome:
        given.end()
        changed = state.paused is not paused
        return Outcome(attrs.evolve(state, paused=paused) if changed else None, {"changed": changed})

    return carry_out


def _stop(state: ControlState, view: View, given: Arguments) -> Outcome:
    given.end()
    left = tuple(
        move
        for move in state.moves
        if move.reason != "rebalance" or (move.id in view.moves and view.moves[move.id].begun)
    )
    changed = left != state.moves
    return Outcome(attrs.evolve(state, moves=left) if changed else None, {"changed": changed})


def _set(state: ControlState, view: View, given: Arguments) -> Outcome:
    wanted = {name: given.integer(name, *bounds) for name, bounds in _SETTINGS.items() if name in given}
    given.end()
    settings = attrs.evolve(state.settings, **wanted)
    changed = settings != state.settings
    body = {"settings": attrs.asdict(settings), "changed": changed}
    if "bytes_per_second" in wanted and changed:
        return Outcome(state.remap(settings=settings), body)
    return Outcome(attrs.evolve(state, settings=settings) if changed else None, body)


_COMMANDS: Final[dict[str, Command]] = {
    "show": _show,
    "join": membership.join,
    "node-add": membership.node_add,
    "node-drain": membership.drain,
    "node-undrain": membership.undrain,
    "node-remove": membership.remove,
    "node-set-weight": membership.set_weight,
    "rebalance-plan": _plan,
    "rebalance-start": _start,
    "rebalance-pause": _pause(True),
    "rebalance-resume": _pause(False),
    "rebalance-stop": _stop,
    "set": _set,
}
