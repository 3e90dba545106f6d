"""`kvcli backup`: the commands around backuppull.py, backupput.py and backupset.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvclient.cli import jobs
from kvclient.cli.app import App, current, quit_with
from kvclient.cli.backupfile import BadBackup
from kvclient.cli.backupset import MANIFEST, Backup, found_in, read
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.cli.progress import Progress
from kvclient.cli.units import DURATION, SIZE, show_bytes
from kvclient.errors import Exit

_LS_COLUMNS = ("name", "state", "cluster", "taken", "partitions", "keys", "bytes")
_VERIFY_COLUMNS = ("file", "offset", "problem")


@click.group("backup")
def backup() -> None:
    """Make, check and restore backups of a whole cluster.

    A backup is a directory: a file for each partition, and a manifest with their checksums. Every partition
    is as it was at one moment; partitions are not of the same moment.
    """


def _directory(**options: Any) -> Callable[..., Any]:
    kind = click.Path(path_type=Path, file_okay=False, **options)
    return click.argument("directory", metavar="DIR", type=kind)


@command("create")
@_directory()
@click.option("--bandwidth", type=SIZE, help="Read at most so many bytes a second. [default: no limit here]")
@click.option("--resume", is_flag=True, help="Go on with the unfinished backup in DIR, if there is one.")
@click.option(
    "--retry-for",
    type=DURATION,
    default=30.0,
    show_default="30s",
    help="Go on trying this long while a part of the cluster is away.",
)
def create(directory: Path, bandwidth: int | None, resume: bool, retry_for: float) -> None:
    """Back up the whole cluster into DIR, a new or empty directory, while clients read and write."""
    from kvclient.cli.backupcreate import CreateRun

    if bandwidth is not None and bandwidth < 1:
        raise click.UsageError("--bandwidth is at least one byte a second")
    run = CreateRun(current(), directory, resume)
    run.go(jobs.patience_of(current(), retry_for), bandwidth)
    run.summary()


@command("restore")
@_directory(exists=True)
@click.option("--force", is_flag=True, help="Also into a cluster that holds keys: those of the backup win.")
@jobs.job_options
def restore(directory: Path, force: bool, state_path: Path | None, retry_for: float) -> None:
    """Put what is in the backup DIR into a cluster, which should be empty and may have any size.

    Keys get the time to live that they have left; versions begin anew.
    """
    from kvclient.cli.backuprestore import RestoreRun

    try:
        run = RestoreRun(current(), read(directory), state_path)
        run.go(jobs.patience_of(current(), retry_for), force)
    except BadBackup as error:
        raise damaged(error) from None
    run.summary()


@command("verify")
@_directory(exists=True)
def verify(directory: Path) -> None:
    """Read all of the backup DIR and name what is damaged, by file and offset. Needs no cluster."""
    app = current()
    problems: list[tuple[str, int | None, str]] = []
    found: Backup | None = None
    try:
        found = read(directory)
    except BadBackup as error:
        problems.append((error.path.name, error.offset, error.what))
    if found is not None:
        problems += _check_all(app, found)
    if app.output.form in ("json", "jsonl") or problems:
        with app.output.rows("problems", _VERIFY_COLUMNS) as rows:
            for problem in problems:
                rows.add(*problem)
    if problems or found is None:
        app.note(f"{directory}: {len(problems)} of its files cannot be used as they are")
        quit_with(Exit.DEGRADED)
    app.note(
        f"{directory} is sound: {found.records:,} keys of {len(found.partitions)} partitions, "
        f"{show_bytes(found.size)}"
    )


def _check_all(app: App, found: Backup) -> list[tuple[str, int | None, str]]:
    progress = Progress("verified", found.size, shown=not app.settings.quiet)
    problems: list[tuple[str, int | None, str]] = []
    keys = passed = 0
    for row in found.partitions:

        def on_block(block: Any, before: int = passed) -> None:
            nonlocal keys
            keys += len(block.records)
            progress.update(keys, before + block.end)

        try:
            found.check(row, on_block)
        except BadBackup as error:
            problems.append((error.path.name, error.offset, error.what))
        except OSError as error:
            problems.append((row["file"], None, f"cannot be read: {error.strerror}"))
        passed += row["bytes"]
    progress.clear()
    return problems


@command("ls")
@_directory(exists=True)
def list_backups(directory: Path) -> None:
    """Show the backups in DIR: DIR itself, or directories in it. Reads their manifests only."""
    app = current()
    with app.output.rows("backups", _LS_COLUMNS) as rows:
        for path in found_in(directory):
            name = str(path)
            if not (path / MANIFEST).exists():
                rows.add(name, "unfinished", *(None,) * 5)
                continue
            try:
                one = read(path)
            except BadBackup:
                rows.add(name, "damaged", *(None,) * 5)
                continue
            except Failure as error:
                rows.add(name, error.message, *(None,) * 5)
                continue
            taken = _when(one.manifest["finished_ms"])
            rows.add(
                name,
                "complete",
                one.cluster["name"],
                taken,
                len(one.partitions),
                one.records,
                one.size,
            )


def _when(milliseconds: int) -> str:
    """UTC, to the second."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


def damaged(error: BadBackup) -> Failure:
    """What to say of a backup that cannot be read on."""
    return Failure(
        Exit.DEGRADED,
        f"{error}. See all that is damaged: kvcli backup verify {error.path.parent}",
        "DAMAGED",
    )


for _command in (create, list_backups, verify, restore):
    backup.add_command(_command)
