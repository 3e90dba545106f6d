"""The commands about the cluster itself: status, route, ping, wait, version."""

from __future__ import annotations

import time
from typing import Any

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.failure import Failure, what_now
from kvclient.cli.output import Cell
from kvclient.cli.retrying import is_transient
from kvclient.cli.units import DURATION, show_bytes, show_latency, show_seconds
from kvclient.errors import ConnectError, Exit, InvalidRequest, KVError

_NODE_COLUMNS = ("node", "state", "partitions", "entries", "disk", "memory", "uptime", "address")
_PARTITIONS_NAMED = 8

# Between two tries of `wait`: short for a script, nothing for the cluster.
_WAIT_PAUSE_SECONDS = 0.1


@command("status")
def status() -> None:
    """Show the cluster, its nodes and its problems. Exit code 11 when there are problems."""
    app = current()
    answer = app.client().admin("status")
    nodes: list[dict[str, Any]] = answer["nodes"]
    found = problems(nodes)
    output = app.output
    if output.form in ("json", "jsonl"):
        output.document({"healthy": not found, "problems": found, "cluster": answer})
    else:
        if output.form == "table":
            output.line(_headline(answer, nodes, found))
        with output.rows("nodes", _NODE_COLUMNS) as rows:
            for node in nodes:
                rows.add(*_node_cells(node))
        for problem in found:
            if output.form == "table":
                output.line(f"problem: {problem}")
            else:
                app.note(f"problem: {problem}")
    if found:
        quit_with(Exit.DEGRADED)


def _headline(answer: dict[str, Any], nodes: list[dict[str, Any]], found: list[str]) -> str:
    live = sum(node["state"] == "up" for node in nodes)
    # Deleted and overwritten entries count until compaction drops them: this is no count of keys.
    entries = sum(node.get("keys", 0) for node in nodes)
    parts = [
        f"cluster {answer['name']}",
        "DEGRADED" if found else "healthy",
        f"{live} of {len(nodes)} nodes up",
        f"{answer['partitions']} partitions, replicas {answer['replicas']}",
        f"{entries:,} entries stored",
        f"epoch {answer['epoch']}",
        f"via {answer['router']}",
    ]
    return " · ".join(parts)


def _node_cells(node: dict[str, Any]) -> list[Cell]:
    """A node's row; figures that a node which is down cannot give are None."""

    def show(name: str, form: Any) -> Cell:
        value = node.get(name)
        return None if value is None else form(value)

    return [
        node["name"],
        node["state"],
        node["partitions"],
        show("keys", int),
        show("disk_bytes", show_bytes),
        show("memory_bytes", show_bytes),
        show("uptime_s", show_seconds),
        node["rpc"],
    ]


def problems(nodes: list[dict[str, Any]]) -> list[str]:
    """One sentence for everything that an operator should do something about."""
    found = []
    for node in nodes:
        if node["state"] != "up":
            found.append(
                f"{node['name']} is {node['state']}: {node['partitions']} partitions lack it. "
                f"Start it again at {node['rpc']}"
            )
        read_only = node.get("read_only") or {}
        if read_only:
            reasons = "; ".join(sorted({str(reason) for reason in read_only.values()}))
            found.append(f"{node['name']} cannot write {len(read_only)} of its partitions: {reasons}")
    versions = sorted({str(node["version"]) for node in nodes if "version" in node})
    if len(versions) > 1:
        found.append(f"nodes run different versions: {', '.join(versions)}")
    return found


@command("route")
@click.argument("key")
def route(key: str) -> None:
    """Show which partition and which nodes hold a key."""
    app = current()
    name = app.data(key)
    answer = app.client().admin("route", name)
    replicas: list[dict[str, Any]] = answer["replicas"]
    names = ",".join(replica["name"] for replica in replicas)
    if app.output.form in ("json", "jsonl"):
        from kvclient.cli.text import to_json

        fields = {"key": to_json(name), "hashed_part": to_json(answer["hashed_part"])}
        app.output.document(
            fields | {field: answer[field] for field in ("partition", "replicas", "state", "epoch")}
        )
        return
    cells: dict[str, Cell] = {
        "key": name,
        "partition": answer["partition"],
        "nodes": names,
        "state": answer["state"],
        "hashed_part": answer["hashed_part"],
        "epoch": answer["epoch"],
    }
    app.output.record(cells, list(cells), header=True)


@command("ping")
@click.option("-c", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option("-i", "--interval", type=DURATION, default=0.2, show_default="200ms", help="Pause between two.")
def ping(count: int, interval: float) -> None:
    """Measure the round trip to a router."""
    app = current()
    client = app.client()
    trips: list[float] = []
    with app.output.rows("pings", ("router", "version", "epoch", "rtt_ms")) as rows:
        for number in range(count):
            if number:
                time.sleep(interval)
            pong = client.ping()
            trips.append(pong.round_trip)
            rows.add(pong.router, pong.version, pong.epoch, round(pong.round_trip * 1000, 3))
            rows.show()
    if count > 1:
        average = sum(trips) / count
        low, high = show_latency(min(trips)), show_latency(max(trips))
        app.note(f"{count} pings: min {low}, avg {show_latency(average)}, max {high}")


@command("wait")
@click.option("--ready", is_flag=True, help="A write in every partition would succeed (this is the default).")
@click.option("--timeout", type=DURATION, default=60.0, show_default="60s", help="Give up after this long.")
def wait(ready: bool, timeout: float) -> None:
    """Wait until a write in every partition would succeed. Exit code 8 (or 5) if that does not come in
    time.
    """
    app = current()
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        try:
            _ask_ready(app, deadline)
            break
        except KVError as error:
            if not is_transient(error):
                raise
            problem = error
            if isinstance(error, ConnectError):
                app.close()
        if time.monotonic() >= deadline:
            away = isinstance(problem, ConnectError)
            now = what_now(problem) if away else "See: kvcli status"
            message = f"not ready after {show_seconds(timeout)}: {problem.message.rstrip('.')}. {now}"
            raise Failure(Exit.CONNECT if away else Exit.UNAVAILABLE, message, "NOT_READY")
        if app.settings.verbosity and problem.message != told:
            told = problem.message
            app.note(f"not ready yet: {told}")
        time.sleep(min(_WAIT_PAUSE_SECONDS, max(0.0, deadline - time.monotonic())))
    app.note("ready")


def _ask_ready(app: App, deadline: float) -> None:
    left = max(0.05, deadline - time.monotonic())
    app.settings.timeout = min(app.settings.timeout or left, left)
    app.client().admin("ready", timeout=app.settings.timeout)


@command("version")
def version() -> None:
    """Print the version of kvcli, and those of the cluster if one answers."""
    app = current()
    from importlib.metadata import version as installed

    from kvclient.protocol import VERSION

    mine = installed("ringkv")
    router = router_version = None
    try:
        pong = app.client().ping()
        router, router_version = pong.router, pong.version
    except InvalidRequest:
        raise
    except KVError as error:
        app.note(f"no cluster was asked: {error.message}")
    if app.output.form in ("plain", "table"):
        theirs = f", {router} {router_version}" if router else ""
        app.output.line(f"kvcli {mine}, protocol {VERSION}{theirs}")
    else:
        fields: dict[str, Cell] = {
            "kvcli": mine,
            "protocol": VERSION,
            "router": router,
            "router_version": router_version,
        }
        app.output.record(fields, ())
