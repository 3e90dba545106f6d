"""One run of `kvcli backup create`: the directory, the state of what is done, threads, and the manifest at
the end.

Invariant: what the state file says of a partition is durable, and a directory with a manifest is a complete
backup.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from kvclient.cli.app import App
from kvclient.cli.backuppull import Pace, Puller, Stopped
from kvclient.cli.backupset import FORMAT, MANIFEST, UNFINISHED, Row, file_name, write_manifest
from kvclient.cli.failure import Failure
from kvclient.cli.interrupts import Interrupts
from kvclient.cli.progress import DRAW_SECONDS, Progress
from kvclient.cli.resume import StateFile
from kvclient.cli.retrying import Patience
from kvclient.cli.units import show_bytes, show_seconds
from kvclient.errors import Exit

IN_FLIGHT: Final = 4
"""Partitions pulled at once: hides round trips, and compresses on more than one core."""


class CreateRun:
    """Made when the cluster has answered and the directory may be used; otherwise Failure or KVError."""

    def __init__(self, app: App, directory: Path, resume: bool) -> None:
        self._app = app
        self._directory = directory
        self._began = time.monotonic()
        status = app.client().admin("status")
        self._cluster = {
            "name": status["name"],
            "id": status["id"],
            "epoch": status["epoch"],
            "partitions": status["partitions"],
            "replicas": status["replicas"],
        }
        self._names = {node["id"]: node["name"] for node in status["nodes"]}
        job = {
            "command": "backup create",
            "cluster": status["id"],
            "partitions": status["partitions"],
        }
        self._state = StateFile(directory / UNFINISHED, job)
        done = self._prepare(resume)
        self._began_ms: int = done.get("began_ms", time.time_ns() // 1_000_000)
        self._rows: dict[int, Row] = {row["partition"]: row for row in done.get("rows", [])}
        self._counting = threading.Lock()
        self._records = sum(row["records"] for row in self._rows.values())
        self._bytes = sum(row["raw_bytes"] for row in self._rows.values())

    def _prepare(self, resume: bool) -> dict[str, Any]:
        """What is done already. The directory is this process's from here on."""
        directory = self._directory
        directory.mkdir(parents=True, exist_ok=True)
        self._state.claim()
        if (directory / MANIFEST).exists():
            what = f"{directory} holds a complete backup. Name another directory."
            raise Failure(Exit.USAGE, what, "USAGE")
        done = self._state.load()
        if done is None:
            if any(directory.iterdir()):
                what = f"{directory} is not empty. Name a new directory."
                raise Failure(Exit.USAGE, what, "USAGE")
            return {}
        if not resume:
            what = f"{directory} holds an unfinished backup. Add --resume to go on with it, or remove it."
            raise Failure(Exit.USAGE, what, "USAGE")
        done["rows"] = [row for row in done["rows"] if self._is_there(row)]
        return done

    def _is_there(self, row: Row) -> bool:
        try:
            return bool((self._directory / row["file"]).stat().st_size == row["bytes"])
        except FileNotFoundError:
            return False

    def _save(self, now: bool = False) -> None:
        self._state.save({"began_ms": self._began_ms, "rows": list(self._rows.values())}, now)

    def go(self, patience: Patience, bandwidth: int | None) -> None:
        """Pull what is missing, then write the manifest."""
        self._save(now=True)
        admin = self._app.client().admin
        pace = Pace(bandwidth, patience.stopped)
        puller = Puller(admin, self._cluster["id"], self._names, patience, pace, self._on_page)
        progress = Progress("backed up", None, shown=not self._app.settings.quiet)
        with Interrupts() as interrupts:
            try:
                self._pull_all(puller, patience, progress, interrupts)
            except BaseException:
                progress.clear()
                self._save(now=True)
                self._app.note(f"stopped; continue:  {self._continue_command()}")
                raise
        progress.clear()
        self._finish()

    def _pull_all(
        self, puller: Puller, patience: Patience, progress: Progress, interrupts: Interrupts
    ) -> None:
        count = self._cluster["partitions"]
        missing = iter([number for number in range(count) if number not in self._rows])
        under_way: set[Future[Row]] = set()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="backup") as threads:
            try:
                while True:
                    while len(under_way) < IN_FLIGHT and (number := next(missing, None)) is not None:
                        under_way.add(threads.submit(self._pull, puller, number))
                    if not under_way:
                        return
                    ended, under_way = wait(under_way, DRAW_SECONDS, FIRST_COMPLETED)
                    with interrupts.held():
                        self._take_in(ended)
                    note = f", {len(self._rows)} of {count} partitions"
                    progress.update(self._records, self._bytes, note)
            except BaseException:
                patience.stop()
                self._keep_rest(under_way)
                raise

    def _pull(self, puller: Puller, number: int) -> Row:
        name = file_name(number)
        return puller.pull(number, self._directory / name) | {"file": name}

    def _take_in(self, ended: set[Future[Row]]) -> None:
        failed: BaseException | None = None
        for future in ended:
            error = future.exception()
            if error is None:
                row = future.result()
                self._rows[row["partition"]] = row
            elif failed is None or isinstance(failed, Stopped):
                failed = error
        self._save()
        if failed is not None:
            raise failed

    def _keep_rest(self, under_way: set[Future[Row]]) -> None:
        """Partitions that came to their end while the others were being stopped."""
        for future in wait(under_way).done:
            if future.exception() is None:
                row = future.result()
                self._rows[row["partition"]] = row

    def _on_page(self, records: int, size: int) -> None:
        with self._counting:
            self._records += records
            self._bytes += size

    def _finish(self) -> None:
        manifest = {
            "ringkv_backup": FORMAT,
            "cluster": self._cluster,
            "software": _software(),
            "began_ms": self._began_ms,
            "finished_ms": time.time_ns() // 1_000_000,
            "partitions": [self._rows[number] for number in range(self._cluster["partitions"])],
        }
        write_manifest(self._directory, manifest)
        self._state.remove()
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _continue_command(self) -> str:
        arguments = list(self._app.arguments)
        if "--resume" not in arguments:
            arguments.append("--resume")
        return shlex.join(["kvcli", *arguments])

    def summary(self) -> None:
        """The last word."""
        rows = self._rows.values()
        records, size = sum(row["records"] for row in rows), sum(row["bytes"] for row in rows)
        seconds = time.monotonic() - self._began
        if self._app.output.form in ("json", "jsonl"):
            self._app.output.document(
                {
                    "directory": str(self._directory),
                    "cluster": self._cluster["name"],
                    "partitions": len(rows),
                    "keys": records,
                    "bytes": size,
                    "seconds": round(seconds, 3),
                }
            )
        rate = records / seconds if seconds else 0.0
        self._app.note(
            f"backed up {records:,} keys of {len(rows)} partitions, {show_bytes(size)} "
            f"in {show_seconds(seconds)} ({rate:,.0f}/s)"
        )


def _software() -> str:
    from importlib.metadata import version

    return version("ringkv")
