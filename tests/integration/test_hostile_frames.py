"""100,000 mutated frames to a socket, as fast as it goes: the process stays alive, correct, and does not keep
the memory that they took.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import yaml
import zmq

from kvclient import protocol
from kvclient.protocol import Request
from tests.integration.localcluster import Cluster, resident_bytes

FRAMES = 100_000
PING_ID = 424_242_424_242
GROWTH_BYTES_MAX = 50 << 20
SETTLED_SECONDS = 20
UNTOUCHED = {b"untouched:%d" % number: b"value:%d" % number for number in range(200)}

OPS = [
    protocol.encode_get(b"key"),
    protocol.encode_put(b"key", b"value" * 10, 5000, protocol.absent()),
    protocol.encode_delete(b"key", protocol.value_equals(b"x")),
    protocol.encode_exists(b"key"),
    protocol.encode_increment(b"counter", -(1 << 63)),
    protocol.encode_touch(b"key", 60_000),
    protocol.encode_scan(b"a", b"z", 100, protocol.SCAN_REVERSE),
]


def seed_requests() -> list[bytes]:
    """Valid client requests of each kind: what mutation starts from."""
    bodies = [*OPS, b"".join(OPS[:6]), OPS[0] * 300]
    requests = [Request(1, number, 2000, 0, 0, 77, number, 1, body) for number, body in enumerate(bodies, 1)]
    requests += [
        Request(1, 90, 2000, 0, protocol.FLAG_BARRIER, 77, 90, 1, b""),
        Request(2, 91, 2000, 0, 0, 0, 0, 0, protocol.encode_admin("route", b"key")),
        Request(3, 92, 2000, 0, 0, 0, 0, 0, b""),
        Request(4, 93, 2000, 0, 0, 0, 0, 0, b""),
    ]
    return [protocol.encode_request(request) for request in requests]


def seed_batches() -> list[bytes]:
    """Valid router-to-store frames of each kind."""
    items = [[number, number % 16, 2000, 0, 0, 77, number, 1, op] for number, op in enumerate(OPS)]
    messages = [[1, 1, 1, [item]] for item in items] + [
        [1, 1, 1, items * 20],
        [1, 2, 5],
        [1, 3, 6],
        [1, 4, 7],
    ]
    return [msgpack.packb(message) for message in messages]


def mutated(seeds: list[bytes], dice: random.Random) -> list[list[bytes]]:
    """FRAMES messages, made before the first is sent: making them takes longer than refusing them."""
    messages = [[mutate(dice.choice(seeds), dice)] for _ in range(FRAMES)]
    for message in messages:
        if dice.random() < 0.02:
            message += [b"", dice.choice(seeds)]
    return messages


def mutate(frame: bytes, dice: random.Random) -> bytes:
    """One to four of: flip, cut, insert, repeat, splice a length lie; sometimes pure noise."""
    if dice.random() < 0.05:
        return dice.randbytes(dice.randrange(200))
    data = bytearray(frame)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 3:
                data[at:at] = data[at : at + dice.randint(1, 64)]
            case 4:
                data[at : at + 5] = dice.choice([b"\xc6", b"\xdd", b"\xdf", b"\xdb"]) + dice.choice(
                    [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x05"]
                )
            case _ if at < len(data):
                data[at] = dice.choice([0x00, 0xFF, 0xC0, 0x90, 0x9F, 0xA0, 0xC4, 0xCF, 0xD3])
    return bytes(data)


@pytest.fixture
def attacker() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    opened: list[zmq.Socket[bytes]] = []

    def connect(endpoint: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDTIMEO, 20_000)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.connect(endpoint)
        opened.append(socket)
        return socket

    yield connect
    for socket in opened:
        socket.close(linger=0)
    context.term()


def flood(socket: zmq.Socket[bytes], frames: list[list[bytes]], ping: bytes) -> int:
    """Send the frames without ever waiting, then `ping`, which is answered when all before it were read.

    Returns how many answers came; more were dropped, because here they are read in between only.
    """
    answers = 0
    for number, frame in enumerate(frames):
        socket.send_multipart(frame)
        while number % 64 == 0 and socket.poll(0):
            socket.recv_multipart()
            answers += 1
    for _ in range(12):
        socket.send(ping)  # again: the answer to the one before may be among the dropped
        while socket.poll(5_000):
            answers += 1
            if is_answer(socket.recv_multipart()[-1]):
                return answers
    raise AssertionError("no answer to a valid message any more")


def is_answer(frame: bytes) -> bool:
    """Whether this answers the ping."""
    fields = msgpack.unpackb(frame, strict_map_key=False)
    return len(fields) > 2 and fields[2] == PING_ID


def untouched(cluster: Cluster) -> dict[bytes, bytes]:
    with cluster.connect() as client:
        return client.get_many(list(UNTOUCHED))


@pytest.fixture(scope="module")
def filled(cluster: Cluster) -> Cluster:
    with cluster.connect() as client:
        client.put_many(UNTOUCHED).raise_for_errors()
    return cluster


def endpoint_of(cluster: Cluster, process: str) -> str:
    """Where the process listens, from its configuration."""
    config = yaml.safe_load((cluster.directory / "config" / f"{process}.yaml").read_text())
    return str(config["router"]["listen"] if process.startswith("router") else config["listen"]["rpc"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("process", "seeds", "ping"),
    [
        ("router1", seed_requests, protocol.encode_request(Request(3, PING_ID, 5000, 0, 0, 0, 0, 0, b""))),
        ("store1", seed_batches, msgpack.packb([1, 4, PING_ID])),
    ],
    ids=["router1", "store1"],
)
def test_mutated_frames_change_nothing(
    filled: Cluster,
    attacker: Callable[[str], zmq.Socket[bytes]],
    process: str,
    seeds: Callable[[], list[bytes]],
    ping: bytes,
) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    process_id = filled.processes()[process]
    before = resident_bytes(process_id)
    socket = attacker(endpoint_of(filled, process))
    answers = flood(socket, mutated(seeds(), random.Random(seed)), ping)

    assert answers > FRAMES // 100, "malformed requests are answered, not swallowed"
    assert filled.processes()[process] == process_id
    assert Path(f"/proc/{process_id}").exists()
    settled = time.monotonic() + SETTLED_SECONDS
    while (grown := resident_bytes(process_id) - before) >= GROWTH_BYTES_MAX:
        assert time.monotonic() < settled, f"{process} kept {grown >> 20} MiB"
        time.sleep(0.1)
    assert untouched(filled) == UNTOUCHED
