"""What can be configured of a store node: names, units, defaults, limits. Loaded by `shared.config.load`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import attrs

from kvclient.protocol import REQUEST_BYTES_MAX, VALUE_BYTES_MAX, VALUE_BYTES_MAX_CONFIGURABLE
from shared.config import LogSection
from shared.fields import address_or_none, between, connectable, matching, name_like, size_between
from shared.ring import WEIGHT_MAX
from shared.security import SecuritySection
from shared.units import Endpoint, Size, next_port

NODE_IDS = between(1, 65534)  # 0 is nobody, 65535 everybody: the two-byte topics of the bus
WEIGHTS = between(0, WEIGHT_MAX)


def _node_id_or_none(instance: object, field: attrs.Attribute[int], value: int) -> None:
    if value != 0:
        NODE_IDS(instance, field, value)


@attrs.frozen
class NodeSection:
    """Which of `cluster.nodes` this process is: `id` and `name`. Or, with `cluster.join`, what it shall be in
    the cluster: everything but `id`, which the cluster gives.
    """

    name: str = attrs.field(validator=name_like)
    id: int = attrs.field(default=0, validator=_node_id_or_none)
    zone: str = attrs.field(default="default", validator=name_like)
    weight: int = attrs.field(default=1, validator=WEIGHTS)
    rpc: str = attrs.field(default="", validator=address_or_none)
    bus: str = attrs.field(default="", validator=address_or_none)
    events: str = attrs.field(default="", validator=address_or_none)


class Addresses(NamedTuple):
    """Of a node, as others connect to it."""

    rpc: Endpoint
    bus: Endpoint
    events: Endpoint


@attrs.frozen
class ListenSection:
    """Where this process listens; others use the addresses in `cluster.nodes`, or of `node`."""

    rpc: Endpoint = attrs.field(default=Endpoint("tcp://127.0.0.1:7200"))
    bus: Endpoint = attrs.field(
        default=attrs.Factory(lambda listen: next_port(listen.rpc, 1), takes_self=True)
    )
    events: Endpoint = attrs.field(
        default=attrs.Factory(lambda listen: next_port(listen.rpc, 2), takes_self=True)
    )


@attrs.frozen
class DataSection:
    """Where the data is kept; the directory is made when it does not exist."""

    dir: str = attrs.field(validator=matching(r"(?s).+", "a directory"))


@attrs.frozen
class NodeEntry:
    """One store node of the cluster. `bus` and `events` are the two ports after `rpc` unless given."""

    id: int = attrs.field(validator=NODE_IDS)
    name: str = attrs.field(validator=name_like)
    rpc: Endpoint
    bus: Endpoint = attrs.field(default=attrs.Factory(lambda node: next_port(node.rpc, 1), takes_self=True))
    events: Endpoint = attrs.field(
        default=attrs.Factory(lambda node: next_port(node.rpc, 2), takes_self=True)
    )
    zone: str = attrs.field(default="default", validator=name_like)
    weight: int = attrs.field(default=1, validator=WEIGHTS)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        for field in ("rpc", "bus", "events"):
            endpoint = getattr(self, field)
            if not connectable(endpoint):
                yield field, f"{endpoint} is no address to connect to: name host and port"


@attrs.frozen
class ClusterSection:
    """The cluster as it is founded: every founder is given the same, and computes the same map from it. Or
    where there are stores of one that runs: `join`.
    """

    name: str = attrs.field(validator=name_like)
    nodes: tuple[NodeEntry, ...] = ()
    join: tuple[Endpoint, ...] = ()
    partitions: int = attrs.field(default=16, validator=between(1, 4096))
    replicas: int = attrs.field(
        default=attrs.Factory(lambda cluster: max(1, min(3, len(cluster.nodes))), takes_self=True),
        validator=between(1, 7),
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        if self.partitions & (self.partitions - 1):
            below = 1 << (self.partitions.bit_length() - 1)
            yield (
                "partitions",
                f"must be a power of two such as {below} or {2 * below}, not {self.partitions}",
            )
        if not self.nodes and not self.join:
            yield (
                "nodes",
                "is required on the nodes that a cluster is founded with (all of them, the same on each); on "
                "one that joins a running cluster give cluster.join instead (rpc endpoints of some stores)",
            )
        elif self.nodes and self.join:
            yield "join", "excludes cluster.nodes: a founder has nodes, a store that joins later has join"
        for endpoint in self.join:
            if not connectable(endpoint):
                yield "join", f"{endpoint} is no address to connect to: name host and port"
        if self.nodes and self.replicas > len(self.nodes):
            yield (
                "replicas",
                f"{self.replicas} replicas need as many nodes; cluster.nodes has {len(self.nodes)}",
            )
        elif self.nodes and (holding := sum(node.weight > 0 for node in self.nodes)) < self.replicas:
            yield (
                "replicas",
                f"{self.replicas} replicas need as many nodes with weight; cluster.nodes has {holding}",
            )
        yield from self._repeated("id", (str(node.id) for node in self.nodes))
        yield from self._repeated("name", (node.name for node in self.nodes))
        yield from self._repeated(
            "endpoint", (end for node in self.nodes for end in (node.rpc, node.bus, node.events))
        )

    @staticmethod
    def _repeated(what: str, values: Iterator[str]) -> Iterator[tuple[str, str]]:
        for value, count in Counter(values).items():
            if count > 1:
                yield "nodes", f"the {what} {value} is there {count} times"


@attrs.frozen
class EngineSection:
    """Memory and threads that all partitions of this node share."""

    memtable: Size = attrs.field(default=Size(8 << 20), validator=size_between(1 << 20, 1 << 30))
    memtables_total: Size = attrs.field(default=Size(64 << 20), validator=size_between(1 << 20, 1 << 40))
    cache: Size = attrs.field(default=Size(32 << 20), validator=size_between(1 << 20, 1 << 40))
    workers: int = attrs.field(default=1, validator=between(1, 64))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        if self.memtables_total < self.memtable:
            yield "memtables_total", "must be at least engine.memtable"


@attrs.frozen
class RaftSection:
    """The log that all partitions share. Beyond `log_bytes` it is cut, which may take flushes."""

    log_bytes: Size = attrs.field(default=Size(256 << 20), validator=size_between(16 << 20, 1 << 40))
    segment: Size = attrs.field(default=Size(64 << 20), validator=size_between(1 << 20, 1 << 30))
    cache: Size = attrs.field(default=Size(32 << 20), validator=size_between(1 << 20, 1 << 40))


@attrs.frozen
class LimitsSection:
    """What a store accepts. Beyond `in_flight_bytes` it answers BUSY, so that bounds its memory."""

    value_bytes: Size = attrs.field(
        default=Size(VALUE_BYTES_MAX), validator=size_between(1, VALUE_BYTES_MAX_CONFIGURABLE)
    )
    in_flight_bytes: Size = attrs.field(
        # At least one request of the largest size, or it could never be served.
        default=Size(256 << 20),
        validator=size_between(REQUEST_BYTES_MAX, 1 << 40),
    )


@attrs.frozen
class DevSection:
    """For trying things out on one machine. `cuts`: a file that says which endpoints are not connected to."""

    cuts: str = ""


@attrs.frozen
class StoreConfig:
    """The whole configuration of a store node process."""

    node: NodeSection
    data: DataSection
    cluster: ClusterSection
    listen: ListenSection = ListenSection()
    engine: EngineSection = EngineSection()
    raft: RaftSection = RaftSection()
    limits: LimitsSection = LimitsSection()
    log: LogSection = attrs.field(factory=LogSection)
    dev: DevSection = DevSection()
    security: SecuritySection = attrs.field(factory=SecuritySection)
    insecure: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        if self.cluster.nodes and not self.cluster.join:
            yield from self._problems_of_a_founder()
        elif self.cluster.join and not self.cluster.nodes:
            yield from self._problems_of_one_that_joins()

    def _problems_of_a_founder(self) -> Iterator[tuple[str, str]]:
        by_id = {node.id: node for node in self.cluster.nodes}
        mine = by_id.get(self.node.id)
        if self.node.id == 0:
            yield "node.id", "is required with cluster.nodes"
        elif mine is None:
            yield (
                "node.id",
                f"{self.node.id} is not in cluster.nodes (there: {', '.join(map(str, sorted(by_id)))})",
            )
        elif mine.name != self.node.name:
            yield "node.name", f"cluster.nodes calls node {mine.id} {mine.name!r}, not {self.node.name!r}"
        default = NodeSection(self.node.name, self.node.id)
        for field in ("zone", "weight", "rpc", "bus", "events"):
            if getattr(self.node, field) != getattr(default, field):
                yield f"node.{field}", "goes with cluster.join; a founder's stands in cluster.nodes"

    def _problems_of_one_that_joins(self) -> Iterator[tuple[str, str]]:
        if self.node.id:
            yield "node.id", "does not go with cluster.join: the cluster gives the id"
        for field in ("rpc", "bus", "events"):
            endpoint = getattr(self.addresses, field)
            if not connectable(endpoint):
                yield (
                    f"node.{field}",
                    f"is required, as others cannot connect to {endpoint}: say which address they shall use",
                )

    @property
    def addresses(self) -> Addresses:
        """Where others reach this node, if it joins: `node.rpc` and the two ports after it, or where it
        listens.
        """
        node, listen = self.node, self.listen
        rpc = Endpoint(node.rpc) if node.rpc else listen.rpc
        bus = next_port(rpc, 1) if node.rpc else listen.bus
        events = next_port(rpc, 2) if node.rpc else listen.events
        return Addresses(rpc, Endpoint(node.bus or bus), Endpoint(node.events or events))
