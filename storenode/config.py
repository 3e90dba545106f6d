"""What can be configured of a store node: names, units, defaults, limits. Loaded by `shared.config.load`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs

from kvclient.protocol import REQUEST_BYTES_MAX, VALUE_BYTES_MAX, VALUE_BYTES_MAX_CONFIGURABLE
from shared.config import LogSection
from shared.fields import between, connectable, matching, name_like, size_between
from shared.units import Endpoint, Size, next_port

NODE_IDS = between(1, 65534)  # 0 is nobody, 65535 everybody: the two-byte topics of the bus


@attrs.frozen
class NodeSection:
    """Which of `cluster.nodes` this process is."""

    id: int = attrs.field(validator=NODE_IDS)
    name: str = attrs.field(validator=name_like)


@attrs.frozen
class ListenSection:
    """Where this process listens; other nodes use the addresses in `cluster.nodes`."""

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
    weight: int = attrs.field(default=1, validator=between(1, 1000))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        for field in ("rpc", "bus", "events"):
            endpoint = getattr(self, field)
            if not connectable(endpoint):
                yield field, f"{endpoint} is no address to connect to: name host and port"


@attrs.frozen
class ClusterSection:
    """The cluster as it is founded. Every node is given the same, and computes the same map from it."""

    name: str = attrs.field(validator=name_like)
    nodes: tuple[NodeEntry, ...]
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
        if not self.nodes:
            yield "nodes", "must name at least one node"
        elif self.replicas > len(self.nodes):
            yield (
                "replicas",
                f"{self.replicas} replicas need as many nodes; cluster.nodes has {len(self.nodes)}",
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
    insecure: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        by_id = {node.id: node for node in self.cluster.nodes}
        mine = by_id.get(self.node.id)
        if mine is None:
            known = ", ".join(map(str, sorted(by_id)))
            yield "node.id", f"{self.node.id} is not in cluster.nodes (there: {known or 'none'})"
        elif mine.name != self.node.name:
            yield "node.name", f"cluster.nodes calls node {mine.id} {mine.name!r}, not {self.node.name!r}"
