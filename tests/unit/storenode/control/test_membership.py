"""Commands about one node: what they change and answer, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvclient.errors import Status
from shared.clustermap import ClusterMap
from storenode.control.commands import Busy, Invalid, Outcome, Refused
from storenode.control.mending import Sight, mended, retired
from storenode.control.placement import after, loads
from storenode.control.state import ControlState
from storenode.control.view import MoveView
from tests.unit.storenode.control.worlds import NEW, changed, make_state, make_view, removing, run, with_nodes


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
        with pytest.raises(Busy, match="the controller has not heard of store1 yet") as caught:
            run(state, "node-remove", make_view(state, {1: None}, age_ms=2999), node=1, force=force)
        assert caught.value.status is Status.BUSY
        assert caught.value.details["retry_after_ms"] == 500
    never = make_view(state, {1: None}, age_ms=3000)
    assert run(state, "node-remove", never, node=1, force=True).body["pending"]


def test_a_new_controller_does_not_say_that_the_moves_of_a_lost_node_are_under_way() -> None:
    state = emptied(make_state(), 1).queue([(0, 2, 1, "rebalance")])
    begun = {move.id: MoveView("learner", 1000, None, "") for move in state.moves}
    with pytest.raises(Busy, match="the controller has not heard of store1 yet"):
        run(state, "node-remove", make_view(state, {1: None}, age_ms=2999, moves=begun), node=1, force=True)
    never = make_view(state, {1: None}, age_ms=3000, moves=begun)
    assert changed(run(state, "node-remove", never, node=1, force=True)).moves == ()


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
    silent = attrs.evolve(unknown, silence_ms={**view.silence_ms, 1: 3000})
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
