"""Running seeds, and telling of the first that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.simulation.cluster import FAULTS_S, simulate

STORY_TAIL = 40


class Failure(NamedTuple):
    """A seed that failed."""

    seed: int
    error: BaseException
    story: tuple[str, ...]

    def __str__(self) -> str:
        frames = "".join(traceback.format_exception(self.error))
        return "\n".join(
            (
                f"seed {self.seed} failed: {type(self.error).__name__}: {self.error}",
                "the end of the story:",
                *self.story[-STORY_TAIL:],
                frames,
                f"replay it with: python -m tests.simulation --seeds {self.seed}:{self.seed + 1} --verbose",
            )
        )


def run(
    seeds: Iterable[int],
    faults_s: float = FAULTS_S,
    tell: Callable[[str], None] | None = None,
    on_done: Callable[[int, str, str], None] | None = None,
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
