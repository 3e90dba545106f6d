"""What is wrong with a cluster, in sentences: the judgement of `kvcli status`.

Owns the words and the thresholds. Reads the answer of the ADMIN command `status` (docs/protocol.md section 6)
and nothing else; figures that a store does not have are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

# Several seconds' worth of entries of one partition, which has one for each turn of its leader's loop: more
# is no delay of a busy replica any more. Figures are taken some milliseconds apart.
LAG_ENTRIES_MAX: Final = 10_000

Row = dict[str, Any]


def problems(answer: Row) -> list[str]:
    """One sentence for everything that an operator should do something about: what follows from it is not
    told again.
    """
    nodes: list[Row] = answer["nodes"]
    names = {node["id"]: node["name"] for node in nodes}
    told = {node["id"] for node in nodes if not _is_up(node)}
    table: list[Row] = answer.get("groups", [])
    return [
        *_control(answer),
        *(sentence for node in nodes for sentence in _of_node(node)),
        *_versions(nodes),
        *_leaders(table, names),
        *_replicas(table, names, told),
        *_lags(table, names),
    ]


def ranges(numbers: Iterable[int]) -> str:
    """`1-3, 7` for 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def is_led(row: Row) -> bool:
    """Whether the partition has a leader that answers."""
    return any(replica["up"] and replica["id"] == row["leader"] for replica in row["replicas"])


def _is_up(node: Row) -> bool:
    """A store that is being drained serves on until it is stopped; then it has no figures."""
    return bool(node["state"] == "up" or (node["state"] == "draining" and "uptime_s" in node))


def _control(answer: Row) -> list[str]:
    if answer.get("controller", 1):
        return []
    reason = answer.get("control_text") or "none answers"
    return [f"no controller: {reason}. Reads and writes go on; stores are neither drained nor replaced"]


def _away(node: Row) -> str:
    name, lack = node["name"], f"{node['partitions']} partitions lack it"
    if node["state"] == "foreign":
        return (
            f"{name} runs with another identity than it had, as after its disk was wiped: {lack}. Remove it: "
            f"kvcli node remove {name} --force, then let it join as a new store: kvcli node add"
        )
    if node["state"] != "draining" and "uptime_s" in node:
        return (
            f"{name} answers routers, but the controller takes it for {node['state']}. The network between "
            "stores may be cut, or its disk may have been wiped: kvcli node ls"
        )
    gone = f". If it does not come back: kvcli node remove {name} --force" if "heard_ms" in node else ""
    return f"{name} is {node['state']}: {lack}. Start it again at {node['rpc']}{gone}"


def _of_node(node: Row) -> list[str]:
    found = []
    if not _is_up(node):
        found.append(_away(node))
    if failed := node.get("failed"):
        reasons = "; ".join(sorted({str(reason) for reason in failed.values()}))
        found.append(f"{node['name']} does not serve {len(failed)} of its replicas: {reasons}")
    if failing := node.get("failing_jobs"):
        found.append(f"{node['name']} cannot flush or compact: {'; '.join(map(str, failing))}")
    return found


def _versions(nodes: list[Row]) -> list[str]:
    versions = sorted({str(node["version"]) for node in nodes if "version" in node})
    return [f"nodes run different versions: {', '.join(versions)}"] if len(versions) > 1 else []


def _leaders(table: list[Row], names: dict[int, str]) -> list[str]:
    unled: dict[int, list[int]] = {}
    for row in table:
        if not is_led(row):
            unled.setdefault(row["leader"], []).append(row["partition"])
    return [
        f"{_partitions(found)} {names.get(leader, f'node {leader}')} as leader, which does not answer. "
        "Another is elected if a majority of the replicas is up"
        if leader
        else f"{_partitions(found)} no leader: nothing is written there, and only what may be stale is read, "
        "until a majority of the replicas is up"
        for leader, found in sorted(unled.items())
    ]


def _replicas(table: list[Row], names: dict[int, str], told: set[int]) -> list[str]:
    """Of partitions that lack a replica of a node of which nothing was told."""
    lacking: dict[tuple[int, int, str], list[int]] = {}
    for row in table:
        away = {replica["id"] for replica in row["replicas"] if not replica["up"]}
        if away - told:
            total = len(row["replicas"])
            missing = ", ".join(sorted(names[node] for node in away))
            lacking.setdefault((total - len(away), total, missing), []).append(row["partition"])
    return [
        f"{_partitions(found)} {up} of {total} replicas reachable: {away} "
        f"{'is' if total - up == 1 else 'are'} missing"
        for (up, total, away), found in sorted(lacking.items())
    ]


def _lags(table: list[Row], names: dict[int, str]) -> list[str]:
    behind: dict[int, list[tuple[int, int]]] = {}
    for row in table:
        for replica in row["replicas"]:
            if replica["up"] and (replica["lag"] or 0) > LAG_ENTRIES_MAX:
                behind.setdefault(replica["id"], []).append((row["partition"], replica["lag"]))
    return [
        f"{names[node]} is behind by up to {max(lag for _, lag in found):,} entries in partition "
        f"{ranges(partition for partition, _ in found)}"
        for node, found in sorted(behind.items())
    ]


def _partitions(found: list[int]) -> str:
    return f"partition {ranges(found)} has" if len(found) == 1 else f"partitions {ranges(found)} have"
