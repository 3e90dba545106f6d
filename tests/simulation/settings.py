"""What one seed's world is like: drawn once, so that each seed tries another mixture (swarm testing, Groce et
al. 2012): faults that are always all on hide one another.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

FAULTS = (
    "partition", "absence", "one_way", "power", "kill", "outage", "disk_step", "log_failure", "pause",
    "stall", "wall_jump", "slow_disk", "router_restart", "hand_over", "lossy", "reconfigure",
)  # fmt: skip


class Settings(NamedTuple):
    """Of one run. Times in seconds."""

    stores: int
    replicas: int
    partitions: int
    routers: int
    clients: int
    lanes: int
    """Requests that a client has under way at once."""
    keys: int
    key_life: float
    """After so long clients turn to new keys."""
    think: float
    """Longest pause of a lane between two requests."""
    timeout: float
    latency: float
    """Typical time of a message."""
    fifo: bool
    loss: float
    duplication: float
    disk: float
    """Typical time of a log write."""
    turn: float
    """Longest time that a process takes to get to what has arrived."""
    memtable_bytes: int
    segment_bytes: int
    log_bytes_max: int
    log_cache_bytes: int
    faults: tuple[str, ...]
    fault_interval: float
    restart: float
    """Longest time that a process stays down."""
    stale_ms: int
    deaf_leader: bool
    """Whether the last proof of progress is made while a leader hears no other store."""
    scenario: str = ""
    """Who directs the faults (scenarios.py); nobody: they come by chance, of the kinds in `faults`."""
    append_bytes_max: int = 1 << 20
    """Of entries in one message: with little, the entries that a replica misses come one by one."""
    one_router: bool = False
    """Whether each client knows one router only, the clients taking turns."""


def draw(random: Random) -> Settings:
    """The settings of a seed."""
    stores = random.choice((3, 3, 3, 3, 3, 5, 5, 1))
    calm = random.random() < 0.1
    likely = random.choice((0.15, 0.4, 0.6))
    faults = (
        ()
        if calm
        else tuple(fault for fault in FAULTS if random.random() < (0.7 if fault in FAULTS[:2] else likely))
    )
    segment = random.choice((600, 600, 1500, 4000))
    return Settings(
        stores=stores,
        replicas=stores if stores < 5 else random.choice((3, 5)),
        partitions=random.choice((1, 1, 1, 2, 4)),
        routers=random.choice((1, 2, 2)),
        clients=random.randint(2, 6),
        lanes=random.choice((1, 1, 2, 3)),
        keys=random.choice((1, 3, 6)),
        key_life=random.choice((2.0, 6.0, 1000.0)),
        think=random.choice((0.1, 0.2, 0.6)),
        timeout=random.choice((1.0, 3.0, 5.0)),
        latency=random.choice((0.0005, 0.002, 0.01, 0.03)),
        fifo=random.random() < 0.5,
        loss=random.choice((0.0, 0.0, 0.01, 0.1)),
        duplication=random.choice((0.0, 0.0, 0.05)),
        disk=random.choice((0.0005, 0.003, 0.02)),
        turn=random.choice((0.0002, 0.002, 0.01)),
        memtable_bytes=random.choice((1, 600, 3000, 20000)),
        segment_bytes=segment,
        log_bytes_max=segment * random.choice((1, 1, 2)),
        log_cache_bytes=random.choice((0, 2000, 1 << 20)),
        faults=faults,
        fault_interval=random.choice((0.6, 1.2, 3.0)),
        restart=random.choice((0.2, 0.5, 3.0, 6.0)),
        stale_ms=random.choice((50, 300, 2000)),
        deaf_leader=random.random() < 0.3,
    )
