"""The scenario "duel": two stores lead in turn, each without having heard of the other's entries, and a third
one decides (figure 8 of Ongaro and Ousterhout 2014). The first gets its entries of an old term to the third
one, but none of its new term, before the second comes back with a newer term than that of those entries.
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
        append_bytes_max=1,
    )


class Duel(Directed):
    """Leader, challenger, and who decides."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        challenger, judge = others
        first, second, third = self._raft(leader), self._raft(challenger), self._raft(judge)
        self._part([leader], others)
        yield from self._write_often(leader, self._world.random.randint(1, 3))
        yield Wait(NOBODY_HEARD_S)

        self._campaign(challenger)
        if not (yield Wait(0.5, lambda: third.vote == challenger.node and third.term == second.term)):
            return
        self._block([challenger], [judge])  # its entries; the vote comes through
        if not (yield Wait(0.5, lambda: self._leads(challenger))):
            return
        yield Wait(0.1)
        self._part([challenger], [judge])

        common = third.last_index
        self._join([leader], [judge])
        if not (yield from self._elect(leader, 2.0)):
            return
        if not (yield Wait(0.5, lambda: third.last_index > common and third.log.last_term < first.term)):
            return
        self._block([leader], [judge])  # no entry of the new term; the answer comes through
        yield Wait(self._world.random.choice((0.05, 0.2)))

        self._part([leader], [judge])
        self._join([challenger], [judge])
        yield Wait(NOBODY_HEARD_S)
        yield from self._elect(challenger, 1.0)
        yield Wait(0.1)
