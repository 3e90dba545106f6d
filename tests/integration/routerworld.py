"""A router process between scripted peers: stores that answer as a test says, and a client's bare socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import zmq

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import Kind, Request, Response
from shared import messages
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlRequest, encode_control_reply
from shared.messages import Item
from tests.ports import free_ports

SECONDS = 10  # how long anything may take before a test fails; nothing waits that long when all is well
PARTITIONS = 8

Answer = tuple[int, bytes] | None


def echo(item: Item) -> Answer:
    """Each op is answered with its own key as value, a scan with nothing."""
    ops = unpack_all(item.ops)
    if ops and ops[0][0] == protocol.Op.SCAN:
        return 0, protocol.pack((0, 0, b""))
    return 0, b"".join(protocol.pack((0, op[1], item.partition)) for op in ops)


def unpack_all(stream: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(stream)
    return list(unpacker)


class Store:
    """A store that answers as `behave` says; None is silence. Its thread owns its sockets."""

    def __init__(self, node: Node, cluster_map: ClusterMap, node_id: int | None = None) -> None:
        self.node = node
        self.map = cluster_map
        self.node_id = node.id if node_id is None else node_id
        self.behave: Callable[[Item], Answer] = echo
        self.items: list[Item] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket, as a process that dies does."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        context = zmq.Context()
        listening = context.socket(zmq.ROUTER)
        listening.bind(self.node.rpc)
        while not self._stopping.is_set():
            if listening.poll(10):
                router, frame = listening.recv_multipart()
                reply = self._reply(messages.decode_to_store(frame))
                if reply is not None:
                    listening.send_multipart([router, reply])
        context.destroy(linger=0)

    def _reply(self, message: messages.ToStore) -> bytes | None:
        match message:
            case messages.Batch(items=items):
                self.items += items
                answers = [(item.token, self.behave(item)) for item in items]
                spoken = [(token, *answer) for token, answer in answers if answer is not None]
                return messages.encode_batch_reply(self.map.epoch, spoken)
            case messages.MapRequest(token=token):
                return messages.encode_map_reply(token, self.map.encode())
            case messages.StatusRequest(token=token):
                return messages.encode_status_reply(token, {"keys": 7})
            case messages.Ping(token=token):
                return messages.encode_pong(token, self.node_id, self.map.epoch)
            case ControlRequest(token=token):
                body = protocol.encode_error("no control partition")
                return encode_control_reply(token, Status.UNSUPPORTED, body)
        return None


class Client:
    """A client's bare socket."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(endpoint)
        self.request_id = 0

    def send(self, body: bytes, **fields: Any) -> int:
        self.request_id += 1
        values: dict[str, Any] = {
            "kind": Kind.OPS,
            "request_id": self.request_id,
            "timeout_ms": SECONDS * 1000,
            "read_mode": 0,
            "flags": 0,
            "client_id": 9,
            "sequence": self.request_id,
            "acked_below": 1,
            "body": body,
        }
        self.socket.send(protocol.encode_request(Request(**values | fields)))
        return self.request_id

    def receive(self) -> Response:
        assert self.socket.poll(SECONDS * 1000), "no response"
        [frame] = self.socket.recv_multipart()
        return protocol.decode_response(frame)

    def ask(self, body: bytes, **fields: Any) -> Response:
        request_id = self.send(body, **fields)
        response = self.receive()
        assert response.request_id == request_id
        return response

    def admin(self, command: str, *arguments: Any, **fields: Any) -> Response:
        return self.ask(protocol.encode_admin(command, *arguments), kind=Kind.ADMIN, sequence=0, **fields)

    def close(self) -> None:
        self.context.destroy(linger=0)


class World:
    """Two stores' addresses, the map, and one router process; clients and stores as a test makes them."""

    def __init__(
        self, directory: Path, stack: ExitStack, in_flight: int = 1000, seeds: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.stack = stack
        front, first, second, *events = free_ports(5)
        self.endpoint = f"tcp://127.0.0.1:{front}"
        self.nodes = [
            Node(number, f"store{number}", f"tcp://127.0.0.1:{port}", events=f"tcp://127.0.0.1:{publishes}")
            for number, port, publishes in ((1, first, events[0]), (2, second, events[1]))
        ]
        self.map = ClusterMap.bootstrap("test", PARTITIONS, 1, self.nodes)
        self.log = directory / "router.log"
        self.config = directory / "router.yaml"
        self.config.write_text(
            json.dumps(
                {
                    "router": {"name": "router1", "listen": self.endpoint},
                    "stores": [*seeds] or [node.rpc for node in self.nodes],
                    "limits": {"in_flight": in_flight},
                }
            )
        )
        self.process = self.start()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "router", "--config", str(self.config), *arguments],
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("RINGKV_")},
            )
        self.stack.callback(process.wait, SECONDS)
        self.stack.callback(process.kill)
        return process

    def store(self, number: int, **options: Any) -> Store:
        store = Store(self.nodes[number - 1], self.map, **options)
        self.stack.callback(store.stop)
        return store

    def client(self) -> Client:
        client = Client(self.endpoint)
        self.stack.callback(client.close)
        return client

    def key(self, node: int) -> bytes:
        """A key whose partition `node` leads."""
        from shared.hashing import partition_of

        for number in range(10_000):
            key = b"key%d" % number
            if self.map.replicas[partition_of(key, self.map.bits)] == (node,):
                return key
        raise AssertionError("a node leads nothing")

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the router is gone")

    def figures(self, client: Client) -> dict[str, int]:
        figures: dict[str, int] = msgpack.unpackb(client.admin("status").body)["router_figures"]
        return figures


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def put(key: bytes) -> bytes:
    return protocol.encode_put(key, b"value")
