"""The cluster map: which nodes there are, and which of them hold which partition (docs/protocol.md section
6).

Owns the map's validity and its bytes. A map that exists is consistent: the constructor refuses any other.
Immutable; a change is a new map with a higher epoch. Must not know how a map is agreed on, stored or sent.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from shared.hashing import xxh64
from shared.ring import NODES_MAX, PARTITIONS_MAX, WEIGHT_MAX, place
from shared.shapes import TEXT_MAX, array, first_twice, integer, text

FORMAT = 3
# Without `bytes_per_second`: what a router or a store of the version before says.
OLD_FORMAT = 2

# 0 and 0xFFFF are no nodes: the bus uses 0xFFFF as the address of all.
NODE_ID_MAX = 65534
# Replicas beyond seven cost a write more than they add in safety.
REPLICAS_MAX = 7
STATES = ("up", "suspect", "down", "draining")
# Two of them may fail; more would make every decision slower and none safer.
CONTROL_MAX = 5
# How fast a store gives snapshots away, all together: most of a 1 Gbit/s link unless told otherwise.
BYTES_PER_SECOND = 100 << 20
BYTES_PER_SECOND_MIN = 64 << 10
BYTES_PER_SECOND_MAX = 1 << 40

_UINT64_MAX = (1 << 64) - 1
# The epoch stands within this many bytes: before it are two texts, four bytes a character at most.
_EPOCH_WITHIN = 16 + 2 * 4 * TEXT_MAX + 16


@attrs.frozen
class Node:
    """A store node. `rpc`, `bus` and `events` are ZeroMQ endpoints as routers and peers connect to them ("" =
    not bound).
    """

    id: int
    name: str
    rpc: str
    bus: str = ""
    events: str = ""
    zone: str = ""
    weight: int = 100
    state: str = "up"

    def __attrs_post_init__(self) -> None:
        """ValueError names the first field that is wrong."""
        integer(self.id, 1, NODE_ID_MAX, "node id")
        for field in ("name", "rpc", "bus", "events", "zone"):
            text(getattr(self, field), field in ("name", "rpc"), f"node {self.id}: {field}")
        integer(self.weight, 0, WEIGHT_MAX, f"node {self.id}: weight")
        if self.state not in STATES:
            raise ValueError(
                f"node {self.id}: state must be one of {', '.join(STATES)}, not {self.state!r:.40}"
            )


@attrs.frozen
class ClusterMap:
    """One epoch of the map. `replicas[partition]` are node ids, the first the preferred leader; `control` are
    the nodes of the control partition. `bytes_per_second`: at most so much a store sends of snapshots.
    """

    name: str
    cluster_id: str
    epoch: int
    partition_count: int
    replication_factor: int
    nodes: tuple[Node, ...]
    replicas: tuple[tuple[int, ...], ...]
    control: tuple[int, ...]
    bytes_per_second: int = BYTES_PER_SECOND
    _by_id: dict[int, Node] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """ValueError names the first thing that is wrong."""
        text(self.name, True, "cluster name")
        text(self.cluster_id, True, "cluster id")
        integer(self.epoch, 1, _UINT64_MAX, "epoch")
        integer(self.partition_count, 1, PARTITIONS_MAX, "partition count")
        if self.partition_count & (self.partition_count - 1):
            raise ValueError(f"partition count must be a power of two, not {self.partition_count}")
        integer(self.replication_factor, 1, REPLICAS_MAX, "replication factor")
        integer(self.bytes_per_second, BYTES_PER_SECOND_MIN, BYTES_PER_SECOND_MAX, "bytes per second")
        self._check_nodes()
        object.__setattr__(self, "_by_id", {node.id: node for node in self.nodes})
        self._check_replicas()

    def _check_nodes(self) -> None:
        if not 1 <= len(self.nodes) <= NODES_MAX:
            raise ValueError(f"a cluster has 1..{NODES_MAX} nodes, not {len(self.nodes)}")
        for field in ("id", "name", "rpc"):
            twice = first_twice(getattr(node, field) for node in self.nodes)
            if twice is not None:
                raise ValueError(f"two nodes have the same {field} {twice!r}")

    def _check_replicas(self) -> None:
        if len(self.replicas) != self.partition_count:
            raise ValueError(f"{len(self.replicas)} replica sets for {self.partition_count} partitions")
        # A move adds the new replica before it takes the old one away: up to twice the factor while all of
        # them move.
        most = 2 * self.replication_factor
        for partition, holders in enumerate(self.replicas):
            self._check_holders(holders, most, f"partition {partition}")
        self._check_holders(self.control, CONTROL_MAX, "the control partition")

    def _check_holders(self, holders: tuple[int, ...], most: int, what: str) -> None:
        if not 1 <= len(holders) <= most:
            raise ValueError(f"{what}: {len(holders)} replicas, must be 1..{most}")
        if len(set(holders)) != len(holders):
            raise ValueError(f"{what}: a node holds two replicas")
        for holder in holders:
            if holder not in self._by_id:
                raise ValueError(f"{what}: no node has id {holder!r:.40}")

    @property
    def bits(self) -> int:
        """log2 of the partition count."""
        return self.partition_count.bit_length() - 1

    def node(self, node_id: int) -> Node:
        """The node with that id; KeyError if there is none."""
        return self._by_id[node_id]

    def partitions_of(self, node_id: int) -> tuple[int, ...]:
        """The partitions that a node holds a replica of, ascending."""
        return tuple(partition for partition, holders in enumerate(self.replicas) if node_id in holders)

    def encode(self) -> bytes:
        """The map's bytes; equal maps have equal bytes."""
        fields = attrs.astuple(self, recurse=False, filter=lambda attribute, _: attribute.init)
        return msgpack.packb((FORMAT, *fields), default=attrs.astuple)  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, encoded: bytes) -> ClusterMap:
        """The map with these bytes; ProtocolError names what is wrong with any others."""
        try:
            fields = frames.decode(encoded)
        except ProtocolError as error:
            raise ProtocolError(f"cluster map: {error.message}") from None
        try:
            array(fields, None, "it")
            if not fields or type(fields[0]) is not int or fields[0] not in (OLD_FORMAT, FORMAT):
                known = fields[0] if fields else None
                raise ValueError(
                    f"format {known!r:.40} is not understood, this side knows {OLD_FORMAT} and {FORMAT}"
                )
            array(fields, 10 if fields[0] == FORMAT else 9, "it")
            array(fields[6], None, "its nodes")
            array(fields[7], None, "its replicas")
            nodes = tuple(Node(*array(node, 8, "each node")) for node in fields[6])
            for holders in (*fields[7], fields[8]):
                if not set(map(type, array(holders, None, "each replica set"))) <= {int}:
                    raise ValueError("replicas are node ids")
            name, cluster_id, epoch, partitions, replicas = fields[1:6]
            return cls(name, cluster_id, epoch, partitions, replicas, nodes, *fields[7:])
        except ValueError as error:
            raise ProtocolError(f"cluster map: {error}") from None

    @classmethod
    def bootstrap(cls, name: str, partitions: int, replicas: int, nodes: Iterable[Node]) -> ClusterMap:
        """The first map of a cluster, epoch 1: the same for the same arguments, in whatever order the nodes
        come.

        The cluster id depends on the name, the partition count and the nodes' ids and names, not on their
        addresses: a cluster may move. ValueError when the arguments cannot make a valid map.
        """
        ordered = tuple(sorted(nodes, key=lambda node: node.id))
        table, _ = place(ordered, replicas, partitions)
        identity = (name, partitions, [(node.id, node.name) for node in ordered])
        cluster_id = f"{xxh64(msgpack.packb(identity)):016x}"
        control = tuple(node.id for node in ordered[: control_size(len(ordered))])
        return cls(name, cluster_id, 1, partitions, replicas, ordered, table, control)


def stated_epoch(encoded: bytes) -> int:
    """The epoch that the bytes of a map state, at a hundredth of the price of decoding them; 0: they state
    none. Nothing else of them is looked at.
    """
    unpacker = msgpack.Unpacker(use_list=False)
    try:
        unpacker.feed(encoded[:_EPOCH_WITHIN])
        unpacker.read_array_header()
        for _ in range(3):
            unpacker.skip()
        epoch = unpacker.unpack()
    except Exception:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        return 0
    return epoch if type(epoch) is int and 0 < epoch <= _UINT64_MAX else 0


def control_size(nodes: int) -> int:
    """How many of them hold the control partition: an even number tolerates no more failures than the odd one
    below it.
    """
    return min(CONTROL_MAX, nodes - 1 + nodes % 2)
