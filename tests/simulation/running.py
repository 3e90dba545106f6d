"""Running seeds, and telling of the first that fails."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from shared import logs
from tests.simulation.cluster import FAULTS_S, simulate
from tests.simulation.world import World

STORY_TAIL = 40

Simulate = Callable[[int, float, Callable[[str], None] | None], tuple[World, str, BaseException | None]]


class Failure(NamedTuple):
    """A seed that failed."""

    seed: int
    error: BaseException
    story: tuple[str, ...]
    program: str = "tests.simulation"

    def __str__(self) -> str:
        frames = "".join(traceback.format_exception(self.error))
        return "\n".join(
            (
                f"seed {self.seed} failed: {type(self.error).__name__}: {self.error}",
                "the end of the story:",
                *self.story[-STORY_TAIL:],
                frames,
                f"replay it with: python -m {self.program} --seeds {self.seed}:{self.seed + 1} --verbose",
            )
        )


def run(
    seeds: Iterable[int],
    faults_s: float = FAULTS_S,
    tell: Callable[[str], None] | None = None,
    on_done: Callable[[int, str, str], None] | None = None,
    simulate: Simulate = simulate,
) -> Failure | None:
    """Runs seeds until one fails. `tell` gets every line of the story, `on_done` (seed, trace hash, summary)
    of each that passed.
    """
    for seed in seeds:
        world, summary, error = simulate(seed, faults_s, tell)
        if error is not None:
            return Failure(seed, error, tuple(world.story))
        if on_done is not None:
            on_done(seed, world.digest, summary)
    return None


def main(doc: str | None, seeds: str, faults_s: float, run: Callable[..., Failure | None]) -> int:
    """The command line; `seeds` is the default, and `run` runs them."""
    program = (doc or "").split(" --", 1)[0]
    parser = argparse.ArgumentParser(prog=program, description=doc)
    parser.add_argument(
        "--seeds", default=seeds, metavar="A:B", help=f"from A on, before B (default: {seeds})"
    )
    parser.add_argument("--minutes", type=float, default=faults_s / 60, help="simulated minutes with faults")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--verbose", action="store_true", help="print the story while it happens")
    arguments: Any = parser.parse_args()
    first, _, stop = arguments.seeds.partition(":")
    logs.configure("error", "console")
    tell = print if arguments.verbose else None
    begin, failed, done = time.monotonic(), 0, 0

    def on_done(seed: int, digest: str, summary: str) -> None:
        if arguments.verbose:
            print(f"seed {seed}: {digest} {summary}")

    for seed in range(int(first), int(stop)):
        failure = run([seed], arguments.minutes * 60, tell, on_done)
        done += 1
        if failure is not None:
            failed += 1
            print(failure if not arguments.keep_going else str(failure).splitlines()[0], flush=True)
            if not arguments.keep_going:
                break
    print(f"{done} seeds, {failed} failed, {time.monotonic() - begin:.1f} s")
    return 1 if failed else 0
