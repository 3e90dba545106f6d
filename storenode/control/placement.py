"""Who should hold what: shares, how far from them a cluster is, the moves that would lead there.

Pure, on top of shared.ring. Must not know reports, stages or silence: `lost` are the nodes that are being
replaced, `begun` the ids of moves that are under way. Everything is deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from shared import ring, ringshares
from shared.clustermap import Node
from storenode.control.state import CONTROL, ControlState, Move

Row = tuple[int, ...]


class TooFewNodes(Exception):
    """Fewer nodes may hold replicas than a partition has; `args[0]` says how many."""


def eligible(state: ControlState, lost: Collection[int] = ()) -> list[Node]:
    """The nodes that should hold replicas: with weight, not being drained, not being replaced."""
    return [
        node
        for node in state.map.nodes
        if node.weight > 0 and node.state != "draining" and node.id not in lost
    ]


def shares(state: ControlState, lost: Collection[int] = ()) -> dict[int, float]:
    """How many replicas each node of the map should hold; 0 for those that should hold none."""
    found = dict.fromkeys((node.id for node in state.map.nodes), 0.0)
    return found | ringshares.shares(
        eligible(state, lost), state.map.replication_factor, state.map.partition_count
    )


def loads(rows: Iterable[Row]) -> Counter[int]:
    """How many replicas each node holds."""
    return Counter(holder for row in rows for holder in row)


def deviation(held: Mapping[int, int], share: Mapping[int, float]) -> float:
    """The largest distance of a node's load from its share, in percent of that; who should hold nothing and
    does is off by 100.
    """
    return max(
        (
            100 * abs(held.get(node, 0) - part) / part if part else 100.0 * (held.get(node, 0) > 0)
            for node, part in share.items()
        ),
        default=0.0,
    )


def moved(row: Row, move: Move) -> Row:
    """The row after that move: the target takes the place of the source."""
    if move.source in row:
        at = row.index(move.source)
        come = (move.target,) if move.target and move.target not in row else ()
        return (*row[:at], *come, *row[at + 1 :])
    return (*row, move.target) if move.target and move.target not in row else row


def after(rows: Sequence[Row], moves: Iterable[Move]) -> list[Row]:
    """The rows when these moves have been made; those of the control partition do not concern them."""
    future = list(rows)
    for move in moves:
        if move.partition != CONTROL:
            future[move.partition] = moved(future[move.partition], move)
    return future


def rebalanced(
    state: ControlState, lost: Collection[int] = (), begun: Collection[int] = ()
) -> tuple[list[Move], list[tuple[int, int, int]]]:
    """The queue without the rebalancing that has not begun, and what to queue instead, each (partition,
    source, target): after all of that every node holds its share, within the bounds of shared.ring.

    Only replicas on nodes that should hold some move here, and only to nodes that are up: what is to leave
    other nodes is not rebalancing. TooFewNodes.
    """
    members = eligible(state, lost)
    factor = state.map.replication_factor
    if len(members) < factor:
        raise TooFewNodes(
            f"{len(members)} nodes may hold replicas (with weight, not draining, not lost), "
            f"each partition has {factor}"
        )
    kept = [move for move in state.moves if move.reason != "rebalance" or move.id in begun]
    _, planned = ring.place(members, factor, state.map.partition_count, after(state.map.replicas, kept))
    sources = {node.id for node in members}
    targets = {node.id for node in members if node.state == "up"}
    return kept, [
        (partition, source, target)
        for partition, source, target in planned
        if source in sources and source in state.map.replicas[partition] and target in targets
    ]
