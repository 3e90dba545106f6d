"""The scenario "echo": nothing fails, but messages come twice and overtake one another, while many writes are
under way: what a replica hears is often older than what it has.
"""

from __future__ import annotations

from random import Random

from tests.simulation.settings import Settings


def adjust(random: Random, drawn: Settings) -> Settings:
    """Settings of this scenario, where they matter to it."""
    return drawn._replace(
        stores=random.choice((3, 5)),
        replicas=3,
        partitions=1,
        clients=4,
        lanes=3,
        think=0.2,
        key_life=1.0,
        latency=random.choice((0.01, 0.03)),
        fifo=False,
        loss=0.0,
        duplication=0.5,
        disk=random.choice((0.0005, 0.003)),
        turn=0.002,
        faults=random.choice(((), ("hand_over",), ("kill",))),
        fault_interval=3.0,
    )
