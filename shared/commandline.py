"""The command line that every server process has: --config, --set, --print-config, --check, and how it ends.

Knows no server. Exit codes: 0 stopped by SIGTERM or SIGINT, 1 cannot run (one line on standard error says
why), 2 wrong usage or configuration, 78 (EX_CONFIG) cannot run, and no later attempt could: who restarts
processes should not restart this one, somebody has to mend what the lines on standard error say.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click

from shared.config import ConfigError, dump, load

C = TypeVar("C", bound=attrs.AttrsInstance)


FAILED: Final = 1
WRONG: Final = 2
REFUSED: Final = 78


class CannotStart(Exception):
    """The process cannot run; the text says why and what to do. `code`: REFUSED if time does not mend it."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def server_command(program: str, config_class: type[C]) -> Callable[[Callable[..., int]], click.Command]:
    """Makes a command of `run(config, **options) -> exit code`; its docstring is the help text.

    Further `click.option` decorators go on top. `run` may raise ConfigError and CannotStart.
    """

    def decorate(run: Callable[..., int]) -> click.Command:
        @click.command(help=run.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
        @click.option(
            "--config",
            "path",
            type=click.Path(path_type=Path),
            required=True,
            help="The YAML configuration file.",
        )
        @click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            callback=_overrides,
            help="Override one key; may be given several times. "
            "Stronger than RINGKV_SECTION__KEY, which is stronger than the file.",
        )
        @click.option("--print-config", is_flag=True, help="Print the configuration in force and exit.")
        @click.option(
            "--check",
            is_flag=True,
            help="Print what is wrong with the configuration, a JSON object a line, and exit.",
        )
        def main(
            path: Path, overrides: dict[str, str], print_config: bool, check: bool, **options: Any
        ) -> None:
            if check:
                sys.exit(_check(config_class, path, overrides))
            try:
                config = load(config_class, path, os.environ, overrides)
                if print_config:
                    click.echo(dump(config), nl=False)
                    return
                code = run(config, **options)
            except ConfigError as error:
                code = _say(program, error, WRONG)
            except CannotStart as error:
                code = _say(program, error, error.code)
            sys.exit(code)

        return main

    return decorate


def _check(config_class: type[C], path: Path, overrides: dict[str, str]) -> int:
    """All that is wrong, for programs: `source`, `path`, `text` and `suggestion` of each problem."""
    try:
        load(config_class, path, os.environ, overrides)
    except ConfigError as error:
        for problem in error.errors:
            click.echo(json.dumps(problem._asdict()))
        return WRONG
    return 0


def _overrides(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"write section.key=value, not {value!r:.80}")
        found[key] = text
    return found


def _say(program: str, error: Exception, code: int) -> int:
    for line in str(error).splitlines():
        click.echo(f"{program}: {line}", err=True)
    return code
