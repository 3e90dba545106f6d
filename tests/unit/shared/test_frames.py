"""shared/frames.py: what a frame may cost, measured in a process of its own."""

from __future__ import annotations

import struct
import subprocess
import sys
import time

import msgpack
import pytest

from kvclient.errors import ProtocolError
from shared import frames, messages
from shared.clustermap import ClusterMap, Node
from shared.values import check_values

MIB = 1 << 20
LARGEST = messages.Item(1 << 63, 65535, *[(1 << 32) - 1] * 3, 1 << 63, 1 << 63, 1 << 63, b"")

MEASURE = """
import resource, struct, sys
from kvclient.errors import ProtocolError
from shared import messages
from shared.clustermap import ClusterMap
head, one = map(bytes.fromhex, sys.argv[1:3])
count, decode = int(sys.argv[3]), sys.argv[4]
frame = head + bytes([0xDD]) + struct.pack(">I", count) + one * count
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    (ClusterMap.decode if decode == "map" else getattr(messages, decode))(frame)
except ProtocolError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("decode", ["decode_to_store", "decode_to_router", "map"])
@pytest.mark.parametrize(
    ("one", "values"),
    [
        (b"\x90", 1),
        (b"\x80", 1),
        (b"\x91\xc0", 2),
        (b"\x81\xa0\xc0", 3),
        (b"\xce\xff\xff\xff\xff", 1),
        (b"\xcb" + bytes(8), 1),
    ],
    ids=["arrays", "maps", "tuples", "full maps", "ints", "floats"],
)
@pytest.mark.parametrize("within", [False, True], ids=["48MiB", "just within"])
def test_a_frame_of_tiny_values_is_refused_before_it_takes_the_memory(
    decode: str, one: bytes, values: int, within: bool
) -> None:
    """48 MiB of empty maps were 3 GiB of dicts."""
    head = b"" if decode == "map" else b"\x94\x01\x01\x01"
    count = (frames.VALUES_MAX - 8) // values if within else 48 * MIB // len(one)
    command = [sys.executable, "-c", MEASURE, head.hex(), one.hex(), str(count), decode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < (80 * MIB if within else MIB), f"{int(done.stdout) >> 20} MiB"


def test_the_largest_batches_that_are_sent_pass() -> None:
    batch = messages.encode_batch((1 << 64) - 1, [LARGEST] * frames.ITEMS_MAX)
    decoded = messages.decode_to_store(batch)
    assert isinstance(decoded, messages.Batch)
    assert len(decoded.items) == frames.ITEMS_MAX
    reply = messages.decode_to_router(messages.encode_batch_reply(1, [(1 << 63, 0, b"")] * frames.ITEMS_MAX))
    assert isinstance(reply, messages.BatchReply)


def test_the_largest_cluster_map_passes() -> None:
    nodes = [Node(number, f"n{number}", f"tcp://127.0.0.1:{number}") for number in range(1, 257)]
    largest = ClusterMap.bootstrap("large", 4096, 7, nodes)
    assert ClusterMap.decode(largest.encode()) == largest


def test_a_large_frame_that_ends_early_or_goes_on_is_refused() -> None:
    whole = messages.encode_batch(1, [LARGEST] * 5000)
    assert len(whole) > frames.UNCOUNTED_BYTES
    for frame in (whole[:-1], whole + b"\x00", whole[:7] + b"\xc1" + whole[8:]):
        with pytest.raises(ProtocolError):
            messages.decode_to_store(frame)


def test_map_keys_that_collide_are_refused() -> None:
    """Tuples as keys can be made to have one hash: a dict of n of them takes n * n steps."""
    with pytest.raises(ProtocolError, match="within its limits"):
        frames.decode(msgpack.packb({(1, 2): 3}))


def test_a_text_that_would_grow_fourfold_is_refused() -> None:
    text = "\U0001f511" + "a" * frames.TEXT_BYTES_MAX
    with pytest.raises(ProtocolError, match="within its limits"):
        frames.decode(msgpack.packb([1, 127, text]))


@pytest.mark.parametrize(
    ("value", "values"),
    [(7, 1), ([], 1), ([1, [2, {"k": b"v"}]], 7), ({"a": [1, 2]}, 5), ([b"x" * 300] * 20, 21)],
    ids=str,
)
def test_values_are_counted_with_all_that_is_nested(value: object, values: int) -> None:
    frame = msgpack.packb(value)
    check_values(frame, values)
    with pytest.raises(ProtocolError, match=f"holds more than {values - 1} values"):
        check_values(frame, values - 1)


def test_a_container_is_refused_by_what_it_promises() -> None:
    frame = b"\xdd" + struct.pack(">I", 60 * MIB) + bytes(60 * MIB)
    begin = time.perf_counter()
    with pytest.raises(ProtocolError, match="holds more than"):
        check_values(frame, frames.VALUES_MAX)
    assert time.perf_counter() - begin < 0.05, "its elements were walked"
