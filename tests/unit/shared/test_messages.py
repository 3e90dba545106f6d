"""Router <-> store messages: golden bytes, round trips, and hostile bytes that raise ProtocolError only."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from kvclient.errors import ProtocolError
from shared import messages
from shared.backupmessages import (
    BackupCommand,
    BackupReply,
    BackupRequest,
    encode_backup_reply,
    encode_backup_request,
)
from shared.controlmessages import (
    ControlCommand,
    ControlReply,
    ControlRequest,
    encode_control_reply,
    encode_control_request,
)
from shared.groupmessages import (
    GroupCommand,
    GroupReply,
    GroupRequest,
    encode_group_reply,
    encode_group_request,
)
from shared.messages import (
    Answer,
    Batch,
    BatchReply,
    Fault,
    Item,
    MapReply,
    MapRequest,
    Ping,
    Pong,
    StatusReply,
    StatusRequest,
)

U64 = (1 << 64) - 1
ITEM = Item(7, 3, 5000, 0, 1, U64, 2, 1, b"\x92\x01\xc4\x01k")

TO_STORE: list[tuple[bytes, messages.ToStore]] = [
    (messages.encode_batch(4, [ITEM]), Batch(4, [ITEM])),
    (messages.encode_batch(4, []), Batch(4, [])),
    (messages.encode_batch(U64, [ITEM] * 300), Batch(U64, [ITEM] * 300)),
    (messages.encode_map_request(9), MapRequest(9)),
    (messages.encode_status_request(9), StatusRequest(9)),
    (messages.encode_ping(0), Ping(0)),
    (messages.encode_ping(7, {"map": (2, 3)}), Ping(7, {"map": (2, 3)})),
    (
        messages.encode_router_hello("router1", "tcp://127.0.0.1:7100"),
        messages.RouterHello(0, "router1", "tcp://127.0.0.1:7100"),
    ),
    *(
        (
            encode_group_request(GroupRequest(9, U64, 3, 5000, 1, command, 2, U64)),
            GroupRequest(9, U64, 3, 5000, 1, command, 2, U64),
        )
        for command in GroupCommand
    ),
    *(
        (
            encode_control_request(ControlRequest(9, U64, 5000, 1, command, b"\x80")),
            ControlRequest(9, U64, 5000, 1, command, b"\x80"),
        )
        for command in ControlCommand
    ),
    *(
        (
            encode_backup_request(BackupRequest(9, U64, command, 3, U64, b"k" * 4096)),
            BackupRequest(9, U64, command, 3, U64, b"k" * 4096),
        )
        for command in BackupCommand
    ),
    (messages.encode_fault("what?"), Fault("what?")),
]
TO_ROUTER: list[tuple[bytes, messages.ToRouter]] = [
    (messages.encode_batch_reply(4, [(7, 0, b"\x91\x01")]), BatchReply(4, [Answer(7, 0, b"\x91\x01")])),
    (messages.encode_batch_reply(4, []), BatchReply(4, [])),
    (messages.encode_map_reply(9, b"map"), MapReply(9, b"map")),
    (
        messages.encode_status_reply(9, {"keys": 1, "disk": {"free": 2.5}}),
        StatusReply(9, {"keys": 1, "disk": {"free": 2.5}}),
    ),
    (messages.encode_pong(0, 65535, 3), Pong(0, 65535, 3)),
    (messages.encode_pong(1, 2, 3, {"messages": (1, 1)}), Pong(1, 2, 3, {"messages": (1, 1)})),
    (encode_group_reply(9, 21, b"body"), GroupReply(9, 21, b"body")),
    (encode_control_reply(9, 21, b"body"), ControlReply(9, 21, b"body")),
    (encode_backup_reply(9, 21, b"body"), BackupReply(9, 21, b"body")),
    (messages.encode_fault(""), Fault("")),
]


@pytest.mark.parametrize(("frame", "message"), TO_STORE, ids=lambda value: type(value).__name__)
def test_round_trips_to_the_store(frame: bytes, message: messages.ToStore) -> None:
    decoded = messages.decode_to_store(frame)
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize(("frame", "message"), TO_ROUTER, ids=lambda value: type(value).__name__)
def test_round_trips_to_the_router(frame: bytes, message: messages.ToRouter) -> None:
    decoded = messages.decode_to_router(frame)
    assert decoded == message
    assert type(decoded) is type(message)


def test_a_store_gets_the_answers_that_it_asks_other_stores_for() -> None:
    frame = encode_group_reply(9, 0, b"body")
    assert messages.decode_to_peer(frame) == GroupReply(9, 0, b"body")
    frame = encode_control_reply(9, 0, b"body")
    assert messages.decode_to_peer(frame) == ControlReply(9, 0, b"body")
    assert messages.decode_to_peer(messages.encode_map_reply(9, b"map")) == MapReply(9, b"map")
    with pytest.raises(ProtocolError, match="does not belong here"):
        messages.decode_to_peer(messages.encode_pong(0, 1, 1))


def test_rows_have_names() -> None:
    batch = messages.decode_to_store(TO_STORE[0][0])
    assert isinstance(batch, Batch)
    assert type(batch.items[0]) is Item
    assert (batch.items[0].client_id, batch.items[0].ops) == (U64, ITEM.ops)
    reply = messages.decode_to_router(TO_ROUTER[0][0])
    assert isinstance(reply, BatchReply)
    assert type(reply.answers[0]) is Answer


def test_golden_bytes() -> None:
    assert messages.encode_batch(4, [Item(7, 3, 5000, 0, 1, 1, 2, 1, b"ab")]) == bytes.fromhex(
        "94 01 01 04 91 99 07 03 cd1388 00 01 01 02 01 c4 02 6162"
    )
    assert messages.encode_map_request(9) == bytes.fromhex("93 01 02 09")
    assert messages.encode_status_request(9) == bytes.fromhex("93 01 03 09")
    assert messages.encode_ping(9) == bytes.fromhex("93 01 04 09")
    assert messages.encode_batch_reply(4, [Answer(7, 20, b"\x80")]) == bytes.fromhex(
        "94 01 41 04 91 93 07 14 c4 01 80"
    )
    assert messages.encode_map_reply(9, b"m") == bytes.fromhex("94 01 42 09 c4 01 6d")
    assert messages.encode_status_reply(9, {"a": 1}) == bytes.fromhex("94 01 43 09 81 a1 61 01")
    assert messages.encode_pong(9, 2, 3) == bytes.fromhex("95 01 44 09 02 03")
    assert encode_group_request(
        GroupRequest(9, 0xC1, 3, 5000, 1, GroupCommand.REPLACE, 2, 4)
    ) == bytes.fromhex("9a 01 06 09 ccc1 03 cd1388 01 a7 7265706c616365 02 04")
    assert encode_control_request(
        ControlRequest(9, 0xC1, 5000, 1, ControlCommand.JOIN, b"\x80")
    ) == bytes.fromhex("98 01 07 09 ccc1 cd1388 01 a46a6f696e c401 80")
    assert encode_control_reply(9, 2, b"x") == bytes.fromhex("95 01 47 09 02 c4 01 78")
    assert encode_group_reply(9, 2, b"x") == bytes.fromhex("95 01 46 09 02 c4 01 78")
    assert encode_backup_request(BackupRequest(9, 193, BackupCommand.READ, 3, 5, b"k")) == bytes.fromhex(
        "98 01 09 09 ccc1 a472656164 03 05 c4016b"
    )
    assert encode_backup_reply(9, 2, b"x") == bytes.fromhex("95 01 49 09 02 c4 01 78")
    assert messages.encode_fault("x") == bytes.fromhex("93 01 7f a1 78")


def test_a_message_for_the_other_side_is_refused() -> None:
    for frame, message in TO_STORE:
        if not isinstance(message, Fault):
            with pytest.raises(ProtocolError, match="does not belong here"):
                messages.decode_to_router(frame)
    for frame, reply in TO_ROUTER:
        if not isinstance(reply, Fault):
            with pytest.raises(ProtocolError, match="does not belong here"):
                messages.decode_to_store(frame)


@pytest.mark.parametrize("position", range(9))
@pytest.mark.parametrize("value", [-1, 1.0, None, True, "1", [], 1 << 63])
def test_every_field_of_an_item_is_checked(position: int, value: Any) -> None:
    """The last value fits the 64-bit fields only."""
    fields: list[Any] = [7, 3, 5000, 0, 0, 1, 2, 1, b"ops"]
    fields[position] = value
    frame = msgpack.packb([1, 1, 4, [ITEM, fields]])
    if value == 1 << 63 and position in (0, 5, 6, 7):
        assert messages.decode_to_store(frame) == Batch(4, [ITEM, Item(*fields)])
        return
    with pytest.raises(ProtocolError, match="an item"):
        messages.decode_to_store(frame)


@pytest.mark.parametrize(
    ("position", "most"), list(enumerate((U64, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, U64, U64, U64)))
)
def test_every_field_of_an_item_reaches_its_width_and_no_further(position: int, most: int) -> None:
    fields: list[Any] = [7, 3, 5000, 0, 0, 1, 2, 1, b"ops"]
    fields[position] = most
    assert messages.decode_to_store(msgpack.packb([1, 1, 4, [fields]])) == Batch(4, [Item(*fields)])
    if most < U64:
        fields[position] = most + 1
        with pytest.raises(ProtocolError, match="out of range"):
            messages.decode_to_store(msgpack.packb([1, 1, 4, [fields]]))


@pytest.mark.parametrize(
    "row",
    [
        [],
        [7, 0],
        [7, 0, b"", 0],
        7,
        {},
        [-1, 0, b""],
        [7, 1 << 16, b""],
        [7, "0", b""],
        [7, 0, ""],
        [True, 0, b""],
    ],
)
def test_malformed_answers_are_refused(row: Any) -> None:
    with pytest.raises(ProtocolError, match="an answer"):
        messages.decode_to_router(msgpack.packb([1, 65, 4, [[7, 0, b""], row]]))


@pytest.mark.parametrize("row", [[], list(ITEM)[:8], [*ITEM, 0], 7, {}])
def test_malformed_items_are_refused(row: Any) -> None:
    with pytest.raises(ProtocolError, match="an item"):
        messages.decode_to_store(msgpack.packb([1, 1, 4, [ITEM, row]]))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "begins with version and kind"),
        ([1, 4], "begins with version and kind"),
        (7, "begins with version and kind"),
        ({"1": 1}, "begins with version and kind"),
        ({1: 1}, "not a MessagePack value within its limits"),
        ([True, 4, 0], "begins with version and kind"),
        ([1, "4", 0], "begins with version and kind"),
        ([2, 4, 0], "message version 2 is not understood, this side speaks 1"),
        ([1, 10, 0], "kind 10"),
        ([1, 8, 0, "r1"], "ROUTER is an array of 5, not 4"),
        ([1, 8, 0, "", "tcp://h:1"], "name of a ROUTER"),
        ([1, 8, 0, "r1", "h\n"], "front of a ROUTER"),
        ([1, 8, 0, "r1", "x" * 256], "front of a ROUTER"),
        ([1, -1, 0], "kind -1"),
        ([1, 1, 4], "BATCH is an array of 4, not 3"),
        ([1, 1, 4, [], 0], "BATCH is an array of 4, not 5"),
        ([1, 1, -4, []], "epoch"),
        ([1, 1, 4, {}], "items of a BATCH are an array"),
        ([1, 1, 4, b""], "items of a BATCH are an array"),
        ([1, 2, 0, 0], "array of 3"),
        ([1, 2, -1], "token"),
        ([1, 3, "0"], "token"),
        ([1, 4, None], "token"),
        ([1, 6, 9, 0, 3, 5000, 0, "show", 0], "GROUP is an array of 10, not 9"),
        ([1, 6, 9, 0, 3, 5000, 0, "shout", 0, 0], "command of a GROUP is unknown"),
        ([1, 6, 9, 0, 3, 5000, 0, b"show", 0, 0], "command of a GROUP is unknown"),
        ([1, 6, 9, 0, 3, 5000, 0, ["show"], 0, 0], "command of a GROUP is unknown"),
        ([1, 6, 9, 0, 3, 5000, 0, None, 0, 0], "command of a GROUP is unknown"),
        ([1, 6, -9, 0, 3, 5000, 0, "show", 0, 0], "token"),
        ([1, 6, 9, -1, 3, 5000, 0, "show", 0, 0], "cluster"),
        ([1, 6, 9, 0, 1 << 16, 5000, 0, "show", 0, 0], "partition"),
        ([1, 6, 9, 0, True, 5000, 0, "show", 0, 0], "partition"),
        ([1, 6, 9, 0, 3, 1 << 32, 0, "show", 0, 0], "timeout"),
        ([1, 6, 9, 0, 3, 5000, 2, "show", 0, 0], "flags"),
        ([1, 6, 9, 0, 3, 5000, 0, "show", "1", 0], "node id"),
        ([1, 6, 9, 0, 3, 5000, 0, "show", 1 << 16, 0], "node id"),
        ([1, 6, 9, 0, 3, 5000, 0, "show", 0, -1], "other"),
        ([1, 6, 9, 0, 3, 5000, 0, "show", 0, None], "other"),
        ([1, 7, 9, 0, 5000, 0, "show"], "CONTROL is an array of 8, not 7"),
        ([1, 7, 9, 0, 5000, 0, "shout", b""], "command of a CONTROL is unknown"),
        ([1, 7, 9, 0, 5000, 0, ["show"], b""], "command of a CONTROL is unknown"),
        ([1, 7, 9, 0, 5000, 0, "show", {}], "arguments of a CONTROL must be bin"),
        ([1, 7, -9, 0, 5000, 0, "show", b""], "token"),
        ([1, 7, 9, -1, 5000, 0, "show", b""], "cluster"),
        ([1, 7, 9, 0, 1 << 32, 0, "show", b""], "timeout"),
        ([1, 7, 9, 0, 5000, 2, "show", b""], "flags"),
        ([1, 127, b"x"], "FAULT must be str"),
        ([1, 127, "x", 1], "FAULT is an array of 3"),
    ],
    ids=str,
)
def test_malformed_messages_to_the_store(fields: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        messages.decode_to_store(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([1, 65, 4], "BATCH_REPLY is an array of 4"),
        ([1, 65, None, []], "epoch"),
        ([1, 65, 4, 7], "answers of a BATCH_REPLY are an array"),
        ([1, 70, 9, 0], "GROUP_REPLY is an array of 5"),
        ([1, 70, 9, 0, "body"], "must be bin"),
        ([1, 70, 9, -1, b""], "status"),
        ([1, 70, None, 0, b""], "token"),
        ([1, 71, 9, 0], "CONTROL_REPLY is an array of 5"),
        ([1, 71, 9, 0, "body"], "must be bin"),
        ([1, 66, 9], "MAP_REPLY is an array of 4"),
        ([1, 66, 9, "map"], "must be bin"),
        ([1, 66, -9, b"map"], "token"),
        ([1, 67, 9], "STATUS_REPLY is an array of 4"),
        ([1, 67, 9, []], "must be a map"),
        ([1, 67, 9, {b"1": 2}], "names as keys"),
        ([1, 67, 9, {1: 2}], "not a MessagePack value within its limits"),
        ([1, 67, 1.5, {}], "token"),
        ([1, 68, 9, 1], "PONG is an array of 5"),
        ([1, 68, 9, 1, 1, {}, 0], "PONG is an array of 5"),
        ([1, 68, 9, 1, 1, []], "versions are a map"),
        ([1, 68, 9, 1 << 16, 1], "node id"),
        ([1, 68, 9, 1, -1], "epoch"),
    ],
    ids=str,
)
def test_malformed_messages_to_the_router(fields: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        messages.decode_to_router(msgpack.packb(fields))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xff",
        b"\x93\x01",
        b"\x93\x01\x04\x00\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 2000,
        b"\x81\x90\x01",
    ],
    ids=lambda frame: frame[:8].hex(),
)
def test_other_bytes(frame: bytes) -> None:
    for decode in (messages.decode_to_store, messages.decode_to_router):
        with pytest.raises(ProtocolError):
            decode(frame)


def test_mutated_frames_raise_protocol_errors_only() -> None:
    source = random.Random(20)
    accepted = refused = 0
    for _ in range(4000):
        frame = bytearray(source.choice([*TO_STORE[:1], *TO_STORE[3:], *TO_ROUTER])[0])
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(frame) + 1)
            frame[at : at + source.randint(0, 2)] = source.randbytes(source.randint(0, 2))
        for decode in (messages.decode_to_store, messages.decode_to_router):
            try:
                decode(bytes(frame))
                accepted += 1
            except ProtocolError:
                refused += 1
    assert accepted > 100
    assert refused > 1000
