"""What a store tells once a second about itself and its replicas (docs/control.md section 3).

Owns the reports' bytes, and what a report may say: whoever holds one that was decoded need not check it
again. Must not know what follows from it.

A store with 256 replicas makes one a second, and the controller reads those of all: numbers of a group are
checked together, not one by one.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from shared.clustermap import NODE_ID_MAX
from shared.ring import PARTITIONS_MAX
from shared.shapes import array, integer, text
from storenode.control.state import CONTROL, check_incarnation

FORMAT: Final = 1

NEVER: Final = 0xFFFF_FFFF
"""`heard_ms` of a member that has not answered this leader yet; whatever takes longer is told as one less."""

GROUPS_MAX: Final = PARTITIONS_MAX + 1
"""Every partition, and the control partition."""

MEMBERS_MAX: Final = 64
"""Of one kind, in one group. A map has at most 14; an operator may have added some by hand."""

_UINT64_MAX: Final = (1 << 64) - 1


class Progress(NamedTuple):
    """How far a member has got, as its leader sees it. `state`: 0 probe, 1 replicate, 2 snapshot."""

    node: int
    match: int
    state: int
    heard_ms: int


class GroupReport(NamedTuple):
    """One replica. `role`: 0 follower, 1 candidate, 2 leader. `outgoing`: the old voters of a joint
    configuration. `progress`: of every other member, from a leader only.
    """

    partition: int
    role: int
    term: int
    leader: int
    config_index: int
    voters: tuple[int, ...]
    outgoing: tuple[int, ...]
    learners: tuple[int, ...]
    commit: int
    durable: int
    bytes: int
    failed: bool
    progress: tuple[Progress, ...] = ()

    @property
    def leads(self) -> bool:
        return self.role == 2


class Report(NamedTuple):
    """One store. `cluster` is XXH64 of the cluster id, `epoch` its map's, `started_ms` of the wall clock;
    `sequence` counts this process's reports.
    """

    cluster: int
    node: int
    incarnation: str
    epoch: int
    software: str
    started_ms: int
    sequence: int
    disk_free: int
    groups: tuple[GroupReport, ...] = ()


class Heading(NamedTuple):
    """What a report begins with: enough for those whom its groups do not concern."""

    cluster: int
    node: int
    incarnation: str
    epoch: int


def decode_heading(encoded: bytes) -> Heading:
    """The heading of the report with these bytes, whose other fields are not looked at; ProtocolError."""
    try:
        unpacker = msgpack.Unpacker(use_list=False, raw=False, max_buffer_size=len(encoded))
        unpacker.feed(encoded)
        unpacker.read_array_header()
        known = unpacker.unpack()
        if type(known) is not int or known != FORMAT:
            raise ValueError(f"format {known!r:.40} is not understood, this side knows {FORMAT}")
        heading = Heading(*(unpacker.unpack() for _ in range(4)))
        integer(heading.cluster, 0, _UINT64_MAX, "cluster")
        integer(heading.node, 1, NODE_ID_MAX, "node")
        check_incarnation(heading.incarnation, "incarnation")
        integer(heading.epoch, 1, _UINT64_MAX, "epoch")
    except Exception as error:  # noqa: BLE001 - hostile bytes raise many types
        raise ProtocolError(f"report: {str(error) or type(error).__name__}") from None
    return heading


def encode_report(report: Report) -> bytes:
    """The report's bytes. What the decoder would refuse is the caller's mistake, and not looked for."""
    return msgpack.packb((FORMAT, *report))  # type: ignore[no-any-return]


def decode_report(encoded: bytes) -> Report:
    """The report with these bytes; ProtocolError names what is wrong with any others."""
    try:
        fields = frames.decode(encoded)
    except ProtocolError as error:
        raise ProtocolError(f"report: {error.message}") from None
    try:
        array(fields, None, "it")
        if not fields or type(fields[0]) is not int or fields[0] != FORMAT:
            known = fields[0] if fields else None
            raise ValueError(f"format {known!r:.40} is not understood, this side knows {FORMAT}")
        array(fields, 10, "it")
        return _report(*fields[1:])
    except ValueError as error:
        raise ProtocolError(f"report: {error}") from None


def _report(
    cluster: Any,
    node: Any,
    incarnation: Any,
    epoch: Any,
    software: Any,
    started_ms: Any,
    sequence: Any,
    disk_free: Any,
    groups: Any,
) -> Report:
    integer(cluster, 0, _UINT64_MAX, "cluster")
    integer(node, 1, NODE_ID_MAX, "node")
    check_incarnation(incarnation, "incarnation")
    integer(epoch, 1, _UINT64_MAX, "epoch")
    text(software, False, "software")
    integer(started_ms, 0, _UINT64_MAX, "started_ms")
    integer(sequence, 0, _UINT64_MAX, "sequence")
    integer(disk_free, 0, _UINT64_MAX, "disk_free")
    if len(array(groups, None, "its groups")) > GROUPS_MAX:
        raise ValueError(f"{len(groups)} groups, at most {GROUPS_MAX} are possible")
    read = tuple(map(_group, groups))
    if len({group.partition for group in read}) != len(read):
        raise ValueError("one partition has two groups")
    return Report(cluster, node, incarnation, epoch, software, started_ms, sequence, disk_free, read)


def _group(fields: Any) -> GroupReport:
    group = GroupReport._make(array(fields, 13, "each group"))
    partition, role, term, leader, config_index, voters, outgoing, learners, *rest, _, _ = group
    _integers((partition, role, term, leader, config_index, *rest), "a group's figures")
    if not (partition < PARTITIONS_MAX or partition == CONTROL):
        raise ValueError(f"there is no partition {partition}")
    if role > 2 or leader > NODE_ID_MAX:
        raise ValueError(f"partition {partition}: role {role}, leader {leader}")
    for members in (voters, outgoing, learners):
        if type(members) is not tuple or len(members) > MEMBERS_MAX:
            raise ValueError(f"partition {partition}: members must be arrays of at most {MEMBERS_MAX}")
    together = voters + outgoing + learners
    if together:
        _integers(together, f"partition {partition}: members")
        if min(together) < 1 or max(together) > NODE_ID_MAX:
            raise ValueError(f"partition {partition}: members must be node ids")
    if type(group.failed) is not bool:
        raise ValueError(f"partition {partition}: failed must be true or false")
    return group if group.progress == () else group._replace(progress=_progress(group.progress, partition))


def _progress(fields: Any, partition: int) -> tuple[Progress, ...]:
    what = f"partition {partition}: progress"
    if len(array(fields, None, what)) > 3 * MEMBERS_MAX:
        raise ValueError(f"{what} of {len(fields)} members")
    found = tuple(Progress._make(array(row, 4, f"{what} of each member")) for row in fields)
    for row in found:
        _integers(row, what)
        if not 1 <= row.node <= NODE_ID_MAX or row.state > 2 or row.heard_ms > NEVER:
            raise ValueError(f"{what}: {tuple(row)}")
    return found


def _integers(values: tuple[Any, ...], what: str) -> None:
    if set(map(type, values)) != {int} or min(values) < 0:
        raise ValueError(f"{what} must be unsigned integers")
