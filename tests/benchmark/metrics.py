"""scripts/bench metrics: what it costs that a cluster is watched. One side has its monitor, which is scraped
once a second; the other has none, its stores tell no figures and its router counts no requests. The bar is
3 %.

While the unwatched side has its turn, the monitor of the other one is held.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.cost_bench import turns
from tests.integration.localcluster import Cluster

SCRAPE_EVERY_S = 1.0
UNHEARD = Path(__file__).parent / "cost_bench" / "unheard"


class Watched(turns.Side):
    """A cluster whose monitor is scraped during its turns, and held between them."""

    def start(self, keys: int) -> None:
        super().start(keys)
        self._monitor(signal.SIGSTOP)

    def stop(self) -> None:
        self._monitor(signal.SIGCONT)
        super().stop()

    def turn(self, mix: str, told: argparse.Namespace) -> turns.Row:
        self._monitor(signal.SIGCONT)
        try:
            with self._scraped():
                return super().turn(mix, told)
        finally:
            self._monitor(signal.SIGSTOP)

    def _monitor(self, number: signal.Signals) -> None:
        os.kill(self.cluster.processes()["monitor"], number)

    @contextmanager
    def _scraped(self) -> Iterator[None]:
        address = f"http://{self.cluster.monitor}/metrics"
        done = threading.Event()

        def scrape() -> None:
            while not done.wait(SCRAPE_EVERY_S):
                with urllib.request.urlopen(address, timeout=30) as page:
                    page.read()

        with ThreadPoolExecutor(1) as pool:
            scraping = pool.submit(scrape)
            try:
                yield
            finally:
                done.set()
        scraping.result()


class Unheard(Cluster):
    """A cluster whose processes are told to count and to tell nothing; it has no monitor."""

    def environment(self) -> dict[str, str]:
        known = super().environment()
        return known | {"PYTHONPATH": os.pathsep.join(filter(None, (str(UNHEARD), known.get("PYTHONPATH"))))}

    def up(self, *arguments: str) -> None:
        super().up(*arguments)
        self.dev("kill", "monitor")


def main() -> None:
    told = turns.options(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        sides = {
            "off": turns.Side(Unheard(Path(directory) / "off")),
            "on": Watched(Cluster(Path(directory) / "on")),
        }
        turns.measure("off", "on", sides, told)


if __name__ == "__main__":
    main()
