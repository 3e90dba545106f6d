"""Server processes on this machine, known by pid files.

A pid file holds the pid, the process's start time and the boot it belongs to, so that a process which merely
got the same number later is never taken for ours, and never killed. Processes are started in a session of
their own: Ctrl-C in a terminal reaches only kvcli. Linux only (/proc).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvclient.cli.resume import replace_file

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_SECONDS = 0.02


class Identity(NamedTuple):
    """What tells a process from every other one before and after it."""

    pid: int
    started: int
    boot: str


def identify(pid: int) -> Identity | None:
    """The identity of a running process; None if there is none. A zombie does not run, unless other threads
    of it are not at their end yet: its ports are still taken.
    """
    try:
        # The name in parentheses may hold anything, also spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" and int(fields[17]) <= 1 else Identity(pid, int(fields[19]), _boot())


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def recorded(pid_file: Path) -> Identity | None:
    """The process of a pid file, if exactly that process still runs."""
    try:
        fields = json.loads(pid_file.read_text())
        identity = Identity(int(fields["pid"]), int(fields["started"]), str(fields["boot"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if identify(identity.pid) == identity else None


def spawn(command: Sequence[str], directory: Path, pid_file: Path, log_file: Path) -> subprocess.Popen[bytes]:
    """Start a process with its output appended to the log, and write its pid file."""
    with open(log_file, "ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    identity = identify(process.pid)
    if identity is not None:
        replace_file(pid_file, json.dumps(identity._asdict()).encode() + b"\n")
    return process


def send_signal(pid_file: Path, number: signal.Signals) -> bool:
    """Signal the recorded process; False if it does not run."""
    identity = recorded(pid_file)
    if identity is None:
        return False
    try:
        os.kill(identity.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(pid_files: Sequence[Path], seconds: float) -> list[Path]:
    """Wait until none of them runs; gives those that still do when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid_file for pid_file in pid_files if recorded(pid_file) is not None]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_POLL_SECONDS)


class Usage(NamedTuple):
    """What /proc says of a running process."""

    uptime: float
    resident_bytes: int


def usage(identity: Identity) -> Usage | None:
    """Uptime and resident memory; None if it has just ended."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        pages = int(Path(f"/proc/{identity.pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return Usage(uptime - identity.started / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))
