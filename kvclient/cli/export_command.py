"""`kvcli export`: the command around the engine of exporter.py."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click

from kvclient.cli import formats, jobs
from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.exporter import (
    BadPartial,
    Exported,
    Exporter,
    ScannedEntry,
    Sink,
    open_partial,
    publish,
)
from kvclient.cli.failure import Failure
from kvclient.cli.interrupts import Interrupts
from kvclient.cli.progress import Progress
from kvclient.cli.records import Reject, Writer
from kvclient.cli.resume import StateFile
from kvclient.cli.text import to_terminal
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Exit, KVError

_SKIPPED_SHOWN = 10


@command("export")
@click.argument("prefix", default="")
@click.option(
    "-f",
    "--file",
    default="-",
    metavar="FILE|-",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="[default: stdout]",
)
@jobs.layout_options
@jobs.job_options
def export_file(
    prefix: str,
    file: str,
    form: str | None,
    delimiter: str | None,
    key_column: int,
    value: str,
    header: bool,
    state_path: Path | None,
    retry_for: float,
) -> None:
    """Write all keys, or those with a prefix, in key order: jsonl (to stdout unless told), csv, lines or
    dump.

    FILE appears when it is complete. It is no snapshot: writes that happen meanwhile may be in it or not.
    """
    app = current()
    form = form or formats.guess(file) or ("jsonl" if file == "-" else None)
    if form is None:
        raise click.UsageError(
            f"the format cannot be told from the name {file!r}: add --format {'|'.join(formats.NAMES)}"
        )
    layout = jobs.layout_of(file, delimiter, key_column, value, header)
    direct = file == "-" or (os.path.exists(file) and not os.path.isfile(file))
    if direct and state_path is not None:
        raise click.UsageError(
            "what goes to a pipe or a device cannot be continued: leave --resume out, or give -f FILE"
        )
    run = _ExportRun(app, formats.writer(form, layout), app.data(prefix, "prefix"), retry_for)
    if direct:
        run.directly(file)
    else:
        job = jobs.job_of("export", file, form, layout, prefix=run.prefix.hex())
        run.into_file(
            Path(file),
            StateFile(state_path or Path(f"{file}.export-state"), job),
            keep_state=state_path is not None,
        )
    run.summary()


class _ExportRun:
    """One run of an export."""

    def __init__(self, app: App, writer: Writer, prefix: bytes, retry_for: float) -> None:
        self.prefix = prefix
        self._app = app
        self._writer = writer
        self._patience = jobs.patience_of(app, retry_for)
        self._progress = Progress("exported", None, shown=not app.settings.quiet)
        self._began = time.monotonic()
        self._done = Exported()
        self._state: StateFile | None = None

    def directly(self, file: str) -> None:
        """To stdout, or a device."""
        if file == "-":
            self._run(self._app.output.stdout)
            self._app.output.stdout.flush()
            return
        with open(file, "wb") as out:
            self._run(out)

    def into_file(self, path: Path, state: StateFile, keep_state: bool) -> None:
        """To FILE.partial, then FILE."""
        # Whether anybody is there comes first, so that nothing is left behind if not.
        self._app.client()
        state.claim()
        self._done = Exported(state.load() if keep_state else None)
        self._state = state
        partial = path.with_name(path.name + ".partial")
        if self._done.finished:
            self._app.note(
                f"{state.path} says that this export is complete; remove it to write the file again"
            )
            return
        try:
            out = open_partial(partial, self._done.size)
        except BadPartial as error:
            raise Failure(Exit.USAGE, f"{error}. Start again without --resume", "USAGE") from None
        try:
            self._run(out)
            out.close()
        except (KVError, KeyboardInterrupt, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, KVError):
                error.filename = str(partial)
            # On a full disk neither may succeed; then the state of a moment ago must do.
            with contextlib.suppress(OSError):
                out.close()
            with contextlib.suppress(OSError):
                state.save(self._done.state(), now=True)
            again = jobs.continue_command(self._app, state)
            self._app.note(f"stopped after {self._done.keys:,} keys; continue:  {again}")
            raise
        publish(partial, path)
        self._done.finished = True
        if keep_state:
            state.save(self._done.state(), now=True)
        else:
            state.remove()

    def _run(self, out: Sink) -> None:
        client = self._app.client()
        keys_only = self._writer.keys_only

        def scan(start: bytes) -> Iterable[ScannedEntry]:
            return client.scan(self.prefix, start=start or None, keys_only=keys_only)

        with Interrupts() as interrupts:
            exporter = Exporter(
                scan,
                self._writer,
                self._patience,
                self._done,
                self._on_page,
                self._on_reject,
                interrupts.held,
            )
            try:
                exporter.run(out)
            finally:
                self._progress.clear()

    def _on_page(self, done: Exported) -> None:
        if self._state is not None:
            self._state.save(done.state())
        self._progress.update(done.keys, done.size)

    def _on_reject(self, reject: Reject) -> None:
        if self._done.skipped < _SKIPPED_SHOWN:
            self._app.note(f"skipped {to_terminal(reject.record)}: {reject.reason}")

    def summary(self) -> None:
        """The last word; exit code 10 if the format could not hold everything."""
        done = self._done
        seconds = time.monotonic() - self._began
        rate = done.keys / seconds if seconds else 0.0
        text = (
            f"exported {done.keys:,} keys, {show_bytes(done.size)} in {show_seconds(seconds)} ({rate:,.0f}/s)"
        )
        if done.skipped:
            text += f", {done.skipped:,} skipped"
        self._app.note(text)
        if done.skipped:
            quit_with(Exit.PARTIAL)
