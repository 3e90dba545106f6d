"""Starting, watching and stopping the processes of a local cluster.

Every change is made under a lock on the directory, so that two `kvcli dev` at once do not start a process
twice. Servers are started as `python -m router`, `storenode` and `monitor`: this package never imports them.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvclient.cli import processes
from kvclient.cli.devcluster import LOCK_FILE, DevCluster, Member, is_listening, require_free
from kvclient.cli.failure import Failure
from kvclient.errors import Exit, KVError

READY_SECONDS = 30.0
STOP_SECONDS = 10.0
KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1

# A log is moved away at the next start when it has grown beyond this; one old one is kept.
LOG_BYTES_MAX = 16 << 20

# What a failed start shows of the log: enough for a configuration error with all its lines.
LOG_LINES_SHOWN = 15

Children = dict[str, subprocess.Popen[bytes]]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a cluster's directory, made if there is none; waits for another kvcli that holds it (no holder
    waits for long).
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK_FILE, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise Failure(
            Exit.ERROR, f"{directory} cannot be written: {error.strerror}. Use another --dir", "DEV_DIRECTORY"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_running(member: Member) -> bool:
    return processes.recorded(member.pid_file) is not None


def start(members: list[Member]) -> Children:
    """Start those that do not run. Failure, and nothing started, if a port is taken."""
    stopped = [member for member in members if not is_running(member)]
    require_free(stopped)
    return {member.name: _spawn(member) for member in stopped}


def _spawn(member: Member) -> subprocess.Popen[bytes]:
    if member.log_file.exists() and member.log_file.stat().st_size > LOG_BYTES_MAX:
        member.log_file.replace(member.log_file.with_suffix(".log.1"))
    # -P: a directory called `router` where the user happens to stand must not be taken for ours.
    command = [sys.executable, "-P", "-m", member.module, "--config", str(member.config_file)]
    return processes.spawn(command, member.directory, member.pid_file, member.log_file)


def wait_ready(cluster: DevCluster, members: list[Member], children: Children) -> None:
    """Until a write in every partition would succeed through every router, and every router reaches the
    stores of `members`, without which writes may succeed as well; Failure with the log when one of `members`
    ends instead.
    """
    deadline = time.monotonic() + READY_SECONDS
    stores = {member.name for member in members if member.role == "store"}
    routers = [member for member in members if member.role == "router"] or cluster.routers
    for router in routers:
        if not is_running(router) and router not in members:
            continue
        while (problem := _not_ready(router, stores, cluster.keys)) is not None:
            for member in members:
                if ended(member, children):
                    raise Failure(
                        Exit.ERROR,
                        f"{member.name} ended while starting. Its log says:\n{log_tail(member)}",
                        "START_FAILED",
                    )
            if time.monotonic() > deadline:
                raise Failure(
                    Exit.UNAVAILABLE,
                    f"not ready within {READY_SECONDS:.0f} s: {problem}. See: kvcli dev logs{cluster.option}",
                    "NOT_READY",
                )
            time.sleep(_POLL_SECONDS)
    if cluster.monitor in members:
        wait_listening(cluster.monitor, children)


def wait_listening(member: Member, children: Children) -> None:
    """Until its first port takes connections; Failure with the log when it ends instead."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_listening(member.ports[0]) and time.monotonic() <= deadline:
        if ended(member, children):
            raise Failure(
                Exit.ERROR,
                f"{member.name} ended while starting. Its log says:\n{log_tail(member)}",
                "START_FAILED",
            )
        time.sleep(_POLL_SECONDS)


def _not_ready(router: Member, stores: set[str], keys: str) -> str | None:
    """Why a write through this router would fail, or which of `stores` it does not reach; None if neither."""
    from kvclient import connect

    try:
        with connect(f"kv://127.0.0.1:{router.ports[0]}", timeout=2.0, keys=keys) as client:
            client.admin("ready")
            for node in client.admin("status")["nodes"] if stores else ():
                if node["name"] in stores and node["state"] == "down":
                    return f"{node['name']} does not answer"
    except KVError as error:
        return error.message
    return None


def ended(member: Member, children: Children) -> bool:
    """Whether it does not run (any more); reaps it if it is our child."""
    if is_running(member):
        return False
    child = children.get(member.name)
    if child is not None:
        # Its other threads may be a moment behind, and until then there is no exit status.
        with suppress(subprocess.TimeoutExpired):
            child.wait(KILL_SECONDS)
    return True


def stop(members: list[Member], say: Callable[[str], None]) -> int:
    """Routers first, then stores, the monitor last: SIGTERM, and SIGKILL for whoever is slow. Gives how many
    ran.
    """
    count = 0
    for role in ("router", "store", "monitor"):
        signalled = [
            member
            for member in members
            if member.role == role and processes.send_signal(member.pid_file, signal.SIGTERM)
        ]
        count += len(signalled)
        left = processes.wait_gone([member.pid_file for member in signalled], STOP_SECONDS)
        for pid_file in left:
            say(f"{pid_file.stem} did not stop within {STOP_SECONDS:.0f} s: killed")
            processes.send_signal(pid_file, signal.SIGKILL)
        processes.wait_gone(left, KILL_SECONDS)
    return count


def kill(members: list[Member]) -> list[Member]:
    """SIGKILL, as a crash would; gives those that ran."""
    hit = [member for member in members if processes.send_signal(member.pid_file, signal.SIGKILL)]
    processes.wait_gone([member.pid_file for member in hit], KILL_SECONDS)
    return hit


def log_tail(member: Member, lines: int = LOG_LINES_SHOWN) -> str:
    """The last lines of a log."""
    with open(member.log_file, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 256 * (lines + 1)))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def supervise(cluster: DevCluster, children: Children, say: Callable[[str], None]) -> None:
    """Tell who ends and who comes back, until KeyboardInterrupt, or until nobody is left that somebody else
    stopped.
    """
    running = {member.name for member in cluster.members if is_running(member)}
    while running:
        time.sleep(_POLL_SECONDS)
        for member in cluster.members:
            was = member.name in running
            now = not ended(member, children)
            if was and not now:
                running.discard(member.name)
                how = _how(children.pop(member.name, None))
                again = f"kvcli dev start {member.name}{cluster.option}"
                say(f"{member.name} ended{how}. Again:  {again}")
            elif now and not was:
                running.add(member.name)
                say(f"{member.name} is back")


def _how(child: subprocess.Popen[bytes] | None) -> str:
    if child is None or child.returncode is None:
        return ""
    if child.returncode < 0:
        return f" by signal {signal.Signals(-child.returncode).name}"
    return f" with exit code {child.returncode}"
