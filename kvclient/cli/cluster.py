"""The commands about the cluster itself: status, route, ping, wait, version."""

from __future__ import annotations

import time
from typing import Any

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.failure import Failure, what_now
from kvclient.cli.output import Cell
from kvclient.cli.progress import Progress
from kvclient.cli.retrying import is_transient
from kvclient.cli.units import DURATION, show_bytes, show_latency, show_seconds
from kvclient.errors import ConnectError, Exit, InvalidRequest, KVError
from kvclient.health import is_led, problems

_NODE_COLUMNS = ("node", "state", "partitions", "entries", "disk", "memory", "uptime", "address")
_REPLICATED_COLUMNS = ("node", "state", "leads", "partitions", "lag", *_NODE_COLUMNS[3:])
_PARTITION_COLUMNS = ("partition", "leader", "term", "commit", "applied", "lag", "replicas")

# Between two tries of `wait`: short for a script, nothing for the cluster.
_WAIT_PAUSE_SECONDS = 0.1


@command("status")
@click.option("--partitions", is_flag=True, help="A line per partition: leader, term, indexes, replicas.")
def status(partitions: bool) -> None:
    """Show the cluster, its nodes and its problems. Exit code 11 when there are problems."""
    app = current()
    answer = app.client().admin("status")
    show_status(app, answer, partitions)


def show_status(app: App, answer: dict[str, Any], partitions: bool) -> None:
    """An answer of the ADMIN command `status`, and what is wrong by it."""
    found = problems(answer)
    output = app.output
    if output.form in ("json", "jsonl"):
        output.document({"healthy": not found, "problems": found, "cluster": answer})
    else:
        if output.form == "table":
            output.line(_headline(answer, found))
        if partitions:
            _show_partitions(app, answer)
        else:
            _show_nodes(app, answer)
        for problem in found:
            if output.form == "table":
                output.line(f"problem: {problem}")
            else:
                app.note(f"problem: {problem}")
    if found:
        quit_with(Exit.DEGRADED)


def _headline(answer: dict[str, Any], found: list[str]) -> str:
    nodes: list[dict[str, Any]] = answer["nodes"]
    live = sum(node["state"] in ("up", "draining") for node in nodes)
    # Deleted and overwritten entries count until compaction drops them: this is no count of keys.
    entries = sum(node.get("keys", 0) for node in nodes)
    led = f", {sum(map(is_led, answer['groups']))} led" if "groups" in answer else ""
    parts = [
        f"cluster {answer['name']}",
        "DEGRADED" if found else "healthy",
        f"{live} of {len(nodes)} nodes up",
        f"{answer['partitions']} partitions{led}, replicas {answer['replicas']}",
        f"{entries:,} entries stored",
        f"epoch {answer['epoch']}",
        *_control(answer),
        f"via {answer['router']}",
    ]
    return " · ".join(parts)


def _control(answer: dict[str, Any]) -> list[str]:
    """Who controls, and what is on its way; nothing of stores that have no control partition."""
    if "controller" not in answer:
        return []
    names = {node["id"]: node["name"] for node in answer["nodes"]}
    parts = [f"controller {names.get(answer['controller'], '-')}"]
    if moves := answer["moves"]:
        parts.append(f"{len(moves)} moves" + (", paused" if answer["paused"] else ""))
    return parts


def _show_nodes(app: App, answer: dict[str, Any]) -> None:
    columns = _REPLICATED_COLUMNS if "groups" in answer else _NODE_COLUMNS
    with app.output.rows("nodes", columns) as rows:
        for node in answer["nodes"]:
            cells = _node_cells(node)
            rows.add(*(cells[column] for column in columns))


def _node_cells(node: dict[str, Any]) -> dict[str, Cell]:
    """A node's row; figures that a node which is down cannot give are None."""

    def show(name: str, form: Any) -> Cell:
        value = node.get(name)
        return None if value is None else form(value)

    return {
        "node": node["name"],
        "state": node["state"],
        "leads": node.get("leads"),
        "partitions": node["partitions"],
        "lag": node.get("lag"),
        "entries": show("keys", int),
        "disk": show("disk_bytes", show_bytes),
        "memory": show("memory_bytes", show_bytes),
        "uptime": show("uptime_s", show_seconds),
        "address": node["rpc"],
    }


