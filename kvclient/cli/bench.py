"""`kvcli bench`: drives a cluster in a closed loop and prints rates and latencies.

One thread keeps `--in-flight` requests of `--pipeline` ops each under way; a request's latency is the time
from its first sending to its answer, with all retries. The keys are its own, under a prefix that it fills
first and clears afterwards.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.histogram import LatencyHistogram
from kvclient.cli.interrupts import Interrupts
from kvclient.cli.progress import Progress
from kvclient.cli.units import DURATION, SIZE, show_latency
from kvclient.connection import Connection, Connections
from kvclient.errors import Exit, KVError, Status
from kvclient.options import with_keys
from kvclient.pending import Pending
from kvclient.protocol import OPS_MAX, Kind, encode_get, encode_put
from kvclient.url import Address, default_url, parse, read_mode

PERCENTILES = (50, 95, 99, 99.9)

# Deleting and filling go through put_many and delete_many in lists of this size.
_CHUNK_KEYS = 5000
_MIX = re.compile(r"(\d{1,3})(?:/(\d{1,3}))?")


def _mix(ctx: click.Context, param: click.Parameter, text: str) -> float:
    match = _MIX.fullmatch(text)
    gets = int(match[1]) if match else -1
    puts = int(match[2]) if match and match[2] else 100 - gets
    if gets < 0 or puts < 0 or gets + puts == 0:
        raise click.BadParameter("write it as GET/PUT, such as 90/10", ctx, param)
    return gets / (gets + puts)


class Run:
    """The loop and what it measured. Errors are counted by name; they do not stop it.

    Requests go straight to the connection, not through a pipeline: that would hold back requests whose keys
    meet, as it promises an order that the many clients this stands for do not have among each other.
    """

    def __init__(self, connection: Connection, ops: Iterator[Op], address: Address) -> None:
        self.latency = LatencyHistogram()
        self.ops = 0
        self.errors: Counter[str] = Counter()
        self.seconds = 0.0
        self._connection = connection
        self._ops = ops
        self._timeout = address.timeout
        self._read_mode = read_mode(address.read)
        self._under_way = 0

    def go(
        self, pipeline: int, in_flight: int, seconds: float, ops_max: int | None, progress: Progress
    ) -> None:
        """Until the time is over, or so many ops were sent; then wait for the answers."""
        began = time.monotonic()
        end = began + seconds
        connection = self._connection
        sent = 0
        with connection.lock:
            try:
                while (time.monotonic() < end) if ops_max is None else (sent < ops_max):
                    while self._under_way < in_flight and (ops_max is None or sent < ops_max):
                        count = pipeline if ops_max is None else min(pipeline, ops_max - sent)
                        self._under_way += 1
                        sent += count
                        connection.start(self._request(count))
                    connection.turn()
                    progress.update(self.ops, 0)
                while self._under_way:
                    connection.turn()
            finally:
                self.seconds = time.monotonic() - began

    def _request(self, count: int) -> Pending:
        parts = list(islice(self._ops, count))
        writes = any(op.writes for op in parts)
        body = b"".join([op.data for op in parts])
        return Pending(Kind.OPS, body, count, writes, self._read_mode, self._timeout, self._on_done)

    def _on_done(self, pending: Pending) -> None:
        self._under_way -= 1
        if pending.first_sent > 0:
            self.latency.record(int((time.monotonic() - pending.first_sent) * 1e9))
        if pending.error is not None:
            self.errors[Status(pending.error.status).name] += pending.count
            return
        self.ops += pending.count
        for result in pending.results:
            if result[0] > Status.NOT_FOUND:
                self.errors[Status(result[0]).name] += 1
                self.ops -= 1


class Op(NamedTuple):
    """An op and whether it writes."""

    data: bytes
    writes: bool


def make_ops(prefix: bytes, keys: int, gets: float, value_size: int, seed: int) -> Iterator[Op]:
    """An endless mix of gets and puts over uniformly random keys; values are slices of one random block."""
    generator = random.Random(seed)
    uniform = generator.random
    block = generator.randbytes(value_size + 4096)
    while True:
        key = b"%s%012d" % (prefix, int(uniform() * keys))
        if uniform() < gets:
            yield Op(encode_get(key), False)
        else:
            offset = int(uniform() * 4096)
            yield Op(encode_put(key, block[offset : offset + value_size]), True)


@command("bench")
@click.option(
    "--mix",
    metavar="GET/PUT",
    default="90/10",
    show_default=True,
    callback=_mix,
    help="Share of gets and puts.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Requests under way at once.",
)
@click.option(
    "--pipeline",
    type=click.IntRange(1, OPS_MAX),
    default=1,
    show_default=True,
    help="Ops per request.",
)
@click.option("--value", "value_size", type=SIZE, default=100, show_default=True, help="Bytes of a value.")
@click.option(
    "--keys", type=click.IntRange(1, 100_000_000), default=100_000, show_default=True, help="Different keys."
)
@click.option("--seconds", type=DURATION, default=10.0, show_default=True, help="How long.")
@click.option("--ops", "ops_max", type=click.IntRange(min=1), help="Stop after so many ops instead.")
@click.option(
    "--fill/--no-fill", default=True, help="Put every key once before the measurement. [default: yes]"
)
@click.option("--keep", is_flag=True, help="Leave the keys there afterwards.")
@click.option(
    "--prefix",
    default="kvcli-bench:",
    show_default=True,
    help="What the keys begin with; those are deleted afterwards.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the keys and values chosen.")
def bench(
    mix: float,
    in_flight: int,
    pipeline: int,
    value_size: int,
    keys: int,
    seconds: float,
    ops_max: int | None,
    fill: bool,
    keep: bool,
    prefix: str,
    seed: int,
) -> None:
    """Load the cluster and print ops/s and latencies. Exit code 10 if ops failed."""
    app = current()
    name = app.data(prefix, "prefix")
    if not name:
        raise click.UsageError("--prefix cannot be empty: the keys under it are deleted afterwards.")
    _refuse_foreign_keys(app, name, fill)
    address = _address(app)
    connections = Connections(address)
    try:
        if fill:
            _fill(app, name, keys, value_size)
        ops = make_ops(address.namespace + name, keys, mix, value_size, seed)
        run = Run(connections.current(), ops, address)
        progress = Progress("bench:", None, shown=not app.settings.quiet, unit="ops")
        with Interrupts():
            try:
                run.go(pipeline, in_flight, seconds, ops_max, progress)
            except KeyboardInterrupt:
                _report(app, run, mix, in_flight, pipeline, value_size, progress)
                raise
        _report(app, run, mix, in_flight, pipeline, value_size, progress)
    finally:
        connections.close()
        if not keep:
            _clear(app, name)
    if run.errors:
        quit_with(Exit.PARTIAL)


def _address(app: App) -> Address:
    """What the SDK's connect would make of the URL and the global options."""
    settings = app.settings
    address = with_keys(parse(settings.url or default_url(os.environ)), settings.keys)
    if settings.timeout is not None:
        address = address._replace(timeout=settings.timeout)
    return address if settings.read is None else address._replace(read=settings.read)


