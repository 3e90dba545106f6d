"""The entry point of kvcli: the table of commands, and the thin main that turns whatever happened into an
exit code.

Exit codes are an interface (`kvclient.errors.Exit`, docs/cli.md). Click's standalone mode is not used: it
answers 1 to Ctrl-C and to a closed pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import click

from kvclient.cli import failure
from kvclient.cli.app import App
from kvclient.cli.command import Lazy, LazyGroup, global_options
from kvclient.cli.output import StdoutClosed
from kvclient.errors import Exit

_DATA, _BULK, _CLUSTER, _LOCAL, _FILES = "Data", "Files", "Cluster", "Local cluster", "Stopped stores"
_SHELL = "Typing less"

COMMANDS = {
    "get": Lazy(_DATA, "kvclient.cli.read:get", "Print the value of a key."),
    "put": Lazy(_DATA, "kvclient.cli.write:put", "Set a key to a value."),
    "del": Lazy(_DATA, "kvclient.cli.write:delete", "Delete keys, or all keys with a prefix."),
    "exists": Lazy(_DATA, "kvclient.cli.read:exists", "Print 1 or 0 for each key."),
    "incr": Lazy(_DATA, "kvclient.cli.write:incr", "Add to the integer a key holds."),
    "touch": Lazy(_DATA, "kvclient.cli.write:touch", "Let a key live for so long, or for ever."),
    "scan": Lazy(_DATA, "kvclient.cli.read:scan", "Print keys and values in key order."),
    "count": Lazy(_DATA, "kvclient.cli.read:count", "Count keys."),
    "mget": Lazy(_DATA, "kvclient.cli.read:mget", "Print many keys with their values."),
    "mput": Lazy(_DATA, "kvclient.cli.write:mput", "Set many keys."),
    "txn": Lazy(_DATA, "kvclient.cli.txn:txn", "Execute a transaction: compares, then ops, or others."),
    "import": Lazy(_BULK, "kvclient.cli.import_command:import_file", "Load a file of records."),
    "export": Lazy(_BULK, "kvclient.cli.export_command:export_file", "Write keys to a file."),
    "backup": Lazy(_BULK, "kvclient.cli.backup:backup", "Make, check and restore backups of a cluster."),
    "status": Lazy(_CLUSTER, "kvclient.cli.cluster:status", "Show the cluster, its nodes and problems."),
    "route": Lazy(_CLUSTER, "kvclient.cli.cluster:route", "Show which partition and nodes hold a key."),
    "group": Lazy(_CLUSTER, "kvclient.cli.group:group", "Show and change the replicas of one partition."),
    "node": Lazy(_CLUSTER, "kvclient.cli.node:node", "Show, add, drain and remove stores."),
    "rebalance": Lazy(
        _CLUSTER, "kvclient.cli.rebalance:rebalance", "Plan, start and watch moves of replicas."
    ),
    "map": Lazy(_CLUSTER, "kvclient.cli.map:map_", "Show or save the cluster map."),
    "ping": Lazy(_CLUSTER, "kvclient.cli.cluster:ping", "Measure round trips to the routers."),
    "wait": Lazy(_CLUSTER, "kvclient.cli.cluster:wait", "Wait until the cluster serves writes."),
    "deploy": Lazy(_CLUSTER, "kvclient.cli.deploy:deploy", "Restart stores and routers one at a time."),
    "check": Lazy(_CLUSTER, "kvclient.cli.check:check", "Judge health, disks, latencies and data."),
    "config": Lazy(_CLUSTER, "kvclient.cli.config:config", "Check configuration files."),
    "version": Lazy(_CLUSTER, "kvclient.cli.cluster:version", "Print the versions of client and cluster."),
    "bench": Lazy(_CLUSTER, "kvclient.cli.bench:bench", "Load the cluster and print rates and latencies."),
    "keys": Lazy(_CLUSTER, "kvclient.cli.keys:keys", "Make and show keys: who may connect, and do what."),
    "top": Lazy(_CLUSTER, "kvclient.cli.top:top", "Watch nodes, ops, latencies, leaders and moves."),
    "support": Lazy(_CLUSTER, "kvclient.cli.support:support", "Collect what is needed to get help."),
    "dev": Lazy(_LOCAL, "kvclient.cli.dev:dev", "Run a whole cluster on this machine."),
    "engine": Lazy(
        _FILES, "kvclient.cli.engine:engine", "Look into, check and repair a stopped store's files."
    ),
    "shell": Lazy(_SHELL, "kvclient.cli.shell:shell", "Read commands line by line, with history."),
    "completion": Lazy(_SHELL, "kvclient.cli.shell:completion", "Print completion for bash, zsh or fish."),
}

EXIT_CODES = """\b
Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 5 cannot
connect, 6 timeout (nothing applied), 7 outcome unknown (a write may have
been applied), 8 unavailable, 10 partly done, 11 degraded, 12 not allowed,
13 version mismatch, 130 interrupted, 141 broken pipe."""


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"kvcli {version('ringkv')}")
        ctx.exit()


cli = LazyGroup(
    name="kvcli",
    table=COMMANDS,
    help="Talk to a ringkv cluster.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
    ],
)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; everything it had to say is on stdout and stderr."""
    app = App(arguments)
    code = Exit.OK
    try:
        try:
            with cli.make_context("kvcli", list(arguments), obj=app) as context:
                cli.invoke(context)
            app.finish()
            sys.stdout.flush()
        finally:
            app.close()
    except click.exceptions.NoArgsIsHelpError as error:
        failure.say(error.ctx.get_help())
        code = Exit.USAGE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the boundary: every failure becomes a line and a code
        _show_what_was_printed(app)
        code = failure.report(error, app.settings.verbosity, app.settings.color)
    return code


def _show_what_was_printed(app: App) -> None:
    """What was written before a failure is still wanted; a reader that has gone is not news any more."""
    with contextlib.suppress(StdoutClosed, OSError, ValueError):
        app.finish()


def main() -> None:
    """Console script `kvcli`."""
    if "_KVCLI_COMPLETE" in os.environ:
        cli.main(prog_name="kvcli")
    _open_closed_streams()
    # Also where a script started us in the background, which ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # A closed pipe or a full disk, told already; the interpreter would tell it again in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _open_closed_streams() -> None:
    """Started with stdin, stdout or stderr closed (`>&-`): opened the wrong way round, they give the error
    that a closed one gives, and no other file gets their number.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
