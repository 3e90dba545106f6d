"""The cluster map: bootstrap, bytes, and every structural lie refused by name."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack
import pytest

from kvclient.errors import ProtocolError
from shared.clustermap import ClusterMap, Node, stated_epoch

NODES = [
    Node(1, "store1", "tcp://127.0.0.1:7200", zone="rack1"),
    Node(2, "store2", "tcp://127.0.0.1:7210", zone="rack2", weight=200),
    Node(9, "store9", "tcp://127.0.0.1:7220", "tcp://127.0.0.1:7221", "tcp://127.0.0.1:7222", "rack3"),
]


def cluster(partitions: int = 16, replicas: int = 2) -> ClusterMap:
    return ClusterMap.bootstrap("test", partitions, replicas, NODES)


def test_bootstrap() -> None:
    first = cluster()
    assert (first.name, first.epoch, first.partition_count, first.replication_factor) == ("test", 1, 16, 2)
    assert first.bits == 4
    assert first.nodes == tuple(NODES)
    assert first.node(9) is NODES[2]
    assert all(len(holders) == 2 for holders in first.replicas)
    with pytest.raises(KeyError):
        first.node(3)


def test_bootstrap_is_the_same_in_every_process_whatever_the_order() -> None:
    again = ClusterMap.bootstrap("test", 16, 2, reversed(NODES))
    assert again == cluster()
    assert again.encode() == cluster().encode()
    # Pinned: data directories carry this id.
    assert again.cluster_id == "4e16248a28d371bb"


def test_cluster_id_follows_what_a_cluster_is_not_where() -> None:
    moved = [attrs.evolve(node, rpc=node.rpc + "0", zone="") for node in NODES]
    assert ClusterMap.bootstrap("test", 16, 2, moved).cluster_id == cluster().cluster_id
    others = [
        ClusterMap.bootstrap("other", 16, 2, NODES),
        ClusterMap.bootstrap("test", 32, 2, NODES),
        ClusterMap.bootstrap("test", 16, 2, NODES[:2]),
        ClusterMap.bootstrap("test", 16, 2, [attrs.evolve(NODES[0], name="store7"), *NODES[1:]]),
    ]
    assert len({other.cluster_id for other in [*others, cluster()]}) == 5


def test_partitions_of_a_node() -> None:
    first = cluster()
    for node in NODES:
        held = first.partitions_of(node.id)
        assert list(held) == sorted(held)
        assert all(node.id in first.replicas[partition] for partition in held)
    assert sum(len(first.partitions_of(node.id)) for node in NODES) == 32
    assert first.partitions_of(3) == ()


@pytest.mark.parametrize("partitions", [1, 2, 16, 4096])
def test_encoded_maps_decode_to_equal_maps(partitions: int) -> None:
    first = cluster(partitions)
    assert first.bits == {1: 0, 2: 1, 16: 4, 4096: 12}[partitions]
    assert ClusterMap.decode(first.encode()) == first
    assert ClusterMap.decode(first.encode()).node(2) == NODES[1]


def test_golden_bytes() -> None:
    """Pinned: a store of another version must read them."""
    nodes = [Node(1, "a", "tcp://h:1", "tcp://h:2", "tcp://h:3", "z", 5, "down")]
    made = ClusterMap("c", "i", 7, 1, 1, tuple(nodes), ((1,),), (1,), 1 << 20)
    assert made.encode() == (
        b"\x9a\x03\xa1c\xa1i\x07\x01\x01\x91\x98\x01\xa1a\xa9tcp://h:1\xa9tcp://h:2\xa9tcp://h:3\xa1z\x05\xa4down"
        b"\x91\x91\x01\x91\x01\xce\x00\x10\x00\x00"
    )
    assert ClusterMap.decode(made.encode()) == made


def test_a_map_of_the_format_before_is_read() -> None:
    fields = list(msgpack.unpackb(cluster().encode()))
    assert ClusterMap.decode(msgpack.packb([2, *fields[1:9]])) == cluster()


def test_the_first_nodes_hold_the_control_partition() -> None:
    """As many as tolerate a failure more than one less."""
    nodes = [Node(number, f"store{number}", f"tcp://127.0.0.1:{7000 + number}") for number in range(1, 8)]
    found = [len(ClusterMap.bootstrap("test", 16, 1, nodes[:count]).control) for count in range(1, 8)]
    assert found == [1, 1, 3, 3, 5, 5, 5]
    assert cluster().control == (1, 2, 9)


def test_maps_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cluster().epoch = 2  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        NODES[0].weight = 2  # type: ignore[misc]


def test_more_replicas_than_the_factor_while_they_move() -> None:
    first = cluster()
    moving = attrs.evolve(first, epoch=2, replicas=((1, 2, 9), *first.replicas[1:]))
    assert ClusterMap.decode(moving.encode()) == moving


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"id": 0}, "node id"),
        ({"id": 65535}, "node id"),
        ({"id": True}, "node id"),
        ({"name": ""}, "name must not be empty"),
        ({"name": "a\nb"}, "name must be printable"),
        ({"name": "x" * 256}, "at most 255"),
        ({"name": b"x"}, "name must be printable"),
        ({"rpc": ""}, "rpc must not be empty"),
        ({"bus": None}, "bus must be"),
        ({"events": 7}, "events must be"),
        ({"zone": "\x00"}, "zone must be"),
        ({"weight": -1}, "weight"),
        ({"weight": 1_000_001}, "weight"),
        ({"weight": 1.5}, "weight"),
        ({"state": "gone"}, "state must be one of up, suspect, down, draining"),
        ({"state": None}, "state must be one of"),
    ],
    ids=str,
)
def test_lies_about_a_node(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        attrs.evolve(NODES[0], **changes)
    fields = list(msgpack.unpackb(cluster().encode()))
    node = dict(zip(attrs.fields_dict(Node), fields[6][0], strict=True)) | changes
    fields[6][0] = list(node.values())
    with pytest.raises(ProtocolError, match=text):
        ClusterMap.decode(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (0, 1, "format 1 is not understood, this side knows 2 and 3"),
        (0, 4, "format 4 is not understood, this side knows 2 and 3"),
        (0, 2, "it must be an array of 9, not 10"),
        (0, True, "format"),
        (0, "1", "format"),
        (1, "", "cluster name must not be empty"),
        (1, b"test", "cluster name"),
        (2, "", "cluster id"),
        (2, 7, "cluster id"),
        (3, 0, "epoch"),
        (3, -1, "epoch"),
        (3, "1", "epoch"),
        (4, 0, "partition count"),
        (4, 8192, "partition count"),
        (4, 24, "power of two, not 24"),
        (4, 32, "16 replica sets for 32 partitions"),
        (5, 0, "replication factor"),
        (5, 8, "replication factor"),
        (5, None, "replication factor"),
        (6, [], "1..256 nodes, not 0"),
        (6, None, "nodes must be an array"),
        (6, {}, "nodes must be an array"),
        (6, [7], "each node must be an array"),
        (6, [[1, "store1"]], "each node must be an array of 8, not 2"),
        (7, None, "replicas must be an array"),
        (7, [], "0 replica sets for 16 partitions"),
        (7, [[1]] * 15, "15 replica sets"),
        (7, [[1]] * 15 + [7], "each replica set must be an array"),
        (7, [[1]] * 15 + [[]], "partition 15: 0 replicas, must be 1..4"),
        (7, [[1]] * 15 + [[1, 1]], "partition 15: a node holds two replicas"),
        (7, [[1]] * 15 + [[3]], "partition 15: no node has id 3"),
        (7, [[1]] * 15 + [[1.0]], "replicas are node ids"),
        (7, [[1]] * 15 + [[True]], "replicas are node ids"),
        (7, [[1]] * 15 + [[[]]], "replicas are node ids"),
        (7, [[1]] * 15 + [[1, 2, 9, 3, 4]], "partition 15: 5 replicas"),
        (8, None, "each replica set must be an array"),
        (8, [], "the control partition: 0 replicas, must be 1..5"),
        (8, [1, 1], "the control partition: a node holds two replicas"),
        (8, [3], "the control partition: no node has id 3"),
        (8, [True], "replicas are node ids"),
        (9, None, "bytes per second"),
        (9, (64 << 10) - 1, "bytes per second must be an integer 65536..1099511627776, not 65535"),
        (9, (1 << 40) + 1, "bytes per second"),
    ],
    ids=str,
)
def test_lies_about_a_map(position: int, value: Any, text: str) -> None:
    fields = list(msgpack.unpackb(cluster().encode()))
    fields[position] = value
    with pytest.raises(ProtocolError, match=text):
        ClusterMap.decode(msgpack.packb(fields))


@pytest.mark.parametrize("field", ["id", "name", "rpc"])
def test_two_nodes_with_the_same_field(field: str) -> None:
    fields = list(msgpack.unpackb(cluster().encode()))
    position = list(attrs.fields_dict(Node)).index(field)
    fields[6][1][position] = fields[6][0][position]
    with pytest.raises(ProtocolError, match=f"two nodes have the same {field}"):
        ClusterMap.decode(msgpack.packb(fields))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x01",
        msgpack.packb([1]),
        msgpack.packb([2] * 8),
        msgpack.packb([2] * 9),
        msgpack.packb([3] * 10),
        msgpack.packb({}),
        b"\x98\x01",
    ],
    ids=bytes.hex,
)
def test_other_bytes_are_no_map(encoded: bytes) -> None:
    with pytest.raises(ProtocolError, match="cluster map"):
        ClusterMap.decode(encoded)


def test_truncations_and_flipped_bytes_raise_protocol_errors_only() -> None:
    encoded = cluster().encode()
    for end in range(len(encoded)):
        with pytest.raises(ProtocolError):
            ClusterMap.decode(encoded[:end])
    for at in range(len(encoded)):
        for byte in (0x00, 0x80, 0x90, 0xC0, 0xC1, 0xFF):
            mutated = encoded[:at] + bytes([byte]) + encoded[at + 1 :]
            try:
                decoded = ClusterMap.decode(mutated)
            except ProtocolError:
                continue
            assert decoded == cluster() or decoded.encode() != encoded


@pytest.mark.parametrize(
    ("partitions", "replicas", "nodes", "text"),
    [
        (16, 4, NODES, "4 replicas need as many nodes"),
        (16, 1, [], "there are 0"),
        (24, 1, NODES, "power of two"),
        (0, 1, NODES, "partitions"),
        (16, 1, [NODES[0], NODES[0]], "same id"),
    ],
)
def test_bootstrap_refuses(partitions: int, replicas: int, nodes: list[Node], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ClusterMap.bootstrap("test", partitions, replicas, nodes)


class TestStatedEpoch:
    def test_it_is_the_epoch_of_every_map(self) -> None:
        for epoch in (1, 127, 128, 70_000, 2**64 - 1):
            longest = attrs.evolve(
                cluster(), name="\U0001f511" * 255, cluster_id="\U0001f511" * 255, epoch=epoch
            )
            assert stated_epoch(longest.encode()) == epoch

    @pytest.mark.parametrize(
        "encoded",
        [b"", b"\xc1", b"\x99", b"\x99\x02\xa1a\xa1b", b"\x99\x02\xa1a\xa1b\xff", b"\x99\x02\xa1a"]
        + [
            msgpack.packb(value)
            for value in (7, [], ["a"], [2, "n", "c", "7"], [2, "n", "c", 0], [2, "n", "c", -1])
        ],
    )
    def test_other_bytes_state_none(self, encoded: bytes) -> None:
        assert stated_epoch(encoded) == 0
