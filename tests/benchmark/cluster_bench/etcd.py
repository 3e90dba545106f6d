"""etcd, three nodes, loaded by h2load with raw gRPC: nghttp2's generator costs far less than any etcd client.

h2load sends one body again and again, so every request of a run has the same keys: one for single ops, 100
for pipelines, which are transactions of 100 ops (etcd's own way to send many ops at once, and atomic). That
is the easy case for etcd: what it reads is always hot. Requests go to the leader, which need not forward
them.

The mixed load has to alternate between two calls with one body. KV.Put and KV.Range read fields 1 and 2 of it
as (key, value) and as (key, end of the range); the value is greater than all keys, and the key is the last of
all, so that the range holds that key alone.

`lease_get` is held against serializable ranges: weaker, for they may be stale by any time.

HTTP says 200 whatever became of a call. So puts are counted by the store's revision, and answers to gets by
their bytes; a run that does not add up is an error.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmark.cluster_bench.paced import Paced
from tests.benchmark.cluster_bench.points import PIPELINE_OPS, Point, Sample, sample
from tests.benchmark.cluster_bench.processes import Server, wait_until
from tests.benchmark.engine_bench.data import VALUE_BYTES, value
from tests.ports import free_ports

PROGRAMS = ("etcd", "h2load")
NODES = 3
START_SECONDS = 30.0
CALL_SECONDS = 5.0
LOAD_SECONDS_MAX = 120.0
QUOTA_BYTES = 8 << 30
"""Of the database: with the usual 2 GiB a long run would end in refusals."""
CONNECTIONS_MAX = 20
"""With a stream each, h2load and etcd are slower by a half."""
LAST_KEY = b"y%015d" % 0
KEYS = [b"k%015d" % number for number in range(PIPELINE_OPS)]
END = b"z" + value(0)[1:]
"""A value, and greater than all keys."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxy the environment names."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes | int) -> bytes:
    """A protobuf field: bytes (or an embedded message), or an unsigned number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def put_request(key: bytes) -> bytes:
    return field(1, key) + field(2, END)


def range_request(key: bytes, serializable: bool) -> bytes:
    return field(1, key) + (field(7, 1) if serializable else b"")


def message(point: Point) -> bytes:
    """The request of a point, without gRPC's prefix."""
    serializable = point.workload == "lease_get"
    if point.batch == 1:
        if point.workload in ("put", "mixed"):
            return put_request(LAST_KEY)
        return range_request(LAST_KEY, serializable)
    ops = [
        field(2, put_request(key))
        if point.workload == "put" or (point.workload == "mixed" and number % 2)
        else field(1, range_request(key, serializable))
        for number, key in enumerate(KEYS[: point.batch])
    ]
    return b"".join(field(2, op) for op in ops)


def calls(point: Point) -> list[str]:
    if point.batch > 1:
        return ["Txn"]
    return {"put": ["Put"], "mixed": ["Put", "Range"]}.get(point.workload, ["Range"])


def start(stack: ExitStack, directory: Path) -> list[Etcd]:
    return [Etcd(stack, directory)]


