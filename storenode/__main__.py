"""kv-store: one store node.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 cannot run (one line on standard error says why), 2 wrong usage
or configuration.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from shared import config as configuration
from shared.config import ConfigError
from storenode.config import StoreConfig


def _overrides(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"write section.key=value, not {value!r:.80}")
        found[key] = text
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="The YAML configuration file."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", callback=_overrides,
    help="Override one key; repeatable. Stronger than RINGKV_SECTION__KEY, which is stronger than the file.",
)  # fmt: skip
@click.option("--print-config", is_flag=True, help="Print the configuration in force and exit.")
@click.option(
    "--noop", is_flag=True, help="Answer everything, store nothing: for measuring the message path."
)
def main(path: Path, overrides: dict[str, str], print_config: bool, noop: bool) -> None:
    """Run one store node until SIGTERM or SIGINT."""
    try:
        config = configuration.load(StoreConfig, path, os.environ, overrides)
    except ConfigError as error:
        _fail(str(error), 2)
    if print_config:
        click.echo(configuration.dump(config), nl=False)
        return
    from storenode.node import CannotStart, run  # only now: usage errors and --help need no engine

    try:
        sys.exit(run(config, noop=noop))
    except ConfigError as error:
        _fail(str(error), 2)
    except CannotStart as error:
        _fail(str(error), 1)


def _fail(text: str, code: int) -> NoReturn:
    for line in text.splitlines():
        click.echo(f"kv-store: {line}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
