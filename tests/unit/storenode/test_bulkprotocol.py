"""Requests for snapshots and answers: their bytes, and that no others are understood."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.errors import ProtocolError
from shared import messages
from storenode.bulkprotocol import (
    CHUNK_BYTES_MAX,
    Chunk,
    Close,
    Closed,
    FileMeta,
    Open,
    Opened,
    Read,
    Refusal,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)

REQUESTS = {
    Open(7, 300, 41, 2): "96 01 07 a46f70656e cd012c 29 02",
    Read(8, 9, "manifest/data.mdb", 10, 11): "97 01 08 a472656164 09 b1"
    + b"manifest/data.mdb".hex()
    + "0a 0b",
    Close(9, 10, 2): "95 01 09 a5636c6f7365 0a 02",
}
ANSWERS = {
    Opened(7, 9, b"s", (FileMeta("1.sst", 5, 6),)): "95 07 00 09 c40173 91 93 a5312e737374 05 06",
    Chunk(8, b"xy", 3): "94 08 00 c4027879 03",
    Closed(9): "92 09 00",
    Refusal(7, 20, "no", 200): "94 07 14 a26e6f ccc8",
}


@pytest.mark.parametrize(("request_", "expected"), REQUESTS.items())
def test_the_bytes_of_requests_are_those_of_the_page(request_: Any, expected: str) -> None:
    assert encode_request(request_) == bytes.fromhex(expected)
    assert decode_request(bytes.fromhex(expected)) == request_


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_the_bytes_of_answers_are_those_of_the_page(answer: Any, expected: str) -> None:
    assert encode_answer(answer) == bytes.fromhex(expected)
    assert decode_answer(bytes.fromhex(expected)) == answer


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "../x", "a/../x", "a/..", ".journal", "a/.b", "a//b", "a/b/c", "a/",
     "a\x00b", "a\n", "x" * 65, "\xe9"],
)  # fmt: skip
def test_no_name_leads_out_of_a_snapshot_or_to_the_receivers_own_files(name: str) -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode_request(Read(1, 2, name, 0, 1)))
    with pytest.raises(ProtocolError):
        decode_answer(encode_answer(Opened(1, 2, b"", (FileMeta(name, 0, 0),))))


@pytest.mark.parametrize(
    "request_",
    [
        Read(1, 2, "a", 0, 0),
        Read(1, 2, "a", 0, CHUNK_BYTES_MAX + 1),
        Read(1, 2, "a", -1, 1),
        Read(-1, 2, "a", 0, 1),
        Open(1, 4096, 0, 2),
        Open(1, -1, 0, 2),
        Open(1, 1, 0, 0),
        Open(1, 1, 0, 0xFFFF),
        Close(1, -2, 2),
        Close(1, 2, 0),
    ],
)
def test_a_request_out_of_its_limits_is_refused(request_: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_request(encode_request(request_))


@pytest.mark.parametrize(
    "files",
    [
        [["a", 1, 1], ["a", 1, 1]],
        [["a", 1, 1], ["a/b", 1, 1]],
        [["a", -1, 1]],
        [["a", 1]],
        [7],
        [[b"a", 1, 1]],
    ],
)
def test_files_that_cannot_be_are_refused(files: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(msgpack.packb([1, 0, 2, b"", files]))


@given(st.binary(max_size=200), st.sampled_from([*REQUESTS.values(), *ANSWERS.values()]), st.data())
def test_no_bytes_raise_anything_but_a_protocol_error(
    content: bytes, sound: str, data: st.DataObject
) -> None:
    damaged = bytearray(bytes.fromhex(sound))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for body in (content, bytes(damaged), b"\x96\x01\x07\xa4open" + content, b"\x95\x07\x00" + content):
        for decode in (decode_request, decode_answer):
            try:
                decode(body)
            except ProtocolError:
                continue


def test_bulk_messages_pass_the_rpc_socket_as_they_are() -> None:
    frame = messages.encode_bulk_request(b"body")
    assert frame == bytes.fromhex("93 01 05 c404626f6479")
    assert messages.decode_to_store(frame) == messages.BulkRequest(b"body")
    reply = messages.encode_bulk_reply(b"body")
    assert reply == bytes.fromhex("93 01 45 c404626f6479")
    assert messages.decode_to_peer(reply) == messages.BulkReply(b"body")
    assert messages.decode_to_peer(messages.encode_fault("no")) == messages.Fault("no")
    for refused in (frame, messages.encode_pong(1, 2, 3), msgpack.packb([1, 69, "text"])):
        with pytest.raises(ProtocolError):
            messages.decode_to_peer(refused)
    with pytest.raises(ProtocolError):
        messages.decode_to_store(reply)
