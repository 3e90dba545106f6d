"""The real kv-store process, spoken to over real sockets the way a router speaks to it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
import zmq

from kvclient import protocol
from kvclient.errors import Status
from shared import messages
from shared.hashing import partition_of
from shared.messages import Answer, BatchReply, Item, StatusReply

DEADLINE_S = 60.0
BITS = 4
CLIENT = 0xC11E


def configuration(directory: Path, **sections: Any) -> dict[str, Any]:
    node = {"id": 1, "name": "store1", "rpc": "tcp://127.0.0.1:7200"}
    return {
        "node": {"id": 1, "name": "store1"},
        "listen": dict.fromkeys(("rpc", "bus", "events"), "tcp://127.0.0.1:*"),
        "data": {"dir": str(directory / "data")},
        "cluster": {"name": "test", "partitions": 1 << BITS, "replicas": 1, "nodes": [node]},
        **sections,
    }


class Store:
    """One kv-store process and a socket to it."""

    def __init__(self, directory: Path, config: dict[str, Any], *arguments: str) -> None:
        path = directory / f"{config['node']['name']}.yaml"
        path.write_text(yaml.safe_dump(config))
        self.log = directory / f"store-{random.getrandbits(32):08x}.log"
        command = [sys.executable, "-m", "storenode", "--config", str(path), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        self.endpoint = ""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, name: str) -> dict[str, Any]:
        """The first event of this name, which is waited for."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := [event for event in self.events() if event["event"] == name]):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no event {name}: {self.log.read_text()}"
            time.sleep(0.02)
        return found[0]

    def connect(self) -> None:
        """Waits for the `listening` event and connects."""
        self.endpoint = self.said("listening")["rpc"]
        self.socket.connect(self.endpoint)
        deadline = time.monotonic() + DEADLINE_S
        while not self._leads(self.status()):
            assert time.monotonic() < deadline, "a group of one does not elect itself"
            time.sleep(0.02)

    @staticmethod
    def _leads(figures: dict[str, Any]) -> bool:
        """Whether it leads all its groups of one: the control partition is one only in a cluster of one."""
        groups = figures["groups"].values()
        return all(group["role"] == "leader" for group in groups if len(group["voters"]) == 1)

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def receive(self) -> messages.ToRouter:
        assert self.socket.poll(int(DEADLINE_S * 1000)), f"no answer; {self.log.read_text()[-2000:]}"
        return messages.decode_to_router(self.socket.recv())

    def batch(self, items: list[Item]) -> dict[int, Answer]:
        """The answers to one batch by token; they may come in several replies."""
        self.socket.send(messages.encode_batch(1, items))
        return self.answers(len(items))

    def answers(self, count: int) -> dict[int, Answer]:
        found: dict[int, Answer] = {}
        while len(found) < count:
            reply = self.receive()
            assert isinstance(reply, BatchReply)
            assert reply.epoch == 1
            found |= {answer.token: answer for answer in reply.answers}
        return found

    def one(self, ops: bytes, key: bytes, **fields: int) -> Answer:
        return self.batch([item(1, ops, key, **fields)])[1]

    def status(self) -> dict[str, Any]:
        self.socket.send(messages.encode_status_request(9))
        reply = self.receive()
        assert isinstance(reply, StatusReply)
        return reply.figures

    def freeze(self) -> None:
        """Stops all threads; the signal alone may leave one of them a few more milliseconds."""
        self.process.send_signal(signal.SIGSTOP)
        threads = list(Path(f"/proc/{self.process.pid}/task").iterdir())
        deadline = time.monotonic() + DEADLINE_S
        while {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} != {"T"}:
            assert time.monotonic() < deadline, "the store does not stop"
            time.sleep(0.01)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._context.destroy(linger=0)


def item(token: int, ops: bytes, key: bytes, **fields: int) -> Item:
    partition = fields.pop("partition", partition_of(key, BITS))
    values = {
        "timeout_ms": 10_000,
        "read_mode": 0,
        "flags": 0,
        "client_id": 0,
        "sequence": 0,
        "acked_below": 0,
    }
    return Item(token, partition, ops=ops, **(values | fields))


def put(token: int, key: bytes, value: bytes, **fields: int) -> Item:
    return item(token, protocol.encode_put(key, value), key, **fields)


def get(token: int, key: bytes) -> Item:
    return item(token, protocol.encode_get(key), key)


def first_result(answer: Answer) -> list[Any]:
    assert answer.status == Status.OK, answer
    return protocol.decode_results(answer.body)[0]


def kernel_bytes(port: int) -> int:
    """Bytes on their way to 127.0.0.1:`port`: sent and not yet read. IPv4 only."""
    local = f"0100007F:{port:04X}"
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        source, target, _, queues = line.split()[1:5]
        unsent, unread = (int(size, 16) for size in queues.split(":"))
        total += (target == local) * unsent + (source == local) * unread
    return total


Start = Callable[..., Store]


def refused(store: Store) -> tuple[int, str]:
    """Exit code and the one line on standard error of a store that must not start."""
    code = store.process.wait(DEADLINE_S)
    lines = store.log.read_text().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kv-store: ")
    return code, lines[0]
