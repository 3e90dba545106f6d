"""Placement under any nodes, zones and weights: distinct, dispersed, bounded, and nothing moves in vain."""

from __future__ import annotations

from collections import Counter
from math import ceil, floor
from typing import NamedTuple

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.ring import Move, Table, place


class Member(NamedTuple):
    id: int
    zone: str
    weight: int


equal = st.just(100)


@st.composite
def clusters(draw: st.DrawFn, weights: st.SearchStrategy[int]) -> list[Member]:
    ids = draw(st.lists(st.integers(1, 65534), min_size=1, max_size=12, unique=True))
    zones = draw(st.integers(0, 5))
    zone = st.sampled_from(["", *(f"zone{index}" for index in range(zones))])
    return [Member(node, draw(zone), draw(weights)) for node in ids]


@st.composite
def single_zone_clusters(draw: st.DrawFn) -> list[Member]:
    ids = draw(st.lists(st.integers(1, 65534), min_size=2, max_size=12, unique=True))
    return [Member(node, "", 100) for node in ids]


partition_counts = st.sampled_from([1, 2, 16, 64, 128])


def make(table: Table, moves: list[Move]) -> list[set[int]]:
    rows = [set(row) for row in table]
    for partition, source, target in moves:
        assert target not in rows[partition], "a move to where the partition already is"
        assert source is None or source in rows[partition], "a move from where the partition is not"
        rows[partition] -= {source}
        rows[partition] |= {target} - {None}
    return rows


def zone_key(member: Member) -> tuple[str, int]:
    return (member.zone, 0 if member.zone else member.id)


def allowed_in_zones(nodes: list[Member], replicas: int) -> tuple[Counter[tuple[str, int]], int]:
    """The size of each zone, and the most replicas of one partition that an even spread puts in any."""
    sizes = Counter(map(zone_key, nodes))
    level = 1
    while sum(min(size, level) for size in sizes.values()) < replicas:
        level += 1
    return sizes, level


def check_shape(table: Table, nodes: list[Member], replicas: int) -> None:
    by_id = {node.id: node for node in nodes}
    sizes, level = allowed_in_zones(nodes, replicas)
    for row in table:
        assert len(set(row)) == len(row) == replicas
        counts = Counter(zone_key(by_id[node]) for node in row)
        for zone, size in sizes.items():
            assert min(size, level - 1) <= counts[zone] <= min(size, level)


@given(clusters(equal), st.integers(1, 5), partition_counts)
@settings(max_examples=150, deadline=None)
def test_replicas_are_distinct_and_dispersed(nodes: list[Member], replicas: int, partitions: int) -> None:
    assume(replicas <= len(nodes))
    table, moves = place(nodes, replicas, partitions)
    assert len(table) == partitions
    assert moves == []
    check_shape(table, nodes, replicas)


@given(clusters(st.integers(1, 500)), st.integers(1, 5), partition_counts)
@settings(max_examples=150, deadline=None)
def test_weighted_tables_keep_their_shape_too(nodes: list[Member], replicas: int, partitions: int) -> None:
    assume(replicas <= len(nodes))
    table, _ = place(nodes, replicas, partitions)
    check_shape(table, nodes, replicas)
    assert place(nodes[::-1], replicas, partitions) == (table, [])
    assert place(nodes, replicas, partitions, table) == (table, [])


@given(
    st.lists(st.integers(50, 200), min_size=1, max_size=10), st.integers(1, 4), st.sampled_from([16, 64, 256])
)
@settings(max_examples=150, deadline=None)
def test_loads_stay_within_the_share_and_ten_percent(
    weights: list[int], replicas: int, partitions: int
) -> None:
    assume(replicas <= len(weights))
    nodes = [Member(index + 1, "", weight) for index, weight in enumerate(weights)]
    total, wanted = sum(weights), partitions * replicas
    # A share of more than all partitions is cut and the others get more: not this test's matter.
    assume(max(weights) * replicas <= total)
    table, _ = place(nodes, replicas, partitions)
    loads = Counter(node for row in table for node in row)
    for node in nodes:
        share = wanted * node.weight / total
        assert loads[node.id] <= max(ceil(share), floor(share * 1.1))
        assert loads[node.id] >= floor(share * 0.9)


