"""`kvcli rebalance`: which replicas should move, which do, and how fast.

Owns the words and columns; the controller plans, and judges what may be done.
"""

from __future__ import annotations

from typing import Any

import click

from kvclient.cli.app import App, current
from kvclient.cli.command import KvCommand, command
from kvclient.cli.control import ask, left_of, names, partition_name, show, wait_until_done
from kvclient.cli.output import Cell
from kvclient.cli.units import DURATION, SIZE, show_bytes, show_seconds

_PLAN_COLUMNS = ("partition", "source", "target", "bytes")
_LOAD_COLUMNS = ("node", "replicas_before", "replicas_after")
_STATUS_COLUMNS = ("id", "partition", "source", "target", "reason", "stage", "bytes", "done", "waits")

_STATUS_FIELDS = ("moves", "waits", "paused", "settings", "controller", "epoch")

_WATCH = "kvcli rebalance start --wait"

Row = dict[str, Any]


@click.group("rebalance")
def rebalance() -> None:
    """Plan, start and watch moves of replicas between stores.

    Moves happen while clients read and write. Drains and replacements queue moves of their own, which show
    up in `status`, too.
    """


@command("plan")
def plan() -> None:
    """Show which replicas should move so that each store has its share, with bytes and expected balance."""
    app = current()
    answer = ask(app, "the plan", "rebalance-plan")
    _show_plan(app, answer, names(show(app)), "")


@command("start")
@click.option("--wait", "waits", is_flag=True, help="Return when all moves are done.")
@click.option("--within", type=DURATION, help="With --wait: give up after this long. [default: never]")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
def start(waits: bool, within: float | None, dry_run: bool) -> None:
    """Queue the moves of `plan`."""
    app = current()
    answer = ask(app, "the rebalance", "rebalance-start", {}, dry_run)
    _show_plan(app, answer, names(show(app)), "would be queued" if dry_run else "queued")
    if waits and not dry_run:
        wait_until_done(app, "rebalance", lambda shown: left_of(shown["moves"]), within, _WATCH)


def _show_plan(app: App, answer: Row, called: dict[int, str], done: str) -> None:
    if app.output.form in ("json", "jsonl"):
        moves = [
            move | {"source_name": called[move["source"]], "target_name": called[move["target"]]}
            for move in answer["moves"]
        ]
        app.output.document(answer | {"moves": moves})
        return
    moves = answer["moves"]
    before, after = answer["balance"]["before"], answer["balance"]["after"]
    if moves:
        with app.output.rows("moves", _PLAN_COLUMNS) as rows:
            for move in moves:
                size = show_bytes(move["bytes"]) if app.output.form == "table" else move["bytes"]
                source, target = called[move["source"]], called[move["target"]]
                rows.add(partition_name(move["partition"]), source, target, size)
    if app.output.form == "table" and moves:
        with app.output.rows("loads", _LOAD_COLUMNS) as rows:
            for load in answer["loads"]:
                rows.add(called[load["node"]], load["before"], load["after"])
    what = f"{len(moves)} moves, {show_bytes(answer['bytes'])}" + (f", {done}" if done else "")
    text = f"{what}; largest deviation from the share: {before:.0f}% now, {after:.0f}% then"
    if not moves:
        text = f"nothing to move: the largest deviation from the share is {before:.0f}%"
    (app.output.line if app.output.form == "table" else app.note)(text)


@command("status")
def status() -> None:
    """Show the moves that are queued and under way: stage, bytes, how much is done, why one waits."""
    app = current()
    shown = show(app)
    moves: list[Row] = shown["moves"]
    if app.output.form in ("json", "jsonl"):
        app.output.document({name: shown[name] for name in _STATUS_FIELDS if name in shown})
        return
    called = names(shown)
    begun = sum(move["stage"] != "waiting" for move in moves)
    left = left_of(moves)
    text = (
        f"{begun} moves under way, {len(moves) - begun} waiting, {show_bytes(left.bytes)} left"
        if moves
        else "no moves"
    )
    if shown["paused"]:
        text += " · PAUSED: what has begun ends, nothing begins. Go on: kvcli rebalance resume"
    (app.output.line if app.output.form == "table" else app.note)(text)
    for reason in shown.get("waits", ()):
        app.note(f"the controller waits: {reason}")
    if not moves:
        return
    with app.output.rows("moves", _STATUS_COLUMNS) as rows:
        for move in moves:
            cells = _cells(move, called)
            rows.add(*(cells[column] for column in _STATUS_COLUMNS))


def _cells(move: Row, called: dict[int, str]) -> dict[str, Cell]:
    size, done = move["bytes"], move["done"]
    return {
        "id": move["id"],
        "partition": partition_name(move["partition"]),
        "source": called[move["source"]],
        "target": called[move["target"]],
        "reason": move["reason"],
        "stage": move["stage"],
        "bytes": None if size is None else show_bytes(size),
        "done": None if done is None else f"{done:.0%}",
        "waits": move["waits"],
    }


def _verb(verb: str, text: str, done: str, already: str) -> KvCommand:
    @command(verb, help=text)
    @click.option("--dry-run", is_flag=True, help="Only say what would happen.")
    def run(dry_run: bool) -> None:
        app = current()
        answer = ask(app, f"rebalance {verb}", f"rebalance-{verb}", {}, dry_run)
        if app.output.form in ("json", "jsonl"):
            app.output.document(answer | {"dry_run": dry_run})
        elif not answer.get("changed", True):
            app.output.line(f"nothing to do: {already}")
        else:
            app.output.line(f"would be: {done}" if dry_run else done)

    assert isinstance(run, KvCommand)
    return run


pause = _verb(
    "pause",
    "Begin no further moves, also of drains and replacements; those that have begun end.",
    "no move begins until kvcli rebalance resume",
    "the queue is paused already",
)
resume = _verb("resume", "Begin moves again after a pause.", "moves begin again", "the queue is not paused")
stop = _verb(
    "stop",
    "Drop a rebalance's moves that have not begun; those that have begun end. Drains and replacements go on.",
    "moves of the rebalance that had not begun are dropped",
    "no move of a rebalance is waiting",
)


@command("set")
@click.option("--replace-after", type=DURATION, help="A store that is down for so long is replaced.")
@click.option("--transfers-per-node", type=click.IntRange(min=1), help="Moves at once from or to one store.")
@click.option("--bandwidth", type=SIZE, help="The most that a move reads in a second, such as 50MiB.")
@click.option("--dry-run", is_flag=True, help="Only say what the settings would be.")
def set_(
    replace_after: float | None, transfers_per_node: int | None, bandwidth: int | None, dry_run: bool
) -> None:
    """Change how moves are made; without an option, show it."""
    app = current()
    given = {
        "replace_after_ms": None if replace_after is None else round(replace_after * 1000),
        "transfers_per_node": transfers_per_node,
        "bytes_per_second": bandwidth,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    if arguments:
        settings: Row = ask(app, "setting this", "set", arguments, dry_run)["settings"]
    else:
        settings = show(app)["settings"]
    if app.output.form in ("json", "jsonl", "csv"):
        app.output.record(dict(settings), ())
        return
    for name, shown in (
        ("replace-after", show_seconds(settings["replace_after_ms"] / 1000)),
        ("transfers-per-node", str(settings["transfers_per_node"])),
        ("bandwidth", f"{show_bytes(settings['bytes_per_second'])}/s"),
    ):
        app.output.line(f"{name:<19}{shown}")


for _command in (plan, start, status, pause, resume, stop, set_):
    rebalance.add_command(_command)
