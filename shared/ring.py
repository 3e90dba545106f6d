"""Placement: which nodes hold which partition, by consistent hashing with bounded loads.

Pure: the same nodes, counts and current table give the same answer in every process. Knows nothing of epochs,
node states or how a move is made; a node that shall hold nothing is left out, or has weight 0.

Each node has virtual nodes on a ring of XXH64 values, as many as its weight asks for; the candidates of a
partition are the nodes met clockwise from its own point. Three rules, an earlier one before a later one:

1. The replicas of a partition are on distinct nodes, spread over the zones as evenly as the zones' node
counts allow.
   A node without a zone is a zone of its own.
2. No node holds more than its share + 10 %. Shares follow the weights, as far as rule 1 lets a zone take
them.
3. What is in place stays. A replica moves only when its node is gone, when rule 1 or 2 asks for it, or to
fill a node
   that holds less than its share - 10 %, as a new one does.

Bounded loads: Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads", 2018.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import zip_longest
from math import ceil, floor
from typing import NamedTuple

from shared.hashing import xxh64
from shared.ringshares import Placeable, node_shares, zone_bounds, zones_of

# The hash is cut to 12 bits at most (docs/protocol.md).
PARTITIONS_MAX = 4096
# Far above what one controller and a full mesh of PUB/SUB can serve; bounds the work of place().
NODES_MAX = 256
WEIGHT_MAX = 1_000_000
# Virtual nodes of a node of mean weight: on the bare ring loads then differ by about 1/sqrt(64); the bounds
# do the rest.
VIRTUAL_NODES = 64
# Of the heaviest node: a node of 16 times the mean weight is still drawn in proportion.
VIRTUAL_NODES_MAX = 16 * VIRTUAL_NODES

Table = tuple[tuple[int, ...], ...]


class Move(NamedTuple):
    """One replica of a partition goes from `source` to `target`; None: it is added, or taken away."""

    partition: int
    source: int | None
    target: int | None


def place(
    nodes: Iterable[Placeable],
    replicas: int,
    partitions: int,
    current: Sequence[Sequence[int]] | None = None,
) -> tuple[Table, list[Move]]:
    """The table partition -> node ids, and the moves that lead there from `current` (none without one).

    The first node of a partition is its preferred leader; a fresh table spreads leaders by share, a later one
    leaves the places of a row as they are. Moves come in the order to make them: first the replicas that are
    missing or on nodes that are gone, then those that move for zones or load, then those to drop. ValueError
    when the nodes cannot hold `replicas` distinct replicas, or the arguments contradict each other.
    """
    members = sorted((node for node in nodes if node.weight > 0), key=lambda node: node.id)
    if len({node.id for node in members}) != len(members):
        raise ValueError("two nodes have the same id")
    if not 1 <= partitions <= PARTITIONS_MAX or len(members) > NODES_MAX:
        raise ValueError(f"placement is for 1..{PARTITIONS_MAX} partitions and at most {NODES_MAX} nodes")
    if not 1 <= replicas <= len(members):
        raise ValueError(f"{replicas} replicas need as many nodes with weight; there are {len(members)}")
    if current is not None and len(current) != partitions:
        raise ValueError(f"the current table has {len(current)} partitions, not {partitions}")
    placement = _Placement(members, replicas, partitions)
    before = [list(row) for row in current] if current is not None else [[] for _ in range(partitions)]
    placement.keep(before)
    placement.settle()
    if current is None:
        placement.spread_leaders()
        return placement.table(), []
    return _make_moves(before, placement.table(), {node.id for node in members})


def _make_moves(before: Sequence[Sequence[int]], after: Table, alive: set[int]) -> tuple[Table, list[Move]]:
    """The moves from one table to the other, and the rows of `after` in the order in which those leave them.

    What stays keeps its position, a newcomer gets the position of the node it replaces.
    """
    restore: list[Move] = []
    shift: list[Move] = []
    drop: list[Move] = []
    rows = []
    for partition, (old, new) in enumerate(zip(before, after, strict=True)):
        gone = sorted((node for node in old if node not in new), key=lambda node: node in alive)
        come = [node for node in new if node not in old]
        replaced = {}
        for source, target in zip_longest(gone, come):
            replaced[source] = target
            kind = drop if target is None else shift if source in alive else restore
            kind.append(Move(partition, source, target))
        row = [replaced.get(node, node) for node in old] + come[len(gone) :]
        rows.append(tuple(node for node in row if node is not None))
    return tuple(rows), restore + shift + drop


@lru_cache(maxsize=8)
def _virtual_nodes(weights: tuple[tuple[int, int], ...]) -> list[list[int]]:
    """The points of each (id, weight) on the ring, sorted. Cached: the controller asks again for the same
    nodes.
    """
    mean = Fraction(sum(weight for _, weight in weights), len(weights))
    return [
        sorted(
            xxh64(b"node %d %d" % (node_id, index))
            for index in range(max(1, min(VIRTUAL_NODES_MAX, round(VIRTUAL_NODES * weight / mean))))
        )
        for node_id, weight in weights
    ]


class _Placement:
    """A table in the making. Nodes and zones are indices here; a row holds the nodes of one partition."""

    def __init__(self, members: list[Placeable], replicas: int, partitions: int) -> None:
        self.ids = [node.id for node in members]
        self.replicas = replicas
        self.points = [xxh64(b"partition %d" % partition) for partition in range(partitions)]
        self.ring = _virtual_nodes(tuple((node.id, node.weight) for node in members))
        self.rows: list[list[int]] = [[] for _ in range(partitions)]
        self.holds: list[set[int]] = [set() for _ in members]
        # What is in place, as long as settle() can still do without moving it.
        self.pinned: list[set[int]] = [set() for _ in members]
        # By source and target: (distance, partition) of what may move between them, nearest first. Lists are
        # made when first asked for; from then on what they lack cannot move.
        self.near: list[dict[int, list[tuple[int, int]]]] = [{} for _ in members]
        self.zone = zones_of(members)
        self.zone_low, self.zone_high = zone_bounds(self.zone, replicas)
        share = node_shares(self.zone, [node.weight for node in members], replicas, partitions)
        self.share = [float(part) for part in share]
        self.floor = [floor(part) for part in share]
        self.ceil = [ceil(part) for part in share]
        self.low = [floor(part * 9 / 10) for part in share]
        self.most = [min(partitions, max(ceil(part), floor(part * 11 / 10))) for part in share]

    def keep(self, before: Sequence[Sequence[int]]) -> None:
        """Take over what is in place on nodes that are still there, at most `replicas` of each partition."""
        index = {node_id: node for node, node_id in enumerate(self.ids)}
        for partition, row in enumerate(before):
            for node_id in dict.fromkeys(row):
                if node_id in index:
                    self._add(partition, index[node_id])
        for partition, kept in enumerate(self.rows):
            while len(kept) > self.replicas:
                counts = self._zone_counts(kept)
                self._remove(
                    partition, max(kept[1:], key=lambda node: (counts[self.zone[node]], self._pressure(node)))
                )
        self.pinned = [set(partitions) for partitions in self.holds]

    def settle(self) -> None:
        """Fill every row, then move until the rules hold; a later step keeps what an earlier one reached."""
        for partition, row in enumerate(self.rows):
            while len(row) < self.replicas:
                self._add(partition, self._choose(partition))
        for partition in range(len(self.rows)):
            self._even_out(partition)
        nodes = range(len(self.ids))
        for node in nodes:
            self._fill(node, self.floor[node])
        self.pinned = [set() for _ in nodes]
        self.near = [{} for _ in nodes]
        for node in nodes:
            self._relieve(node)
        for node in nodes:
            self._fill(node, self.low[node])

    def spread_leaders(self) -> None:
        """Put first in each row the node that leads least for its share, until no row has a better one."""
        led = Counter(row[0] for row in self.rows)
        changed = True
        while changed:
            changed = False
            for row in self.rows:
                best = min(row, key=lambda node: (led[node] + 1) / self.share[node])
                if (led[best] + 1) / self.share[best] < led[row[0]] / self.share[row[0]]:
                    led[row[0]] -= 1
                    led[best] += 1
                    row.remove(best)
                    row.insert(0, best)
                    changed = True

    def table(self) -> Table:
        return tuple(tuple(self.ids[node] for node in row) for row in self.rows)

    def _add(self, partition: int, node: int) -> None:
        self.rows[partition].append(node)
        self.holds[node].add(partition)
        if self.near[node] and partition not in self.pinned[node]:
            for target, near in self.near[node].items():
                self._offer(partition, target, near)

    def _remove(self, partition: int, node: int) -> None:
        self.rows[partition].remove(node)
        self.holds[node].remove(partition)
        for source in self.rows[partition]:
            if node in self.near[source] and partition not in self.pinned[source]:
                self._offer(partition, node, self.near[source][node])

    def _offer(self, partition: int, target: int, near: list[tuple[int, int]]) -> None:
        item = (self._distance(partition, target), partition)
        at = bisect_left(near, item)
        if at == len(near) or near[at] != item:
            near.insert(at, item)

    def _distance(self, partition: int, node: int) -> int:
        """Clockwise from the partition's point to the node's nearest virtual node."""
        points, point = self.ring[node], self.points[partition]
        at = bisect_left(points, point)
        return points[at] - point if at < len(points) else points[0] - point + (1 << 64)

    def _pressure(self, node: int) -> float:
        return len(self.holds[node]) / self.share[node]

    def _level(self, node: int) -> int:
        """0 below the share, 1 at it, 2 within the bound, 3 full."""
        load = len(self.holds[node])
        return (load >= self.floor[node]) + (load >= self.ceil[node]) + (load >= self.most[node])

    def _zone_counts(self, row: Sequence[int]) -> list[int]:
        counts = [0] * len(self.zone_low)
        for node in row:
            counts[self.zone[node]] += 1
        return counts

    def _choose(self, partition: int, zones: set[int] | None = None) -> int:
        """The node for one more replica: in a zone that has fewest, of the least loaded class the first
        clockwise.
        """
        row = self.rows[partition]
        counts = self._zone_counts(row)
        free = [node for node in range(len(self.ids)) if node not in row]
        if zones is None:
            fewest = min(counts[self.zone[node]] for node in free)
            free = [node for node in free if counts[self.zone[node]] == fewest]
        else:
            free = [node for node in free if self.zone[node] in zones]
        level = min(map(self._level, free))
        if level == 3:
            return min(free, key=self._pressure)
        return min(
            (node for node in free if self._level(node) == level),
            key=lambda node: self._distance(partition, node),
        )

    def _even_out(self, partition: int) -> None:
        """Rule 1: move replicas out of zones that have too many, into zones that have too few."""
        row = self.rows[partition]
        zones = range(len(self.zone_low))
        while True:
            counts = self._zone_counts(row)
            over = {zone for zone in zones if counts[zone] > self.zone_high[zone]}
            under = {zone for zone in zones if counts[zone] < self.zone_low[zone]}
            if not over and not under:
                return
            leave = over or {zone for zone in zones if counts[zone] > self.zone_low[zone]}
            enter = under or {zone for zone in zones if counts[zone] < self.zone_high[zone]}
            target = self._choose(partition, enter)
            self._remove(partition, max((n for n in row if self.zone[n] in leave), key=self._pressure))
            self._add(partition, target)

    def _relieve(self, node: int) -> None:
        """Rule 2, upper bound."""
        while len(self.holds[node]) > self.most[node]:
            others = [other for other in range(len(self.ids)) if len(self.holds[other]) < self.most[other]]
            if not self._pass_on([node], sorted(others, key=self._pressure)):
                return

    def _fill(self, node: int, least: int) -> None:
        """Bring a node that has fewer than `least` up to its share."""
        if len(self.holds[node]) >= least:
            return
        while len(self.holds[node]) < self.floor[node]:
            others = [other for other in range(len(self.ids)) if len(self.holds[other]) > self.share[other]]
            if not self._pass_on(sorted(others, key=self._pressure, reverse=True), [node]):
                return

    def _pass_on(self, sources: list[int], targets: list[int]) -> bool:
        """Move one replica from one of `sources` to one of `targets`: directly, or along the shortest chain
        of moves.
        """
        for source in sources:
            for target in targets:
                partition = self._pick(source, target)
                if partition is not None:
                    self._shift(partition, source, target)
                    return True
        return self._pass_along(sources, set(targets))

    def _pass_along(self, sources: list[int], targets: set[int]) -> bool:
        came_from: dict[int, int | None] = dict.fromkeys(sources)
        queue = deque(sources)
        while queue:
            source = queue.popleft()
            for node in range(len(self.ids)):
                if node in came_from or self._pick(source, node) is None:
                    continue
                came_from[node] = source
                if node in targets:
                    return self._pass_back(node, came_from)
                queue.append(node)
        return False

    def _pass_back(self, node: int, came_from: dict[int, int | None]) -> bool:
        """Make the moves of a chain, the last first; an earlier one may have become impossible by then."""
        while (source := came_from[node]) is not None:
            partition = self._pick(source, node)
            if partition is None:
                return False
            self._shift(partition, source, node)
            node = source
        return True

    def _pick(self, source: int, target: int) -> int | None:
        """Of the partitions that may move from source to target, the one whose point is nearest to the
        target's.
        """
        near = self.near[source].get(target)
        if near is None:
            candidates = self.holds[source] - self.pinned[source]
            near = sorted((self._distance(partition, target), partition) for partition in candidates)
            self.near[source][target] = near
        holds, rows = self.holds[source], self.rows
        at = 0
        while at < len(near):
            partition = near[at][1]
            if partition not in holds or target in rows[partition]:
                del near[at]
            elif self._movable(partition, source, target):
                return partition
            else:
                at += 1
        return None

    def _movable(self, partition: int, source: int, target: int) -> bool:
        """Whether moving a replica keeps rule 1."""
        row = self.rows[partition]
        if target in row:
            return False
        leave, enter = self.zone[source], self.zone[target]
        if leave == enter:
            return True
        counts = self._zone_counts(row)
        return counts[leave] > self.zone_low[leave] and counts[enter] < self.zone_high[enter]

    def _shift(self, partition: int, source: int, target: int) -> None:
        self._remove(partition, source)
        self._add(partition, target)
