"""A real cluster with keys: it serves those who have one, and nobody else gets a word out of any port."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

import kvclient
from kvclient import protocol
from kvclient.cli import keyfiles
from kvclient.errors import ConnectError, Exit, KVError, PermissionDenied
from kvclient.keys import Certificate, Grants, Pair, load
from kvclient.protocol import Kind, Request
from shared import messages
from shared.security import BUS, EVENTS, FRONT, RPC, Domain
from tests.integration.localcluster import KVCLI, Cluster

DEADLINE_S = 30.0
EVERYTHING = Grants((b"",), (b"",))
SILENCE_S = 3.0
"""Longer than a handshake may take, so that each peer was refused at least once."""

ASK_ROUTER = protocol.encode_request(Request(Kind.PING, 7, 5000, 0, 0, 0, 0, 0, b""))
ASK_STORE = messages.encode_ping(7)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("secure"))
    try:
        running.up("--secure", "--stores", "3", "--routers", "1", "--partitions", "4")
        yield running
    finally:
        running.dev("down")


WELCOME = {
    "front": ("client", "admin", "monitor"),
    "rpc": ("monitor", "router", "node"),
    "bus": ("node",),
    "events": ("monitor", "router", "node"),
}
"""As the table in docs/security.md has it."""


class Port(NamedTuple):
    """A port of one process."""

    number: int
    process: str
    domain: Domain


def ports(cluster: Cluster) -> list[Port]:
    found = []
    for one in load(cluster.keys).certificates.values():
        numbers = sorted({int(address.rpartition(":")[2]) for address in one.addresses})
        domains = (FRONT,) if one.role == "router" else (RPC, BUS, EVENTS)
        if numbers:
            found += [Port(*place) for place in zip(numbers, (one.name,) * 3, domains, strict=False)]
    assert len(found) == 10
    return found


class Peer:
    """Somebody at a port: asks, and listens to everything. `pair` None: in plaintext."""

    def __init__(self, context: zmq.Context[Any], cluster: Cluster, port: Port, pair: Pair | None) -> None:
        asks = port.domain in (FRONT, RPC)
        self.frame = ASK_ROUTER if port.domain is FRONT else ASK_STORE
        self.port = port
        self.asks = asks
        self.socket = context.socket(zmq.DEALER if asks else zmq.SUB)
        self.socket.set(zmq.RECONNECT_IVL, 50)
        if not asks:
            self.socket.set(zmq.SUBSCRIBE, b"")
        if pair is not None:
            server = load(cluster.keys).certificates[port.process].public_key
            self.socket.set_string(zmq.CURVE_SERVERKEY, server)
            self.socket.set_string(zmq.CURVE_PUBLICKEY, pair.public_key)
            self.socket.set_string(zmq.CURVE_SECRETKEY, pair.secret_key)
        self.socket.connect(f"tcp://127.0.0.1:{port.number}")
        if asks:
            self.socket.send(self.frame)

    def close(self) -> None:
        self.socket.close(0)

    def answered(self) -> bool:
        return bool(self.socket.poll(0))


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(0)


def added(cluster: Cluster, name: str, grants: Grants = EVERYTHING) -> Path:
    """The key of a new client; the router has noticed its certificate."""
    keyfiles.add(cluster.keys, Certificate(name, "client", "", (), grants))
    key = cluster.keys / "private" / f"{name}.key"
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            kvclient.connect(cluster.url, keys=key, connect_timeout=1.0).close()
        except ConnectError:
            assert time.monotonic() < until
        else:
            return key


def pairs(cluster: Cluster) -> dict[str, Pair | None]:
    """Everybody who may knock, by role."""
    added(cluster, "app")
    known = load(cluster.keys)
    stranger = Pair(*(half.decode() for half in zmq.curve_keypair()))
    roles = {"admin": "admin", "monitor": "monitor", "router": "router1", "node": "store2"}
    found: dict[str, Pair | None] = {role: known.pair(name) for role, name in roles.items()}
    return found | {"plaintext": None, "stranger": stranger, "client": known.pair("app")}


def test_with_a_key_everything_works(cluster: Cluster) -> None:
    cluster.kvcli("put", "hello", "world")
    assert cluster.kvcli("get", "hello").stdout == b"world\n"
    with cluster.connect(codec="str") as client:
        client.put_many({f"k{number}": "v" for number in range(100)})
        assert client.count("k") == 100
    cluster.kvcli("wait", "--healthy", "--timeout", "60s")


def test_every_port_answers_its_roles_and_says_nothing_to_anybody_else(
    cluster: Cluster, context: zmq.Context[Any]
) -> None:
    knocking = pairs(cluster)
    peers = [
        (role, Peer(context, cluster, port, pair))
        for port in ports(cluster)
        for role, pair in knocking.items()
    ]
    waited = {(role, peer.port): peer for role, peer in peers if role in WELCOME[peer.port.domain.name]}
    strangers = [(role, peer) for role, peer in peers if role not in WELCOME[peer.port.domain.name]]
    until = time.monotonic() + DEADLINE_S
    silent_until = time.monotonic() + SILENCE_S
    heard: set[Any] = set()
    while heard != waited.keys() or time.monotonic() < silent_until:
        assert time.monotonic() < until, sorted(map(str, waited.keys() - heard))
        heard |= {place for place, peer in waited.items() if peer.answered()}
        answered = [(role, peer.port) for role, peer in strangers if peer.answered()]
        assert not answered
        time.sleep(0.05)
    for _, peer in peers:
        peer.close()


def test_a_client_without_a_key_is_told_what_is_missing(cluster: Cluster) -> None:
    with pytest.raises(ConnectError, match="it wants a key"):
        kvclient.connect(cluster.url, keys="", connect_timeout=1).close()
    plain = subprocess.run(
        [KVCLI, "get", "hello"],
        env={**cluster.environment(), "RINGKV_KEYS": ""},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert plain.returncode == Exit.CONNECT
    assert b"--keys" in plain.stderr


def test_a_key_that_is_not_known_is_refused_and_said_so(cluster: Cluster, tmp_path: Path) -> None:
    """The client's directory is its own: the cluster has never seen this key."""
    keyfiles.init(tmp_path / "keys")
    router = "certificates/router1.json"
    (tmp_path / "keys" / router).write_bytes((cluster.keys / router).read_bytes())
    with pytest.raises(ConnectError, match="does not take the key admin"):
        kvclient.connect(cluster.url, keys=tmp_path / "keys", connect_timeout=1).close()


