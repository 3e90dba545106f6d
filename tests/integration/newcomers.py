"""Store processes that found a cluster or join one, and a cluster that answers them as a test says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgpack
import yaml
import zmq

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared import messages
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlRequest, encode_control_reply
from tests.ports import free_ports

SECONDS = 60.0

Says = Callable[[ControlRequest], tuple[int, bytes]]


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.02)


def endpoint(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


class Process:
    """One kv-store that can be started again; its whole output is `said`."""

    def __init__(self, directory: Path, name: str, port: int, **sections: Any) -> None:
        self.data = directory / "data" / name
        self.port = port
        self._log = directory / f"{name}.log"
        self._file = directory / f"{name}.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(
            {
                "node": {"name": name},
                "listen": {"rpc": endpoint(port)},
                "data": {"dir": str(self.data)},
                **sections,
            }
        )

    def configure(self, config: dict[str, Any]) -> None:
        self.config = config
        self._file.write_text(yaml.safe_dump(config))

    def start(self) -> None:
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "storenode", "--config", str(self._file)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, event: str) -> None:
        """Waits for a line of the log."""
        wait(lambda: f'"event":"{event}"' in self.said or not self.running, f"{event}\n{self.said}")
        assert f'"event":"{event}"' in self.said, self.said

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(SECONDS)

    def close(self) -> None:
        if self.running:
            self.stop(signal.SIGKILL)

    @property
    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "identity.json").read_text())
        return found


class FakeCluster:
    """One store of a cluster named prod, in a thread: it knows the map, and says what it is told to."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.map = ClusterMap.bootstrap("prod", 4, 1, [Node(1, "store1", endpoint(self.port))])
        self.heard: list[dict[str, Any]] = []
        """The arguments of each `join`."""
        self.says: Says = self.busy
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def busy(self, _: ControlRequest) -> tuple[int, bytes]:
        return Status.BUSY, encode_error("the controller has not read its state yet")

    def accept(self, request: ControlRequest) -> tuple[int, bytes]:
        """The id is the same for the same incarnation."""
        told = msgpack.unpackb(request.arguments)
        incarnations = list(dict.fromkeys(one["incarnation"] for one in self.heard))
        number = 4 + incarnations.index(told["incarnation"])
        fields = [told[field] for field in ("name", "rpc", "bus", "events", "zone", "weight")]
        nodes = (*self.map.nodes, Node(number, *fields))
        grown = attrs.evolve(self.map, epoch=2, nodes=nodes)
        body = {"node": number, "cluster": "prod", "cluster_id": grown.cluster_id, "map": grown.encode()}
        return Status.OK, msgpack.packb(body)

    def _run(self) -> None:
        socket = self._context.socket(zmq.ROUTER)
        socket.bind(endpoint(self.port))
        while not self._stopping.is_set():
            if not socket.poll(20):
                continue
            peer, frame = socket.recv_multipart()
            request = messages.decode_to_store(frame)
            if isinstance(request, messages.MapRequest):
                answer = messages.encode_map_reply(request.token, self.map.encode())
            else:
                assert isinstance(request, ControlRequest)
                self.heard.append(msgpack.unpackb(request.arguments))
                answer = encode_control_reply(request.token, *self.says(request))
            socket.send_multipart((peer, answer))
        socket.close(0)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)
