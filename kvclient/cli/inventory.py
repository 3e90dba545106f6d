"""Which processes `kvcli deploy` restarts, and how: an inventory file for ssh, or the local cluster.

An inventory has a line for each process: role (store or router), name, host, and the command that restarts
it, as the host's shell reads it. `#` begins a comment line. Knows nothing of the cluster's state.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvclient.cli import devrun
from kvclient.cli.devcluster import DevCluster
from kvclient.cli.failure import Failure
from kvclient.errors import Exit

# What is shown of a command that failed.
_OUTPUT_LINES = 5

# A host that does not answer is a problem to be told, not to be waited for; a password cannot be typed.
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--")


class Process(NamedTuple):
    """One process. `restart` gets seconds and gives None, or what went wrong."""

    role: str
    name: str
    host: str
    command: str
    restart: Callable[[float], str | None]


def read(path: Path) -> list[Process]:
    """The processes of an inventory file; Failure names the line that is wrong."""
    found: dict[str, Process] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = line.split(None, 3)
        problem = _problem(fields, found)
        if problem:
            raise Failure(Exit.USAGE, f"{path}, line {number}: {problem}", "INVENTORY")
        role, name, host, command = fields
        found[name] = Process(role, name, host, command.rstrip(), _over_ssh(host, command.rstrip()))
    if not found:
        raise Failure(Exit.USAGE, f"{path} names no process", "INVENTORY")
    return list(found.values())


def _problem(fields: list[str], found: dict[str, Process]) -> str:
    if len(fields) < 4:
        return "a line is: store|router NAME HOST COMMAND"
    role, name, host, _ = fields
    if role not in ("store", "router"):
        return f"{role!r} is neither store nor router"
    if name in found:
        return f"{name} is there twice"
    return f"{host!r} is no host" if host.startswith("-") else ""


def _over_ssh(host: str, command: str) -> Callable[[float], str | None]:
    def restart(seconds: float) -> str | None:
        try:
            done = subprocess.run(
                [*_SSH, host, command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the command on {host} has not ended after {seconds:.0f} s"
        except OSError as error:
            return f"ssh cannot be run: {error.strerror}"
        if not done.returncode:
            return None
        said = done.stdout.decode(errors="replace").splitlines()[-_OUTPUT_LINES:]
        shown = "".join(f"\n  {line}" for line in said)
        return f"the command on {host} ended with exit code {done.returncode}{shown}"

    return restart


def local(cluster: DevCluster, say: Callable[[str], None]) -> list[Process]:
    """The processes of the local cluster, stopped in order and started again."""

    def restarting(name: str) -> Callable[[float], str | None]:
        def restart(seconds: float) -> str | None:
            (member,) = cluster.select((name,))
            with devrun.locked(cluster.directory):
                devrun.stop([member], say)
                try:
                    devrun.start([member])
                except Failure as failure:
                    return failure.message
            return None

        return restart

    command = "kvcli dev stop NAME, start NAME"
    return [
        Process(
            member.role, member.name, "here", command.replace("NAME", member.name), restarting(member.name)
        )
        for member in cluster.servers
    ]
