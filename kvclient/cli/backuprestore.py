"""One run of `kvcli backup restore`: what is said before, while and after."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from kvclient.cli import jobs
from kvclient.cli.app import App
from kvclient.cli.backupfile import BadBackup
from kvclient.cli.backupput import Done, Restorer
from kvclient.cli.backupset import Backup
from kvclient.cli.failure import Failure
from kvclient.cli.interrupts import Interrupts
from kvclient.cli.progress import Progress
from kvclient.cli.resume import StateFile, scratch_directory
from kvclient.cli.retrying import Patience
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Exit, KVError


class RestoreRun:
    """Made when the cluster has answered. A state file that is there says that the cluster is not empty since
    this very restore has begun.
    """

    def __init__(self, app: App, backup: Backup, state_path: Path | None) -> None:
        self._app = app
        self._backup = backup
        self._keeps_state = state_path is not None
        self._began = time.monotonic()
        cluster = app.client().admin("status")["id"]
        job = {
            "command": "backup restore",
            "backup": backup.manifest["checksum"],
            "cluster": cluster,
        }
        name = f"{backup.directory.resolve().name}.restore-state"
        self._state = StateFile(state_path or scratch_directory() / name, job)
        self._state.claim()
        found = self._state.load() if self._keeps_state else None
        self._begun = found is not None
        self._done = Done(found)
        self._restored_before = self._done.restored

    def go(self, patience: Patience, force: bool) -> None:
        """Put everything. Failure: the cluster holds keys. BadBackup: the backup is damaged."""
        app, done = self._app, self._done
        if done.finished:
            app.note(f"{self._state.path} says that this restore is complete; remove it to do it again")
            return
        client = app.client()
        if not (force or self._begun) and next(iter(client.scan(limit=1, keys_only=True)), None) is not None:
            what = (
                "the cluster holds keys. Restore into an empty one, or add --force: keys of the backup win."
            )
            raise Failure(Exit.CONFLICT, what, "NOT_EMPTY")
        progress = Progress("restored", self._backup.size, shown=not app.settings.quiet)

        def on_done(done: Done) -> None:
            self._state.save(done.state())
            progress.update(done.restored, done.size)

        self._state.save(done.state(), now=True)
        with Interrupts() as interrupts:
            restorer = Restorer(client.pipeline, patience, done, on_done, interrupts.held)
            try:
                restorer.run(self._backup)
            except (KVError, KeyboardInterrupt, OSError, BadBackup):
                progress.clear()
                self._stopped()
                raise
        progress.clear()
        done.finished = True
        if self._keeps_state:
            self._state.save(done.state(), now=True)
        else:
            self._state.remove()

    def _stopped(self) -> None:
        # On a full disk the state of a moment ago must do.
        with contextlib.suppress(OSError):
            self._state.save(self._done.state(), now=True)
        again = jobs.continue_command(self._app, self._state)
        self._app.note(f"stopped after {self._done.restored:,} keys; continue:  {again}")

    def summary(self) -> None:
        """The last word."""
        done, app = self._done, self._app
        seconds = time.monotonic() - self._began
        if app.output.form in ("json", "jsonl"):
            app.output.document(
                {"restored": done.restored, "expired": done.expired, "seconds": round(seconds, 3)}
            )
        rate = (done.restored - self._restored_before) / seconds if seconds else 0.0
        text = (
            f"restored {done.restored:,} keys, {show_bytes(self._backup.size)} "
            f"in {show_seconds(seconds)} ({rate:,.0f}/s)"
        )
        if done.expired:
            text += f", {done.expired:,} had expired"
        app.note(text)
