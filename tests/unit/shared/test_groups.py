"""What stores say of their groups, read and put together."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from shared.clustermap import ClusterMap
from shared.groups import leader_of, read, table
from tests.unit.router.conftest import THREE_STORES

MAP = ClusterMap.bootstrap("test", 2, 3, THREE_STORES)


def view(role: str, term: int, leader: int = 0) -> Any:
    groups = read({"groups": {"0": {"role": role, "term": term, "leader": leader}}})
    assert groups is not None
    return groups[0]


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ({}, (0, 0)),
        ({1: view("leader", 3, 1), 2: view("follower", 3, 1), 3: view("follower", 3, 1)}, (1, 3)),
        # One that was cut off believes that it leads; the others have a newer term.
        ({1: view("leader", 3, 1), 2: view("leader", 4, 2), 3: view("follower", 4, 2)}, (2, 4)),
        ({1: view("leader", 3, 1), 2: view("candidate", 4), 3: view("follower", 4)}, (0, 4)),
        # Named by others: a leader that does not answer, but not one that answers otherwise.
        ({2: view("follower", 4, 1), 3: view("follower", 4, 1)}, (1, 4)),
        ({1: view("follower", 4), 2: view("follower", 4, 1)}, (0, 4)),
        ({1: view("follower", 3, 2), 3: view("follower", 4)}, (0, 4)),
        ({3: view("learner", 4, 2)}, (2, 4)),
    ],
)
def test_the_highest_term_says_who_leads(views: dict[int, Any], expected: tuple[int, int]) -> None:
    assert leader_of(views) == expected


def test_stores_without_groups_have_none() -> None:
    assert read({}) is None
    assert read({"groups": [1]}) is None


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 1 << 64, 2.5, "x", "-1", "9" * 21, "18446744073709551616", b"1", [], {}, {"a": {}}],
)
def test_figures_of_any_shape_do_no_harm(value: Any) -> None:
    """A later store, or a broken one: the rest of the answer is still given, and can be packed."""
    names = ("term", "leader", "commit", "applied", "last", "voters", "learners", "match")
    good = {"role": "follower", "term": 2, "leader": 1, "commit": 7, "applied": 7, "last": 7}
    for name in names:
        for nested in (value, [value], {"1": value}):
            figures = {"groups": {"0": good | {name: nested}, "1": value, str(value): good, "x": good}}
            groups = read(figures)
            assert groups is not None
            msgpack.packb(table(MAP, {1: groups, 2: {}}))


def test_a_lag_is_what_the_leader_has_committed_and_the_replica_has_not() -> None:
    def figures(role: str, applied: int, **more: Any) -> Any:
        row = {"role": role, "term": 1, "leader": 1, "commit": 100, "applied": applied}
        return read({"groups": {"0": row | more}})

    leading = figures("leader", 100, match={"1": 100, "2": 40, "3": 90})
    assert leading is not None
    first = table(MAP, {1: leading, 2: figures("follower", 60), 3: figures("follower", 70)})[0]
    lags = {replica["id"]: replica["lag"] for replica in first["replicas"]}
    assert lags == {1: 0, 2: 60, 3: 30}, "what it has applied, or what it has got, whichever is less"
    silent = table(MAP, {1: leading})[0]
    assert {replica["id"]: (replica["up"], replica["lag"]) for replica in silent["replicas"]} == {
        1: (True, 0),
        2: (False, 60),
        3: (False, 10),
    }
