"""One Redis server with `appendfsync always`, loaded by redis-benchmark. It is not replicated: what it does
for durability is one sync per turn of its loop, for all clients that wait.

Keys are 16 bytes, drawn at random from as many as ours. redis-benchmark knows no mixed load: two of them run,
half of the connections each (so not with a single op under way), and the later one's end counts; their median
latencies are averaged, of the 99th percentiles the greater one is told. Pipelines are of 32 commands on 50
connections, which is what the bar says; and, told as "redis-100", of 100 as ours: Redis too is better with
longer ones.

There is one kind of get, and it is as good as linearizable: `get` and `lease_get` are both held against it.
"""

from __future__ import annotations

import csv
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.benchmark.cluster_bench.data import KEYS
from tests.benchmark.cluster_bench.paced import Paced
from tests.benchmark.cluster_bench.points import PIPELINE_OPS, Point, Sample
from tests.benchmark.cluster_bench.processes import Server, wait_until
from tests.benchmark.engine_bench.data import VALUE_BYTES, value
from tests.ports import free_ports

PROGRAMS = ("redis-server", "redis-benchmark", "redis-cli")
START_SECONDS = 30.0
LOAD_SECONDS_MAX = 120.0
PIPELINE = 32
PIPELINE_CONNECTIONS = 50


def start(stack: ExitStack, directory: Path) -> list[Redis]:
    """One server; what loads it, in two ways."""
    server = RedisServer(stack, directory)
    return [Redis("redis", server, PIPELINE), Redis(f"redis-{PIPELINE_OPS}", server, PIPELINE_OPS)]


class RedisServer:
    """Runs when it is made, and holds all keys; ends with `stack`."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        directory.mkdir()
        (port,) = free_ports(1)
        self.port = str(port)
        command = [
            "redis-server",
            *("--bind", "127.0.0.1", "--port", self.port, "--dir", str(directory), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"),
        ]
        self.process = Server(stack, "redis-server", command, directory / "redis.log", directory)
        self.process.start()
        wait_until(lambda: self._cli("ping") == "PONG", START_SECONDS, "redis-server", [self.process])
        sets = b"".join(
            b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%s\r\n" % (number, VALUE_BYTES, value(number))
            for number in range(KEYS)
        )
        self._cli("--pipe", given=sets)
        if self._cli("dbsize") != str(KEYS):
            raise RuntimeError(f"redis has {self._cli('dbsize')} keys instead of {KEYS}")

    def calls(self) -> dict[str, int]:
        """Commands that succeeded so far, by name."""
        found = re.findall(
            r"cmdstat_(\w+):calls=(\d+).*failed_calls=(\d+)", self._cli("info", "commandstats")
        )
        return {name: int(calls) - int(failed) for name, calls, failed in found}

    def _cli(self, *arguments: str, given: bytes = b"") -> str:
        done = subprocess.run(
            ["redis-cli", "-p", self.port, *arguments],
            input=given,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        return done.stdout.decode().strip()


class Redis:
    """A server loaded with pipelines of `pipeline` commands; the usual one with single commands, too."""

    def __init__(self, name: str, server: RedisServer, pipeline: int) -> None:
        self.name = name
        self._server = server
        self._pipeline = pipeline
        self._paced = Paced()

    def servers(self) -> dict[str, int]:
        return {self._server.process.name: self._server.process.pid}

    def syncs(self) -> int | None:
        return None

    def prepare(self, point: Point) -> bool:
        if point.batch == 1 and self._pipeline != PIPELINE:
            return False
        if point.workload == "mixed" and point.requests < 2:
            return False
        self._paced.probe(point, self._load)
        return True

    def run(self, point: Point, seconds: float) -> Sample:
        return self._paced.run(point, seconds, self._load)

    def _load(self, point: Point, requests: int) -> Sample:
        """One run of redis-benchmark, or of two side by side; `requests` of `point.batch` ops in all."""
        tests = {"put": ["set"], "mixed": ["set", "get"]}.get(point.workload, ["get"])
        pipeline, connections = (1, point.in_flight)
        if point.batch > 1:
            pipeline, connections = (self._pipeline, PIPELINE_CONNECTIONS)
        ops = requests * point.batch // len(tests)
        ops -= ops % pipeline  # it sends whole pipelines only
        before = self._server.calls()
        with ExitStack() as stack:
            runs = [self._start(stack, test, ops, connections // len(tests), pipeline) for test in tests]
            rows = [_row(run) for run in runs]
        after = self._server.calls()
        for test in tests:
            served = after.get(test, 0) - before.get(test, 0)
            if served != ops:
                raise RuntimeError(f"redis served {served} of {ops} {test}")
        took = max(ops / float(row["rps"]) for row in rows)
        p50 = sum(float(row["p50_latency_ms"]) for row in rows) / len(rows)
        return Sample(ops * len(tests), took, p50, max(float(row["p99_latency_ms"]) for row in rows))

    def _start(
        self, stack: ExitStack, test: str, ops: int, connections: int, pipeline: int
    ) -> subprocess.Popen[str]:
        command = [
            "redis-benchmark",
            *("-p", self._server.port, "-t", test, "-n", str(ops), "-c", str(connections)),
            *("-d", str(VALUE_BYTES), "-r", str(KEYS), "-P", str(pipeline), "--csv"),
        ]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stack.enter_context(run)
        stack.callback(run.kill)
        return run


def _row(run: subprocess.Popen[str]) -> dict[str, str]:
    """What redis-benchmark prints in the end, by the names of its columns."""
    output, _ = run.communicate(timeout=LOAD_SECONDS_MAX)
    lines = output.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith('"test"')]
    if run.returncode or not heads or len(lines) <= heads[-1] + 1:
        raise RuntimeError(f"redis-benchmark: {output[-500:]}")
    return next(csv.DictReader(lines[heads[-1] :]))
