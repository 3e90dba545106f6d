"""kv-router: one router. Command line and exit codes: shared/commandline.py."""

from __future__ import annotations

from router.config import RouterConfig
from shared.commandline import CannotStart, server_command


@server_command("kv-router", RouterConfig)
def main(config: RouterConfig) -> int:
    """Run one router until SIGTERM or SIGINT."""
    from router.service import run  # only now: usage errors and --help need no sockets
    from shared.sockets import ListenError

    try:
        run(config)
    except ListenError as error:
        raise CannotStart(error.strerror or str(error)) from error
    return 0


if __name__ == "__main__":
    main()
