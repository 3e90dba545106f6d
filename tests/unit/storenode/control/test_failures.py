"""Who is called what after how much silence, and who is replaced."""

from __future__ import annotations

import attrs
import pytest

from storenode.control.failures import Failures
from storenode.control.state import ControlState, Settings
from tests.unit.storenode.control.worlds import make_state, with_nodes

BEGAN = 100.0
NODES = (1, 2, 3, 4, 5, 6)
MINUTE = Settings(replace_after_ms=60_000)


def heard(state: ControlState, now: float, *silent: int) -> Failures:
    failures = Failures(BEGAN, NODES)
    for node in state.map.nodes:
        if node.id not in silent:
            failures.heard(node.id, now)
    return failures


@pytest.mark.parametrize(
    ("silence", "state"), [(0.0, "up"), (2.9, "up"), (3.0, "suspect"), (9.9, "suspect"), (10.0, "down")]
)
def test_silence_makes_a_node_suspect_and_then_down(silence: float, state: str) -> None:
    node = make_state().map.node(2)
    failures = Failures(BEGAN, NODES)
    failures.heard(2, BEGAN + 50)
    assert failures.liveness(node, BEGAN + 50 + silence) == state


def test_silence_counts_from_when_this_controller_began() -> None:
    node = make_state().map.node(2)
    assert Failures(BEGAN, NODES).liveness(node, BEGAN + 2.9) == "up"
    assert Failures(BEGAN, NODES).liveness(node, BEGAN + 10) == "down"


def test_a_node_that_joins_an_old_controller_is_not_down_before_it_was_heard() -> None:
    """It was, so that a rebalancing right after the join moved nothing to it."""
    failures = Failures(BEGAN, NODES)
    node = attrs.evolve(make_state().map.node(2), id=7)
    assert failures.liveness(node, BEGAN + 50) == "up"
    assert failures.liveness(node, BEGAN + 53) == "suspect"
    assert failures.liveness(node, BEGAN + 60) == "down"
    failures.heard(7, BEGAN + 61)
    failures.forget(7)
    assert failures.liveness(node, BEGAN + 90) == "up"


@pytest.mark.parametrize("told", ["suspect", "down"])
def test_who_was_silent_before_this_controller_stays_so_until_heard(told: str) -> None:
    node = with_nodes(make_state(), {2: {"state": told}}).map.node(2)
    failures = Failures(BEGAN, NODES)
    assert failures.liveness(node, BEGAN) == told
    failures.heard(2, BEGAN + 1)
    assert failures.liveness(node, BEGAN + 1) == "up"


def test_a_node_is_lost_once_it_was_down_for_long_enough() -> None:
    state = attrs.evolve(make_state(), settings=MINUTE)
    assert heard(state, BEGAN + 69, 2).lost(state, BEGAN + 69) == (frozenset(), ())
    assert heard(state, BEGAN + 70, 2).lost(state, BEGAN + 70) == (frozenset({2}), ())


def test_a_draining_node_is_not_replaced_beside_that() -> None:
    state = attrs.evolve(with_nodes(make_state(5), {2: {"state": "draining"}}), settings=MINUTE)
    assert heard(state, BEGAN + 90, 2).lost(state, BEGAN + 90) == (frozenset(), ())


def test_nobody_is_replaced_where_too_few_are_left() -> None:
    state = attrs.evolve(make_state(3), settings=MINUTE)
    lost, waits = heard(state, BEGAN + 90, 2).lost(state, BEGAN + 90)
    assert lost == frozenset()
    assert waits == ("store2 is down and is not replaced: 3 replicas need as many nodes, and 2 are left",)


def test_nobody_is_replaced_while_more_than_a_third_are_down() -> None:
    state = attrs.evolve(make_state(5), settings=MINUTE)
    lost, waits = heard(state, BEGAN + 90, 2, 4).lost(state, BEGAN + 90)
    assert lost == frozenset()
    assert len(waits) == 2
    assert "2 of 5 nodes are down: perhaps it is the controller that is cut off" in waits[0]


def test_two_of_six_are_replaced() -> None:
    state = attrs.evolve(make_state(6), settings=MINUTE)
    assert heard(state, BEGAN + 90, 2, 4).lost(state, BEGAN + 90)[0] == {2, 4}
