"""Who is first in each row: groups hand their leadership there by themselves (docs/control.md section 6).

Pure. Rows are turned, never changed otherwise: the first changes places with who shall be first. Owns no
memory: rows that are as even as they can be are left as they are.

Invariants: no row begins with a node that is not up, or should hold nothing, or is about to leave the group
without a successor, while another holder is, should and is not. Of two nodes with rows in common neither
leads so many that handing one over would make the larger of their loads, by share, smaller.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from shared.clustermap import Node
from storenode.control.placement import Row

TURNS_MAX: Final = 64
"""Rows turned at once to even out: each is a leadership that moves, which its clients wait for."""

_TIERS: Final = {"up": 0, "draining": 1, "suspect": 2, "down": 3}
"""Who is being drained still answers; who is silent may not."""


def turned(
    rows: Sequence[Row],
    nodes: Iterable[Node],
    share: Mapping[int, float],
    most: int = TURNS_MAX,
    going: Collection[tuple[int, int]] = (),
) -> tuple[Row, ...]:
    """The rows with their firsts spread over the nodes by share. At most `most` are turned for the sake of
    evenness; those that begin with a node that should not be first are turned all. `going`: (index of the
    row, node) of who leaves the group without a successor: it would be handed the leadership back as often as
    it gave it away to leave.
    """
    tiers = {node.id: max(_TIERS[node.state], 0 if share.get(node.id) else 1) for node in nodes}
    turning = _Turning(rows, tiers, share, going)
    turning.leave()
    turning.spread(most)
    return turning.rows()


class _Turning:
    def __init__(
        self,
        rows: Sequence[Row],
        tiers: Mapping[int, int],
        share: Mapping[int, float],
        going: Collection[tuple[int, int]],
    ) -> None:
        self._rows = rows
        self._tiers = tiers
        self._share = share
        self._going = going
        self._first = [row[0] for row in rows]
        self._led = Counter(self._first)

    def rows(self) -> tuple[Row, ...]:
        return tuple(
            row if row[0] == first else _turn(row, first)
            for row, first in zip(self._rows, self._first, strict=True)
        )

    def leave(self) -> None:
        """Turn the rows that begin with a node of a worse tier than another holder."""
        if not self._going and not any(self._tiers.values()):
            return
        for partition, row in enumerate(self._rows):
            if tier := self._tier(partition, row[0]):
                best = min(self._tier(partition, holder) for holder in row)
                if best < tier:
                    able = (holder for holder in row if self._tier(partition, holder) == best)
                    self._turn(partition, min(able, key=self._pressure))

    def _tier(self, partition: int, holder: int) -> int:
        return max(self._tiers[holder], 1 if (partition, holder) in self._going else 0)

    def spread(self, most: int) -> None:
        """Hand rows on, directly or along a chain of nodes, from who leads most for its share to who leads
        least, until that makes nothing more even.
        """
        able = [node for node, tier in self._tiers.items() if tier == 0]
        if self._even(able):
            return
        edges = self._edges()
        changed = True
        while changed:
            changed = False
            for node in sorted(able, key=lambda node: (-self._led[node] / self._share[node], node)):
                while most > 0 and (chain := self._chain(node, edges)):
                    for source, target in chain:
                        self._hand(source, target, edges)
                    most -= len(chain)
                    changed = True

    def _even(self, able: list[int]) -> bool:
        """Whether the most loaded node would gain nothing by handing a row to the least loaded."""
        if not able:
            return True
        highest = max(self._led[node] / self._share[node] for node in able)
        return highest <= min((self._led[node] + 1) / self._share[node] for node in able)

    def _edges(self) -> dict[int, dict[int, list[int]]]:
        """For each node, for each other one: the rows that it may hand to that one."""
        edges: dict[int, dict[int, list[int]]] = {node: defaultdict(list) for node in self._tiers}
        for partition in range(len(self._rows)):
            self._add_edges(partition, edges)
        return edges

    def _add_edges(self, partition: int, edges: dict[int, dict[int, list[int]]]) -> None:
        first = self._first[partition]
        if not self._tiers[first]:
            onward = edges[first]
            for holder in self._rows[partition]:
                if holder != first and not self._tier(partition, holder):
                    onward[holder].append(partition)

    def _chain(self, start: int, edges: dict[int, dict[int, list[int]]]) -> list[tuple[int, int]]:
        """The shortest chain from `start` to a node that would lead less with one row more than `start` does;
        the last step of it first. Empty if there is none.
        """
        load = self._led[start] / self._share[start]
        came_from = {start: start}
        queue = [start]
        for node in queue:
            found = []
            for other, rows in edges[node].items():
                while rows and self._first[rows[-1]] != node:
                    rows.pop()
                if rows and other not in came_from:
                    came_from[other] = node
                    found.append(other)
            end = min(found, key=self._pressure, default=start)
            if end != start and self._pressure(end) < load:
                chain = []
                while end != start:
                    chain.append((came_from[end], end))
                    end = came_from[end]
                return chain
            queue += found
        return []

    def _hand(self, source: int, target: int, edges: dict[int, dict[int, list[int]]]) -> None:
        partition = edges[source][target].pop()
        self._turn(partition, target)
        self._add_edges(partition, edges)

    def _turn(self, partition: int, first: int) -> None:
        self._led[self._first[partition]] -= 1
        self._led[first] += 1
        self._first[partition] = first

    def _pressure(self, node: int) -> float:
        """What one row more would make of its load."""
        return (self._led[node] + 1) / (self._share.get(node) or 1.0)


def _turn(row: Row, first: int) -> Row:
    """The two change places: what is behind them stays."""
    other = {row[0]: first, first: row[0]}
    return tuple(other.get(holder, holder) for holder in row)
