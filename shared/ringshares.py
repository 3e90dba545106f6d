"""Shares: how many replicas each node should hold, by weight, as far as the zones let it.

Pure arithmetic of placement's first two rules (shared.ring); must not know tables, rings or moves. Nodes and
zones are indices here, but for `shares`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Protocol


class Placeable(Protocol):
    """What placement needs to know of a node."""

    @property
    def id(self) -> int: ...
    @property
    def zone(self) -> str: ...
    @property
    def weight(self) -> int: ...


def shares(nodes: Iterable[Placeable], replicas: int, partitions: int) -> dict[int, float]:
    """How many replicas each of the nodes with weight should hold: by weight, as far as the zones let it.
    With fewer nodes than `replicas`, all of them hold everything.
    """
    members = [node for node in nodes if node.weight > 0]
    if not members:
        return {}
    zone, weights = tuple(zones_of(members)), tuple(node.weight for node in members)
    parts = _cached(zone, weights, min(replicas, len(members)), partitions)
    return {node.id: part for node, part in zip(members, parts, strict=True)}


@lru_cache(maxsize=8)
def _cached(
    zone: tuple[int, ...], weights: tuple[int, ...], replicas: int, partitions: int
) -> tuple[float, ...]:
    """The controller asks again for the same nodes."""
    return tuple(map(float, node_shares(zone, weights, replicas, partitions)))


def zones_of(nodes: Iterable[Placeable]) -> list[int]:
    """The zone of each, as an index; a node without a zone is a zone of its own."""
    index: dict[tuple[str, int], int] = {}
    return [index.setdefault((node.zone, 0 if node.zone else node.id), len(index)) for node in nodes]


def zone_bounds(zone: Sequence[int], replicas: int) -> tuple[list[int], list[int]]:
    """Rule 1: the least and the most replicas of a partition in each zone; `zone`: that of each node."""
    sizes = Counter(zone)
    level = 1
    while sum(min(size, level) for size in sizes.values()) < replicas:
        level += 1
    low = [min(sizes[one], level - 1) for one in range(len(sizes))]
    return low, [min(sizes[one], level) for one in range(len(sizes))]


def node_shares(
    zone: Sequence[int], weights: Sequence[int], replicas: int, partitions: int
) -> list[Fraction]:
    """Rule 2: the share of each node, first divided among zones, then within each."""
    low, high = zone_bounds(zone, replicas)
    zones = range(len(low))
    in_zone = [[node for node, one in enumerate(zone) if one == wanted] for wanted in zones]
    zone_shares = _divide(
        Fraction(partitions * replicas),
        [sum(weights[node] for node in in_zone[one]) for one in zones],
        [partitions * least for least in low],
        [partitions * most for most in high],
    )
    share = [Fraction(0)] * len(weights)
    for one, members in enumerate(in_zone):
        parts = _divide(
            zone_shares[one],
            [weights[node] for node in members],
            [0] * len(members),
            [partitions] * len(members),
        )
        for node, part in zip(members, parts, strict=True):
            share[node] = part
    return share


def _divide(total: Fraction, weights: list[int], lows: list[int], highs: list[int]) -> list[Fraction]:
    """`total` divided after the weights, each part within its bounds; sum(lows) <= total <= sum(highs)."""
    shares = [Fraction(0)] * len(weights)
    free = list(range(len(weights)))
    while free:
        rate = total / sum(weights[i] for i in free)
        for i in free:
            shares[i] = min(max(rate * weights[i], Fraction(lows[i])), Fraction(highs[i]))
        excess = sum(shares[i] for i in free) - total
        if excess == 0:
            break
        # Those at the bound that causes the excess (or the lack) stay there whatever the others get.
        bounds = lows if excess > 0 else highs
        bound = [i for i in free if shares[i] == bounds[i]]
        total -= sum(shares[i] for i in bound)
        free = [i for i in free if shares[i] != bounds[i]]
    return shares
