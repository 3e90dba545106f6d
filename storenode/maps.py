"""The newest cluster map that this store has heard of, and who follows it (docs/control.md section 3).

Owns which map is newer, and when it is written to the disk. Must not know where maps come from, nor what
follows from one. One thread, the loop's; writing is done beside it.

Invariants: the epoch never goes down. A map of another cluster, or with another partition count, is never
taken. Whoever follows is told of each map that was taken once, in the order of the maps; one that fails
costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared import logs
from shared.clustermap import ClusterMap, Node
from storenode.beside import Beside

Follow = Callable[[ClusterMap], object]

_log = logs.get("maps")


class Maps:
    """Of one node."""

    def __init__(self, first: ClusterMap) -> None:
        self._followers: list[Follow] = []
        self._become(first)

    def _become(self, cluster_map: ClusterMap) -> None:
        self.map = cluster_map
        self.encoded = cluster_map.encode()
        self.names: Mapping[int, str] = {node.id: node.name for node in cluster_map.nodes}
        self._nodes = {node.id: node for node in cluster_map.nodes}

    def node(self, number: int) -> Node | None:
        """None: the map does not have it."""
        return self._nodes.get(number)

    def follow(self, follow: Follow) -> None:
        """Call `follow` with each map that is taken from now on."""
        self._followers.append(follow)

    def take(self, cluster_map: ClusterMap) -> bool:
        """Whether it is newer, and the map from now on."""
        now = self.map
        if (cluster_map.cluster_id, cluster_map.partition_count) != (now.cluster_id, now.partition_count):
            _log.warning("map_foreign", cluster=cluster_map.name, cluster_id=cluster_map.cluster_id)
            return False
        if cluster_map.epoch <= now.epoch:
            return False
        self._become(cluster_map)
        _log.info("map_taken", epoch=cluster_map.epoch, nodes=len(cluster_map.nodes))
        for follow in self._followers:
            try:
                follow(cluster_map)
            except Exception:  # noqa: BLE001 - the others follow all the same, this one the next map
                _log.exception("map_not_followed", epoch=cluster_map.epoch)
        return True


class MapWriter:
    """Keeps the newest map on the disk. One write at a time, beside the loop; of maps that come meanwhile the
    last one follows. What cannot be written is kept in memory, and tried again with the next map: a store
    that starts with an older one learns the newest from the others.
    """

    def __init__(self, write: Callable[[ClusterMap], None], beside: Beside) -> None:
        """`write` makes a map durable; OSError."""
        self._write = write
        self._beside = beside
        self._writing = False
        self._waiting: ClusterMap | None = None

    def keep(self, cluster_map: ClusterMap) -> None:
        """Write it soon."""
        self._waiting = cluster_map
        if not self._writing:
            self._begin()

    def _begin(self) -> None:
        due, self._waiting = self._waiting, None
        self._writing = due is not None
        if due is not None:
            self._beside(lambda: self._write(due), self._written)

    def _written(self, outcome: object) -> None:
        if isinstance(outcome, Exception):
            _log.error("map_not_written", error=str(outcome))
        self._begin()
