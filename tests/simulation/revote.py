"""The scenario "revote": who has voted in a term forgets everything that is not durable, and is asked once
more in the same term, by a leader of before that has heard of no election. Two that win one term would be the
leaders of two clusters.
"""

from __future__ import annotations

from random import Random

from tests.simulation.directed import NOBODY_HEARD_S, Directed, Story, Wait, directed
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    return directed(drawn, 3)._replace(
        duplication=0.0,
        latency=random.choice((0.0005, 0.002, 0.01)),
        restart=0.1,
    )


class Revote(Directed):
    """The leader of before, who wins without its knowledge, and whose vote both need."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        winner, voter = others
        first, ballot = self._raft(winner), self._raft(voter)
        self._part([leader], others)
        yield Wait(NOBODY_HEARD_S)

        self._campaign(winner)
        if not (yield Wait(0.5, lambda: ballot.vote == winner.node and ballot.term == first.term)):
            return
        self._block([winner], [voter])  # no entry of its term; the vote comes through
        if not (yield Wait(0.5, lambda: self._leads(winner))):
            return
        self._part([winner], [voter])

        voter.die(self._world.random.random() < 0.5, "it has voted")
        yield Wait(1.0, lambda: voter.up)
        self._join([leader], [voter])
        yield from self._elect(leader, 2.0)
        yield Wait(0.1)
