"""Which seeds are left to chance, and which are directed towards situations that chance hardly ever makes.

Owns the choice. It is drawn apart from everything else, so that a new scenario leaves the runs of the seeds
that are left to chance as they are.
"""

from __future__ import annotations

from random import Random

from tests.simulation import apart, duel, echo, laggards, settings, slowleader
from tests.simulation.nemesis import Nemesis
from tests.simulation.settings import Settings
from tests.simulation.world import World

NEMESES: dict[str, type[Nemesis]] = {
    "": Nemesis,
    "apart": apart.Apart,
    "duel": duel.Duel,
    "echo": Nemesis,
    "laggards": laggards.Laggards,
    "slow leader": slowleader.SlowLeader,
}
_ADJUST = {
    "apart": apart.adjust,
    "duel": duel.adjust,
    "echo": echo.adjust,
    "laggards": laggards.adjust,
    "slow leader": slowleader.adjust,
}
_CHANCE = 2
"""Of four seeds so many are left to chance; the scenarios share the others."""


def draw(world: World) -> Settings:
    """The settings of a seed."""
    drawn = settings.draw(world.random)
    random = Random(f"scenario of seed {world.seed}")
    if random.randrange(4) < _CHANCE:
        return drawn
    return _ADJUST[random.choice(sorted(_ADJUST))](random, drawn)
