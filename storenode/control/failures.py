"""Who is heard, who is silent, and for how long (docs/control.md section 5).

Owns when each node was heard by this controller. Pure: time is handed in, seconds of one monotonic clock.
What it says are hints for people and routers, and the ground for replacing a node; Raft decides who leads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.clustermap import Node
from storenode.control.state import ControlState
from storenode.control.view import DOWN_MS, SUSPECT_MS

SUSPECT_S: Final = SUSPECT_MS / 1000
DOWN_S: Final = DOWN_MS / 1000


class Failures:
    """Counts from when this controller began, the silence before it is not known to it; a node that has
    joined since then is as new as the first look at it.
    """

    def __init__(self, began: float, nodes: Iterable[int]) -> None:
        """`nodes`: those of the map with which it began."""
        self.began = began
        self.heard_at: dict[int, float] = {}
        self._since = dict.fromkeys(nodes, began)

    def heard(self, node: int, now: float) -> None:
        """A report of that node has come."""
        self.heard_at[node] = now

    def forget(self, node: int) -> None:
        """It has left the cluster."""
        self.heard_at.pop(node, None)
        self._since.pop(node, None)

    def silence(self, node: int, now: float) -> float:
        """Seconds."""
        heard = self.heard_at.get(node)
        return now - (self._since.setdefault(node, now) if heard is None else heard)

    def liveness(self, node: Node, now: float) -> str:
        """up, suspect or down. Who was suspect or down when this controller began stays so until heard."""
        silence = self.silence(node.id, now)
        told = node.state if node.id not in self.heard_at else "up"
        if silence >= DOWN_S or told == "down":
            return "down"
        return "suspect" if silence >= SUSPECT_S or told == "suspect" else "up"

    def lost(self, state: ControlState, now: float) -> tuple[frozenset[int], tuple[str, ...]]:
        """The nodes that are down for so long that they shall be replaced, and why others are not.

        Nobody is replaced while too few nodes are left, or so many are down that this controller is more
        likely to be cut off. A draining node is not here: what it holds moves anyhow.
        """
        nodes = state.map.nodes
        down = {node.id for node in nodes if self.liveness(node, now) == "down"}
        after = DOWN_S + state.settings.replace_after_ms / 1000
        due = [
            node
            for node in nodes
            if node.id in down and node.state != "draining" and self.silence(node.id, now) >= after
        ]
        if not due:
            return frozenset(), ()
        left = sum(node.weight > 0 and node.state != "draining" and node.id not in down for node in nodes)
        if left < state.map.replication_factor:
            why = f"{state.map.replication_factor} replicas need as many nodes, and {left} are left"
        elif len(down) >= 2 and 3 * len(down) > len(nodes):
            why = f"{len(down)} of {len(nodes)} nodes are down: perhaps it is the controller that is cut off"
        else:
            return frozenset(node.id for node in due), ()
        return frozenset(), tuple(f"{node.name} is down and is not replaced: {why}" for node in due)
