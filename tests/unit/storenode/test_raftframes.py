"""Frames of the bus: their bytes, what hostile ones do (nothing), and what their numbers tell."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.errors import ProtocolError
from storenode import raftframes
from storenode.raft.messages import EVERYBODY, Entry, EntryKind, Kind, Message
from storenode.raftframes import FRAME_BYTES_MAX, Arrivals, ForeignCluster, Incoming, Outgoing, decode

CLUSTER = 0x1122334455667788
BOOT = 0xA1A2A3A4A5A6A7A8
MIB = 1 << 20
UINT64_MAX = (1 << 64) - 1

APPEND = Message(EVERYBODY, 2, Kind.APPEND, 7, 40, 6, 39, entries=(Entry(7, EntryKind.NORMAL, b"op"),))
VOTE = Message(3, 2, Kind.VOTE, 8, 41, 7)

USED = {
    Kind.APPEND: "abc",
    Kind.APPEND_REPLY: "abcf",
    Kind.HEARTBEAT: "abx",
    Kind.HEARTBEAT_REPLY: "x",
    Kind.PRE_VOTE: "abf",
    Kind.PRE_VOTE_REPLY: "abf",
    Kind.VOTE: "abf",
    Kind.VOTE_REPLY: "abf",
    Kind.SNAPSHOT: "ab",
    Kind.TIMEOUT_NOW: "",
    Kind.READ_INDEX: "x",
    Kind.READ_INDEX_REPLY: "ax",
}


def frames_of(*messages: tuple[int, Message]) -> list[bytes]:
    outgoing = Outgoing(2, CLUSTER, BOOT)
    for group, message in messages:
        outgoing.add(group, message)
    return outgoing.take()


def frame_of(rows: Any, *, topic: int = 3, **fields: Any) -> bytes:
    """A frame with any rows and fields, right or wrong."""
    values = {"version": 1, "cluster": CLUSTER, "sender": 2, "boot": BOOT, "number": 1, "rows": rows} | fields
    return topic.to_bytes(2, "big") + bytes(msgpack.packb(list(values.values()), use_bin_type=True))


def row(**fields: Any) -> list[Any]:
    """A sound row of a VOTE_REPLY, changed."""
    values = {"group": 5, "kind": Kind.VOTE_REPLY, "term": 9, "a": 0, "b": 0, "c": 0, "flag": 0, "context": 0}
    return list(({**values, "entries": []} | fields).values())


def test_the_control_partition_is_a_group() -> None:
    (made,) = frames_of((0xFFFF, VOTE))
    assert [group for group, _ in decode(made, CLUSTER).rows] == [0xFFFF]


def test_the_bytes_of_frames_are_those_of_the_page() -> None:
    broadcast, direct = frames_of((300, APPEND), (1, VOTE))
    head = "96 01 cf1122334455667788 02 cfa1a2a3a4a5a6a7a8 01 91 "
    assert broadcast == bytes.fromhex("ffff" + head + "99 cd012c 01 07 28 06 27 00 00 91 93 07 00 c4026f70")
    assert direct == bytes.fromhex("0003" + head + "99 01 07 08 29 07 00 00 00 90")


def test_frames_come_back_as_they_were_sent() -> None:
    broadcast, direct = frames_of((300, APPEND), (1, VOTE), (2, VOTE._replace(flag=1)))
    assert decode(direct, CLUSTER) == Incoming(3, 2, BOOT, 1, [(1, VOTE), (2, VOTE._replace(flag=1))], 0)
    ((group, message),) = decode(broadcast, CLUSTER).rows
    assert (group, message._replace(entries=tuple(message.entries))) == (300, APPEND)
    assert message.entries[0].data == b"op"


def test_each_topic_counts_its_own_frames_and_a_turn_without_messages_makes_none() -> None:
    outgoing = Outgoing(2, CLUSTER, BOOT)
    assert outgoing.take() == []
    numbers = []
    for _ in range(2):
        outgoing.add(1, APPEND)
        outgoing.add(1, VOTE)
        outgoing.add(2, VOTE)
        numbers.append([(read.topic, read.number) for read in (decode(f, CLUSTER) for f in outgoing.take())])
    assert numbers == [[(EVERYBODY, 1), (3, 1)], [(EVERYBODY, 2), (3, 2)]]


def test_frames_are_cut_at_their_limit_in_order_and_a_larger_message_travels_alone() -> None:
    def append(megabytes: int) -> Message:
        return APPEND._replace(entries=(Entry(7, 0, bytes(megabytes * MIB)),))

    sizes = [1, 1, 1, 3, 6, 1]
    made = frames_of(*[(group, append(size)) for group, size in enumerate(sizes)])
    read = [decode(frame, CLUSTER) for frame in made]
    assert [[group for group, _ in incoming.rows] for incoming in read] == [[0, 1, 2], [3], [4], [5]]
    assert [incoming.number for incoming in read] == [1, 2, 3, 4]
    assert all(len(frame) <= FRAME_BYTES_MAX for frame in made if len(frame) < 6 * MIB)


def test_the_frame_with_the_most_values_is_understood() -> None:
    largest = Message(3, 2, Kind.APPEND_REPLY, *[UINT64_MAX] * 4, 1)
    made = frames_of(*[(4095, largest)] * 70_000)
    assert len(made) == 2
    assert max(map(len, made)) <= FRAME_BYTES_MAX
    assert sum(len(decode(frame, CLUSTER).rows) for frame in made) == 70_000
    tiny = Message(3, 2, Kind.APPEND, 1, entries=[Entry(UINT64_MAX, 1, b"")] * 131_000)
    (one,) = frames_of((1, tiny))
    assert len(decode(one, CLUSTER).rows[0][1].entries) == 131_000


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_may_use_its_own_fields_and_no_others(kind: Kind) -> None:
    for letter, field in zip("abcfx", ("a", "b", "c", "flag", "context"), strict=True):
        read = decode(frame_of([row(kind=kind, **{field: 1})]), CLUSTER)
        assert len(read.rows) == (letter in USED[kind]), (kind, field)
        assert len(read.rows) + read.rows_dropped == 1
    with_entries = decode(frame_of([row(kind=kind, entries=[[1, 0, b""]])]), CLUSTER)
    assert len(with_entries.rows) == (kind == Kind.APPEND)


BAD_ROWS = {
    "no array": 7,
    "too short": row()[:-1],
    "too long": [*row(), 0],
    "unknown kind": row(kind=13),
    "kind 0": row(kind=0),
    "bool": row(flag=True),
    "negative group": row(group=-1),
    "group too large": row(group=4096),
    "negative term": row(term=-1),
    "negative context": row(kind=Kind.READ_INDEX, context=-5),
    "flag 2": row(flag=2),
    "float": row(term=1.0),
    "nil": row(entries=None),
    "entry no array": row(kind=Kind.APPEND, entries=[1]),
    "entry too short": row(kind=Kind.APPEND, entries=[[1, 0]]),
    "entry kind": row(kind=Kind.APPEND, entries=[[1, 2, b""]]),
    "entry term": row(kind=Kind.APPEND, entries=[[-1, 0, b""]]),
    "entry str": row(kind=Kind.APPEND, entries=[[1, 0, "x"]]),
    "second entry": row(kind=Kind.APPEND, entries=[[1, 0, b""], [1, 0, None]]),
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_costs_only_itself(bad: Any) -> None:
    read = decode(frame_of([row(group=1), bad, row(group=2)]), CLUSTER)
    assert [group for group, _ in read.rows] == [1, 2]
    assert read.rows_dropped == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\x00\x03",
        frame_of([], topic=0),
        frame_of([], version=2),
        frame_of([], sender=0),
        frame_of([], sender=EVERYBODY),
        frame_of([], sender=True),
        frame_of([], sender=-1),
        frame_of([], boot=-1),
        frame_of([], boot="x"),
        frame_of([], number=0),
        frame_of([], number=-3),
        frame_of([], number=1.5),
        frame_of(7),
        frame_of({}),
        frame_of([]) + b"\xc0",
        frame_of([])[:-1],
        frame_of([], further=1),
    ],
)
def test_a_bad_frame_is_refused_as_a_whole(frame: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(frame, CLUSTER)
    assert not isinstance(caught.value, ForeignCluster)


@pytest.mark.parametrize("cluster", [CLUSTER + 1, 0, -CLUSTER, "x", None])
def test_a_frame_of_another_cluster_is_told_from_a_bad_one(cluster: Any) -> None:
    with pytest.raises(ForeignCluster):
        decode(frame_of([row()], cluster=cluster), CLUSTER)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_protocol_error(content: bytes) -> None:
    for frame in (
        content,
        b"\x00\x03" + content,
        b"\x00\x03\x96\x01\xcf" + CLUSTER.to_bytes(8, "big") + content,
    ):
        try:
            read = decode(frame, CLUSTER)
        except ProtocolError:
            continue
        assert all(0 <= group <= 4095 for group, _ in read.rows)


@settings(max_examples=200)
@given(st.data())
def test_no_damage_to_a_sound_frame_raises_anything_but_a_protocol_error(data: st.DataObject) -> None:
    frame = bytearray(frame_of([row(), row(kind=Kind.APPEND, a=5, entries=[[1, 0, b"abc"]])]))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode(bytes(frame), CLUSTER)
    except ProtocolError:
        return
    for group, message in read.rows:
        assert 0 <= group <= 4095
        assert all(0 <= number <= UINT64_MAX for number in message[2:9])
        assert all(type(entry.data) is bytes for entry in message.entries)


def values() -> st.SearchStrategy[Any]:
    plain = (
        st.none() | st.booleans() | st.integers(-(1 << 63), UINT64_MAX) | st.floats() | st.binary(max_size=9)
    )
    return st.recursive(
        plain | st.text(max_size=9), lambda inner: st.lists(inner, max_size=10), max_leaves=25
    )


@settings(max_examples=40)  # making the values is what takes the time
@given(st.lists(values() | st.lists(values(), min_size=9, max_size=9), max_size=5))
def test_rows_of_any_values_never_end_the_frame(rows: list[Any]) -> None:
    read = decode(frame_of([*rows, row(group=77)]), CLUSTER)
    assert read.rows[-1][0] == 77
    assert len(read.rows) + read.rows_dropped == len(rows) + 1


@pytest.mark.parametrize("tiny", [b"\x90", b"\x80", b"\xc0", b"\x99" + bytes(9)])
def test_a_frame_of_tiny_values_is_refused_before_it_takes_the_memory(tiny: bytes) -> None:
    count = 8 * MIB // len(tiny)
    head = frame_of([])[:-1]
    frame = head + b"\xdd" + count.to_bytes(4, "big") + tiny * count
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(frame, CLUSTER)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(frame)
    finally:
        tracemalloc.stop()


def arrived(number: int, *, boot: int = BOOT, sender: int = 2, topic: int = 3) -> Incoming:
    return Incoming(topic, sender, boot, number, [], 0)


def test_gaps_are_losses_and_each_sender_and_topic_is_counted_apart() -> None:
    arrivals = Arrivals()
    for frame in (arrived(10), arrived(11), arrived(5, topic=EVERYBODY), arrived(9, sender=4)):
        arrivals.note(frame)
    assert arrivals.lost == 0, "the first of each proves nothing"
    arrivals.note(arrived(15))
    arrivals.note(arrived(7, topic=EVERYBODY))
    assert (arrivals.lost, arrivals.late, arrivals.restarts) == (3 + 1, 0, 0)


def test_what_comes_late_or_twice_is_no_loss_and_does_not_set_the_count_back() -> None:
    arrivals = Arrivals()
    for number in (1, 2, 5, 3, 5, 6):
        arrivals.note(arrived(number))
    assert (arrivals.lost, arrivals.late) == (2, 2)


def test_a_sender_that_restarted_begins_anew_without_a_loss() -> None:
    arrivals = Arrivals()
    arrivals.note(arrived(1000))
    arrivals.note(arrived(1, boot=1))
    arrivals.note(arrived(3, boot=1))
    assert (arrivals.lost, arrivals.late, arrivals.restarts) == (1, 0, 1)


def test_a_made_up_number_keeps_the_figure_within_64_bits() -> None:
    arrivals = Arrivals()
    for boot in range(3):
        arrivals.note(arrived(1, boot=boot))
        arrivals.note(arrived(UINT64_MAX, boot=boot))
    assert arrivals.lost == UINT64_MAX
    assert raftframes.topic_bytes(EVERYBODY) == b"\xff\xff"


def test_a_peer_that_was_forgotten_proves_no_loss_when_it_is_back() -> None:
    arrivals = Arrivals()
    arrivals.note(arrived(1))
    arrivals.note(arrived(1, sender=4))
    arrivals.forget(2)
    arrivals.note(arrived(100))
    arrivals.note(arrived(3, sender=4))
    assert arrivals.lost == 1
