"""Placement: exact small cases, the order of moves, and the arguments it refuses."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest

from shared.ring import Move, Table, place


class Member(NamedTuple):
    id: int
    zone: str = ""
    weight: int = 100


PINNED = tuple((node,) for node in (2, 3, 2, 3, 1, 3, 1, 2, 2, 1, 2, 1, 3, 1, 3, 1))


def members(count: int, zones: int = 0) -> list[Member]:
    return [Member(node, f"zone{node % zones}" if zones else "") for node in range(1, count + 1)]


def loads(table: Table) -> Counter[int]:
    return Counter(node for row in table for node in row)


def leads(table: Table) -> Counter[int]:
    return Counter(row[0] for row in table)


def make(table: Table, moves: list[Move]) -> Table:
    """The table after the moves, one by one; each must be possible when it is made."""
    rows = [list(row) for row in table]
    for partition, source, target in moves:
        row = rows[partition]
        assert target not in row
        if source is None:
            assert target is not None
            row.append(target)
        elif target is None:
            row.remove(source)
        else:
            row[row.index(source)] = target
    return tuple(map(tuple, rows))


def test_a_single_node_holds_everything() -> None:
    assert place(members(1), 1, 8) == (((1,),) * 8, [])


def test_a_fresh_table_has_no_moves_and_even_loads_and_leaders() -> None:
    table, moves = place(members(3), 2, 64)
    assert moves == []
    assert sorted(loads(table).values()) == [42, 43, 43]
    assert sorted(leads(table).values()) == [21, 21, 22]


def test_as_many_replicas_as_nodes() -> None:
    table, _ = place(members(3), 3, 64)
    assert all(sorted(row) == [1, 2, 3] for row in table)
    assert sorted(leads(table).values()) == [21, 21, 22]


def test_the_table_of_a_small_cluster_is_pinned() -> None:
    """A change of the algorithm moves the data of every cluster that bootstraps anew: make it on purpose."""
    table, _ = place(members(3), 1, 16)
    assert table == PINNED


def test_one_replica_per_zone() -> None:
    table, _ = place(members(6, zones=3), 3, 64)
    assert all({node % 3 for node in row} == {0, 1, 2} for row in table)
    assert set(loads(table).values()) == {32}


def test_two_zones_take_two_and_one_of_three_replicas() -> None:
    table, _ = place(members(4, zones=2), 3, 64)
    assert all(len({node % 2 for node in row}) == 2 for row in table)
    assert set(loads(table).values()) == {48}


def test_a_zone_of_one_node_holds_its_replica_of_every_partition() -> None:
    """Zones come before loads: three processes of one machine and one of another, two replicas."""
    table, _ = place([Member(1, "a"), Member(2, "b"), Member(3, "b"), Member(4, "b")], 2, 60)
    assert all(1 in row for row in table)
    assert loads(table) == {1: 60, 2: 20, 3: 20, 4: 20}


def test_nodes_without_a_zone_are_zones_of_their_own() -> None:
    table, _ = place([Member(1, "a"), Member(2, "a"), Member(3), Member(4)], 3, 60)
    assert all({3, 4} <= set(row) for row in table)


def test_loads_follow_weights() -> None:
    table, _ = place([Member(1, weight=100), Member(2, weight=200), Member(3, weight=100)], 1, 64)
    assert loads(table) == {1: 16, 2: 32, 3: 16}
    assert leads(table) == {1: 16, 2: 32, 3: 16}


def test_a_node_never_has_more_than_one_replica_of_a_partition_however_heavy() -> None:
    table, _ = place([Member(1, weight=1_000_000), Member(2, weight=1), Member(3, weight=1)], 2, 64)
    assert loads(table)[1] == 64


def test_weight_zero_holds_nothing() -> None:
    nodes = [Member(1), Member(2, weight=0), Member(3)]
    table, _ = place(nodes, 2, 16)
    assert set(loads(table)) == {1, 3}
    drained, moves = place([Member(1), Member(2), Member(3, weight=0)], 2, 16, table)
    assert set(loads(drained)) == {1, 2}
    assert {(move.source, move.target) for move in moves} == {(3, 2)}


def test_the_same_nodes_in_another_order_make_the_same_table() -> None:
    nodes = members(7, zones=3)
    assert place(nodes, 3, 256) == place(nodes[::-1], 3, 256)


def test_a_settled_table_does_not_move() -> None:
    table, _ = place(members(7, zones=3), 3, 256)
    assert place(members(7, zones=3), 3, 256, table) == (table, [])


def test_loads_that_only_a_chain_of_moves_reaches() -> None:
    """Shares without room to spare: 12 replicas after weights of 600, at most one per zone and partition."""
    nodes = [Member(1, "a"), Member(2, "b", 50), Member(3, "", 200), Member(4, "a", 50), Member(5, "", 200)]
    table, _ = place(nodes, 3, 4)
    assert loads(table) == {1: 2, 2: 1, 3: 4, 4: 1, 5: 4}
    nodes = [Member(1, "", 200), Member(2, "a", 100), Member(3, "b", 50), Member(4, "b", 50)]
    table, _ = place(nodes, 2, 4, [(1, 4), (4, 1), (3, 2), (2, 4)])
    assert loads(table) == {1: 4, 2: 2, 3: 1, 4: 1}


def test_a_lost_node_is_replaced_in_its_position_and_first() -> None:
    table, _ = place(members(5), 3, 64)
    changed, moves = place([*members(4), Member(6)], 3, 64, table)
    lost = loads(table)[5]
    assert [move.source for move in moves[:lost]] == [5] * lost
    assert make(table, moves) == changed
    for old, new in zip(table, changed, strict=True):
        assert [node for node in new if node in old] == [node for node in old if node in new]


def test_moves_restore_first_then_balance_then_drop() -> None:
    table, _ = place(members(5), 3, 64)
    short = tuple(row[:2] for row in table[:8]) + table[8:]
    changed, moves = place([*members(4), Member(6), Member(7), Member(8)], 2, 64, short)

    def kind(move: Move) -> int:
        if move.target is None:
            return 2
        return 0 if move.source in (None, 5) else 1

    kinds = [kind(move) for move in moves]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}
    assert make(short, moves) == changed


def test_more_replicas_are_added_and_fewer_are_dropped_last() -> None:
    two, _ = place(members(4), 2, 64)
    three, moves = place(members(4), 3, 64, two)
    assert all(move.source is None for move in moves)
    assert len(moves) == 64
    assert make(two, moves) == three
    assert all(new[:2] == old for old, new in zip(two, three, strict=True))
    back, moves = place(members(4), 2, 64, three)
    assert all(move.target is None for move in moves)
    assert make(three, moves) == back
    assert leads(back) == leads(three), "the leader is not the one that is dropped"


def test_a_new_zone_mends_partitions_that_shared_one() -> None:
    table, _ = place([Member(1, "a"), Member(2, "a")], 2, 64)
    changed, moves = place([Member(1, "a"), Member(2, "a"), Member(3, "b")], 2, 64, table)
    assert all(3 in row for row in changed)
    assert len(moves) == 64
    assert sorted(loads(changed).values()) == [32, 32, 64]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((members(2), 3, 16), "3 replicas need as many nodes with weight; there are 2"),
        (([Member(1), Member(2, weight=0)], 2, 16), "there are 1"),
        (([], 1, 16), "there are 0"),
        ((members(2), 0, 16), "0 replicas"),
        (([Member(1), Member(1)], 1, 16), "same id"),
        ((members(1), 1, 0), "partitions"),
        ((members(1), 1, 4097), "partitions"),
        ((members(257), 1, 16), "256 nodes"),
        ((members(1), 1, 16, [(1,)] * 8), "8 partitions, not 16"),
    ],
)
def test_what_cannot_be_placed_is_refused(arguments: tuple[list[Member], int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        place(*arguments)