def _refuse_foreign_keys(app: App, prefix: bytes, fill: bool) -> None:
    if fill and app.client().count(prefix):
        app.confirm(f"There are keys under {prefix.decode(errors='replace')}. Overwrite and delete them?")


def _fill(app: App, prefix: bytes, keys: int, value_size: int) -> None:
    client = app.client()
    value = random.Random(0).randbytes(value_size)
    progress = Progress("filling:", None, shown=not app.settings.quiet)
    for first in range(0, keys, _CHUNK_KEYS):
        last = min(first + _CHUNK_KEYS, keys)
        client.put_many(
            [(b"%s%012d" % (prefix, number), value) for number in range(first, last)]
        ).raise_for_errors()
        progress.update(last, last * value_size)
    progress.clear()


def _clear(app: App, prefix: bytes) -> None:
    client = app.client()
    chunk: list[bytes] = []
    try:
        for entry in client.scan(prefix, keys_only=True):
            chunk.append(entry.key)
            if len(chunk) >= _CHUNK_KEYS:
                client.delete_many(chunk)
                chunk = []
        if chunk:
            client.delete_many(chunk)
    except KVError as error:
        app.note(f"the keys under {prefix.decode(errors='replace')} are still there: {error.message}")


def _report(
    app: App, run: Run, mix: float, in_flight: int, pipeline: int, value_size: int, progress: Progress
) -> None:
    progress.clear()
    latency = run.latency
    rate = run.ops / run.seconds if run.seconds else 0.0
    percentiles = {f"p{percent:g}": latency.percentile(percent) for percent in PERCENTILES}
    if app.output.form in ("json", "jsonl"):
        app.output.document(
            {
                "get_share": round(mix, 4),
                "in_flight": in_flight,
                "pipeline": pipeline,
                "value_bytes": value_size,
                "seconds": round(run.seconds, 3),
                "ops": run.ops,
                "ops_per_second": round(rate, 1),
                "requests": latency.count,
                "latency_us": {name: round(value / 1000, 1) for name, value in percentiles.items()}
                | {"max": round(latency.largest / 1000, 1)},
                "errors": dict(run.errors),
            }
        )
        app.output.stdout.flush()
        return
    app.output.line(
        f"{run.ops:,} ops in {run.seconds:.2f} s: {rate:,.0f} ops/s  "
        f"({mix:.0%} get, {in_flight} in flight, {pipeline} ops a request)"
    )
    shown = "  ".join(f"{name} {show_latency(value / 1e9)}" for name, value in percentiles.items())
    app.output.line(f"latency of a request: {shown}  max {show_latency(latency.largest / 1e9)}")
    for name, count in run.errors.most_common():
        app.output.line(f"failed: {count:,} ops with {name}")
    app.output.stdout.flush()
