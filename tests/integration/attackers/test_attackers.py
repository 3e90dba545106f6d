"""Attackers at a real cluster with keys: nobody gets in, nobody else is held up, no process grows.

Who has no key, a wrong one, one of another role, or a revoked one is in test_secure_cluster.py: none of them
gets an answer from any port.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import kvclient
from kvclient import protocol
from kvclient.cli import keyfiles
from kvclient.keys import Certificate, ClientKeys, Grants, load_client
from kvclient.protocol import Kind, Request
from tests.integration.attackers.attacks import (
    GREETING,
    HANDSHAKE_S,
    HOST,
    PEAK_BYTES,
    PING,
    Attacker,
    Others,
    Recorder,
    connections,
    cut_off,
    junk,
    replay,
)
from tests.integration.localcluster import Cluster

DEADLINE_S = 30.0
CROWD = 1000
"""Connections at once, to each of two ports."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("attacked"))
    try:
        running.up("--secure", "--stores", "1", "--routers", "1", "--partitions", "4")
        yield running
    finally:
        running.dev("down")


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    made = Attacker()
    yield made
    made.close()


def front(cluster: Cluster) -> int:
    return int(cluster.url.rpartition(":")[2])


def ports(cluster: Cluster) -> tuple[int, ...]:
    """The router's front, the store's rpc, bus and events."""
    base = front(cluster)
    return (base, base + 100, base + 101, base + 102)


def client(cluster: Cluster, name: str) -> ClientKeys:
    """The key of a new client, once the router knows it."""
    keyfiles.add(cluster.keys, Certificate(name, "client", "", (), Grants((b"",), (b"",))))
    key = cluster.keys / "private" / f"{name}.key"
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            kvclient.connect(cluster.url, keys=key, connect_timeout=1.0).close()
        except kvclient.ConnectError:
            assert time.monotonic() < until
        else:
            return load_client(str(key))


def answer(socket: zmq.Socket[bytes]) -> bytes:
    assert socket.poll(int(DEADLINE_S * 1000))
    return socket.recv()


HELLO = b"\x04\xc8\x05HELLO\x01\x00" + bytes(72) + bytes(8) + bytes(32) + bytes(80)
BEGUN = {
    "silence": b"",
    "half a greeting": GREETING[:30],
    "a greeting": GREETING,
    "a hello in pieces": GREETING + HELLO[:100],
    "a forged hello": GREETING + HELLO,
    "junk": junk(4096),
    "a frame of 8 GiB": GREETING + b"\x02" + (8 << 30).to_bytes(8, "big") + junk(1024),
    "a command of 1 MiB": GREETING + b"\x06" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20),
}


@pytest.mark.parametrize("begun", BEGUN)
def test_handshakes_that_are_never_finished_are_cut_off(cluster: Cluster, begun: str) -> None:
    with Others(cluster):
        for port in ports(cluster):
            attackers = connections(port, 20, b"")
            try:
                for one in attackers:
                    one.setblocking(True)
                    try:
                        one.sendall(BEGUN[begun])
                    except ConnectionError:
                        continue
                    finally:
                        one.setblocking(False)
                assert not cut_off(attackers, HANDSHAKE_S + 10)
            finally:
                for one in attackers:
                    one.close()


def test_thousands_of_connections_hold_nobody_up(cluster: Cluster) -> None:
    with Others(cluster):
        crowd = [one for port in ports(cluster)[:2] for one in connections(port, CROWD, GREETING)]
        try:
            assert not cut_off(crowd, HANDSHAKE_S + 20)
        finally:
            for one in crowd:
                one.close()


def test_what_was_recorded_is_worth_nothing(cluster: Cluster, tmp_path: Path) -> None:
    recorder = Recorder(front(cluster))
    recorder.start()
    keys = tmp_path / "keys"
    (keys / "private").mkdir(parents=True)
    (keys / "certificates").mkdir()
    for name in ("private/admin.key", "certificates/admin.json"):
        content = (cluster.keys / name).read_bytes()
        (keys / name).write_bytes(content)
        (keys / name).chmod(0o600)
    router = (cluster.keys / "certificates" / "router1.json").read_text()
    (keys / "certificates" / "router1.json").write_text(
        router.replace(f"{HOST}:{front(cluster)}", f"{HOST}:{recorder.port}")
    )
    with kvclient.connect(f"kv://{HOST}:{recorder.port}", keys=keys) as recorded:
        assert recorded.increment("once") == 1
    recorder.join()
    assert len(recorder.said) > len(GREETING) + len(HELLO)
    with Others(cluster):
        for _ in range(3):
            # A greeting and the answer to the first message of the handshake, no more.
            assert replay(front(cluster), recorder.said) <= 64 + 200
    with cluster.connect() as unharmed:
        assert unharmed.get("once") == b"1"


def test_a_frame_over_the_limit_ends_its_connection(cluster: Cluster, attacker: Attacker) -> None:
    mine = attacker.socket(front(cluster), client(cluster, "large"))
    answer(mine)
    events = mine.get_monitor_socket(zmq.Event.DISCONNECTED)
    with Others(cluster):
        mine.send(junk(40 << 20))
        assert events.poll(int(DEADLINE_S * 1000))
    mine.disable_monitor()
    events.close(0)


def test_a_routing_id_is_nobodys_name(cluster: Cluster, attacker: Attacker) -> None:
    """Who takes the id of a connected client gets none of its answers, and takes it from nobody."""
    victim = attacker.socket(front(cluster), client(cluster, "victim"), b"same")
    answer(victim)
    forger = attacker.socket(front(cluster), client(cluster, "forger"), b"same")
    with Others(cluster):
        for number in range(50):
            forger.send(PING)
            victim.send(protocol.encode_request(Request(Kind.PING, number, 5000, 0, 0, 0, 0, 0, b"")))
            assert protocol.decode_response(answer(victim)).request_id == number
        assert not forger.poll(100)


def test_who_does_not_read_its_answers_holds_up_itself(cluster: Cluster, attacker: Attacker) -> None:
    """What the router keeps for it is bounded by the answers that it asked for: here 200 of 64 KiB, which no
    socket's buffers hold.
    """
    with cluster.connect() as writer:
        writer.put(b"large", bytes(64 << 10))
    mine = attacker.socket(front(cluster), client(cluster, "slow"))
    answer(mine)
    with Others(cluster):
        for number in range(200):
            request = Request(Kind.OPS, number, 5000, 0, 0, 0, 0, 0, protocol.encode_get(b"large"))
            mine.send(protocol.encode_request(request))
        time.sleep(2.0)  # for as long as others have to bear it
        mine.close(0)


def test_an_endless_message_ends_with_its_senders_key(cluster: Cluster, attacker: Attacker) -> None:
    """ZeroMQ has no bound for a message that is never finished, so whoever has a key may fill the router's
    memory; what it took is given back when the key is revoked.
    """
    mine = attacker.socket(front(cluster), client(cluster, "endless"))
    answer(mine)
    size, count = 1 << 20, 150
    with Others(cluster, peak_bytes=2 * count * size + PEAK_BYTES):
        for _ in range(count):
            mine.send(bytes(size), zmq.SNDMORE)
        time.sleep(1.0)  # for as long as others have to bear it
        cluster.kvcli("keys", "revoke", str(cluster.keys), "endless", "--yes")
