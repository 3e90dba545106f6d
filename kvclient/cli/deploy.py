"""`kvcli deploy`: restart a cluster's processes one after the other, as an upgrade does.

Stores first, the controller's last of them, then routers. Before each one nothing may be degraded; after each
one it must be a new process that answers. The first problem ends it, with what to do. Owns the order and the
conditions; `inventory` knows how a process is restarted.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from kvclient.cli.app import App, current
from kvclient.cli.cluster import wait_for
from kvclient.cli.command import command
from kvclient.cli.control import show
from kvclient.cli.devcluster import DevCluster, default_directory
from kvclient.cli.failure import Failure, describe
from kvclient.cli.inventory import Process, local, read
from kvclient.cli.retrying import is_transient
from kvclient.cli.units import DURATION, show_seconds
from kvclient.errors import Exit, KVError

_POLL_SECONDS = 0.2
ROUTER_SECONDS = 2.0  # a live one answers in milliseconds
_PLAN_COLUMNS = ("step", "role", "name", "host", "version", "command")
_DONE_COLUMNS = ("name", "role", "seconds", "version_before", "version")


class Life(NamedTuple):
    """What tells a process from the one after it, and the version it runs."""

    uptime: float
    seen: float
    version: str

    def is_after(self, other: Life) -> bool:
        """Whether it began after `other` was seen."""
        return self.uptime < self.seen - other.seen


class Step(NamedTuple):
    """One process to restart, and how to see the one that runs; None: it does not answer."""

    process: Process
    look: Callable[[], Life | None]


class Done(NamedTuple):
    """A process that was restarted."""

    step: Step
    seconds: float
    before: Life
    after: Life


@command("deploy")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "-i",
    "--inventory",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Processes to restart over ssh; a line is: store|router NAME HOST COMMAND.",
)
@click.option("--dev", is_flag=True, help="The local cluster of `kvcli dev` instead.")
@click.option("--dir", "directory", type=click.Path(file_okay=False), help="Where the local cluster lives.")
@click.option(
    "--patience", type=DURATION, default=120.0, show_default="2m", help="For each restart and each wait."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done, or why it would not begin.")
def deploy(
    names: tuple[str, ...],
    inventory: Path | None,
    dev: bool,
    directory: str | None,
    patience: float,
    dry_run: bool,
) -> None:
    """Restart stores and routers one at a time, as after an upgrade, while clients go on.

    Begins, and goes on, only while `kvcli wait --healthy` holds; ends at the first problem. With NAMEs only
    these. Stores that the cluster does not have (removed ones) are left alone.
    """
    app = current()
    processes = _processes(app, inventory, dev, directory)
    wait_for(app, "ready", patience)
    steps = _plan(app, processes, names)
    if dry_run:
        _show_plan(app, steps)
        wait_for(app, "healthy", 1.0)
        return
    again = _again(inventory, dev, directory)
    done: list[Done] = []
    for number, step in enumerate(steps):
        app.note(f"{step.process.name} ({number + 1} of {len(steps)}): {step.process.command}")
        rest = " ".join(each.process.name for each in steps[number:])
        try:
            done.append(_restart(app, step, patience))
        except (Failure, KVError, KeyboardInterrupt) as problem:
            _show_done(app, done)
            _stop(step, number, f"{again} {rest}", problem)
        app.note(f"{step.process.name}: back after {show_seconds(done[-1].seconds)}")
    _show_done(app, done)


def _processes(app: App, inventory: Path | None, dev: bool, directory: str | None) -> list[Process]:
    if dev == (inventory is not None) or (directory is not None and not dev):
        raise click.UsageError("give either --inventory FILE, or --dev (and --dir)")
    if inventory is not None:
        return read(inventory)
    where = default_directory() if directory is None else Path(directory).absolute()
    cluster = DevCluster.load(where)
    if cluster is None:
        text = f"there is no cluster in {where}. See: kvcli dev up --help"
        raise Failure(Exit.NOT_FOUND, text, "NO_CLUSTER")
    app.settings.url, app.settings.keys = cluster.url, cluster.keys
    return local(cluster, app.note)


def _again(inventory: Path | None, dev: bool, directory: str | None) -> str:
    where = f" --inventory {shlex.quote(str(inventory))}" if inventory is not None else " --dev"
    return "kvcli deploy" + where + (f" --dir {shlex.quote(directory)}" if directory is not None else "")


# -- the plan


def _plan(app: App, processes: list[Process], names: tuple[str, ...]) -> list[Step]:
    known = {process.name for process in processes}
    for name in names:
        if name not in known:
            raise Failure(Exit.USAGE, f"{name!r} is not among: {', '.join(sorted(known))}", "USAGE")
    shown = show(app)
    members = {node["name"]: node for node in shown["nodes"]}
    missing = sorted(members.keys() - known)
    if missing and not names:
        text = (
            f"{', '.join(missing)} would run on as before: give it a line in the inventory, or name those "
            "that are to be restarted"
        )
        raise Failure(Exit.USAGE, text, "INVENTORY")
    chosen = [process for process in processes if not names or process.name in names]
    for process in chosen:
        if process.role == "store" and process.name not in members:
            app.note(f"{process.name} is no member of the cluster: left alone")
    stores = [process for process in chosen if process.role == "store" and process.name in members]
    ids = {process.name: members[process.name]["id"] for process in stores}
    stores.sort(key=lambda process: (ids[process.name] == shown["controller"], ids[process.name]))
    steps = [Step(process, _store_look(app, process.name)) for process in stores]
    routers = [process for process in chosen if process.role == "router"]
    return steps + _router_steps(app, routers)


def _store_look(app: App, name: str) -> Callable[[], Life | None]:
    def look() -> Life | None:
        for node in app.client().admin("status")["nodes"]:
            if node["name"] == name and "uptime_s" in node:
                return Life(node["uptime_s"], time.monotonic(), str(node.get("version", "")))
        return None

    return look


def _router_steps(app: App, routers: list[Process]) -> list[Step]:
    """Routers have no address in the inventory: those of the URL say their names."""
    if not routers:
        return []
    from kvclient import connect
    from kvclient.url import default_url, parse

    found: dict[str, str] = {}
    for endpoint in parse(app.settings.url or default_url()).endpoints:
        with connect(f"kv://{endpoint}", timeout=ROUTER_SECONDS, keys=app.settings.keys) as client:
            found[client.ping().router] = f"kv://{endpoint}"
    for process in routers:
        if process.name not in found:
            text = f"{process.name} is none of the routers of the URL ({', '.join(found)}): name all in --url"
            raise Failure(Exit.USAGE, text, "INVENTORY")
    return [Step(process, _router_look(found[process.name], app.settings.keys)) for process in routers]


def _router_look(url: str, keys: str | None) -> Callable[[], Life | None]:
    def look() -> Life | None:
        from kvclient import connect

        with connect(url, timeout=ROUTER_SECONDS, keys=keys) as client:
            client.admin("ready")
            figures = client.admin("status")["router_figures"]
            return Life(figures["uptime_s"], time.monotonic(), client.ping().version)

    return look


# -- one step


def _restart(app: App, step: Step, patience: float) -> Done:
    """Failure, or the cluster's error, says why it cannot go on."""
    wait_for(app, "healthy", patience)
    before = step.look()
    if before is None:
        raise Failure(Exit.UNAVAILABLE, f"{step.process.name} does not answer", "NOT_READY")
    began = time.monotonic()
    problem = step.process.restart(patience)
    if problem is not None:
        raise Failure(Exit.ERROR, problem, "RESTART_FAILED")
    after = _wait_new(app, step, before, began + patience)
    wait_for(app, "healthy", patience)
    return Done(step, time.monotonic() - began, before, after)


