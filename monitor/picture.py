"""The cluster at one moment, as the monitor knows it: made by `monitor.model` once a second, read by whoever
shows it. Nothing in a picture changes after it was made, so any thread may read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kvclient.health import Problem
from shared.clustermap import ClusterMap

Figures = Mapping[str, Any]
Row = dict[str, Any]

OK: Final = "ok"

CANDIDATE: Final = "candidate"
FAILED: Final = "failed"
ROLES: Final = ("leader", "follower", CANDIDATE, "learner", FAILED)


class StoreSeen(NamedTuple):
    """A store of the map. `figures` are empty when it is gone, or was never heard. Rates are per second;
    None: not known.
    """

    id: int
    name: str
    zone: str
    rpc: str
    state: str
    gone: bool
    heard_s: float | None
    controller: bool
    partitions: int
    leads: int | None
    lag: int | None
    figures: Figures
    cpu: float | None
    reads_per_s: float | None
    writes_per_s: float | None
    log_write_p99_ms: float | None


class RouterSeen(NamedTuple):
    """A router that stores have named. `name` is what no other router of the picture has."""

    name: str
    front: str
    gone: bool
    heard_s: float | None
    figures: Figures
    cpu: float | None
    reads_per_s: float | None
    writes_per_s: float | None
    requests_per_s: float | None
    errors_per_s: float | None
    lately: list[int] | None
    """Buckets of how long its last requests took."""


class Said(NamedTuple):
    """An event, for people."""

    at_ms: int
    level: str
    text: str


class Own(NamedTuple):
    """Of the monitor itself."""

    name: str
    version: str
    figures: Figures
    stores_heard: int
    routers_heard: int
    refused: int
    lag_s: float


class Picture(NamedTuple):
    """`table`: a row for each partition (`shared.groups.row`). `show`: what the controller says, None if none
    answers; `controller`: its node, 0 if there is none. `leader_changes` by partition.
    """

    at_ms: int
    monotonic: float
    map: ClusterMap | None
    stores: Sequence[StoreSeen]
    routers: Sequence[RouterSeen]
    table: Sequence[Row]
    controller: int
    show: Mapping[str, Any] | None
    problems: Sequence[Problem]
    leader_changes: Sequence[int]
    events: Sequence[Said]
    own: Own

    @property
    def names(self) -> dict[int, str]:
        """Of the nodes of the map."""
        return {store.id: store.name for store in self.stores}


def role_of(replica: Row, figures: Figures, partition: int) -> str | None:
    """What the replica of a row is by its store's own words, one of ROLES; None: its store is not heard."""
    failed = figures.get("failed")
    if type(failed) is dict and str(partition) in failed:
        return FAILED
    if not replica["up"]:
        return None
    role: str = replica["role"]
    return role if role in ROLES else CANDIDATE
