"""What the controller wants, under any nodes, zones, weights, drains and losses: even, spread, few moves, and
in the end nothing left to do.
"""

from __future__ import annotations

from collections import Counter
from math import ceil, inf

import attrs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.clustermap import ClusterMap, control_size
from storenode.control.leaders import TURNS_MAX, turned
from storenode.control.mending import Sight, mended, retired
from storenode.control.placement import after, deviation, eligible, loads, moved, rebalanced, shares
from storenode.control.state import CONTROL, ControlState, Move
from tests.unit.storenode.control.worlds import removing, store, with_nodes

ids = st.lists(st.integers(1, 300), min_size=1, max_size=9, unique=True).map(sorted)
partitions = st.sampled_from([1, 4, 16, 64])


@st.composite
def clusters(draw: st.DrawFn, weighted: bool = False) -> ControlState:
    numbers = draw(ids)
    replicas = draw(st.integers(1, min(4, len(numbers))))
    zones = draw(st.integers(0, 4))
    weight = st.integers(1, 400) if weighted else st.just(100)
    nodes = [
        store(number, zone=f"zone{draw(st.integers(1, zones))}" if zones else "", weight=draw(weight))
        for number in numbers
    ]
    return ControlState.first(ClusterMap.bootstrap("test", draw(partitions), replicas, nodes))


def make(state: ControlState, sight: Sight) -> ControlState:
    """Makes the moves of the queue one after the other, as a controller does, until none is queued; of each
    partition one replica at a time.
    """
    made: Counter[int] = Counter()
    state = mended(state, sight)
    while state.moves:
        move = state.moves[0]
        if move.partition == CONTROL:
            after_move = moved(state.map.control, move)
            state = state.remap(control=after_move)
        else:
            row = state.map.replicas[move.partition]
            after_move = moved(row, move)
            check_step(state, row, after_move, move)
            rows = list(state.map.replicas)
            rows[move.partition] = after_move
            state = state.remap(replicas=tuple(rows))
        made[move.partition] += 1
        assert made[move.partition] <= 2 * len(state.map.nodes), "moves without an end"
        state = mended(attrs.evolve(state, moves=state.moves[1:]), sight)
    assert mended(state, sight) is state
    return state


def check_step(state: ControlState, row: tuple[int, ...], after_move: tuple[int, ...], move: Move) -> None:
    assert len(set(after_move)) == len(after_move)
    assert len(set(row) ^ set(after_move)) == (2 if move.source and move.target else 1)
    if len(after_move) < len(row):
        assert len(row) > state.map.replication_factor or state.member(move.source).removing


@settings(deadline=None)
@given(st.data(), clusters(weighted=True))
def test_drains_and_losses_end(data: st.DataObject, state: ControlState) -> None:
    """Who leaves holds nothing in the end, if there are nodes enough; nobody else's replica has moved."""
    numbers = [node.id for node in state.map.nodes]
    leaving = data.draw(st.lists(st.sampled_from(numbers), unique=True, max_size=len(numbers) - 1))
    lost = frozenset(node for node in leaving if data.draw(st.booleans()))
    drained = with_nodes(state, {node: {"state": "draining"} for node in leaving if node not in lost})
    drained = with_nodes(drained, {node: {"state": "down"} for node in lost})
    sight = Sight(lost=lost, silent=lost)
    done = make(drained, sight)
    staying = set(numbers) - set(leaving)
    factor = state.map.replication_factor
    for before, now in zip(state.map.replicas, done.map.replicas, strict=True):
        assert len(now) == factor
        assert set(before) & staying <= set(now), "a replica moved that had no reason to"
        if len(staying) >= factor:
            assert set(now) <= staying
    assert len(done.map.control) >= 1
    control = state.map.control
    if staying and 2 * len(lost & set(control)) < len(control):
        assert set(done.map.control) <= staying
        size, kept = control_size(len(staying)), len(staying & set(control))
        assert len(done.map.control) == (size if kept <= size else max(size, min(kept, factor)))


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), partitions, st.data())
def test_a_drain_of_one_spreads_its_load(nodes: int, factor: int, count: int, data: st.DataObject) -> None:
    """Without zones that say otherwise nobody ends more than 10 % and a replica above the even share."""
    assume(nodes > factor)
    stores = [store(number) for number in range(1, nodes + 1)]
    state = ControlState.first(ClusterMap.bootstrap("test", count, factor, stores))
    node = data.draw(st.integers(1, nodes))
    before = loads(state.map.replicas)
    drained = mended(with_nodes(state, {node: {"state": "draining"}}), Sight())
    assert sum(move.partition != CONTROL for move in drained.moves) == before[node]
    done = loads(make(drained, Sight()).map.replicas)
    share = state.map.partition_count * factor / (len(state.map.nodes) - 1)
    assert done[node] == 0
    for other in state.map.nodes:
        if other.id != node:
            assert done[other.id] <= max(before[other.id], ceil(share * 1.1) + 1)


