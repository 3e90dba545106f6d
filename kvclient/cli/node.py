"""`kvcli node`: the stores of the cluster, looked at, added, drained and removed.

Owns the words and columns. What may be done is judged by the controller; a refusal is printed as it worded
it, with exit code 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kvclient.cli.app import App, current
from kvclient.cli.command import command
from kvclient.cli.control import Left, ask, find, left_of, names, partition_name, show, wait_until_done
from kvclient.cli.devcluster import to_yaml
from kvclient.cli.failure import Failure
from kvclient.cli.output import Cell
from kvclient.cli.units import DURATION, show_bytes, show_seconds
from kvclient.errors import Exit

_COLUMNS = (
    "node", "id", "state", "zone", "weight", "replicas", "share", "leads", "bytes", "disk_free", "heard",
    "software", "address",
)  # fmt: skip
_WEIGHT = click.IntRange(0, 1_000_000)
"""Of a new store and of one that is there: what a cluster map takes (docs/protocol.md section 6)."""
_MOVE_COLUMNS = ("partition", "source", "target", "reason", "stage", "waits")

Row = dict[str, Any]


@click.group("node")
def node() -> None:
    """Show, add, drain and remove stores.

    NODE is a node's name or id, as in `kvcli node ls`. To take a store away: drain it, wait, remove it.
    """


def _dry_run(function: Callable[..., Any]) -> Callable[..., Any]:
    help_ = "Only say what would happen, or why it would be refused."
    return click.option("--dry-run", is_flag=True, help=help_)(function)


def _wait(function: Callable[..., Any]) -> Callable[..., Any]:
    within = click.option(
        "--within", type=DURATION, help="With --wait: give up after this long. [default: never]"
    )
    return click.option("--wait", "waits", is_flag=True, help="Return when it is done.")(within(function))


@command("ls")
def list_nodes() -> None:
    """Show every store: its state, what it holds, what it should hold, and when it was last heard of.

    `share` is how many replicas it should have by its weight.
    """
    app = current()
    shown = show(app)
    if app.output.form in ("json", "jsonl"):
        documents = [{"nodes": shown["nodes"]}] if app.output.form == "json" else shown["nodes"]
        for document in documents:
            app.output.document(document)
        return
    with app.output.rows("nodes", _COLUMNS) as rows:
        for one in shown["nodes"]:
            cells = _cells(one)
            rows.add(*(cells[column] for column in _COLUMNS))


def _cells(one: Row) -> dict[str, Cell]:
    heard, share = one["heard_ms"], one["share"]
    sizes = {name: None if one[name] is None else show_bytes(one[name]) for name in ("bytes", "disk_free")}
    return {
        "node": one["name"],
        **{name: one[name] for name in ("id", "zone", "weight", "replicas", "leads")},
        "state": "removing" if one.get("removing") else one["state"],
        **sizes,
        "share": None if share is None else round(share),
        "heard": None if heard is None else show_seconds(heard / 1000) + " ago",
        "software": one["software"] or None,
        "address": one["rpc"],
    }


@command("show")
@click.argument("node")
def show_node(node: str) -> None:
    """Show one store and the moves that concern it."""
    app = current()
    shown = show(app)
    one = _found(shown, node)
    moves = _moves_of(shown, one["id"])
    if app.output.form in ("json", "jsonl"):
        app.output.document(one | {"controls": one["id"] in shown["control"], "moves": moves})
        return
    cells = _cells(one) | {"incarnation": one["incarnation"], "control": _yes(one["id"] in shown["control"])}
    if app.output.form == "csv":
        app.output.record(cells, ())
        return
    for name, cell in cells.items():
        app.output.line(f"{name:<12} {'-' if cell is None else cell}")
    if app.output.form == "table" and moves:
        called = names(shown)
        with app.output.rows("moves", _MOVE_COLUMNS) as rows:
            for move in moves:
                rows.add(
                    partition_name(move["partition"]),
                    called[move["source"]],
                    called[move["target"]],
                    move["reason"],
                    move["stage"],
                    move["waits"],
                )


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _found(shown: Row, node: str) -> Row:
    one = find(shown, node)
    if one is None:
        known = ", ".join(each["name"] for each in shown["nodes"])
        raise Failure(Exit.NOT_FOUND, f"there is no node {node!r}. There are: {known}", "NO_NODE")
    return one


def _moves_of(shown: Row, number: int) -> list[Row]:
    return [move for move in shown["moves"] if number in (move["source"], move["target"])]


@command("add")
@click.argument("name")
@click.option("--rpc", required=True, help="Where the new store will listen: tcp://host:port.")
@click.option("--zone", help="What fails together with it: replicas of a partition are spread over zones.")
@click.option("--weight", type=_WEIGHT, help="Its share of the data, relative to the others; 0: none.")
@click.option("--data-dir", default="data", show_default=True, help="Its data directory, empty or not there.")
def add(name: str, rpc: str, zone: str | None, weight: int | None, data_dir: str) -> None:
    """Print the configuration with which a new store joins the cluster.

    Nothing changes yet: the store joins when it is started with it, and is given its share of the data by
    `kvcli rebalance start`.
    """
    app = current()
    arguments: dict[str, Any] = {"name": name, "rpc": rpc}
    arguments |= {key: value for key, value in (("zone", zone), ("weight", weight)) if value is not None}
    answer = ask(app, f"adding {name}", "node-add", arguments)
    configuration = _configuration(answer, arguments, data_dir)
    if app.output.form in ("json", "jsonl"):
        app.output.document({"configuration": configuration})
        return
    app.output.line(to_yaml(configuration).rstrip("\n"))
    app.note(f"write this to {name}.yaml on its machine, check data.dir, then:")
    app.note(f"  kv-store --config {name}.yaml")
    app.note("  kvcli node ls                    until it is up")
    app.note("  kvcli rebalance start --wait     gives it its share")


def _configuration(answer: Row, arguments: dict[str, Any], data_dir: str) -> dict[str, Any]:
    about = {key: arguments[key] for key in ("name", "zone", "weight") if key in arguments}
    return {
        "node": about,
        "listen": {"rpc": arguments["rpc"]},
        "data": {"dir": data_dir},
        "cluster": {"name": answer["cluster"], "join": answer["join"]},
    }


@command("drain")
@click.argument("node")
@_wait
@_dry_run
def drain(node: str, waits: bool, within: float | None, dry_run: bool) -> None:
    """Move everything off a store, so that it can be removed. It serves on until it holds nothing."""
    app = current()
    answer = ask(app, f"draining {node}", "node-drain", {"node": node}, dry_run)
    done = f"is being drained of {answer.get('replicas', 'its')} replicas"
    _tell(app, answer, node, done, "is being drained already", dry_run)
    if waits and not dry_run:
        wait_until_done(
            app,
            f"drain {node}",
            lambda shown: _held(shown, answer["node"]),
            within,
            f"kvcli node drain {node} --wait",
        )


def _held(shown: Row, number: int) -> Left:
    """What a store still has to give away; also its part in the control partition. By its id: its name may be
    another store's by now. Failure if it is not to give away anything any more.
    """
    one = next((one for one in shown["nodes"] if one["id"] == number), None)
    if one is None:
        return Left(0, 0, "")
    if one["state"] not in ("draining", "foreign") and not one.get("removing"):
        text = f"{one['name']} is not being drained any more: somebody has undrained it"
        raise Failure(Exit.CONFLICT, text, "UNDRAINED")
    held = one["replicas"] + (one["id"] in shown["control"])
    return left_of([move for move in shown["moves"] if move["source"] == one["id"]], held)


@command("undrain")
@click.argument("node")
@_dry_run
def undrain(node: str, dry_run: bool) -> None:
    """Let a store that was being drained hold data again; moves off it that have not begun are dropped."""
    app = current()
    answer = ask(app, f"undraining {node}", "node-undrain", {"node": node}, dry_run)
    _tell(app, answer, node, "takes part again", "was not being drained", dry_run)


@command("remove")
@click.argument("node")
@click.option(
    "--force",
    is_flag=True,
    help="Also a store that is silent and holds replicas: others replace them first, where any can.",
)
@_wait
@_dry_run
def remove(node: str, force: bool, waits: bool, within: float | None, dry_run: bool) -> None:
    """Take a store out of the cluster for good. It must hold nothing (drain it first), or be lost (--force).

    Its id is never given again, and its disk is worth nothing any more: what comes back is a new store.
    """
    app = current()
    if force and not dry_run:
        app.confirm(f"Remove {node} for good, and never use its data again?")
    arguments = {"node": node} | ({"force": True} if force else {})
    what = f"removing {node}"
    answer = ask(app, what, "node-remove", arguments, dry_run)
    pending = bool(answer.get("pending"))
    done = (
        "is replaced by others first, where any can, then removed"
        if pending
        else "is no node of the cluster any more"
    )
    _tell(app, answer, node, done, "is no node of the cluster", dry_run)
    if waits and pending and not dry_run:
        again = f"kvcli node remove {node} --force --yes --wait"
        wait_until_done(app, what, lambda shown: _until_gone(shown, answer["node"]), within, again)


def _until_gone(shown: Row, number: int) -> Left:
    """What a store that is being removed still holds; it is there until it has been removed."""
    left = _held(shown, number)
    there = any(one["id"] == number for one in shown["nodes"])
    return left._replace(replicas=max(1, left.replicas)) if there else left


@command("set-weight")
@click.argument("node")
@click.argument("weight", type=_WEIGHT)
@_dry_run
def set_weight(node: str, weight: int, dry_run: bool) -> None:
    """Set a store's share of the data, relative to the others; `kvcli rebalance start` moves it."""
    app = current()
    arguments = {"node": node, "weight": weight}
    answer = ask(app, f"setting the weight of {node}", "node-set-weight", arguments, dry_run)
    _tell(app, answer, node, f"has weight {weight}", f"has weight {weight} already", dry_run)


def _tell(app: App, answer: Row, node: str, done: str, already: str, dry_run: bool) -> None:
    changed = bool(answer.get("changed", True))
    if app.output.form in ("json", "jsonl"):
        app.output.document(answer | {"dry_run": dry_run})
        return
    if not changed:
        app.output.line(f"{node}: nothing to do, it {already}")
        return
    app.output.line(f"{node}: " + (f"would be done: it {done}" if dry_run else f"it {done}"))


for _command in (list_nodes, show_node, add, drain, undrain, remove, set_weight):
    node.add_command(_command)
