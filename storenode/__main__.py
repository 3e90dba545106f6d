"""kv-store: one store node. Command line and exit codes: shared/commandline.py."""

from __future__ import annotations

import click

from shared.commandline import server_command
from storenode.config import StoreConfig


@click.option(
    "--noop", is_flag=True, help="Answer everything, store nothing: for measuring the message path."
)
@server_command("kv-store", StoreConfig)
def main(config: StoreConfig, noop: bool) -> int:
    """Run one store node until SIGTERM or SIGINT."""
    from storenode.node import run  # only now: usage errors and --help need no engine

    return run(config, noop=noop)


if __name__ == "__main__":
    main()