@given(single_zone_clusters(), st.integers(1, 4), st.sampled_from([64, 128, 256]))
@settings(max_examples=100, deadline=None)
def test_a_new_node_takes_its_share_and_nothing_else_moves(
    nodes: list[Member], replicas: int, partitions: int
) -> None:
    assume(replicas < len(nodes))
    *old, new = nodes
    before, _ = place(old, replicas, partitions)
    after, moves = place(nodes, replicas, partitions, before)
    share = partitions * replicas / len(nodes)
    assert {move.target for move in moves} <= {new.id}
    assert floor(share * 0.9) <= len(moves) <= ceil(share)
    assert make(before, moves) == [set(row) for row in after]
    check_shape(after, nodes, replicas)


@given(single_zone_clusters(), st.integers(1, 4), st.sampled_from([64, 128, 256]))
@settings(max_examples=100, deadline=None)
def test_only_the_replicas_of_a_removed_node_move(
    nodes: list[Member], replicas: int, partitions: int
) -> None:
    assume(replicas < len(nodes))
    *left, gone = nodes
    before, _ = place(nodes, replicas, partitions)
    after, moves = place(left, replicas, partitions, before)
    assert {move.source for move in moves} <= {gone.id}
    assert len(moves) == sum(gone.id in row for row in before)
    assert make(before, moves) == [set(row) for row in after]
    check_shape(after, left, replicas)


@given(st.data(), clusters(st.integers(1, 500)), st.integers(1, 4), partition_counts)
@settings(max_examples=150, deadline=None)
def test_any_history_ends_in_a_table_that_holds_the_rules(
    data: st.DataObject, nodes: list[Member], replicas: int, partitions: int
) -> None:
    """From any table, even one with unknown and missing nodes, to a valid one that stays as it is."""
    assume(replicas <= len(nodes))
    known = st.sampled_from([node.id for node in nodes]) | st.integers(1, 65534)
    row = st.lists(known, max_size=6, unique=True)
    current = data.draw(st.lists(row, min_size=partitions, max_size=partitions))
    table, moves = place(nodes, replicas, partitions, current)
    check_shape(table, nodes, replicas)
    assert make(tuple(map(tuple, current)), moves) == [set(row) for row in table]
    assert place(nodes, replicas, partitions, table) == (table, [])


@given(st.data(), single_zone_clusters(), st.integers(1, 4), partition_counts)
@settings(max_examples=150, deadline=None)
def test_overloaded_nodes_are_relieved(
    data: st.DataObject, nodes: list[Member], replicas: int, partitions: int
) -> None:
    """From tables that crowd a few nodes to loads within the share and 10 % either way."""
    assume(replicas <= len(nodes))
    favourites = data.draw(st.permutations([node.id for node in nodes]))
    crowd = st.lists(st.sampled_from(favourites[: replicas + 2]), max_size=replicas, unique=True)
    current = data.draw(st.lists(crowd, min_size=partitions, max_size=partitions))
    table, moves = place(nodes, replicas, partitions, current)
    check_shape(table, nodes, replicas)
    loads = Counter(node for row in table for node in row)
    share = partitions * replicas / len(nodes)
    for node in nodes:
        assert floor(share * 0.9) <= loads[node.id] <= max(ceil(share), floor(share * 1.1))
    needed = sum(replicas - len(row) for row in current)
    before = Counter(node for row in current for node in row)
    # Rows with room give a node one replica each; what it needs beyond those, others must move for.
    room = {node.id: sum(len(row) < replicas and node.id not in row for row in current) for node in nodes}
    relieved = sum(max(0, before[node.id] - floor(share)) for node in nodes)
    filled = sum(max(0, floor(share) - before[node.id] - room[node.id]) for node in nodes)
    assert len(moves) <= needed + relieved + filled
