"""What the stores say of their Raft groups, put together: who leads each partition, how far each replica is.

Owns the reading of the figure `groups` (docs/protocol.md section 6). Must not know rounds, requests, or what
an operator should do about it. Stores are believed in nothing but what they say of themselves and of their
terms; figures of the wrong shape are left out. They were taken at slightly different moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from shared.clustermap import ClusterMap
from shared.messagefields import UINT64_MAX

NOBODY = 0
CONTROL: Final = 0xFFFF
"""The number of the control partition (docs/control.md section 1)."""


class Group(NamedTuple):
    """One replica's own view of its group. Indexes are None when the store did not say."""

    role: str
    term: int
    leader: int
    commit: int | None
    applied: int | None
    last: int | None
    voters: list[int]
    learners: list[int]
    match: dict[int, int]


Views = Mapping[int, Mapping[int, Group]]
"""Node id -> partition -> what that node says of it. Nodes that did not answer are missing."""


def read(figures: Mapping[str, Any], partition: int | None = None) -> dict[int, Group] | None:
    """The groups in a store's figures, or only that of `partition`; None when it has no such figure: its
    partitions are not replicated.
    """
    rows = figures.get("groups")
    if type(rows) is not dict:
        return None
    if partition is not None:
        name = str(partition)
        rows = {name: rows[name]} if name in rows else {}
    found = {}
    for name, fields in rows.items():
        number = _number(name)
        if number is not None and type(fields) is dict and type(fields.get("role")) is str:
            found[number] = _group(fields.get)
    return found


def _group(field: Callable[[str], Any]) -> Group:
    return Group(
        field("role"),
        _number(field("term")) or 0,
        _number(field("leader")) or NOBODY,
        _number(field("commit")),
        _number(field("applied")),
        _number(field("last")),
        _ids(field("voters")),
        _ids(field("learners")),
        _match(field("match")),
    )


def views(
    figures: Mapping[int, Mapping[str, Any]], partition: int | None = None
) -> dict[int, dict[int, Group]]:
    """What the nodes that know groups say of them, or of one of them."""
    found = {node: read(said, partition) for node, said in figures.items()}
    return {node: view for node, view in found.items() if view is not None}


def leader_of(views: Mapping[int, Group]) -> tuple[int, int]:
    """The leader of one partition and its term by what its replicas say; leader 0: nobody leads, or nobody
    that answers knows who does.

    The highest term counts. Who leads it says so itself, or is silent and named by others.
    """
    term = max((view.term for view in views.values()), default=0)
    newest = {node: view for node, view in views.items() if view.term == term}
    for node, view in newest.items():
        if view.role == "leader":
            return node, term
    named = {view.leader for view in newest.values() if view.leader not in views} - {NOBODY}
    return (named.pop() if len(named) == 1 else NOBODY), term


def table(known: ClusterMap, views: Views) -> list[dict[str, Any]]:
    """One row for each partition of the map, in order."""
    return [row(known, partition, views) for partition in range(known.partition_count)]


def holders(known: ClusterMap, partition: int) -> tuple[int, ...]:
    """The nodes that hold a partition, CONTROL among them, as the map has it."""
    return known.control if partition == CONTROL else known.replicas[partition]


def row(known: ClusterMap, partition: int, views: Views) -> dict[str, Any]:
    """One partition, or CONTROL: its leader (0 = none known), term, indexes, and its replicas."""
    here = {node: view[partition] for node, view in views.items() if partition in view}
    leader, term = leader_of(here)
    leading = here.get(leader)
    replicas = _members(known, partition, leading)
    commit = leading.commit if leading else max((view.commit or 0 for view in here.values()), default=None)
    match = leading.match if leading else {}
    return {
        "partition": partition,
        "leader": leader,
        "term": term,
        "commit": commit,
        "applied": leading.applied if leading else None,
        "last": leading.last if leading else None,
        "voters": leading.voters if leading else [],
        "learners": leading.learners if leading else [],
        "replicas": [_replica(node, here.get(node), commit, match.get(node)) for node in replicas],
    }


def members(row: Mapping[str, Any]) -> list[int]:
    """The nodes of a row's replicas."""
    return [replica["id"] for replica in row["replicas"]]


def _members(known: ClusterMap, partition: int, leading: Group | None) -> list[int]:
    """What the leader says, in the order of the map as far as that goes; without a leader, the map."""
    replicas = holders(known, partition)
    if leading is None or not leading.voters:
        return list(replicas)
    found = {*leading.voters, *leading.learners}
    moved = sorted(found.difference(replicas))
    return [node for node in replicas if node in found] + [
        node for node in moved if any(one.id == node for one in known.nodes)
    ]


def _replica(node: int, view: Group | None, commit: int | None, match: int | None) -> dict[str, Any]:
    has = [index for index in (view.applied if view else None, match) if index is not None]
    return {
        "id": node,
        "up": view is not None,
        "role": view.role if view else None,
        "term": view.term if view else None,
        "commit": view.commit if view else None,
        "applied": view.applied if view else None,
        "last": view.last if view else None,
        "match": match,
        "lag": max(0, commit - min(has)) if commit is not None and has else None,
    }


def _number(value: object) -> int | None:
    """An unsigned integer of 64 bits, or a map's key that spells one."""
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    return value if type(value) is int and 0 <= value <= UINT64_MAX else None


def _ids(value: object) -> list[int]:
    if not isinstance(value, (list, tuple)):
        return []
    return [number for number in map(_number, value) if number is not None]


def _match(value: object) -> dict[int, int]:
    if type(value) is not dict:
        return {}
    pairs = ((_number(node), _number(index)) for node, index in value.items())
    return {node: index for node, index in pairs if node is not None and index is not None}
