"""Whether anything in the cluster is degraded, by what its stores and its controller say (docs/protocol.md
section 6).

Owns the words for what is wrong. Must not know rounds or requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from kvclient.health import ranges
from shared import groups
from shared.clustermap import ClusterMap
from shared.controlview import Figures, View, state

LAG_MAX: Final = 1000
"""Entries that a healthy replica may be behind: to none that lacks more is leadership handed over."""


def unled(table: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The partitions without a leader that answers, by the leader that they should have; 0 = nobody."""
    found: dict[int, list[int]] = {}
    for row in table:
        if not _leads(row):
            found.setdefault(row["leader"], []).append(row["partition"])
    return found


def problems(known: ClusterMap, figures: Figures, view: View) -> list[str]:
    """One text for each thing that is not as it should be; none: the cluster is healthy."""
    seen = groups.views(figures)
    table = groups.table(known, seen)
    if any(groups.CONTROL in said for said in seen.values()):
        table.append(groups.row(known, groups.CONTROL, seen))
    found = [] if view.controller else [f"no controller: {view.text}"]
    found += _of_nodes(known, figures, view, table)
    if view.controller and view.said["moves"]:
        found.append(f"{len(view.said['moves'])} moves are not done")
    by_problem: dict[str, list[int]] = {}
    for row in table:
        for problem in _of_row(known, row, figures):
            by_problem.setdefault(problem, []).append(row["partition"])
    return found + [f"{_names(partitions)}: {problem}" for problem, partitions in by_problem.items()]


def _of_nodes(known: ClusterMap, figures: Figures, view: View, table: list[dict[str, Any]]) -> Iterator[str]:
    held = Counter(node for row in table for node in groups.members(row))
    for node in known.nodes:
        word = state(node, figures, view)
        if word == "draining":
            if held[node.id]:
                yield f"{node.name} is draining and holds {held[node.id]} replicas"
        elif node.id not in figures:
            yield f"{node.name} ({node.rpc}) does not answer"
        elif word != "up":
            yield f"{node.name} ({node.rpc}) is {word}"


def _of_row(known: ClusterMap, row: dict[str, Any], figures: Figures) -> Iterator[str]:
    if not _leads(row):
        yield "no leader that answers"
        return
    wanted = groups.holders(known, row["partition"])
    if set(row["voters"]) != set(wanted):
        yield f"its voters are nodes {ranges(row['voters'])}, those of the map {ranges(wanted)}"
    for replica in row["replicas"]:
        name = known.node(replica["id"]).name
        failed = figures.get(replica["id"], {}).get("failed")
        if not replica["up"]:
            yield f"the replica on {name} does not answer"
        elif type(failed) is dict and str(row["partition"]) in failed:
            yield f"the replica on {name} has failed"
        elif replica["id"] in row["learners"]:
            yield f"the replica on {name} is a learner"
        elif replica["lag"] is not None and replica["lag"] > LAG_MAX:
            yield f"the replica on {name} is more than {LAG_MAX} entries behind"


def _leads(row: dict[str, Any]) -> bool:
    return any(replica["up"] and replica["id"] == row["leader"] for replica in row["replicas"])


def _names(partitions: list[int]) -> str:
    if partitions == [groups.CONTROL]:
        return "the control partition"
    data = ranges(partition for partition in partitions if partition != groups.CONTROL)
    return f"partition {data}" + (" and the control partition" if groups.CONTROL in partitions else "")
