"""What a seed's cluster is like, and what happens to it: the faults of tests/simulation/settings.py, but for
changes of members by hand, and those of a cluster that changes.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from tests.simulation import settings
from tests.simulation.settings import Settings

FOUNDERS = 3
EXTRA_MAX = 3
"""Further stores, while things go wrong; those that are needed to become well again come on top."""

CHANGES = (
    "join", "drain", "undrain", "remove", "lose", "weigh", "pause_moves", "resume_moves", "rebalance",
    "stop_moves", "kill_controller", "step_controller", "headless", "lose_reports", "lose_orders",
)  # fmt: skip


class Plan(NamedTuple):
    """Beside the ordinary settings."""

    zones: bool
    replace_after_ms: int
    weights: tuple[int, ...]


def draw(random: Random) -> tuple[Settings, Plan]:
    """Of one seed."""
    drawn = settings.draw(random)
    faults = tuple(fault for fault in drawn.faults if fault != "reconfigure" and random.random() < 0.6)
    likely = random.choice((0.3, 0.6, 0.9))
    changes = tuple(
        change for change in CHANGES if random.random() < (0.8 if change in ("join", "drain") else likely)
    )
    drawn = drawn._replace(
        stores=FOUNDERS,
        replicas=3,
        partitions=random.choice((1, 2, 2, 4)),
        clients=random.randint(2, 3),
        lanes=1,
        think=random.choice((0.2, 0.6)),
        latency=random.choice((0.0005, 0.002, 0.01)),
        faults=faults + changes + ("join",) * ("join" in changes),
        fault_interval=random.choice((0.4, 0.8)),
        deaf_leader=False,
    )
    plan = Plan(
        zones=random.random() < 0.3,
        replace_after_ms=random.choice((2_000, 5_000, 1_800_000)),
        weights=(100, 100, 50, 200),
    )
    return drawn, plan
