"""What this store reports of itself and its replicas (docs/control.md section 3).

Owns the making of reports, and what of them is worth an early one. Must not know how they travel. Loop
thread; a report of 256 replicas takes a few milliseconds a second, and a look for changes a fraction of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from storenode.control.reports import NEVER, GroupReport, Progress, Report
from storenode.raft import Role
from storenode.raft.messages import Configuration
from storenode.replica.membership import LAG_MAX
from storenode.replica.replica import Replica

SIZE_EVERY: Final = 10
"""In how many reports the bytes of every replica are looked up once: they change slowly, and a look counts
all tables of an engine.
"""

_ROLES: Final = {Role.FOLLOWER: 0, Role.LEADER: 2}
_CANDIDATE: Final = 1


class Identity(NamedTuple):
    """What is the same in all reports of a process; the names are those of `Report`."""

    cluster: int
    node: int
    incarnation: str
    software: str
    started_ms: int


class _Known(NamedTuple):
    """What was looked up of a replica, to be told again."""

    configuration: Configuration
    members: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    bytes: int


class Reporter:
    """Of one node. `replicas` is the live mapping of its `Groups`."""

    def __init__(
        self, identity: Identity, replicas: Mapping[int, Replica], disk_free: Callable[[], int]
    ) -> None:
        self._identity = identity
        self._replicas = replicas
        self._disk_free = disk_free  # OSError
        self._sequence = 0
        self._known: dict[Replica, _Known] = {}
        self._told: dict[int, tuple[object, ...]] = {}

    def report(self, epoch: int, now: float) -> Report:
        """The next one. `now` is in the clock of `Raft.now`."""
        self._sequence += 1
        groups = tuple(
            self._group(replica, now)
            for replica in self._replicas.values()
            if replica.raft.configuration.voters
        )
        if self._sequence % SIZE_EVERY == 0:  # of those that are not here any more, too
            here = set(self._replicas.values())
            self._known = {replica: known for replica, known in self._known.items() if replica in here}
        self._told = self._outlines()
        try:
            free = self._disk_free()
        except OSError:
            free = 0
        return Report(*self._identity[:3], epoch, *self._identity[3:], self._sequence, free, groups)

    def changed(self) -> bool:
        """Whether the last report is out of date in something that the controller waits for."""
        return self._outlines() != self._told

    def _outlines(self) -> dict[int, tuple[object, ...]]:
        return {partition: _outline(replica) for partition, replica in self._replicas.items()}

    def _group(self, replica: Replica, now: float) -> GroupReport:
        raft = replica.raft
        known = self._look_up(replica)
        return GroupReport(
            replica.partition,
            _ROLES.get(raft.role, _CANDIDATE),
            raft.term,
            raft.leader,
            replica.machine.configured_at,
            *known.members,
            raft.commit,
            replica.machine.durable().index,
            known.bytes,
            replica.failure is not None,
            _progress(replica, now) if raft.role is Role.LEADER else (),
        )

    def _look_up(self, replica: Replica) -> _Known:
        configuration = replica.raft.configuration
        known = self._known.get(replica)
        due = (self._sequence + replica.partition) % SIZE_EVERY == 0
        if known is None or due or known.configuration is not configuration:
            members = (
                tuple(sorted(configuration.voters)),
                tuple(sorted(configuration.outgoing)),
                tuple(sorted(configuration.learners)),
            )
            size = known.bytes if known is not None and not due else _table_bytes(replica)
            known = self._known[replica] = _Known(configuration, members, size)
        return known


def _outline(replica: Replica) -> tuple[object, ...]:
    """What is equal as long as nothing happens that moves wait for."""
    raft = replica.raft
    leads = raft.role is Role.LEADER
    learners = raft.configuration.learners
    if not (leads and learners):
        return leads, raft.leader, raft.configuration, replica.failure
    progress, last = raft.progress, raft.last_index - LAG_MAX
    behind = [(progress[node].state, progress[node].match < last) for node in learners if node in progress]
    return leads, raft.leader, raft.configuration, replica.failure, behind


def _progress(replica: Replica, now: float) -> tuple[Progress, ...]:
    raft = replica.raft
    return tuple(
        Progress(node, one.match, int(one.state), _heard_ms(one.heard_at, now))
        for node, one in raft.progress.items()
        if node != raft.node
    )


def _heard_ms(heard_at: float | None, now: float) -> int:
    if heard_at is None:
        return NEVER
    return min(max(0, round((now - heard_at) * 1000)), NEVER - 1)


def _table_bytes(replica: Replica) -> int:
    try:
        size: int = replica.machine.engine.stats()["table_bytes"]
    except Exception:  # noqa: BLE001 - whatever is wrong with one engine, this store must be heard
        return 0
    return size
