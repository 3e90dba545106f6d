"""The control state: first state, bytes, and every broken rule refused whole and by name."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.errors import ProtocolError
from shared.clustermap import NODE_ID_MAX, ClusterMap, Node
from storenode.control.state import CONTROL, MOVES_MAX, ControlState, Member, Settings

INCARNATION = "0123456789abcdef" * 2


def make_map(nodes: int = 3, partitions: int = 4, replicas: int = 2) -> ClusterMap:
    return ClusterMap.bootstrap(
        "test",
        partitions,
        replicas,
        [
            Node(
                number,
                f"store{number}",
                f"tcp://10.0.0.{number}:7200",
                f"tcp://10.0.0.{number}:7201",
                f"tcp://10.0.0.{number}:7202",
                f"rack{number % 5}",
            )
            for number in range(1, nodes + 1)
        ],
    )


def rich() -> ControlState:
    state = ControlState.first(make_map()).queue(
        [(0, 1, 3, "rebalance"), (3, 0, 2, "replace"), (CONTROL, 2, 0, "control")]
    )
    return attrs.evolve(
        state,
        members=(Member(1, INCARNATION, 1, True), *state.members[1:]),
        next_node=9,
        paused=True,
        settings=Settings(60_000, 3, 1 << 20),
    )


def test_a_new_map_says_what_the_settings_say() -> None:
    state = ControlState.first(make_map())
    set_ = state.remap(settings=attrs.evolve(state.settings, bytes_per_second=1 << 20))
    assert (set_.map.epoch, set_.map.bytes_per_second) == (2, 1 << 20)
    assert set_.remap().map.bytes_per_second == 1 << 20


def test_the_first_state() -> None:
    first = ControlState.first(make_map())
    assert first.members == (Member(1, "", 1), Member(2, "", 1), Member(3, "", 1))
    assert (first.moves, first.next_move, first.next_node, first.paused) == ((), 1, 4, False)
    assert first.settings == Settings(1_800_000, 2, 104_857_600)
    assert first.member(2) == Member(2, "", 1)
    with pytest.raises(KeyError):
        first.member(4)


def test_golden_bytes() -> None:
    """Pinned: they are in the control partition of clusters that run."""
    encoded = rich().encode()
    head = b"\x98\x01\xc5\x01\x1f" + rich().map.encode()
    assert encoded[: len(head)] == head
    assert encoded[len(head) :] == (
        b"\x93\x94\x01\xd9\x20" + INCARNATION.encode() + b"\x01\xc3\x94\x02\xa0\x01\xc2\x94\x03\xa0\x01\xc2"
        b"\x93\x95\x01\x00\x01\x03\xa9rebalance\x95\x02\x03\x00\x02\xa7replace"
        b"\x95\x03\xcd\xff\xff\x02\x00\xa7control"
        b"\x04\x09\xc3\x93\xcd\xea\x60\x03\xce\x00\x10\x00\x00"
    )


def test_a_state_survives_its_bytes() -> None:
    for state in (rich(), ControlState.first(make_map(50, 64, 3))):
        again = ControlState.decode(state.encode())
        assert again == state
        assert again.encode() == state.encode()
        assert again.member(1) == state.member(1)


def test_the_largest_state_is_bounded() -> None:
    """A value of the store has 1 MiB, a map 256 KiB."""
    state = ControlState.first(make_map(50, 4096, 3))
    assert len(state.map.encode()) <= 256 << 10
    state = state.queue((partition % 4096, 1, 2, "rebalance") for partition in range(MOVES_MAX))
    encoded = state.encode()
    assert len(encoded) <= 1 << 20
    assert ControlState.decode(encoded) == state
    with pytest.raises(ValueError, match="16385 moves"):
        state.queue([(0, 1, 2, "drain")])


def test_queued_moves_get_ids_that_never_were() -> None:
    state = rich()
    emptied = attrs.evolve(state, moves=())
    assert [move.id for move in emptied.queue([(1, 1, 2, "drain")]).moves] == [4]
    assert [move.id for move in state.queue([(1, 1, 2, "drain")]).moves] == [1, 2, 3, 4]
    assert state.queue([]) == state


def test_a_new_map_takes_its_members_along() -> None:
    state = rich()
    joined = Node(9, "store9", "tcp://10.0.0.9:7200")
    nodes = (state.map.nodes[0], attrs.evolve(state.map.nodes[1], state="down"), *state.map.nodes[2:], joined)
    after = state.remap(nodes=nodes, next_node=10)
    assert after.map.epoch == 2
    assert after.map.replicas == state.map.replicas
    assert after.members == (
        Member(1, INCARNATION, 1, True), Member(2, "", 2), Member(3, "", 1), Member(9, "", 2),
    )  # fmt: skip
    assert after.remap(nodes=nodes[:3]).members == after.members[:3]
    assert state.remap(control=(1,), paused=False).map.control == (1,)
    rows = ((3, 1), *state.map.replicas[1:])
    assert state.remap(replicas=rows).map.replicas == rows
    assert state.remap(replicas=rows).members == state.members


MEMBERS = [[1, "", 1, False], [2, "", 1, False], [3, "", 1, False]]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 2, "format 2 is not understood, this side knows 1"),
        (0, True, "format True"),
        (1, "", "its map must be bytes"),
        (1, b"", "control state: cluster map: not a MessagePack value"),
        (1, b"\x91\x01", "cluster map: format 1 is not understood"),
        (2, None, "its members must be an array"),
        (2, [], "not the map's nodes"),
        (2, MEMBERS[:2], "not the map's nodes"),
        (2, MEMBERS[::-1], "not the map's nodes, ascending"),
        (2, [*MEMBERS, [4, "", 1, False]], "not the map's nodes"),
        (2, [*MEMBERS[:2], [3, "", 1]], "each member must be an array of 4, not 3"),
        (2, [*MEMBERS[:2], 3], "each member must be an array"),
        (2, [*MEMBERS[:2], [0, "", 1, False]], "a member's node must be"),
        (2, [*MEMBERS[:2], [3, "xyz", 1, False]], "incarnation must be 32 hexadecimal digits"),
        (2, [*MEMBERS[:2], [3, INCARNATION + "\n", 1, False]], "incarnation must be 32"),
        (2, [*MEMBERS[:2], [3, INCARNATION.upper(), 1, False]], "incarnation must be 32"),
        (2, [*MEMBERS[:2], [3, None, 1, False]], "incarnation must be 32"),
        (
            2,
            [[1, INCARNATION, 1, False], [2, INCARNATION, 1, False], MEMBERS[2]],
            "two members have the same incarnation",
        ),
        (2, [*MEMBERS[:2], [3, "", 0, False]], "epoch of its state"),
        (2, [*MEMBERS[:2], [3, "", 2, False]], "its state is of epoch 2, the map of epoch 1"),
        (2, [*MEMBERS[:2], [3, "", 1, 0]], "member 3: removing must be true or false"),
        (3, {}, "its moves must be an array"),
        (3, [1], "each move must be an array"),
        (3, [[1, 0, 1, 3]], "each move must be an array of 5, not 4"),
        (3, [[0, 0, 1, 3, "drain"]], "a move's id"),
        (3, [[1, 4, 1, 3, "drain"]], "move 1: there is no partition 4"),
        (3, [[1, -1, 1, 3, "drain"]], "move 1: partition"),
        (3, [[1, 65536, 1, 3, "drain"]], "move 1: partition"),
        (3, [[1, 0, None, 3, "drain"]], "move 1: source"),
        (3, [[1, 0, 1, True, "drain"]], "move 1: target"),
        (3, [[1, 0, 0, 0, "drain"]], "move 1: it goes from 0 to 0"),
        (3, [[1, 0, 2, 2, "drain"]], "move 1: it goes from 2 to 2"),
        (3, [[1, 0, 9, 2, "drain"]], "move 1: the next node's id is 9"),
        (3, [[1, 0, 1, 9, "drain"]], "move 1: the next node's id is 9"),
        (3, [[1, 0, 1, 3, "whim"]], "move 1: reason must be one of rebalance, drain"),
        (3, [[1, 0, 1, 3, None]], "move 1: reason"),
        (3, [[1, 0, 1, 3, "drain"]] * 2, "two moves have the id 1"),
        (3, [[4, 0, 1, 3, "drain"]], "move 4: the next id is 4"),
        (4, 0, "the next move's id"),
        (4, "4", "the next move's id"),
        (5, 3, "the next node's id must be an integer 4..65535, not 3"),
        (5, NODE_ID_MAX + 2, "the next node's id"),
        (6, 1, "paused must be true or false"),
        (7, None, "its settings must be an array"),
        (7, [60_000, 2], "its settings must be an array of 3"),
        (7, [999, 2, 1 << 20], "replace_after_ms must be"),
        (7, [60_000, 0, 1 << 20], "transfers_per_node must be"),
        (7, [60_000, 2, 1], "bytes_per_second must be"),
        (7, [60_000, 2, 1e9], "bytes_per_second must be"),
    ],
)
def test_broken_rules(position: int, value: Any, message: str) -> None:
    fields = msgpack.unpackb(rich().encode())
    fields[position] = value
    with pytest.raises(ProtocolError, match=message):
        ControlState.decode(msgpack.packb(fields))


@pytest.mark.parametrize("count", range(8))
def test_missing_and_surplus_fields(count: int) -> None:
    fields = msgpack.unpackb(rich().encode())
    for wrong in (fields[:count], fields + [None] * (count + 1)):
        with pytest.raises(ProtocolError, match="control state"):
            ControlState.decode(msgpack.packb(wrong))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ControlState.decode(data)


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_make_a_state(data: st.DataObject) -> None:
    """Whatever is decoded is consistent, for it can be encoded and decoded again."""
    damaged = bytearray(rich().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        state = ControlState.decode(bytes(damaged))
    except ProtocolError:
        return
    assert ControlState.decode(state.encode()) == state
