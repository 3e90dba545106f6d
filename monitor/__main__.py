"""kv-monitor: one monitor. Command line and exit codes: shared/commandline.py."""

from __future__ import annotations

from monitor.config import MonitorConfig
from shared.commandline import CannotStart, server_command


@server_command("kv-monitor", MonitorConfig)
def main(config: MonitorConfig) -> int:
    """Watch a cluster until SIGTERM or SIGINT."""
    from monitor.service import run  # only now: usage errors and --help need neither sockets nor HTTP

    try:
        run(config)
    except OSError as error:
        raise CannotStart(f"cannot listen on {config.http.listen}: {error.strerror or error}") from error
    return 0


if __name__ == "__main__":
    main()
