"""The scenario "apart": voters are replaced by others, and in the moment in which the change is committed the
network parts those who decided before from those who decide afterwards. The old ones do not know yet that it
is committed, the new ones do.
"""

from __future__ import annotations

from random import Random

from tests.simulation.directed import NOBODY_HEARD_S, Directed, Story, Wait, directed
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    return directed(drawn, 5)._replace(
        latency=random.choice((0.0005, 0.002, 0.01)),
    )


class Apart(Directed):
    """The leader stays a voter; the two others make room for two that were none."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        random, raft = self._world.random, self._raft(leader)
        old, new = others[:2], others[2:]
        if not (yield from self._make_voters(leader, [leader, *old])):
            return
        index = self._change(leader, [leader, *new])
        if not index:
            return
        if not (yield Wait(1.0, lambda: any(self._raft(store).last_index >= index for store in old))):
            return
        self._block([leader, *new], old)  # that it is committed; their answers come through
        if not (yield Wait(1.0, lambda: raft.applied_index >= index)):
            return
        yield Wait(0.15)  # a heartbeat tells the new ones
        self._part([leader, *new], old)
        if random.random() < 0.5:
            self._part([leader], new)
        yield from self._write_often(leader, 3)
        yield Wait(NOBODY_HEARD_S)

        for _ in range(5):
            self._campaign(old[0])
            self._campaign(new[0])
            yield Wait(0.2)
