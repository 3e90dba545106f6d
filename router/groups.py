"""What the stores say of their Raft groups, put together: who leads each partition, how far each replica is.

Owns the reading of the figure `groups` (docs/protocol.md section 6). Must not know rounds, requests, or what
an operator should do about it. Stores are believed in nothing but what they say of themselves and of their
terms; figures of the wrong shape are left out. They were taken at slightly different moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shared.clustermap import ClusterMap

NOBODY = 0


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


def read(figures: Mapping[str, Any]) -> dict[int, Group] | None:
    """The groups in a store's figures; None when it has no such figure: partitions without replication."""
    rows = figures.get("groups")
    if type(rows) is not dict:
        return None
    return {
        partition: Group(
            role=role,
            term=_number(row.get("term")) or 0,
            leader=_number(row.get("leader")) or NOBODY,
            commit=_number(row.get("commit")),
            applied=_number(row.get("applied")),
            last=_number(row.get("last")),
            voters=_ids(row.get("voters")),
            learners=_ids(row.get("learners")),
            match=_match(row.get("match")),
        )
        for name, row in rows.items()
        if (partition := _number(name)) is not None
        and type(row) is dict
        and type(role := row.get("role")) is str
    }


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


def row(known: ClusterMap, partition: int, views: Views) -> dict[str, Any]:
    """One partition: its leader (0 = none known), term, indexes of the leader, and its replicas."""
    replicas = known.replicas[partition]
    here = {node: views[node][partition] for node in replicas if partition in views.get(node, ())}
    leader, term = leader_of(here)
    leading = here.get(leader)
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
    return value if type(value) is int and not value >> 64 else None


def _ids(value: object) -> list[int]:
    if not isinstance(value, (list, tuple)):
        return []
    return [number for number in map(_number, value) if number is not None]


def _match(value: object) -> dict[int, int]:
    if type(value) is not dict:
        return {}
    pairs = ((_number(node), _number(index)) for node, index in value.items())
    return {node: index for node, index in pairs if node is not None and index is not None}
