"""The queue that a state should have: single cases, each with its reason. Any others: tests/property."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from storenode.control.mending import Sight, mended, retired
from storenode.control.state import CONTROL, ControlState
from tests.unit.storenode.control.worlds import make_state, removing, store, with_nodes


def queue(state: ControlState, **sight: Any) -> list[tuple[int, int, int, str]]:
    """What is queued when that is seen, without ids."""
    seen = {name: value if name == "stages" else frozenset(value) for name, value in sight.items()}
    return [
        (move.partition, move.source, move.target, move.reason) for move in mended(state, Sight(**seen)).moves
    ]


def one_row(*row: int, nodes: int = 5, control: tuple[int, ...] = (1, 2, 3, 4, 5)) -> ControlState:
    """One partition of three replicas on these nodes."""
    return make_state(nodes, 1).remap(replicas=(row,), control=control[:nodes] if nodes > 4 else control[:3])


def test_nothing_to_do_is_the_same_state() -> None:
    state = make_state(5, 64)
    assert mended(state, Sight()) is state
    queued = state.queue(
        [(0, state.map.replicas[0][0], next(iter({1, 2, 3, 4, 5} - set(state.map.replicas[0]))), "rebalance")]
    )
    assert mended(queued, Sight()) is queued


def test_a_drain() -> None:
    state = with_nodes(one_row(1, 2, 3), {2: {"state": "draining"}})
    assert queue(state) == [(CONTROL, 2, 0, "control"), (0, 2, 4, "drain")]


def test_what_is_lost_goes_before_what_drains() -> None:
    state = with_nodes(one_row(1, 2, 3, nodes=7), {2: {"state": "draining"}, 3: {"state": "down"}})
    assert queue(state, lost={3}, silent={3}) == [
        (CONTROL, 3, 6, "control"), (0, 3, 4, "replace"), (0, 2, 5, "drain"),
    ]  # fmt: skip


def test_targets_are_up_and_were_heard() -> None:
    state = with_nodes(one_row(1, 2, 3), {2: {"state": "draining"}, 4: {"state": "suspect"}})
    assert (0, 2, 5, "drain") in queue(state)
    assert not [move for move in queue(state, silent={5}) if move[0] == 0]


def test_targets_are_in_the_zone_that_has_fewest() -> None:
    zones = {1: "a", 2: "b", 3: "c", 4: "a", 5: "b", 6: "c"}
    state = with_nodes(one_row(1, 2, 3, nodes=6), {node: {"zone": zone} for node, zone in zones.items()})
    for leaving, target in ((1, 4), (2, 5), (3, 6)):
        drained = with_nodes(state, {leaving: {"state": "draining"}})
        assert (0, leaving, target, "drain") in queue(drained)


def test_missing_and_surplus_replicas() -> None:
    assert queue(one_row(1, 2)) == [(0, 0, 3, "replace")]
    assert queue(one_row(1, 2, 3, 4)) == [(0, 4, 0, "rebalance")]
    drained = with_nodes(one_row(1, 2, 3, 4), {1: {"state": "draining"}})
    assert (0, 1, 0, "drain") in queue(drained)


def test_what_is_queued_already_is_not_queued_again() -> None:
    state = with_nodes(one_row(1, 2, 3), {2: {"state": "draining"}})
    once = mended(state, Sight())
    assert mended(once, Sight()) is once
    missing = mended(one_row(1, 2), Sight())
    assert mended(missing, Sight()) is missing


def test_rebalancing_away_from_who_leaves_is_urgent() -> None:
    state = with_nodes(one_row(1, 2, 3), {2: {"state": "draining"}})
    queued = state.queue([(0, 2, 5, "rebalance")])
    assert (0, 2, 5, "drain") in queue(queued)
    assert (0, 2, 5, "replace") in queue(queued, lost={2}, silent={2})


@pytest.mark.parametrize(
    ("move", "changes", "sight"),
    [
        ((0, 4, 5, "rebalance"), {}, {}),  # source holds nothing
        ((0, 1, 2, "rebalance"), {}, {}),  # target holds one
        ((0, 1, 4, "rebalance"), {4: {"state": "draining"}}, {}),
        ((0, 1, 4, "rebalance"), {4: {"weight": 0}}, {}),
        ((0, 1, 4, "rebalance"), {}, {"lost": {4}, "silent": {4}}),
        ((0, 1, 4, "drain"), {}, {}),  # drains no more
        ((0, 1, 4, "replace"), {}, {}),  # is back
        ((0, 0, 4, "replace"), {}, {}),  # nothing is missing
        ((0, 1, 0, "rebalance"), {}, {}),  # nothing is too many
    ],
)
def test_moves_that_make_no_sense(
    move: tuple[int, int, int, str], changes: dict[int, dict[str, Any]], sight: dict[str, Any]
) -> None:
    """They are dropped, waiting or with a learner; once the voters change they have to end."""
    state = with_nodes(one_row(1, 2, 3), changes).queue([move])
    assert move not in queue(state, **sight)
    assert move not in queue(state, **sight, stages={1: "learner"})
    for stage in ("swap", "settle", "leave"):
        assert move in queue(state, **sight, stages={1: stage})


def test_a_target_that_is_down_is_changed_where_that_matters() -> None:
    state = with_nodes(one_row(1, 2, 3), {4: {"state": "down"}})
    rebalancing = state.queue([(0, 1, 4, "rebalance")])
    assert mended(rebalancing, Sight(silent=frozenset({4}))) is rebalancing
    drained = with_nodes(state, {1: {"state": "draining"}}).queue([(0, 1, 4, "drain")])
    assert (0, 1, 5, "drain") in queue(drained, silent={4})
    blocked = with_nodes(rebalancing, {2: {"state": "draining"}})
    assert [move for move in queue(blocked, silent={4}) if move[0] == 0] == [(0, 2, 5, "drain")]


def test_without_a_successor_only_who_was_told_to_go_goes() -> None:
    drained = with_nodes(one_row(1, 2, 3, nodes=3), {3: {"state": "draining"}})
    assert [move for move in queue(drained) if move[0] == 0] == []
    going = removing(one_row(1, 2, 3, nodes=3), 3)
    assert (0, 3, 0, "replace") in queue(going, silent={3})
    suspect = removing(one_row(1, 2, 3, nodes=4), 3)
    suspect = with_nodes(suspect, {4: {"state": "suspect"}})
    assert [move for move in queue(suspect, silent={3, 4}) if move[0] == 0] == []


def test_rebalancing_that_has_not_begun_makes_way_for_a_repair() -> None:
    """Its source was the successor of who is lost, though it was a holder already: the lost one went without
    any, and a new move was queued with every step.
    """
    state = removing(one_row(1, 2, 3, nodes=4).queue([(0, 3, 4, "rebalance")]), 2)
    waits = mended(state, Sight(silent=frozenset({2})))
    assert [(move.source, move.target) for move in waits.moves if move.partition == 0] == [(2, 4)]
    assert mended(waits, Sight(silent=frozenset({2}))) is waits
    short = one_row(1, 3, nodes=4).queue([(0, 3, 4, "rebalance")])
    assert queue(short) == [(0, 0, 2, "replace")]


def test_rebalancing_that_has_begun_is_waited_for() -> None:
    state = removing(one_row(1, 2, 3, nodes=4).queue([(0, 3, 4, "rebalance")]), 2)
    data = [move for move in queue(state, silent=frozenset({2}), stages={1: "learner"}) if not move[0]]
    assert data == [(0, 3, 4, "rebalance")]


def test_who_may_leave_the_map() -> None:
    going = removing(one_row(1, 2, 3), 3, 4)
    assert retired(going) == frozenset()
    assert retired(going.remap(control=(1, 2, 3))) == {4}
    assert retired(going.remap(control=(1, 2, 3)).queue([(0, 4, 0, "replace")])) == frozenset()
    assert retired(one_row(1, 2, 3, control=(1, 2, 3))) == frozenset()


# the control partition


def control(
    holders: tuple[int, ...],
    nodes: int,
    draining: set[int] = set(),  # noqa: B006
    lost: set[int] = set(),  # noqa: B006
    silent: set[int] = set(),  # noqa: B006
    zones: dict[int, str] = {},  # noqa: B006
    factor: int = 1,
) -> tuple[int, int] | None:
    """The (source, target) that is wanted for it."""
    state = make_state(nodes, 1, factor).remap(control=holders)
    state = with_nodes(
        state,
        {
            node: {"state": "draining" if node in draining else "up", "zone": zones.get(node, "")}
            for node in range(1, nodes + 1)
        },
    )
    moves = [move for move in queue(state, lost=lost, silent=silent | lost) if move[0] == CONTROL]
    assert len(moves) < 2
    return moves[0][1:3] if moves else None


def test_control_partitions_that_are_as_they_should_be() -> None:
    assert control((1,), 1) is control((1,), 2) is control((2, 1, 3), 3) is control((1, 2, 4), 4) is None
    assert control((5, 4, 3, 2, 1), 9) is None
    assert control((1, 2, 3), 3, silent={3}) is None


def test_control_partitions_grow_one_by_one() -> None:
    assert control((1,), 3) == (0, 2)
    assert control((1, 2), 3) == (0, 3)
    assert control((1, 2, 3), 5) == (0, 4)
    assert control((1, 2, 3), 5, silent={4}) == (0, 5)
    assert control((1, 2, 3), 6, zones={1: "a", 2: "b", 3: "c", 4: "a", 5: "b", 6: "d"}) == (0, 6)


def test_control_partitions_shrink_to_the_size_that_helps() -> None:
    assert control((1, 2, 3, 4), 4) == (4, 0)
    assert control((1, 2, 3, 4), 4, silent={2}) == (2, 0)
    assert control((1, 2), 2) == (2, 0)
    assert control((1, 2, 3, 4), 4, zones={1: "a", 2: "b", 3: "b", 4: "c"}) == (3, 0)


def test_no_copy_of_the_state_is_given_up_while_data_has_more_replicas() -> None:
    assert control((1, 2, 3), 3, draining={3}, lost={3}, factor=3) == (3, 0)
    assert control((1, 2), 3, draining={3}, lost={3}, factor=3) is None
    assert control((1, 2), 2, factor=2) is None
    assert control((1, 2, 3), 3, draining={3}, factor=2) == (3, 0)
    assert control((1, 2, 3, 4), 4, factor=3) == (4, 0)


def test_control_partitions_replace_who_drains_or_is_lost() -> None:
    assert control((1, 2, 3), 4, draining={2}) == (2, 4)
    assert control((1, 2, 3), 4, lost={2}) == (2, 4)


def test_the_lost_one_goes_before_the_living_one() -> None:
    """Taken out first, the living one would leave two of which one is dead."""
    assert control((1, 2, 3), 3, draining={1}, lost={2}) == (2, 0)
    assert control((1, 3), 3, draining={1}, lost={2}) == (1, 0)
    assert control((1, 2, 3), 4, draining={1}, lost={2}) == (2, 0)
    assert control((1, 2, 3), 5, draining={1}, lost={2}) == (2, 4)
    assert control((1, 2, 3), 3, draining={1}, silent={2}) is None
    assert control((1, 2, 3), 3, draining={1, 2}, silent={2}) == (2, 0)


def test_who_drains_waits_in_the_control_partition_for_a_successor_that_is_silent() -> None:
    """Two of three would tolerate no failure, while the third still votes."""
    assert control((1, 2, 3), 4, draining={2}, silent={4}) is None
    assert control((1, 2, 3), 4, draining={2}, silent={2, 4}) is None
    assert control((1, 2, 3), 4, lost={2}, silent={2, 4}) == (2, 0)


def test_a_controller_that_has_heard_nobody_takes_nobody_out() -> None:
    assert control((1, 2, 3, 4), 4, silent={1, 2, 3, 4}) is None
    assert control((1, 2, 3), 4, draining={1}, silent={1, 2, 3, 4}) is None


def test_one_move_of_the_control_partition_at_a_time() -> None:
    state = make_state(5, 1, 1).remap(control=(1, 2, 3)).queue([(CONTROL, 0, 5, "control")])
    assert queue(state) == [(CONTROL, 0, 4, "control")]
    assert queue(state, stages={1: "learner"}) == [(CONTROL, 0, 5, "control")]
    down = with_nodes(state, {5: {"state": "down"}})
    assert queue(down, stages={1: "learner"}) == [(CONTROL, 0, 4, "control")]
    assert queue(down, stages={1: "swap"}) == [(CONTROL, 0, 5, "control")]
    settled = state.remap(control=(1, 2, 3, 5))
    assert queue(settled) == [(CONTROL, 0, 4, "control")]


def test_new_nodes_get_no_replicas_by_themselves() -> None:
    state = make_state(3, 16)
    grown = state.remap(nodes=(*state.map.nodes, store(4)), next_node=5)
    assert mended(grown, Sight()) is grown


def test_ids_of_moves_go_on() -> None:
    state = attrs.evolve(one_row(1, 2, control=(1, 2, 3, 4, 5)), next_move=70)
    after = mended(state, Sight())
    assert ([move.id for move in after.moves], after.next_move) == ([70], 71)
