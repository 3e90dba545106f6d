"""Every command: what it changes, what it answers, what is refused and in which words."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.errors import Status
from shared import frames
from shared.clustermap import ClusterMap
from shared.controlmessages import ControlCommand
from storenode.control.commands import Busy, Invalid, Outcome, Refused, execute
from storenode.control.mending import Sight, mended, retired
from storenode.control.placement import after, loads
from storenode.control.state import CONTROL, ControlState
from storenode.control.view import MoveView, View
from tests.unit.storenode.control.worlds import make_state, make_view, removing, with_nodes

NEW = {
    "name": "store9",
    "rpc": "tcp://10.9.0.1:7200",
    "bus": "tcp://10.9.0.1:7201",
    "events": "tcp://10.9.0.1:7202",
    "zone": "rack9",
    "weight": 200,
    "incarnation": "ab" * 16,
}


def run(state: ControlState, command: str, view: Any = None, dry_run: bool = False, **given: Any) -> Outcome:
    return execute(state, view or make_view(state), command, given, dry_run)


def changed(outcome: Outcome) -> ControlState:
    assert outcome.state is not None
    assert ControlState.decode(outcome.state.encode()) == outcome.state
    return outcome.state


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


# join, node-add


def test_join() -> None:
    state = make_state()
    outcome = run(state, "join", **NEW)
    after = changed(outcome)
    node = after.map.node(5)
    assert outcome.body["node"] == 5
    assert (outcome.body["cluster"], outcome.body["cluster_id"]) == ("test", state.map.cluster_id)
    assert ClusterMap.decode(outcome.body["map"]) == after.map
    assert (node.name, node.zone, node.weight, node.state) == ("store9", "rack9", 200, "up")
    assert (node.rpc, node.bus, node.events) == (NEW["rpc"], NEW["bus"], NEW["events"])
    assert after.member(5).incarnation == NEW["incarnation"]
    assert (after.map.epoch, after.next_node, after.map.replicas) == (2, 6, state.map.replicas)


def test_joining_again_gets_the_same_answer() -> None:
    state = changed(run(make_state(), "join", **NEW))
    again = run(state, "join", **NEW)
    assert again.state is None
    assert again.body["node"] == 5
    assert again.body["map"] == state.map.encode()


def test_a_dry_run_changes_nothing() -> None:
    state = make_state()
    outcome = run(state, "join", dry_run=True, **NEW)
    assert outcome.state is None
    assert outcome.body["node"] == 5


def test_ids_are_never_given_twice() -> None:
    state = changed(run(make_state(), "join", **NEW))
    state = changed(run(state, "node-remove", node=5))
    assert run(state, "join", **NEW).body["node"] == 6


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "store2"}, r"the name store2 is taken by node 2 .*kvcli node remove store2 --force"),
        ({"rpc": "tcp://10.0.0.2:7200"}, r"endpoint tcp://10.0.0.2:7200 \(rpc\) is taken by store2"),
        ({"bus": "tcp://10.0.0.2:7200"}, "is taken by store2"),
        ({"events": "tcp://10.0.0.3:7202"}, "is taken by store3"),
        ({"bus": NEW["rpc"]}, "two of them are the same"),
    ],
)
def test_joins_that_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Refused, match=text) as caught:
        run(make_state(), "join", **(NEW | changes))
    assert caught.value.status is Status.CONDITION_FAILED


def test_a_name_that_is_about_to_be_free_is_worth_asking_again() -> None:
    with pytest.raises(Busy, match="is being removed: 12 replicas and the control partition to go"):
        run(removing(make_state(), 2), "join", **(NEW | {"name": "store2"}))


@pytest.mark.parametrize("missing", ["name", "rpc", "bus", "events", "incarnation"])
def test_joins_without_something(missing: str) -> None:
    with pytest.raises(Invalid, match=f"join: {missing} is missing"):
        run(make_state(), "join", **{name: value for name, value in NEW.items() if name != missing})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a b"}, "1 to 63 letters"),
        ({"name": "x" * 64}, "1 to 63 letters"),
        ({"name": "x" * 256}, "at most 255 characters"),
        ({"name": ""}, "must not be empty"),
        ({"name": 7}, "printable text"),
        ({"rpc": "10.0.0.1:7200"}, "rpc: expected an endpoint such as"),
        ({"rpc": "tcp://*:7200"}, "no address to connect to"),
        ({"bus": "tcp://10.0.0.9:0"}, "no address to connect to"),
        ({"events": "tcp://" + "x" * 300 + ":1"}, "at most 255"),
        ({"zone": "\x1b[2J"}, "zone must be printable"),
        ({"weight": -1}, "weight must be an integer 0..1000000, not -1"),
        ({"weight": "much"}, "weight must be an integer"),
        ({"incarnation": "12"}, "incarnation must be 32 hexadecimal digits"),
        ({"incarnation": ""}, "incarnation must not be empty"),
        ({"colour": "red"}, "join: unknown argument 'colour'"),
    ],
)
def test_joins_that_are_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=text) as caught:
        run(make_state(), "join", **(NEW | changes))
    assert caught.value.status is Status.INVALID_REQUEST


def test_a_full_cluster() -> None:
    with pytest.raises(Refused, match="the cluster has 256 nodes"):
        run(make_state(256, 1, 1), "join", **NEW)
    with pytest.raises(Refused, match="65534 node ids were given"):
        run(attrs.evolve(make_state(), next_node=65535), "join", **NEW)


def test_node_add_answers_what_the_configuration_needs() -> None:
    state = with_nodes(make_state(7), {1: {"state": "down"}})
    outcome = run(state, "node-add", name="store9", rpc=NEW["rpc"], weight=10)
    assert outcome.state is None
    assert outcome.body == {
        "cluster": "test",
        "join": [f"tcp://10.0.0.{number}:7200" for number in (2, 3, 4, 5, 6)],
    }
    with pytest.raises(Refused, match="the name store2 is taken"):
        run(state, "node-add", name="store2", rpc=NEW["rpc"])
    with pytest.raises(Invalid, match="rpc is missing"):
        run(state, "node-add", name="store9")


# node-drain, node-undrain, node-set-weight


@pytest.mark.parametrize("node", [4, "store4", "4"])
def test_drain(node: int | str) -> None:
    state = make_state()
    outcome = run(state, "node-drain", node=node)
    assert outcome.body == {"node": 4, "changed": True, "replicas": loads(state.map.replicas)[4]}
    drained = changed(outcome)
    assert drained.map.node(4).state == "draining"
    assert drained.member(4).since_epoch == drained.map.epoch == 2
    again = run(drained, "node-drain", node=node)
    assert (again.state, again.body["changed"]) == (None, False)


def test_a_name_goes_before_an_id() -> None:
    state = with_nodes(make_state(), {1: {"name": "4"}})
    assert run(state, "node-drain", node="4").body["node"] == 1


@pytest.mark.parametrize("node", [9, "store9", "9", "", "²", "9" * 5000])
def test_a_node_that_is_not_there(node: int | str) -> None:
    with pytest.raises(
        Refused, match=r"there is no node .*; there are: store1, store2, store3, store4"
    ) as caught:
        run(make_state(), "node-drain", node=node)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("node", [None, True, 1.5, [1], {}, b"store1"])
def test_a_node_that_is_no_node(node: object) -> None:
    with pytest.raises(Invalid, match="node-drain: node"):
        run(make_state(), "node-drain", node=node)


def test_drain_is_refused_when_too_few_nodes_would_be_left() -> None:
    with pytest.raises(Refused, match=r"store1 draining, 2 nodes with weight would be left, .* 3 replicas"):
        run(make_state(3), "node-drain", node=1)
    lighter = with_nodes(make_state(), {2: {"weight": 0}})
    with pytest.raises(Refused, match="2 nodes with weight would be left"):
        run(lighter, "node-drain", node=1)
    down = with_nodes(make_state(), {2: {"state": "down"}})
    with pytest.raises(Refused, match=r"2 nodes with weight would be left that are not down \(store2\)"):
        run(down, "node-drain", node=1)
    assert run(lighter, "node-drain", node=2).body["changed"]
    lost = make_state(5)
    with pytest.raises(Refused, match="2 nodes"):
        run(lost, "node-drain", make_view(lost, lost=frozenset({1, 2})), node=3)


@pytest.mark.parametrize(("silence", "seen"), [(100, "up"), (3000, "suspect"), (10_000, "down")])
def test_undrain(silence: int, seen: str) -> None:
    state = removing(make_state(), 2)
    outcome = run(state, "node-undrain", make_view(state, {2: silence}), node=2)
    back = changed(outcome)
    assert outcome.body == {"node": 2, "changed": True}
    assert back.map.node(2).state == seen
    assert not back.member(2).removing
    assert run(back, "node-undrain", node=2).body == {"node": 2, "changed": False}


def test_weights() -> None:
    state = make_state()
    outcome = run(state, "node-set-weight", node="store2", weight=250)
    assert outcome.body == {"node": 2, "changed": True}
    assert changed(outcome).map.node(2).weight == 250
    assert run(state, "node-set-weight", node=2, weight=100) == Outcome(None, {"node": 2, "changed": False})
    with pytest.raises(Invalid, match="weight is missing"):
        run(state, "node-set-weight", node=2)
    with pytest.raises(Invalid, match="weight must be an integer 0"):
        run(state, "node-set-weight", node=2, weight=1 << 70)
    with pytest.raises(Refused, match="store1 without weight, 2 nodes"):
        run(make_state(3), "node-set-weight", node=1, weight=0)
    assert run(state, "node-set-weight", node=2, weight=0).body["changed"]


# node-remove


def test_remove_is_refused_while_it_holds_something() -> None:
    state = make_state()
    with pytest.raises(Refused, match="store1 holds data: 12 replicas and the control partition"):
        run(state, "node-remove", node=1)
    drained = with_nodes(state, {1: {"state": "draining"}})
    with pytest.raises(Refused, match="store1 is still being drained: 12 replicas"):
        run(drained, "node-remove", node=1)
    with pytest.raises(Refused, match="store1 lives, it was heard 100 ms ago"):
        run(state, "node-remove", node=1, force=True)
    with pytest.raises(Refused, match="heard 2999 ms ago"):
        run(state, "node-remove", make_view(state, {1: 2999}), node=1, force=True)


def test_force_replaces_a_silent_node_first() -> None:
    """From three seconds of silence on."""
    state = make_state()
    outcome = run(state, "node-remove", make_view(state, {1: 3000}), node=1, force=True)
    assert outcome.body == {"node": 1, "changed": True, "pending": True}
    going = changed(outcome)
    assert going.member(1).removing
    again = run(going, "node-remove", make_view(going, {1: 4000}), node=1, force=True)
    assert (again.state, again.body) == (None, {"node": 1, "changed": False, "pending": True})
    going = mended(going, Sight(silent=frozenset({1})))
    assert {move.source for move in going.moves} == {1}
    assert {move.reason for move in going.moves} == {"replace", "control"}
    assert retired(going) == frozenset()
    done = attrs.evolve(
        going.remap(replicas=tuple(after(going.map.replicas, going.moves)), control=(2, 3, 4)), moves=()
    )
    assert retired(done) == {1}
    gone = changed(run(done, "node-remove", make_view(done, {1: 9000}), node=1, force=True))
    assert [node.id for node in gone.map.nodes] == [2, 3, 4]


def test_a_new_controller_does_not_know_yet_who_lives() -> None:
    state = make_state()
    for force in (False, True):
        with pytest.raises(Busy, match="the controller is new and has not heard of store1 yet") as caught:
            run(state, "node-remove", make_view(state, {1: None}, age_ms=2999), node=1, force=force)
        assert caught.value.status is Status.BUSY
        assert caught.value.details["retry_after_ms"] == 500
    never = make_view(state, {1: None}, age_ms=3000)
    assert run(state, "node-remove", never, node=1, force=True).body["pending"]


def test_force_is_refused_where_no_majority_answers() -> None:
    state = make_state()
    shared_rows = sum({1, 2} <= set(row) for row in state.map.replicas)
    with pytest.raises(
        Refused, match=f"{shared_rows + 1} partitions .* no majority without store1: store2 must answer first"
    ):
        run(state, "node-remove", make_view(state, {1: 4000, 2: 5000}), node=1, force=True)
    alone = make_state(2, 4, 1)
    with pytest.raises(Refused, match="it holds the only other replica"):
        run(alone, "node-remove", make_view(alone, {2: 4000}), node=2, force=True)


def emptied(state: ControlState, node: int) -> ControlState:
    """The state after a drain."""
    state = with_nodes(state, {node: {"state": "draining"}})
    state = mended(state, Sight())
    others = tuple(other.id for other in state.map.nodes if other.id != node)[:3]
    rows = tuple(after(state.map.replicas, state.moves))
    return attrs.evolve(state.remap(replicas=rows, control=others), moves=())


def test_remove_of_an_empty_node() -> None:
    state = emptied(make_state(), 1)
    outcome = run(state, "node-remove", node=1)
    assert outcome.body == {"node": 1, "changed": True, "pending": False}
    left = changed(outcome)
    assert [node.id for node in left.map.nodes] == [member.node for member in left.members] == [2, 3, 4]
    assert left.next_node == 5


def test_an_empty_node_that_a_group_still_names() -> None:
    state = emptied(make_state(), 1)
    view = make_view(state)
    leader = state.map.replicas[3][0]
    report = view.reports[leader]
    groups = tuple(g._replace(learners=(1,)) if g.partition == 3 else g for g in report.groups)
    seen = attrs.evolve(view, reports={**view.reports, leader: report._replace(groups=groups)})
    with pytest.raises(Refused, match=r"still a member of 1 groups \(such as partition 3\)"):
        run(state, "node-remove", seen, node=1)
    unknown = attrs.evolve(view, leaders={})
    with pytest.raises(Busy, match=r"of 17 partitions .* no leader has told"):
        run(state, "node-remove", unknown, node=1)
    with pytest.raises(Busy, match="of 17 partitions"):
        run(state, "node-remove", unknown, node=1, force=True)
    silent = attrs.evolve(unknown, heard_ms={**view.heard_ms, 1: 3000})
    assert run(state, "node-remove", silent, node=1, force=True).body["changed"]


def test_a_lost_node_that_votes_before_its_row_is_written_is_replaced_first() -> None:
    """Without it in the map, nobody would take its vote away."""
    state = emptied(make_state(), 1)
    view = make_view(state, {1: 3000})
    leader = state.map.replicas[3][0]
    report = view.reports[leader]
    groups = tuple(g._replace(voters=(*g.voters, 1)) if g.partition == 3 else g for g in report.groups)
    seen = attrs.evolve(view, reports={**view.reports, leader: report._replace(groups=groups)})
    outcome = run(state, "node-remove", seen, node=1, force=True)
    assert outcome.body == {"node": 1, "changed": True, "pending": True}
    assert changed(outcome).member(1).removing


def test_moves_of_a_removed_node_go_with_it() -> None:
    state = changed(run(make_state(), "join", **NEW)).queue([(0, 1, 5, "rebalance"), (1, 1, 4, "rebalance")])
    begun = make_view(state, moves={1: MoveView("learner", 0, None, "")})
    with pytest.raises(Refused, match=r"1 moves of store9 are under way \(partition 0\)"):
        run(state, "node-remove", begun, node=5)
    left = changed(run(state, "node-remove", node=5))
    assert [move.partition for move in left.moves] == [1]


def test_the_last_node_stays() -> None:
    state = make_state(1, 4, 1)
    with pytest.raises(Refused, match="store1 holds data"):
        run(state, "node-remove", node=1)


# rebalance


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