def test_who_is_revoked_gets_no_answer_any_more(cluster: Cluster) -> None:
    key = added(cluster, "leaver")
    with kvclient.connect(cluster.url, keys=key, timeout=1.0) as leaver, cluster.connect() as stays:
        leaver.put("mine", b"yes")
        cluster.kvcli("keys", "revoke", str(cluster.keys), "leaver", "--yes")
        until = time.monotonic() + DEADLINE_S
        refused = 0
        while refused < 3:
            assert time.monotonic() < until
            stays.put("others", b"go on")
            try:
                leaver.get("mine")
                time.sleep(0.05)
            except KVError:
                refused += 1


def test_grants_hold(cluster: Cluster) -> None:
    key = added(cluster, "reader", Grants((b"public:",), (b"mine:",)))
    with cluster.connect() as admin, kvclient.connect(cluster.url, keys=key, codec="str") as reader:
        admin.put(b"public:1", b"seen")
        assert reader.get("public:1") == "seen"
        reader.put("mine:1", "x")
        assert [entry.key for entry in reader.scan("public:")] == [b"public:1"]
        for refused in (
            lambda: reader.put("public:1", "changed"),
            lambda: reader.get("mine:1"),
            lambda: list(reader.scan("p")),
        ):
            with pytest.raises(PermissionDenied, match="reader may not"):
                refused()
        assert reader.put_many({"mine:2": "x", "other": "y"}).errors
        assert admin.get(b"other") is None
    done = cluster.kvcli("--keys", str(key), "rebalance", "pause", check=False)
    assert done.returncode == Exit.AUTH


def test_logs_tell_who_knocked_and_no_private_key(cluster: Cluster) -> None:
    logs = "".join(path.read_text() for path in (cluster.directory / "log").glob("*.log"))
    assert "peer_refused" in logs
    secrets = [load(cluster.keys).pair(name).secret_key for name in load(cluster.keys).private_names()]
    assert not any(secret in logs for secret in secrets)