class Etcd:
    """Runs when it is made; ends with `stack`."""

    name = "etcd"

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._paced = Paced()
        ports = free_ports(2 * NODES)
        self._ports, peers = ports[:NODES], ports[NODES:]
        cluster = ",".join(f"n{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
        self._nodes = []
        for number, (port, peer) in enumerate(zip(self._ports, peers, strict=True)):
            options = {
                "name": f"n{number}",
                "data-dir": str(directory / f"n{number}"),
                "listen-client-urls": f"http://127.0.0.1:{port}",
                "advertise-client-urls": f"http://127.0.0.1:{port}",
                "listen-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-cluster": cluster,
                "initial-cluster-state": "new",
                "quota-backend-bytes": str(QUOTA_BYTES),
                "logger": "zap",
                "log-level": "error",
            }
            command = ["etcd", *(f"--{name}={value}" for name, value in options.items())]
            self._nodes.append(Server(stack, f"n{number}", command, directory / f"n{number}.log", directory))
        for node in self._nodes:
            node.start()
        wait_until(lambda: self._leader() is not None, START_SECONDS, "etcd with a leader", self._nodes)
        for key in (*KEYS, LAST_KEY):
            self._call(self._ports[0], "kv/put", key=_text(key), value=_text(END))

    def servers(self) -> dict[str, int]:
        return {node.name: node.pid for node in self._nodes}

    def syncs(self) -> int | None:
        return None

    def prepare(self, point: Point) -> bool:
        self._paced.probe(point, self._load)
        return True

    def run(self, point: Point, seconds: float) -> Sample:
        return self._paced.run(point, seconds, self._load)

    def _load(self, point: Point, requests: int) -> Sample:
        """One run of h2load, checked."""
        leader = self._leader()
        if leader is None:
            raise RuntimeError("etcd has no leader")
        body = message(point)
        file, log = self._directory / "body", self._directory / "h2load.log"
        file.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        log.unlink(missing_ok=True)
        under_way = point.requests
        connections = max(c for c in range(1, CONNECTIONS_MAX + 1) if under_way % c == 0)
        before = self._revision(leader)
        output = subprocess.run(
            [
                "h2load",
                *("-n", str(requests), "-c", str(connections), "-m", str(under_way // connections)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                *("-d", str(file), f"--log-file={log}"),
                *(f"http://127.0.0.1:{leader}/etcdserverpb.KV/{call}" for call in calls(point)),
            ],
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS_MAX,
            check=False,
        )
        check(point, requests, connections, output, self._revision(leader) - before)
        seconds = re.search(r"finished in ([\d.]+)(us|ms|s)", output.stdout)
        assert seconds is not None
        took = float(seconds[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[seconds[2]]
        latencies = [int(line.rpartition("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
        return sample(requests * point.batch, took, latencies)

    def _revision(self, port: int) -> int:
        return int(self._call(port, "kv/range", key=_text(LAST_KEY))["header"]["revision"])

    def _leader(self) -> int | None:
        """The leader's port."""
        for port in self._ports:
            try:
                status = self._call(port, "maintenance/status")
            except OSError:
                continue
            if status["header"]["member_id"] == status.get("leader"):
                return port
        return None

    @staticmethod
    def _call(port: int, name: str, **fields: str) -> dict[str, Any]:
        """etcd's own JSON gateway."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v3/{name}", data=json.dumps(fields).encode()
        )
        with _DIRECT.open(request, timeout=CALL_SECONDS) as answer:
            result: dict[str, Any] = json.load(answer)
        return result


def check(
    point: Point,
    requests: int,
    connections: int,
    output: subprocess.CompletedProcess[str],
    revisions: int,
) -> None:
    """RuntimeError if not all requests did what they should."""
    done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", output.stdout)
    if done is None or [int(number) for number in done.groups()] != [requests, 0, 0]:
        raise RuntimeError(f"h2load: {output.stdout[-500:]}{output.stderr[-500:]}")
    # Each connection alternates on its own, so it may have sent one put more than gets.
    puts = {"put": requests, "mixed": requests // (2 if point.batch == 1 else 1)}.get(point.workload, 0)
    slack = connections if point.workload == "mixed" and point.batch == 1 else 0
    if abs(revisions - puts) > slack:
        raise RuntimeError(f"etcd made {revisions} revisions of {puts} puts")
    gets = {"put": 0, "mixed": requests * point.batch // 2 - slack}.get(
        point.workload, requests * point.batch
    )
    data = re.search(r"\((\d+)\) data", output.stdout)
    if data is None or int(data[1]) < gets * VALUE_BYTES:
        raise RuntimeError(f"answers to {gets} gets are too small: {data and data[0]}")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
