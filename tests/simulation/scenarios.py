"""Which seeds are left to chance, and which are directed towards situations that chance hardly ever makes.

Owns the choice. It is drawn apart from everything else, so that a new scenario leaves the runs of the seeds
that are left to chance as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tests.simulation import apart, duel, echo, laggards, revote, settings, slowleader, split
from tests.simulation.nemesis import Nemesis
from tests.simulation.settings import Settings
from tests.simulation.world import World


class Scenario(NamedTuple):
    """What the world is like, and who directs what goes wrong in it."""

    adjust: Callable[[Random, Settings], Settings]
    nemesis: type[Nemesis]
    weight: int = 1
    """How often, compared with the others: more for those with many kinds of rounds."""


SCENARIOS = {
    "apart": Scenario(apart.adjust, apart.Apart),
    "duel": Scenario(duel.adjust, duel.Duel),
    "echo": Scenario(echo.adjust, Nemesis),
    "laggards": Scenario(laggards.adjust, laggards.Laggards),
    "revote": Scenario(revote.adjust, revote.Revote),
    "slow leader": Scenario(slowleader.adjust, slowleader.SlowLeader),
    "split": Scenario(split.adjust, split.Split, weight=3),
}
_CHANCE = 0.5
"""So much of the seeds is left to chance; the scenarios share the others."""


def draw(world: World) -> Settings:
    """The settings of a seed."""
    drawn = settings.draw(world.random)
    random = Random(f"scenario of seed {world.seed}")
    if random.random() < _CHANCE:
        return drawn
    weights = [scenario.weight for scenario in SCENARIOS.values()]
    name = random.choices(list(SCENARIOS), weights)[0]
    return SCENARIOS[name].adjust(random, drawn)._replace(scenario=name)


def nemesis_of(drawn: Settings) -> type[Nemesis]:
    """Who directs a run with such settings."""
    return SCENARIOS[drawn.scenario].nemesis if drawn.scenario else Nemesis