def _show_partitions(app: App, answer: dict[str, Any]) -> None:
    if "groups" not in answer:
        app.note("the stores say nothing of partitions: they do not replicate")
        return
    names = {node["id"]: node["name"] for node in answer["nodes"]}
    with app.output.rows("partitions", _PARTITION_COLUMNS) as rows:
        for row in answer["groups"]:
            replicas: list[dict[str, Any]] = row["replicas"]
            rows.add(
                row["partition"],
                names.get(row["leader"]),
                row["term"],
                row["commit"],
                row["applied"],
                max((replica["lag"] for replica in replicas if replica["lag"] is not None), default=None),
                ",".join(names[replica["id"]] + ("" if replica["up"] else "(away)") for replica in replicas),
            )


@command("route")
@click.argument("key")
def route(key: str) -> None:
    """Show which partition and which nodes hold a key."""
    app = current()
    name = app.data(key)
    show_route(app, name, app.client().admin("route", name))


def show_route(app: App, name: bytes, answer: dict[str, Any]) -> None:
    """An answer of the ADMIN command `route`."""
    replicas: list[dict[str, Any]] = answer["replicas"]
    if app.output.form in ("json", "jsonl"):
        from kvclient.cli.text import to_json

        fields = {"key": to_json(name), "hashed_part": to_json(answer["hashed_part"])}
        shown = ("partition", "replicas", "state", "epoch", "term", "commit")
        app.output.document(fields | {field: answer[field] for field in shown if field in answer})
        return
    leaders = [replica["name"] for replica in replicas if replica.get("leader")]
    cells: dict[str, Cell] = {
        "key": name,
        "partition": answer["partition"],
        "nodes": ",".join(replica["name"] for replica in replicas),
        "state": answer["state"],
        "hashed_part": answer["hashed_part"],
        "epoch": answer["epoch"],
        "leader": leaders[0] if leaders else None,
    }
    if "term" in answer:
        cells["term"] = answer["term"]
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
@click.option("--healthy", is_flag=True, help="Nothing is missing, behind, or on its way to another store.")
@click.option("--timeout", type=DURATION, default=60.0, show_default="60s", help="Give up after this long.")
def wait(ready: bool, healthy: bool, timeout: float) -> None:
    """Wait until a write in every partition would succeed. Exit code 8 (or 5) if that does not come in
    time.

    With --healthy, until besides every store is up, every replica is there and has caught up, a controller
    answers, and no move is queued or under way: the moment for the next step of an upgrade.
    """
    if ready and healthy:
        raise click.UsageError("give either --ready or --healthy; who is healthy is ready")
    app, what = current(), "healthy" if healthy else "ready"
    wait_for(app, what, timeout)
    app.note(what)


def wait_for(app: App, what: str, timeout: float) -> None:
    """Asks the ADMIN command `what` (ready, healthy) until it is OK; Failure when that takes longer."""
    began, told = time.monotonic(), ""
    deadline = began + timeout
    progress = Progress(f"not {what} yet", None, not app.settings.quiet)
    own_timeout = app.settings.timeout
    try:
        while (problem := _ask(app, what, deadline)) is not None:
            if time.monotonic() >= deadline:
                away = isinstance(problem, ConnectError)
                now = what_now(problem) if away else "See: kvcli status"
                why = problem.message.removeprefix(f"not {what}: ").rstrip(".")
                message = f"not {what} after {show_seconds(timeout)}: {why}. {now}"
                raise Failure(Exit.CONNECT if away else Exit.UNAVAILABLE, message, "NOT_READY")
            progress.say(f"after {show_seconds(time.monotonic() - began)}: {problem.message}")
            if app.settings.verbosity and problem.message != told:
                told = problem.message
                app.note(f"not {what} yet: {told}")
            time.sleep(min(_WAIT_PAUSE_SECONDS, max(0.0, deadline - time.monotonic())))
    finally:
        progress.clear()
        app.settings.timeout = own_timeout
        app.close()  # its deadlines were those of the last try


def _ask(app: App, what: str, deadline: float) -> KVError | None:
    """Why it is not so; None if it is."""
    left = max(0.05, deadline - time.monotonic())
    app.settings.timeout = min(app.settings.timeout or left, left)
    try:
        app.client().admin(what, timeout=app.settings.timeout)
    except KVError as error:
        if not is_transient(error):
            raise
        if isinstance(error, ConnectError):
            app.close()
        return error
    return None


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