def _wait_new(app: App, step: Step, before: Life, deadline: float) -> Life:
    text = "it does not answer"
    while True:
        try:
            life = step.look()
            if life is not None and life.is_after(before):
                return life
            text = "it does not answer" if life is None else "the process of before still runs"
        except KVError as error:
            if not is_transient(error):
                raise
            text = error.message
            app.close()
        if time.monotonic() > deadline:
            raise Failure(Exit.UNAVAILABLE, f"{step.process.name} did not come back: {text}", "NOT_READY")
        time.sleep(_POLL_SECONDS)


def _stop(step: Step, number: int, again: str, problem: BaseException) -> None:
    """Raise what is to be told of a step that failed."""
    exit_code, text = describe(problem)
    text = text.removeprefix("error: ")
    so_far = "nothing was restarted before" if not number else f"{number} restarted before"
    message = (
        f"stopped at {step.process.name} ({so_far}): {text} "
        f"See: kvcli status  When kvcli wait --healthy holds, go on:  {again}"
    )
    raise Failure(Exit.PARTIAL if number else exit_code, message, "STOPPED") from problem


# -- stdout


def _show_plan(app: App, steps: list[Step]) -> None:
    with app.output.rows("steps", _PLAN_COLUMNS) as rows:
        for number, step in enumerate(steps, 1):
            life, process = step.look(), step.process
            version = None if life is None else life.version
            rows.add(number, process.role, process.name, process.host, version, process.command)


def _show_done(app: App, done: list[Done]) -> None:
    with app.output.rows("processes", _DONE_COLUMNS) as rows:
        for one in done:
            seconds = round(one.seconds, 1)
            process = one.step.process
            rows.add(process.name, process.role, seconds, one.before.version, one.after.version)
