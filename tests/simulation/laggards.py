"""The scenario "laggards": two members that do not vote miss the same entries and get them one by one, by
messages to everybody, when others have long been committed. One hears these that was a leader, has some of
the entries without knowing that they are committed, and behind them others that were replaced.
"""

from __future__ import annotations

from random import Random

from tests.simulation.directed import NOBODY_HEARD_S, Directed, Story, Wait, directed
from tests.simulation.settings import Settings
from tests.simulation.store import SimulatedStore


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    return directed(drawn, 5)._replace(
        latency=0.0005,
        turn=0.01,
        disk=0.0005,
        duplication=0.0,
        segment_bytes=4000,
        log_bytes_max=8000,
        append_bytes_max=1,
    )


class Laggards(Directed):
    """The leader that is deposed, its successor, who votes for that one, and the two that miss it all."""

    def round(self, leader: SimulatedStore, others: list[SimulatedStore]) -> Story:
        successor, voter, *laggards = others
        if not (yield from self._make_voters(leader, [leader, successor, voter])):
            return
        yield Wait(0.1)

        self._part(laggards, [leader, successor, voter])
        self._block([successor, voter], [leader])  # it does not hear what it could commit
        yield from self._write_often(leader, 6)
        self._part([leader], others)
        yield from self._write_often(leader, 4)
        yield Wait(NOBODY_HEARD_S)

        if not (yield from self._elect(successor, 1.0)):
            return
        deposed = self._raft(leader).last_index
        yield Wait(0.6, lambda: self._raft(successor).commit >= deposed)
        self._join([successor, voter], laggards)
        self._open([successor], [leader])
        yield Wait(0.5)
