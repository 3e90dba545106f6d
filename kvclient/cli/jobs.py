"""What the commands import and export share: the options of a file and of a job that can be continued."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvclient.cli import formats
from kvclient.cli.app import App
from kvclient.cli.csvfile import Layout
from kvclient.cli.resume import StateFile
from kvclient.cli.retrying import Patience
from kvclient.cli.units import DURATION
from kvclient.errors import KVError


def layout_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what a file looks like."""
    for option in (
        click.option(
            "--header/--no-header", default=False, help="csv: the first line is a header. [default: no]"
        ),
        click.option(
            "--value",
            metavar="rest|line|N",
            default="rest",
            show_default=True,
            help="csv: the value is the rest of the line, the whole line, or column N.",
        ),
        click.option(
            "--key-column",
            metavar="N",
            type=click.IntRange(1, 100_000),
            default=1,
            show_default=True,
            help="csv: the column of the key.",
        ),
        click.option("--delimiter", help="csv: between columns; tab for a tab. [default: comma]"),
        click.option(
            "--format", "form", type=click.Choice(formats.NAMES), help="[default: from the file's name]"
        ),
    ):
        function = option(function)
    return function


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a job that survives interruptions."""
    for option in (
        click.option(
            "--retry-for",
            type=DURATION,
            default=30.0,
            show_default="30s",
            help="Go on trying this long while the cluster is away.",
        ),
        click.option(
            "--resume",
            "state_path",
            metavar="STATE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Go on where this state file says; begin if there is none yet.",
        ),
    ):
        function = option(function)
    return function


def layout_of(path: str, delimiter: str | None, key_column: int, value: str, header: bool) -> Layout:
    """The CSV layout of the options; UsageError if they make none."""
    try:
        return Layout(formats.delimiter_of(path, delimiter), key_column, value, header)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def job_of(kind: str, path: str, form: str, layout: Layout, **more: Any) -> dict[str, Any]:
    """What a state file remembers, so that it is not continued as another job."""
    job: dict[str, Any] = {
        "command": kind,
        "file": path if path == "-" else os.path.abspath(path),
        "format": form,
    }
    if form == "csv":
        job |= {
            "delimiter": layout.delimiter.hex(),
            "key column": layout.key_index + 1,
            "value": layout.mode if layout.mode != "column" else layout.value_index + 1,
            "header": layout.header,
        }
    return job | more


def patience_of(app: App, seconds: float) -> Patience:
    """Patience that tells of second tries with -v."""

    def trouble(error: KVError) -> None:
        if app.settings.verbosity:
            app.note(f"trying again: {error.message}")

    return Patience(seconds, trouble)


def continue_command(app: App, state: StateFile) -> str:
    """The exact command that goes on where this one stopped."""
    arguments = list(app.arguments)
    if not any(argument == "--resume" or argument.startswith("--resume=") for argument in arguments):
        arguments += ["--resume", str(state.path)]
    return shlex.join(["kvcli", *arguments])
