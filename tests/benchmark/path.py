"""scripts/bench path: what the message path costs, next to a bare pyzmq echo over the same three hops.

Ours is the real SDK, router and store service; the store runs with --noop, so that only messages are
measured. The yardstick moves frames of the same sizes. Rounds alternate, medians are reported. Bar: ratio
>= 0.6 at 256 in flight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import kvclient
from kvclient import protocol
from tests.benchmark.bare_echo import drive
from tests.ports import free_ports

IN_FLIGHT = (1, 64, 256)
KEY = b"path:%013d"
VALUE = bytes(100)


def start(stack: ExitStack, *command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def start_bare(stack: ExitStack, response_bytes: int) -> str:
    """Starts the yardstick's two servers; returns the router's endpoint."""
    echo = str(Path(__file__).with_name("bare_echo.py"))

    def endpoint(*arguments: str) -> str:
        process = start(stack, sys.executable, echo, *arguments)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    return endpoint("router", endpoint("store", str(response_bytes)))


def start_ours(stack: ExitStack) -> str:
    """Starts one real router and one no-op store; returns the client URL."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    router, rpc, bus, events = (f"tcp://127.0.0.1:{port}" for port in free_ports(4))
    node = {"id": 1, "name": "store1", "rpc": rpc, "bus": bus, "events": events, "zone": "z1", "weight": 1}
    configs = {
        "store": {
            "node": {"id": 1, "name": "store1"},
            "listen": {"rpc": rpc},
            "data": {"dir": str(directory / "data")},
            "cluster": {"name": "path", "partitions": 16, "replicas": 1, "nodes": [node]},
        },
        "router": {"router": {"name": "router1", "listen": router}, "stores": [rpc]},
    }
    for name, config in configs.items():
        (directory / f"{name}.yaml").write_text(json.dumps(config))
    start(stack, sys.executable, "-m", "storenode", "--noop", "--config", str(directory / "store.yaml"))
    start(stack, sys.executable, "-m", "router", "--config", str(directory / "router.yaml"))
    return "kv://" + router.removeprefix("tcp://")


def drive_ours(client: kvclient.Client[bytes], in_flight: int, seconds: float) -> float:
    """Single-op put requests per second through the SDK with `in_flight` under way."""
    done = 0
    begin = now = time.perf_counter()
    with client.pipeline(batch=1, max_in_flight=in_flight) as pipeline:
        waiting: deque[kvclient.Handle[object]] = deque()
        while now < begin + seconds:
            for _ in range(256):
                waiting.append(pipeline.put(KEY % done, VALUE))
                done += 1
                if len(waiting) > in_flight:
                    waiting.popleft().result()
            now = time.perf_counter()
    for handle in waiting:
        handle.result()
    return done / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    operation = protocol.encode_put(KEY % 0, VALUE)
    request = protocol.encode_request(
        protocol.Request(1, 1 << 20, 5000, 0, 0, 1 << 63, 1 << 20, 1 << 20, operation)
    )
    response = protocol.encode_response(1, 1 << 20, 0, b"\x92\x00\xce\x00\x10\x00\x00")
    rows = []
    with ExitStack() as stack:
        bare = start_bare(stack, len(response))
        client = stack.enter_context(kvclient.connect(start_ours(stack), connect_timeout=15))
        client.put(b"ready", b"")
        print(
            f"{'in flight':>9} {'ours op/s':>10} {'bare op/s':>10} {'ratio':>6}  median of {options.rounds}"
        )
        for in_flight in IN_FLIGHT:
            pairs = []
            for _ in range(options.rounds):
                ours = drive_ours(client, in_flight, options.seconds)
                pairs.append((ours, drive(bare, request, in_flight, options.seconds)))
            row = {
                "in_flight": in_flight,
                "ours_ops_per_s": round(statistics.median(ours for ours, _ in pairs)),
                "bare_ops_per_s": round(statistics.median(bare_rate for _, bare_rate in pairs)),
                "ratio": round(statistics.median(ours / bare_rate for ours, bare_rate in pairs), 3),
            }
            rows.append(row)
            print(
                "{in_flight:>9} {ours_ops_per_s:>10,} {bare_ops_per_s:>10,} {ratio:>6.2f}".format(**row),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
