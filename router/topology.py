"""What this router believes about the cluster: the map, who leads which partition, which nodes are up, and
when to ask again.

Owns the outbox of each node that is up. Must not know requests or sockets. All of it is belief: stores check,
and their refusals and epochs correct it.

A leader is believed in because the map prefers it, a store named it, or it answered (known); or because it is
the next replica in line (guessed), after a refusal that names nobody. What is known yields only to a refusal
by that very node, as refusals of others may be old; what is guessed yields to any word of a store.

Invariants:
- `leaders[p]` is a node of the map: a store that was named, or has answered, may lead partition p without
  being one of the replicas that the map gives it, as members are changed by hand.
- `queues` has exactly the nodes of the map that are up; a queue holds what goes out at the end of this turn.
- The epoch never goes back, and a map of another cluster is never taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from kvclient.errors import ProtocolError
from shared.clustermap import ClusterMap, stated_epoch
from shared.messages import Item

MAP_REFRESH_SECONDS = 10.0
# An unanswered question is put to another node after this long; a hundred rejections in a row cost one
# question.
MAP_RETRY_SECONDS = 0.25


class Topology:
    """The map and the state of its nodes. `leaders`, `queues` and `guessed` are read by the core's straight
    lines.
    """

    def __init__(self) -> None:
        self.map: ClusterMap | None = None
        self.encoded_map = b""
        self.epoch = 0
        self.bits = 0
        self.leaders: list[int] = []  # by partition
        self.queues: dict[int, list[Item]] = {}
        self.guessed: set[int] = set()  # partitions whose leader is a guess
        self._informant = 0  # the store that last said that there is a newer map
        self._readers = 0
        self._known: frozenset[int] = frozenset()
        self._asked_at = -inf
        self._next_question = -inf

    def install(self, encoded: bytes) -> bool:
        """Take a map if it is newer; False if not. ProtocolError if it is none, or of another cluster.

        What states an epoch that is not newer is not looked at further: most maps that come are known.
        """
        if 0 < stated_epoch(encoded) <= self.epoch:
            return False
        new = ClusterMap.decode(encoded)
        old = new if self.map is None else self.map
        if (new.cluster_id, new.partition_count) != (old.cluster_id, old.partition_count):
            raise ProtocolError(
                f"a map of cluster {new.name} ({new.cluster_id}); "
                f"this router serves {old.name} ({old.cluster_id})"
            )
        self.map = new
        self.encoded_map = encoded
        self.epoch = new.epoch
        self.bits = new.bits
        self._known = frozenset(node.id for node in new.nodes)
        self._keep_leaders(old.replicas, new.replicas)
        return True

    def _keep_leaders(self, old: Sequence[tuple[int, ...]], new: Sequence[tuple[int, ...]]) -> None:
        """Who led still leads, unless the partition has left it: a new map moves replicas, not leaders. A
        leader that was no replica by the old map either is none of those that left.
        """
        before = self.leaders or [0] * len(new)
        self.leaders = [
            leader if leader in now or (leader in self._known and leader not in then) else now[0]
            for leader, then, now in zip(before, old, new, strict=True)
        ]
        self.guessed = {
            partition for partition in self.guessed if self.leaders[partition] == before[partition]
        }

    # -- when to ask for a map

    def suspect(self, now: float, informant: int = 0) -> None:
        """Something says that the map is old: ask now, or MAP_RETRY_SECONDS after the last question; best the
        node that has a newer one (0: nobody said so).
        """
        self._informant = informant or self._informant
        self._next_question = min(self._next_question, max(now, self._asked_at + MAP_RETRY_SECONDS))

    def answered(self, now: float) -> None:
        """A store has sent its map, be it newer or not."""
        self._next_question = now + MAP_REFRESH_SECONDS

    def should_ask(self, now: float) -> bool:
        """Whether to ask some store for its map now.

        The next question is due after MAP_RETRY_SECONDS unless this one is answered.
        """
        if now < self._next_question:
            return False
        self._asked_at = now
        self._next_question = now + MAP_RETRY_SECONDS
        return True

    def take_informant(self) -> int:
        """The node to ask, if one has said that it has a newer map; 0 the next time, so that one which does
        not keep its word keeps nobody from asking others.
        """
        informant, self._informant = self._informant, 0
        return informant

    @property
    def next_question(self) -> float:
        return self._next_question

    # -- nodes

    def knows(self, node: int) -> bool:
        """Whether the map has that node."""
        return node in self._known

    def set_up(self, node: int) -> bool:
        """The node can be sent to; False if that is no news, or no node of the map."""
        if node in self.queues or node not in self._known:
            return False
        self.queues[node] = []
        return True

    def set_down(self, node: int) -> list[Item]:
        """The node cannot be sent to; returns what was still to be sent this turn."""
        return self.queues.pop(node, [])

    def removed_nodes(self) -> list[int]:
        """Nodes that are up and not in the map any more."""
        return [node for node in self.queues if node not in self._known]

    # -- who leads

    def not_leading(self, partition: int, node: int, named: int = 0) -> bool:
        """`node` says that it does not lead the partition, but `named` does (0: it knows nobody).

        Whether another node that is up is known to lead now; otherwise the next replica is guessed.
        """
        if self.leaders[partition] != node and partition not in self.guessed:
            return self.leaders[partition] in self.queues
        if named != node and named in self.queues:
            self._know(partition, named)
            return True
        if self.leaders[partition] == node:
            self._turn(partition)
        return False

    def served(self, partition: int, node: int) -> None:
        """The node has answered as only a leader does.

        That counts against a guess alone: a leader that has been voted out answers what it began before.
        """
        if partition in self.guessed and node in self._known:
            self._know(partition, node)

    def _know(self, partition: int, node: int) -> None:
        self.leaders[partition] = node
        self.guessed.discard(partition)

    def reachable_leader(self, partition: int) -> int:
        """The node to send to: the leader as far as known, else the next replica that is up, else 0."""
        leader = self.leaders[partition]
        return leader if leader in self.queues else self._turn(partition)

    def _turn(self, partition: int) -> int:
        """Guess that the next replica that is up leads; 0 if there is none but the one believed in."""
        assert self.map is not None
        replicas, believed = self.map.replicas[partition], self.leaders[partition]
        following = replicas.index(believed) + 1 if believed in replicas else 0
        for node in (replicas + replicas)[following : following + len(replicas)]:
            if node in self.queues and node != believed:
                self.leaders[partition] = node
                self.guessed.add(partition)
                return node
        return 0

    def any_replica(self, partition: int) -> int:
        """A replica that is up, each in its turn; 0 if there is none."""
        assert self.map is not None
        replicas = self.map.replicas[partition]
        self._readers += 1
        first = self._readers % len(replicas)
        for node in replicas[first:] + replicas[:first]:
            if node in self.queues:
                return node
        return 0

    # -- words for messages

    def describe(self, node: int) -> str:
        """A node as an operator knows it."""
        if self.map is None or node not in self._known:
            return f"node {node}"
        known = self.map.node(node)
        return f"{known.name} ({known.rpc})"

    def why_unreachable(self, partition: int) -> str:
        """One sentence about a partition that nobody up leads."""
        assert self.map is not None
        replicas = self.map.replicas[partition]
        names = " and ".join(self.describe(node) for node in replicas)
        verb = "is" if len(replicas) == 1 else "are"
        return f"partition {partition} is not served: {names} {verb} not reachable"
