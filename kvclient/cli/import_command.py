"""`kvcli import`: the command around the engine of importer.py."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from kvclient.cli import formats, jobs
from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.failure import Failure
from kvclient.cli.importer import Done, Importer, RejectFile
from kvclient.cli.interrupts import Interrupts
from kvclient.cli.progress import Progress
from kvclient.cli.records import FormatError, Reader
from kvclient.cli.resume import StateFile, scratch_directory
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Exit, KVError

_READ_BUFFER_BYTES = 1 << 20


@command("import")
@click.argument("file", metavar="FILE|-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@jobs.layout_options
@click.option(
    "--rejects",
    "rejects_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where bad records go. [default: FILE.rejects.jsonl here]",
)
@jobs.job_options
def import_file(
    file: str,
    form: str | None,
    delimiter: str | None,
    key_column: int,
    value: str,
    header: bool,
    rejects_path: Path | None,
    state_path: Path | None,
    retry_for: float,
) -> None:
    """Load a file of records: jsonl, csv, lines or dump.

    Bad records go to the reject file, with line number and reason, and the exit code is 10; good ones are all
    loaded. When the import is stopped, it prints the command that continues it.
    """
    app = current()
    form = form or formats.guess(file)
    if form is None:
        raise click.UsageError(
            f"the format cannot be told from the name {file!r}: add --format {'|'.join(formats.NAMES)}"
        )
    layout = jobs.layout_of(file, delimiter, key_column, value, header)
    base = "stdin" if file == "-" else os.path.basename(file)
    source = sys.stdin.buffer if file == "-" else open(file, "rb", buffering=_READ_BUFFER_BYTES)  # noqa: SIM115
    with source:
        size = _size(source)
        rejects_path = (rejects_path or scratch_directory() / f"{base}.rejects.jsonl").absolute()
        job = jobs.job_of("import", file, form, layout, size=size, rejects=str(rejects_path))
        state = StateFile(state_path or scratch_directory() / f"{base}.import-state", job)
        app.client()
        state.claim()
        done = Done(state.load() if state_path else None)
        if done.finished:
            app.note(f"{state.path} says that this import is complete; remove it to load the file again")
            return
        _skip_to(source, done.mark.get("offset", 0))
        run = _ImportRun(app, state, done, RejectFile(rejects_path, done.rejects_size), size)
        try:
            run.go(formats.reader(form, source, done.mark, layout), retry_for)
        except FormatError as error:
            # There is no way on from here: a state file nobody asked for would only lie around.
            if state_path is None:
                state.remove()
            raise run.bad_file(error) from None
    if state_path is None:
        state.remove()
    run.summary()


def _size(file: BinaryIO) -> int | None:
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _skip_to(file: BinaryIO, offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        skipped = len(file.read(min(offset, _READ_BUFFER_BYTES)))
        if skipped == 0:
            raise Failure(
                Exit.USAGE,
                f"the input ends {offset} bytes before the place to continue at: is it the same?",
                "USAGE",
            )
        offset -= skipped


class _ImportRun:
    """One run of an import: what is said before, while and after."""

    def __init__(self, app: App, state: StateFile, done: Done, rejects: RejectFile, size: int | None) -> None:
        self._app = app
        self._state = state
        self._done = done
        self._rejects = rejects
        self._progress = Progress("imported", size, shown=not app.settings.quiet)
        self._began = time.monotonic()
        self._imported_before = done.imported

    def go(self, reader: Reader, retry_for: float) -> None:
        """Run to the end. On every failure the state file is up to date, and the way on has been said if
        there is one (behind a FormatError there is none).
        """
        app, done = self._app, self._done
        client = app.client()
        self._state.save(done.state(), now=True)
        with Interrupts() as interrupts:
            importer = Importer(
                client.put_many,
                jobs.patience_of(app, retry_for),
                done,
                self._rejects,
                self._on_done,
                interrupts.held,
            )
            try:
                importer.run(reader)
                done.finished = True
                self._state.save(done.state(), now=True)
            except (KVError, KeyboardInterrupt, OSError):
                self._stopped()
                raise
            except FormatError:
                self._state.save(done.state(), now=True)
                raise
            finally:
                self._progress.clear()
                self._rejects.close()

    def _on_done(self, done: Done) -> None:
        self._state.save(done.state())
        note = f", {done.rejected} rejected" if done.rejected else ""
        self._progress.update(done.imported, done.offset, note)

    def bad_file(self, error: FormatError) -> Failure:
        """What to say of a file that cannot be read to its end."""
        imported = self._done.imported
        kept = f"The {imported:,} records before that are loaded." if imported else "Nothing was loaded."
        return Failure(Exit.PARTIAL if imported else Exit.ERROR, f"{error}. {kept}", "BAD_FILE")

    def _stopped(self) -> None:
        self._progress.clear()
        # On a full disk the state of a moment ago must do.
        with contextlib.suppress(OSError):
            self._state.save(self._done.state(), now=True)
        line = self._done.mark.get("line", 0)
        self._app.note(
            f"stopped behind line {line:,}; continue:  {jobs.continue_command(self._app, self._state)}"
        )

    def summary(self) -> None:
        """The last word; exit code 10 if records were rejected."""
        done, app = self._done, self._app
        seconds = time.monotonic() - self._began
        if app.settings.output in ("json", "jsonl"):
            fields = {
                "imported": done.imported,
                "rejected": done.rejected,
                "bytes": done.offset,
                "seconds": round(seconds, 3),
            }
            app.output.document(fields | {"rejects": str(self._rejects.path) if done.rejected else None})
        rate = (done.imported - self._imported_before) / seconds if seconds else 0.0
        size, took = show_bytes(done.offset), show_seconds(seconds)
        text = f"imported {done.imported:,} keys, {size} in {took} ({rate:,.0f}/s)"
        if done.rejected:
            text += f", {done.rejected:,} rejected -> {self._rejects.path}"
        app.note(text)
        if done.rejected:
            quit_with(Exit.PARTIAL)
