"""`kvcli engine`: look into, check and repair a store's files while it does not run.

The tools are the store's (`python -m storenode.offline`), a process of their own as servers are: this
package never imports them. Options, output and exit code are passed through.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.errors import Exit

FORMATS = ("table", "plain", "json", "jsonl")


@click.group("engine")
def engine() -> None:
    """Look into, check and repair a store's files. The store must not run.

    DIR is a store's data.dir, or the directory of one engine used as a library.
    """


def _directory(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("directory", metavar="DIR", type=click.Path())(function)


def run_tool(app: App, *arguments: str) -> None:
    """Run one tool to its end; Quit with its exit code."""
    if find_spec("storenode") is None:
        what = "the storage engine is not installed here. Run this on the store's machine"
        raise Failure(Exit.ERROR, what, "NO_ENGINE")
    app.finish()
    sys.stdout.flush()
    child = subprocess.Popen([sys.executable, "-m", "storenode.offline", *arguments, *_options(app)])
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:
            # Ctrl-C reached it as well; a SIGTERM reached only us. It stops at a safe point by itself.
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
    if code < 0:
        name = signal.Signals(-code).name
        raise Failure(Exit.ERROR, f"the tool was ended by {name}. Nothing is half done: run it again", name)
    if code == Exit.OK:
        return
    if code in set(Exit):
        quit_with(Exit(code))
    raise Failure(Exit.ERROR, f"the tool ended with code {code}", "INTERNAL")


def _options(app: App) -> list[str]:
    settings = app.settings
    form = settings.output or ("table" if sys.stdout.isatty() else "plain")
    if form not in FORMATS:
        raise click.UsageError(f"engine tools write {', '.join(FORMATS)}, not {form}")
    options = [f"--format={form}", f"--encoding={settings.encoding}"]
    return [*options, "--traceback"] if settings.verbosity >= 2 else options


def _safe(path: str) -> str:
    """A path that begins with a dash is no option."""
    return os.path.join(".", path) if path.startswith("-") else path


@command("verify")
@_directory
def verify(directory: str) -> None:
    """Check every checksum and every promise of the format. Exit code 11 when something is damaged."""
    run_tool(current(), "verify", _safe(directory))


@command("stats")
@_directory
def stats(directory: str) -> None:
    """Show tables, entries and logs by partition and level, and what compaction owes."""
    run_tool(current(), "stats", _safe(directory))


@command("dump-manifest")
@_directory
def dump_manifest(directory: str) -> None:
    """Show every record of the manifest, with the state of its checksum."""
    run_tool(current(), "dump-manifest", _safe(directory))


@command("dump-table")
@click.argument("path", metavar="FILE|DIR", type=click.Path())
@click.argument("number", required=False, type=click.IntRange(1))
@click.option("--partition", type=click.IntRange(0, 4095), help="Of the table with that number.")
@click.option("--entries", is_flag=True, help="Show all entries, past damaged blocks.")
@click.option("--limit", type=click.IntRange(0), help="Show so many entries at most.")
def dump_table(
    path: str, number: int | None, partition: int | None, entries: bool, limit: int | None
) -> None:
    """Show a table's footer, properties and index. Works on a running store too: tables never change."""
    arguments = [_safe(path)] if number is None else [_safe(path), str(number)]
    arguments += ["--entries"] if entries else []
    arguments += [] if partition is None else [f"--partition={partition}"]
    arguments += [] if limit is None else [f"--limit={limit}"]
    run_tool(current(), "dump-table", *arguments)


@command("find")
@click.argument("key")
@_directory
@click.option("--all", "everywhere", is_flag=True, help="Search the other partitions, too.")
def find(key: str, directory: str, everywhere: bool) -> None:
    """Show every record of KEY in every log and table, also in those no manifest names.

    Exit code 3 when there is none, 11 when a part could not be read.
    """
    app = current()
    app.data(key)
    options = ["--all"] if everywhere else []
    run_tool(app, "find", *options, f"--key={key}", _safe(directory))


@command("repair")
@_directory
@click.option("--salvage", is_flag=True, help="Keep the readable entries of damaged tables, too.")
def repair(directory: str, salvage: bool) -> None:
    """Take out what is damaged and rebuild the manifest from the tables. Without --yes only shows the plan.

    What is taken out goes to DIR/quarantine; nothing is deleted. Exit codes: 11 there is something to do, 0
    all is well now, 10 all is well now but entries may be lost.
    """
    app = current()
    options = ["--salvage"] if salvage else []
    options += ["--yes"] if app.settings.yes else []
    run_tool(app, "repair", *options, _safe(directory))
    if not app.settings.yes and not app.settings.quiet:
        app.note("nothing to repair")


for _command in (verify, stats, dump_table, dump_manifest, find, repair):
    engine.add_command(_command)
