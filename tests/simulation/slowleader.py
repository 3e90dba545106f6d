"""The scenario "slow leader": its disk takes long, one follower is cut off, the other one has everything;
then the leader loses power, and the one that had missed all is the one that comes back.
"""

from __future__ import annotations

from random import Random

from tests.simulation.directed import NOBODY_HEARD_S, Directed, Story, Wait, directed
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore

SLOW_S = 1.0
"""Typical time of a write to the slow disk: several heartbeats, which tell what is committed."""


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    return directed(drawn, 3)._replace(
        latency=random.choice((0.0005, 0.002, 0.01)),
        restart=0.1,
    )


class SlowLeader(Directed):
    """Leader, who has everything, and who has missed it."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        quick, absent = others
        self._part([absent], [leader, quick])
        leader.slow_disk = SLOW_S / self._settings.disk
        yield Wait(0.05)
        self._write(leader)
        ahead, behind = self._raft(quick).log, self._raft(leader).log
        yield Wait(0.6, lambda: ahead.durable_index > behind.durable_index)
        yield Wait(self._world.random.uniform(0.1, 0.3))
        leader.die(True, "power lost while its disk is slow")
        leader.slow_disk = 1.0
        self._part([quick], [leader])
        self._join([absent], [leader])
        yield Wait(NOBODY_HEARD_S + self._settings.restart)
        self._campaign(absent)
        yield Wait(1.5, lambda: self._leads(absent) or self._leads(leader))
        yield Wait(0.1)
