"""Every command: what it changes, what it answers, what is refused and in which words."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import frames
from shared.controlmessages import ControlCommand
from storenode.control.commands import Invalid, Outcome, Refused, execute
from storenode.control.placement import loads
from storenode.control.state import CONTROL, ControlState
from storenode.control.view import MoveView, View
from tests.unit.storenode.control.worlds import NEW, changed, make_state, make_view, run, with_nodes


def test_every_command_of_the_protocol_is_known() -> None:
    state = make_state()
    for command in set(ControlCommand) - {ControlCommand.KNOWN}:
        with contextlib.suppress(Refused):
            execute(state, make_view(state), command, {"colour": "red"})
            pytest.fail(f"{command} takes anything")
        with pytest.raises(Invalid, match=command):
            execute(state, make_view(state), command, [])
    with pytest.raises(Invalid, match="there is no command 'explode'"):
        run(state, "explode")


# show


def test_show() -> None:
    state = with_nodes(make_state(), {2: {"zone": "rack2", "weight": 50}}).queue([(0, 1, 4, "rebalance")])
    view = make_view(
        state, {3: None, 4: 5000}, moves={1: MoveView("learner", 4096, 0.5, "because")}, waits=("a reason",)
    )
    shown = run(state, "show", view).body
    assert msgpack.unpackb(msgpack.packb(shown)) == shown
    assert {name: shown[name] for name in ("cluster", "epoch", "controller", "control", "paused")} == {
        "cluster": "test", "epoch": 2, "controller": 1, "control": [1, 2, 3], "paused": False,
    }  # fmt: skip
    assert shown["settings"]["transfers_per_node"] == 2
    assert shown["waits"] == ["a reason"]
    assert shown["moves"] == [
        {
            "id": 1, "partition": 0, "source": 1, "target": 4, "reason": "rebalance", "stage": "learner",
            "bytes": 4096, "done": 0.5, "waits": "because",
        }
    ]  # fmt: skip
    held = loads(state.map.replicas)
    one, two, three, four = shown["nodes"]
    assert (one["replicas"], two["replicas"], three["replicas"]) == (held[1], held[2], held[3])
    assert sum(node["share"] for node in shown["nodes"]) == pytest.approx(48)
    assert one["share"] > two["share"]
    assert (two["zone"], two["weight"], two["name"]) == ("rack2", 50, "store2")
    assert sum(node["leads"] for node in (one, two, four)) == sum(row[0] != 3 for row in state.map.replicas)
    assert (
        one["bytes"] == sum(1000 + p for p, row in enumerate(state.map.replicas) if 1 in row) + 1000 + CONTROL
    )
    assert (one["software"], one["disk_free"], one["heard_ms"], four["heard_ms"]) == (
        "1.0",
        1 << 30,
        100,
        5000,
    )
    for name in ("heard_ms", "leads", "bytes", "disk_free", "software"):
        assert three[name] is None


def test_show_tells_of_foreign_stores_and_of_a_move_nobody_looked_at() -> None:
    state = make_state().queue([(CONTROL, 3, 0, "control")])
    shown = run(state, "show", make_view(state, foreign=frozenset({2}))).body
    assert [node["state"] for node in shown["nodes"]] == ["up", "foreign", "up", "up"]
    assert shown["moves"][0]["stage"] == "waiting"


def grown() -> ControlState:
    return changed(run(make_state(3, 64), "join", **(NEW | {"weight": 100, "zone": ""})))


def test_plan_and_start() -> None:
    state = grown()
    plan = run(state, "rebalance-plan")
    assert plan.state is None
    body = plan.body
    assert len(body["moves"]) == 48
    assert all(move["target"] == 4 and move["bytes"] == 1000 + move["partition"] for move in body["moves"])
    assert body["bytes"] == sum(move["bytes"] for move in body["moves"])
    assert body["balance"]["before"] == 100
    assert body["balance"]["after"] < 10
    assert [(load["node"], load["before"]) for load in body["loads"]] == [(1, 64), (2, 64), (3, 64), (4, 0)]
    assert [load["after"] for load in body["loads"]] == [48, 48, 48, 48]
    start = run(state, "rebalance-start")
    assert start.body == body | {"changed": True}
    queued = changed(start)
    assert [(m.partition, m.source, m.target) for m in queued.moves] == [
        (m["partition"], m["source"], m["target"]) for m in body["moves"]
    ]
    again = run(queued, "rebalance-start")
    assert (again.state, again.body["changed"]) == (None, False)
    assert again.body["balance"] == body["balance"]


def test_starting_again_plans_anew_what_has_not_begun() -> None:
    queued = changed(run(grown(), "rebalance-start"))
    heavier = with_nodes(queued, {4: {"weight": 10}})
    begun = queued.moves[0]
    view = make_view(heavier, moves={begun.id: MoveView("learner", 0, None, "")})
    planned = changed(run(heavier, "rebalance-start", view))
    assert begun in planned.moves
    assert len(planned.moves) < 12
    assert len({move.id for move in planned.moves}) == len(planned.moves)


def test_a_balanced_cluster_has_nothing_to_move() -> None:
    state = make_state()
    body = run(state, "rebalance-start").body
    assert (body["moves"], body["bytes"], body["changed"]) == ([], 0, False)


def test_a_plan_needs_nodes() -> None:
    state = with_nodes(make_state(3), {1: {"weight": 0}})
    with pytest.raises(Refused, match=r"2 nodes may hold replicas .* has 3: add a store first"):
        run(state, "rebalance-plan")


def test_pause_resume_stop() -> None:
    state = changed(run(grown(), "rebalance-start")).queue([(CONTROL, 3, 0, "control")])
    assert run(state, "rebalance-resume") == Outcome(None, {"changed": False})
    paused = changed(run(state, "rebalance-pause"))
    assert paused.paused
    assert run(paused, "rebalance-pause") == Outcome(None, {"changed": False})
    assert not changed(run(paused, "rebalance-resume")).paused
    moves = {1: MoveView("learner", 0, None, ""), 2: MoveView("waiting", 0, None, "paused")}
    stopped = changed(run(state, "rebalance-stop", make_view(state, moves=moves)))
    assert stopped.moves == (state.moves[0], state.moves[-1])
    assert run(stopped, "rebalance-stop", make_view(stopped, moves=moves)) == Outcome(
        None, {"changed": False}
    )


def test_set() -> None:
    state = make_state()
    outcome = run(state, "set", transfers_per_node=4, replace_after_ms=60_000)
    assert outcome.body == {
        "settings": {"replace_after_ms": 60_000, "transfers_per_node": 4, "bytes_per_second": 100 << 20},
        "changed": True,
    }
    assert changed(outcome).map == state.map
    assert run(state, "set", transfers_per_node=2).state is None
    assert run(state, "set").body["changed"] is False
    slower = changed(run(state, "set", bytes_per_second=1 << 20))
    assert (slower.map.bytes_per_second, slower.map.epoch) == (1 << 20, 2)
    for wrong in (
        {"transfers_per_node": 0},
        {"replace_after_ms": "1h"},
        {"bytes_per_second": 1},
        {"speed": 1},
    ):
        with pytest.raises(Invalid):
            run(state, "set", **wrong)


# whatever is asked

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.sampled_from(["store1", "4", 3, *NEW.values(), "x" * 1000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)  # fmt: skip
NAMES = st.sampled_from([*NEW, "node", "force", "weight", "bytes_per_second"]) | st.text(max_size=5)


STATE = with_nodes(make_state(), {3: {"state": "draining"}}).queue([(0, 1, 4, "rebalance")])
VIEWS = [make_view(STATE, {2: silence}) for silence in (None, 0, 5000)]


@settings(deadline=None)
@given(
    st.sampled_from([*ControlCommand, "explode"]),
    st.dictionaries(NAMES, VALUES, max_size=8) | VALUES,
    st.sampled_from(VIEWS),
    st.booleans(),
)
def test_any_arguments(command: str, arguments: Any, view: View, dry_run: bool) -> None:
    state = STATE
    try:
        outcome = execute(state, view, command, arguments, dry_run)
    except Refused as refused:
        words = str(refused)
    else:
        words = "it was done"
        check_outcome(outcome)
    assert 10 < len(words) < 400


def check_outcome(outcome: Outcome) -> None:
    frames.decode(msgpack.packb(outcome.body))
    if outcome.state is not None:
        assert ControlState.decode(outcome.state.encode()) == outcome.state
        assert outcome.state != STATE


def test_the_same_command_gives_the_same_state() -> None:
    nodes = list(make_state(7, 64).map.nodes)
    random.Random(1).shuffle(nodes)
    state = changed(run(make_state(7, 64), "join", **NEW))
    plans = {run(state, "rebalance-start").state.encode() for _ in range(3)}  # type: ignore[union-attr]
    assert len(plans) == 1
