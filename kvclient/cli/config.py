"""`kvcli config`: whether a server would take a configuration file.

The judgement is the server's own: it is started with --check, as a process of its own, for this package never
imports servers. Owns the words and columns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any, Final

import click

from kvclient.cli.app import current
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.errors import Exit

_MODULES: Final = {"router": "router", "store": "storenode", "monitor": "monitor"}
_COLUMNS = ("source", "path", "text", "suggestion")

# It only reads a file of at most 1 MiB; slow is a machine, or a file on a network.
_SECONDS_MAX: Final = 60.0


@click.group("config")
def config() -> None:
    """Check configuration files."""


@command("validate")
@click.argument("role", type=click.Choice(tuple(_MODULES)))
@click.argument("file", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="As of the server.")
def validate(role: str, file: str, overrides: tuple[str, ...]) -> None:
    """Say everything that is wrong with the configuration FILE of a router, store or monitor.

    The server itself judges, with the environment that is here (RINGKV_SECTION__KEY); nothing is started.
    Exit code 2 if it would refuse the file.
    """
    app = current()
    problems = check(_MODULES[role], os.path.abspath(file), overrides)
    if app.output.form in ("json", "jsonl"):
        found = {"problems": problems}
        app.output.document({"role": role, "file": file, "valid": not problems} | found)
    elif problems:
        with app.output.rows("problems", _COLUMNS) as rows:
            for problem in problems:
                rows.add(*(problem[column] for column in _COLUMNS))
    if problems:
        what = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        text = f"{file}: {what}. A {role} would not start with it"
        raise Failure(Exit.USAGE, text, "INVALID_CONFIG")
    app.note(f"{file}: a {role} would start with it")


def check(module: str, file: str, overrides: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What the server of this package says of the file; Failure if it cannot be asked."""
    if find_spec(module) is None:
        text = f"the package {module} is not installed here. Run this on the server's machine"
        raise Failure(Exit.ERROR, text, "NO_SERVER")
    settings = [argument for override in overrides for argument in ("--set", override)]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, "--check", "--config", file, *settings],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(Exit.ERROR, f"{module} said nothing of {file} for {_SECONDS_MAX:.0f} s.") from None
    try:
        problems: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    except ValueError:
        problems = []
    if done.returncode == (Exit.USAGE if problems else Exit.OK):
        return problems
    said = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
    raise Failure(Exit.USAGE if done.returncode == Exit.USAGE else Exit.ERROR, f"{module} --check: {said}")


config.add_command(validate)
