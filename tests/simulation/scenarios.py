"""Which seeds are left to chance, and which are directed towards situations that chance hardly ever makes.

Owns the choice. It is drawn apart from everything else, so that a new scenario leaves the runs of the seeds
that are left to chance as they are.
"""

from __future__ import annotations

from random import Random

from tests.simulation import settings, split
from tests.simulation.nemesis import Nemesis
from tests.simulation.settings import Settings
from tests.simulation.world import World

NEMESES: dict[str, type[Nemesis]] = {"": Nemesis, "split": split.Split}
_ADJUST = {"split": split.adjust}
_CHANCE = 3
"""Of four seeds so many are left to chance; the scenarios share the others."""


def draw(world: World) -> Settings:
    """The settings of a seed."""
    drawn = settings.draw(world.random)
    random = Random(f"scenario of seed {world.seed}")
    if random.randrange(4) < _CHANCE:
        return drawn
    return _ADJUST[random.choice(sorted(_ADJUST))](random, drawn)