@settings(deadline=None)
@given(st.data(), clusters())
def test_who_was_told_to_go_leaves_the_map(data: st.DataObject, state: ControlState) -> None:
    """Also where nobody can take its replicas: rows are shorter then, and filled when a node comes."""
    numbers = [node.id for node in state.map.nodes]
    assume(len(numbers) > 1 and state.map.replication_factor > 1)
    node = data.draw(st.sampled_from(numbers))
    sight = Sight(silent=frozenset({node}))
    done = make(removing(state, node), sight)
    assert retired(done) == {node}
    left = done.remap(nodes=tuple(other for other in done.map.nodes if other.id != node))
    factor = state.map.replication_factor
    assert {len(row) for row in left.map.replicas} == {min(factor, len(numbers) - 1)}
    joined = left.remap(nodes=(*left.map.nodes, store(301)), next_node=302)
    again = make(joined, Sight())
    assert {len(row) for row in again.map.replicas} == {factor}


@settings(deadline=None)
@given(clusters(weighted=True), st.data())
def test_rebalancing_a_grown_cluster(state: ControlState, data: st.DataObject) -> None:
    """About 1/N of the replicas move, all of them to the newcomer; then everybody is within the bounds."""
    mean = sum(node.weight for node in state.map.nodes) // len(state.map.nodes)
    grown = state.remap(nodes=(*state.map.nodes, store(301, weight=max(1, mean))), next_node=302)
    kept, planned = rebalanced(grown)
    assert kept == []
    assert rebalanced(grown) == (kept, planned)
    queued = mended(grown.queue((*move, "rebalance") for move in planned), Sight())
    assert [move for move in queued.moves if move.reason == "rebalance"] == list(
        queued.moves[-len(planned) :] if planned else []
    )
    share = shares(grown)
    target = [move for move in planned if move[2] == 301]
    assert len(target) <= ceil(share[301] * 1.1) + 1
    before, then = loads(grown.map.replicas), loads(after(grown.map.replicas, queued.moves))
    assert then[301] >= int(share[301] * 0.9) or deviation(then, share) <= deviation(before, share)
    assert sum(before.values()) == sum(then.values())


@settings(deadline=None)
@given(st.data(), clusters(weighted=True))
def test_leaders_are_even_and_stay(data: st.DataObject, state: ControlState) -> None:
    """From any order of the rows, with any states: nobody first who should not be, no row that would be worth
    turning, and no row turned again.
    """
    states = st.sampled_from(["up", "up", "up", "suspect", "down", "draining"])
    state = with_nodes(state, {node.id: {"state": data.draw(states)} for node in state.map.nodes})
    share = shares(state)
    rows = tuple(tuple(data.draw(st.permutations(row))) for row in state.map.replicas)
    while (better := turned(rows, state.map.nodes, share)) != rows:
        assert [set(row) for row in better] == [set(row) for row in rows]
        rows = better
    led = Counter(row[0] for row in rows)
    good = {node.id for node in state.map.nodes if node.state == "up" and share[node.id]}
    for row in rows:
        assert row[0] in good or not good & set(row)
        if row[0] in good:
            others = good & set(row) - {row[0]}
            least = min(((led[node] + 1) / share[node] for node in others), default=inf)
            assert led[row[0]] / share[row[0]] <= least
    assert turned(rows, state.map.nodes, share) == rows


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 12), st.integers(2, 4))
def test_leaders_of_equal_nodes_differ_by_little(nodes: int, replicas: int) -> None:
    assume(replicas <= nodes)
    stores = [store(number) for number in range(1, nodes + 1)]
    state = ControlState.first(ClusterMap.bootstrap("test", 128, replicas, stores))
    rows = tuple(tuple(sorted(row)) for row in state.map.replicas)
    for _ in range(128 // TURNS_MAX + 10):
        rows = turned(rows, stores, shares(state))
    led = Counter(row[0] for row in rows)
    assert max(led.values()) - min(led[node.id] for node in stores) <= 1 + (nodes > 8)


@settings(deadline=None)
@given(st.data(), clusters())
def test_the_control_partition_never_loses_its_majority(data: st.DataObject, state: ControlState) -> None:
    """Whoever falls silent, drains or is lost: no move takes a living majority away, and the end is reached
    by moves of one replica.
    """
    numbers = [node.id for node in state.map.nodes]
    some = st.lists(st.sampled_from(numbers), unique=True).map(frozenset)
    silent, drained = data.draw(some), data.draw(some)
    lost = frozenset(node for node in silent if data.draw(st.booleans()))
    state = with_nodes(state, {node: {"state": "draining"} for node in drained})
    sight = Sight(lost=lost, silent=silent)
    state = mended(state, sight)
    for _ in range(2 * len(numbers)):
        moves = [move for move in state.moves if move.partition == CONTROL]
        assert len(moves) <= 1
        if not moves:
            break
        row = moved(state.map.control, moves[0])
        alive = [node for node in row if node not in silent]
        assert moves[0].target or 2 * len(alive) > len(row)
        assert moves[0].target not in silent | drained or not moves[0].target
        assert 1 <= len(row) <= 5
        left = tuple(move for move in state.moves if move.partition != CONTROL)
        state = mended(attrs.evolve(state.remap(control=row), moves=left), sight)
    assert not [move for move in state.moves if move.partition == CONTROL]
    if not silent and len(drained) < len(numbers):
        assert set(state.map.control) <= set(numbers) - drained


def test_eligible_nodes() -> None:
    stores = [store(1), store(2, weight=0), store(3), store(4)]
    state = with_nodes(
        ControlState.first(ClusterMap.bootstrap("test", 4, 1, stores)), {3: {"state": "draining"}}
    )
    assert [node.id for node in eligible(state)] == [1, 4]
    assert shares(state, {4}) == {1: 4.0, 2: 0.0, 3: 0.0, 4: 0.0}
