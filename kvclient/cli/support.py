"""`kvcli support dump`: one file with what somebody needs who is asked for help.

Owns what is in it: status, map, groups, moves, figures and versions of the cluster, and of this machine the
configurations and the last log lines. Everything passes `redact`: no secrets, no keys and values of users. A
part that cannot be had is in the file as the reason why; only a file that cannot be written is a failure.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from kvclient.cli import redact
from kvclient.cli.app import App, current
from kvclient.cli.command import command
from kvclient.cli.control import show
from kvclient.cli.devcluster import DevCluster, default_directory
from kvclient.cli.failure import Failure, describe
from kvclient.cli.units import show_bytes
from kvclient.errors import Exit, KVError

# The last hours of a busy process; a file that can be mailed.
_LOG_LINES_MAX: Final = 5000
_LOG_BYTES_MAX: Final = 1 << 20
_LINE_CHARACTERS_MAX: Final = 1 << 14  # a traceback, with room
_CONFIG_BYTES_MAX: Final = 1 << 20

# Of the partitions that have a problem: each costs a question.
_GROUPS_MAX: Final = 64

_README: Final = """\
What `kvcli support dump` has collected. Parts that could not be had say why, as `error`.

about.json           when, and by which kvcli
status.json          cluster, nodes and their figures, partitions: the ADMIN command `status`
routers/*.json       the same by each router, with its own figures and its version
control.json         the controller's view: nodes, moves, settings
map.json             the cluster map
groups/*.json        members of the partitions that have a problem, by their leader
config/, log/        of this machine: configurations without secrets, the last log lines

Secrets, and anything that may be a key or a value of a user, are replaced by [redacted].
"""


@click.group("support")
def support() -> None:
    """Collect what is needed to get help."""


@command("dump")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), help="Of a local cluster."
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A configuration of this machine.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A log of this machine.",
)
def dump(file: Path, directory: Path | None, configs: tuple[Path, ...], logs: tuple[Path, ...]) -> None:
    """Write FILE.tar.gz with status, maps, groups, figures, versions, configurations and log lines.

    Of a local cluster (kvcli dev) configurations and logs are found; elsewhere give them. There are no
    secrets in it, and no keys and values of users. Look into it before you pass it on.
    """
    app = current()
    where = default_directory() if directory is None else directory.absolute()
    local = DevCluster.load(where)
    if local is not None:
        configs += tuple(member.config_file for member in local.members)
        logs += tuple(member.log_file for member in local.members)
    elif directory is not None:
        raise Failure(Exit.NOT_FOUND, f"{where} holds no local cluster", "NO_CLUSTER")
    count = 0
    partial = file.with_name(file.name + ".partial")
    try:
        private = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(private, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, content in _parts(app, configs, logs):
                _add(archive, name, content)
                count += 1
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    size = file.stat().st_size
    if app.output.form in ("json", "jsonl"):
        app.output.document({"file": str(file), "parts": count, "bytes": size})
    else:
        app.output.line(f"{file}: {count} parts, {show_bytes(size)}")
    app.note("secrets, keys and values of users are not in it; look into it before you pass it on")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f"ringkv-support/{name}")
    entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
    archive.addfile(entry, io.BytesIO(content))


def _parts(app: App, configs: tuple[Path, ...], logs: tuple[Path, ...]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of everything, as it is found."""
    yield "README.txt", _README.encode()
    yield "about.json", _json(_about())
    status = _asked(lambda: app.client().admin("status"))
    yield "status.json", _json(status)
    yield "control.json", _json(_asked(lambda: show(app)))
    yield "map.json", _json(_asked(lambda: app.client().cluster_map()))
    for router, answer in _by_router(app):
        yield f"routers/{_file_name(router)}.json", _json(answer)
    for partition in _troubled(status):
        group = _asked(partial(_group, app, partition))
        yield f"groups/{partition:04}.json", _json(group)
    for path in dict.fromkeys(configs):
        yield f"config/{_file_name(str(path))}", _local(path, _CONFIG_BYTES_MAX)
    for path in dict.fromkeys(logs):
        yield f"log/{_file_name(str(path))}", _local(path, _LOG_BYTES_MAX, _LOG_LINES_MAX)


def _group(app: App, partition: int) -> Any:
    return app.client().admin("group", "show", partition)


def _about() -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kvcli": version("ringkv"),
        "python": sys.version,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }


def _asked(ask: Callable[[], Any]) -> Any:
    """The cluster's answer; why there is none."""
    try:
        return ask()
    except (KVError, Failure) as error:
        return {"error": describe(error)[1]}


def _by_router(app: App) -> Iterator[tuple[str, Any]]:
    """Each router of the URL, asked by itself. The namespace of the URL is a user's, and stays here."""
    from kvclient.url import default_url, parse

    for endpoint in parse(app.settings.url or default_url()).endpoints:

        def ask(url: str = f"kv://{endpoint}") -> dict[str, Any]:
            alone = App()
            alone.settings = replace(app.settings, url=url)
            try:
                pong, answer = alone.client().ping(), alone.client().admin("status")
            finally:
                alone.close()
            nodes = {node["name"]: node.get("reachable") for node in answer["nodes"]}
            about = {"router": pong.router, "version": pong.version, "round_trip_s": pong.round_trip}
            return about | {"epoch": answer["epoch"], "figures": answer["router_figures"], "reaches": nodes}

        yield str(endpoint), _asked(ask)


def _troubled(status: dict[str, Any]) -> list[int]:
    """The first partitions that an operator should look at."""
    from kvclient.cli.group import problem_of

    if "groups" not in status:
        return []
    names = {node["id"]: node["name"] for node in status["nodes"]}
    rows = [row for row in status["groups"] if problem_of(row, names, status["replicas"])]
    return [row["partition"] for row in rows[:_GROUPS_MAX]]


def _local(path: Path, bytes_max: int, lines_max: int | None = None) -> bytes:
    """The end of a file of this machine, by whole lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            content = file.read(bytes_max).decode(errors="replace")
    except OSError as error:
        return f"error: {path}: {error.strerror}\n".encode()
    lines = content.splitlines()
    if size > bytes_max:
        lines = lines[1:]  # begun somewhere
    kept = lines if lines_max is None else lines[-lines_max:]
    return "".join(f"{redact.text(line[:_LINE_CHARACTERS_MAX])}\n" for line in kept).encode()


def _json(content: Any) -> bytes:
    return json.dumps(redact.data(content), indent=1, default=str).encode() + b"\n"


def _file_name(path: str) -> str:
    """A name in the archive: no directories, nothing that a file system could mind."""
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in path)
    return name.strip("._") or "unnamed"


support.add_command(dump)
