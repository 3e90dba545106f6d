"""`python -m tests.integration.screenshots [--into DIRECTORY]`: the status page as a real browser shows it.

Starts a cluster under load, and takes a picture of each state, light and dark. A browser that logs anything,
be it a refused style or a script that failed, ends the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.integration.localcluster import KVCLI, Cluster

Row = dict[str, Any]

IMAGES: Final = Path(__file__).resolve().parents[2] / "docs" / "images"
MONITOR_OFFSET: Final = 200
"""Of the monitor's port from the first one of a cluster by `kvcli dev`."""
SCHEMES: Final = {"light": 1, "dark": 0}
"""As Blink numbers them."""
SIZES: Final = {"wide": (1280, 1330), "narrow": (390, 1800)}
DEADLINE_S: Final = 240
WARM_S: Final = 60
"""Of load before the first picture, so that the charts have something to show."""
BENCH: Final = ("bench", "--keep", "--keys", "24000", "--value", "4000", "--mix", "80/20")
BANDWIDTH: Final = "1MiB"
"""Of a move: 6 s for a partition of BENCH, and as much again where two have the same source."""


class Story:
    """One cluster, its monitor's address and where the pictures go."""

    def __init__(self, directory: Path, into: Path) -> None:
        self._cluster = Cluster(directory / "cluster")
        self._profile = directory / "profile"
        self._into = into
        self._page = ""

    def play(self) -> None:
        self._cluster.up("--stores", "3", "--routers", "2", "--partitions", "16")
        try:
            shape = json.loads((self._cluster.directory / "cluster.json").read_text())
            self._page = f"http://127.0.0.1:{shape['port_base'] + MONITOR_OFFSET}/"
            self._fill()
            with self._load():
                self._healthy()
                self._killed()
                self._grown()
                self._rebalancing()
        finally:
            self._cluster.dev("down", "--purge", "--yes")

    def _fill(self) -> None:
        """So much that a move takes a while. The monitor begins anew: the filling is no part of the story."""
        self._cluster.kvcli(*BENCH, "--fill", "--ops", "1")
        self._cluster.dev("stop", "monitor")
        self._start("start", "monitor")

    def _healthy(self) -> None:
        self._wait(
            "a healthy cluster with some history",
            lambda status: is_well(status) and known(status) >= WARM_S / 2,
        )
        self._picture("healthy")
        self._picture("healthy", "narrow", ("light",))

    def _killed(self) -> None:
        self._cluster.dev("kill", "store3")
        self._wait(
            "store3 to be down, and its partitions led by others",
            lambda status: state(status, "store3") == "down" and not status["totals"]["partitions_down"],
        )
        self._picture("store-killed")

    def _grown(self) -> None:
        self._start("start", "store3")
        self._wait("store3 to have caught up", is_well)
        self._start("add-store", "store4")
        self._wait(
            "store4 to have joined", lambda status: is_well(status) and state(status, "store4") == "up"
        )

    def _rebalancing(self) -> None:
        self._cluster.kvcli("rebalance", "set", "--bandwidth", BANDWIDTH)
        self._cluster.kvcli("rebalance", "start")
        for scheme in SCHEMES:
            self._wait("store4 to have got some partitions, and to be getting another", is_filling)
            self._picture("rebalance", schemes=(scheme,))

    def _start(self, verb: str, name: str) -> None:
        """Patiently: a busy machine may need longer than `kvcli dev` waits for a start."""
        self._cluster.kvcli("dev", verb, name, "--dir", str(self._cluster.directory), check=False)

    @contextmanager
    def _load(self) -> Iterator[None]:
        command = [KVCLI, *BENCH, "--no-fill", "--seconds", "1h", "--in-flight", "4"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=self._cluster.environment(), stdout=quiet, stderr=quiet) as bench:
            try:
                yield
                assert bench.poll() is None, "the load ended by itself"
            finally:
                bench.kill()

    def _wait(self, what: str, holds: Callable[[Row], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        status: Row = {}
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self._page}api/v1/status", timeout=5) as answer:
                    status = json.load(answer)
            except OSError:
                status = {}
            if status and holds(status):
                return
            time.sleep(0.5)
        raise SystemExit(f"no sign of {what} within {DEADLINE_S} s: {status.get('verdict')}")

    def _picture(self, name: str, size: str = "wide", schemes: tuple[str, ...] = tuple(SCHEMES)) -> None:
        for scheme in schemes:
            path = self._into / f"status-{name}{'-narrow' if size == 'narrow' else ''}-{scheme}.png"
            photograph(self._page, path, SCHEMES[scheme], SIZES[size], self._profile)
            print(path, flush=True)


def photograph(page: str, path: Path, scheme: int, size: tuple[int, int], profile: Path) -> None:
    """One picture; ends the run if the browser has something to say about the page."""
    done = subprocess.run(
        [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={size[0]},{size[1]}", "--enable-logging=stderr", f"--screenshot={path}", page,
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    if done.returncode or said or not path.is_file():
        raise SystemExit(f"chromium ended with {done.returncode}: {said or done.stderr[-2000:]}")


def is_filling(status: Row) -> bool:
    replicas = (one for row in status["partitions"] for one in row["replicas"])
    roles = {one["role"] for one in replicas if one["node"] == "store4"}
    copied = any(move["stage"] == "learner" and move["bytes"] for move in status["moves"])
    return copied and roles > {"learner"}


def is_well(status: Row) -> bool:
    return bool(status["verdict"]["level"] == "ok")


def known(status: Row) -> int:
    """Points of the history at which requests were answered."""
    return sum(bool(rate) for rate in status["history"]["ops_per_s"])


def state(status: Row, name: str) -> str | None:
    return next((node["state"] for node in status["nodes"] if node["name"] == name), None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("--into", type=Path, default=IMAGES, help="default: docs/images")
    into: Path = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ringkv-screenshots-") as directory:
        Story(Path(directory), into.resolve()).play()


if __name__ == "__main__":
    main()
