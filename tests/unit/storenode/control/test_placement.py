"""Shares, loads, deviation, what a row is after a move. Plans of any clusters: tests/property."""

from __future__ import annotations

import pytest

from storenode.control.placement import TooFewNodes, after, deviation, loads, moved, rebalanced, shares
from storenode.control.state import CONTROL, Move
from tests.unit.storenode.control.worlds import make_state, store, with_nodes


@pytest.mark.parametrize(
    ("source", "target", "row"),
    [
        (1, 9, (9, 2, 3)),
        (3, 9, (1, 2, 9)),
        (0, 9, (1, 2, 3, 9)),
        (2, 0, (1, 3)),
        (7, 9, (1, 2, 3, 9)),
        (7, 3, (1, 2, 3)),
        (7, 0, (1, 2, 3)),
    ],
)
def test_a_row_after_a_move(source: int, target: int, row: tuple[int, ...]) -> None:
    assert moved((1, 2, 3), Move(1, 0, source, target, "drain")) == row


def test_rows_after_moves() -> None:
    moves = [Move(1, 0, 1, 9, "drain"), Move(2, CONTROL, 1, 9, "control"), Move(3, 0, 2, 8, "drain")]
    assert after([(1, 2), (1, 2)], moves) == [(9, 8), (1, 2)]


def test_shares_follow_weights_and_states() -> None:
    state = with_nodes(make_state(4, 16, 2), {1: {"weight": 300}, 4: {"state": "draining"}})
    assert shares(state) == {1: 16, 2: 8, 3: 8, 4: 0}
    assert shares(state, {3}) == {1: 16, 2: 16, 3: 0, 4: 0}
    assert shares(state, {2, 3}) == {1: 16, 2: 0, 3: 0, 4: 0}
    assert shares(state, {1, 2, 3}) == {1: 0, 2: 0, 3: 0, 4: 0}


def test_deviation() -> None:
    assert deviation({1: 10, 2: 10}, {1: 10.0, 2: 10.0}) == 0
    assert deviation({1: 12, 2: 10}, {1: 10.0, 2: 10.0}) == pytest.approx(20)
    assert deviation({1: 10}, {1: 10.0, 2: 10.0}) == 100
    assert deviation({1: 10, 2: 1}, {1: 10.0, 2: 0.0}) == 100
    assert deviation({1: 10}, {1: 10.0, 2: 0.0}) == 0
    assert deviation({}, {}) == 0


def test_rebalancing_keeps_what_has_begun() -> None:
    state = make_state(3, 16)
    state = state.remap(nodes=(*state.map.nodes, store(4)), next_node=5)
    kept, planned = rebalanced(state)
    queued = state.queue((*move, "rebalance") for move in planned).queue([(CONTROL, 3, 0, "control")])
    assert kept == []
    assert len(planned) == 12
    assert rebalanced(queued) == ([queued.moves[-1]], planned)
    kept, rest = rebalanced(queued, begun={1, 2})
    assert kept == [*queued.moves[:2], queued.moves[-1]]
    assert len(rest) == len(planned) - 2
    assert all(target == 4 for _, _, target in rest)


def test_rebalancing_leaves_alone_who_is_not_up() -> None:
    """A newcomer that is down gets nothing; a node that is down keeps what it has, until it is lost."""
    state = make_state(3, 16)
    state = state.remap(nodes=(*state.map.nodes, store(4, state="down")), next_node=5)
    assert rebalanced(state) == ([], [])
    holder = with_nodes(make_state(4, 16), {2: {"state": "down"}})
    assert rebalanced(holder) == ([], [])
    assert rebalanced(holder, lost={2}) == ([], [])


def test_rebalancing_needs_nodes() -> None:
    with pytest.raises(TooFewNodes, match="2 nodes may hold replicas"):
        rebalanced(make_state(3, 16), lost={1})
    assert sum(loads(make_state(3, 16).map.replicas).values()) == 48
