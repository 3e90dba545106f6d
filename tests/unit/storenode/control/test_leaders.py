"""Who is first in each row. Any clusters: tests/property/test_control_placement.py."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest

from storenode.control.leaders import TURNS_MAX, turned
from storenode.control.placement import Row
from tests.unit.storenode.control.worlds import make_state, store

STORES = [store(number) for number in range(1, 4)]
EVEN = {1: 10.0, 2: 10.0, 3: 10.0}


def led(rows: tuple[Row, ...]) -> dict[int, int]:
    return dict(Counter(row[0] for row in rows))


def test_even_rows_stay() -> None:
    rows = ((1, 2, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))
    assert turned(rows, STORES, EVEN) == rows


def test_the_first_changes_places_with_who_shall_be_first() -> None:
    assert turned(((1, 2, 3), (1, 3, 2)), STORES, EVEN) == ((1, 2, 3), (2, 3, 1))


def test_rows_are_spread_by_share() -> None:
    rows = ((1, 2, 3),) * 40
    assert led(turned(rows, STORES, EVEN)) == {1: 14, 2: 13, 3: 13}
    assert led(turned(rows, STORES, {1: 10.0, 2: 10.0, 3: 20.0})) == {1: 10, 2: 10, 3: 20}


def test_a_chain_where_no_two_could_mend_it() -> None:
    """1 and 3 have no row in common: what 1 has too many reaches 3 through 2."""
    rows = ((1, 2), (1, 2), (1, 2), (2, 3), (2, 3))
    assert led(turned(rows, STORES, EVEN)) == {1: 2, 2: 2, 3: 1}
    counts = led(turned(((1, 2), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3)), STORES, EVEN))
    assert counts == {1: 2, 2: 2, 3: 2}


@pytest.mark.parametrize("state", ["draining", "suspect", "down"])
def test_who_is_not_up_is_first_only_where_nobody_is(state: str) -> None:
    stores = [attrs.evolve(STORES[0], state=state), *STORES[1:]]
    rows = ((1, 2), (1, 3), (1,), (2, 1), (3, 2))
    after = turned(rows, stores, EVEN)
    assert after[2:] == rows[2:]
    assert after[:2] == ((2, 1), (3, 1))


def test_of_those_that_are_not_up_the_best_is_first() -> None:
    stores = [attrs.evolve(STORES[0], state="down"), attrs.evolve(STORES[1], state="draining")]
    assert turned(((1, 2),), stores, EVEN) == ((2, 1),)
    assert turned(((2, 1),), stores, EVEN) == ((2, 1),)


def test_who_should_hold_nothing_leads_nothing() -> None:
    assert turned(((1, 2),) * 4, STORES, EVEN | {1: 0.0}) == ((2, 1),) * 4


def test_only_some_rows_are_turned_at_once_to_even_out() -> None:
    """But all of those whose first is not up."""
    rows = ((1, 2, 3),) * 600
    after = turned(rows, STORES, EVEN)
    assert sum(row[0] != 1 for row in after) == TURNS_MAX
    stores = [attrs.evolve(STORES[0], state="suspect"), *STORES[1:]]
    assert led(turned(rows, stores, EVEN)) == {2: 300, 3: 300}


def test_a_fresh_table_is_even_enough() -> None:
    state = make_state(5, 256)
    counts = led(state.map.replicas)
    assert max(counts.values()) - min(counts.values()) <= 1
    shares = dict.fromkeys(counts, 1.0)
    assert turned(state.map.replicas, state.map.nodes, shares) == state.map.replicas


def test_who_is_about_to_leave_is_first_only_where_nobody_else_is() -> None:
    rows = ((1, 2, 3), (1, 2, 3), (1,), (2, 3, 1), (3, 1, 2))
    going = {(1, 1), (2, 1), (3, 1)}
    after = turned(rows, STORES, EVEN, going=going)
    assert after == (rows[0], (2, 1, 3), *rows[2:])
    assert turned(after, STORES, EVEN, going=going) == after


def test_evenness_does_not_make_first_who_is_about_to_leave() -> None:
    rows = ((2, 1), (2, 1), (2, 1), (2, 1))
    after = turned(rows, STORES, EVEN, going={(0, 1), (1, 1), (2, 1)})
    assert after == ((2, 1), (2, 1), (2, 1), (1, 2))
