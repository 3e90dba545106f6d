"""Knocks at ports of a composed cluster, with a key of every role, with one that nobody knows, and without
any, and tells who was let in.

Also a program, for a container in the stores' own network, where there is no test suite: strangers.py KEYS
WELCOME PLACE..., all but KEYS as JSON, prints JSON. Imports nothing but what the image has.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from kvclient import protocol
from kvclient.keys import Pair, load
from kvclient.protocol import Kind, Request
from shared import messages

DEADLINE_S = 60.0
SILENCE_S = 4.0
"""Longer than any handshake may take, so that each stranger was refused at least once."""

KEYS = {"client": "app", "admin": "admin", "monitor": "monitor", "router": "router1", "node": "store2"}
ASK_ROUTER = protocol.encode_request(Request(Kind.PING, 7, 5000, 0, 0, 0, 0, 0, b""))
ASK_STORE = messages.encode_ping(7)

RAW = {
    "HTTP": b"GET / HTTP/1.0\r\n\r\n",
    "ZeroMQ 2": b"\x01\x00" + b"\x05\x00PING",
    "ZeroMQ 3": b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\x00\x00" + b"\x00\x04PING",
}
"""What is said by who has never heard of CURVE; the two old ones know no mechanism at all."""


class Place(NamedTuple):
    """A port: whose, what for ("front", "rpc", "bus", "events", "http"), and where."""

    process: str
    domain: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.process} {self.domain}"


class _Peer:
    """One that asks, or listens to everything, and goes on trying; `pair` None: in plaintext."""

    def __init__(self, context: zmq.Context[Any], place: Place, pair: Pair | None, server_key: str) -> None:
        listens = place.domain in ("bus", "events")
        self._socket = context.socket(zmq.SUB if listens else zmq.DEALER)
        self._welcomed = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        if pair is not None:
            self._socket.set_string(zmq.CURVE_SERVERKEY, server_key)
            self._socket.set_string(zmq.CURVE_PUBLICKEY, pair.public_key)
            self._socket.set_string(zmq.CURVE_SECRETKEY, pair.secret_key)
        if listens:
            self._socket.set(zmq.SUBSCRIBE, b"")
        self._socket.connect(f"tcp://{place.host}:{place.port}")
        if not listens:
            self._socket.send(ASK_ROUTER if place.domain == "front" else ASK_STORE)

    def let_in(self) -> bool:
        return bool(self._welcomed.poll(0))

    def answered(self) -> bool:
        return bool(self._socket.poll(0))


@contextmanager
def _peers(keys: Path, places: Sequence[Place]) -> Iterator[dict[tuple[str, str], _Peer]]:
    known = load(keys)
    stranger = Pair(*(half.decode() for half in zmq.curve_keypair()))
    pairs = {role: known.pair(name) for role, name in KEYS.items()}
    everybody: dict[str, Pair | None] = {**pairs, "unlisted": stranger, "plaintext": None}
    context: zmq.Context[Any] = zmq.Context()
    try:
        yield {
            (role, str(place)): _Peer(context, place, pair, known.certificates[place.process].public_key)
            for place in places
            for role, pair in everybody.items()
        }
    finally:
        context.destroy(0)


def _raw(place: Place, said: bytes) -> bytes:
    """All that one who says this is told, until it is cut off or nothing more comes."""
    told = b""
    until = time.monotonic() + SILENCE_S
    with socket.create_connection((place.host, place.port), timeout=10) as link:
        link.sendall(said)
        while (left := until - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                received = link.recv(65536)
            except (TimeoutError, ConnectionError):
                break
            if not received:
                break
            told += received
    return told


def knock(keys: Path, places: Sequence[Place], welcome: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Who was `answered`, and who was `let_in`: pairs of role and place; and what speakers of other protocols
    were `told`, in hex. Ends when all who are welcome, by domain, are among both, and everybody else has had
    the time to be.
    """
    expected = {(role, str(place)) for place in places for role in welcome[place.domain]}
    found: dict[str, set[tuple[str, str]]] = {"answered": set(), "let_in": set()}
    with _peers(keys, places) as peers:
        until, silent_until = time.monotonic() + DEADLINE_S, time.monotonic() + SILENCE_S
        while time.monotonic() < silent_until or any(expected - one for one in found.values()):
            if time.monotonic() > until:
                break
            found["answered"] |= {who for who, peer in peers.items() if peer.answered()}
            found["let_in"] |= {who for who, peer in peers.items() if peer.let_in()}
            time.sleep(0.05)
    ways = [(place, how) for place in places for how in RAW]
    with ThreadPoolExecutor(len(ways)) as threads:
        answers = threads.map(lambda way: _raw(way[0], RAW[way[1]]).hex(), ways)
        told = {f"{how}, {place}": answer for (place, how), answer in zip(ways, answers, strict=True)}
    return {name: sorted(who) for name, who in found.items()} | {"told": told}


if __name__ == "__main__":
    _, directory, table, *given = sys.argv
    print(json.dumps(knock(Path(directory), [Place(*json.loads(one)) for one in given], json.loads(table))))
