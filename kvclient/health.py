"""What is wrong with a cluster, in sentences with what to do: the judgement of `kvcli status` and of the
monitor.

Owns the words, the thresholds and what is critical. Reads the answer of the ADMIN command `status`
(docs/protocol.md section 6) and nothing else; figures that a store does not have are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

# Several seconds' worth of entries of one partition, which has one for each turn of its leader's loop: more
# is no delay of a busy replica any more. Figures are taken some milliseconds apart.
LAG_ENTRIES_MAX: Final = 10_000

# Less free than both: compactions of the largest level, and the log, may find no room within minutes.
DISK_FREE_BYTES: Final = 1 << 30
DISK_FREE_FRACTION: Final = 0.05

WARNING: Final = "warning"
CRITICAL: Final = "critical"

Row = dict[str, Any]

_SHOW_GROUPS: Final = "See: kvcli group ls --problems"


class Problem(NamedTuple):
    """Something that an operator should do something about. `remedy`: what, a command if there is one."""

    level: str
    text: str
    remedy: str

    @property
    def sentence(self) -> str:
        return f"{self.text}. {self.remedy}"


def judge(answer: Row) -> list[Problem]:
    """Everything that an operator should do something about: what follows from it is not told again."""
    nodes: list[Row] = answer["nodes"]
    names = {node["id"]: node["name"] for node in nodes}
    told = {node["id"] for node in nodes if not _is_up(node)}
    table: list[Row] = answer.get("groups", [])
    return [
        *_control(answer),
        *_pause(answer),
        *(problem for node in nodes for problem in _of_node(node)),
        *_versions(nodes),
        *_leaders(table, names),
        *_replicas(table, names, told),
        *_lags(table, names),
    ]


def problems(answer: Row) -> list[str]:
    """The same, one text for each."""
    return [problem.sentence for problem in judge(answer)]


def ranges(numbers: Iterable[int], at_most: int | None = None) -> str:
    """`1-3, 7` for 1, 2, 3, 7; at most so many ranges, then how many numbers are left out."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = spans[:at_most]
    left_out = sum(high - low + 1 for low, high in spans[len(shown) :])
    told = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in shown)
    return f"{told} and {left_out:,} more" if left_out else told


def is_led(row: Row) -> bool:
    """Whether the partition has a leader that answers."""
    return any(replica["up"] and replica["id"] == row["leader"] for replica in row["replicas"])


def _is_up(node: Row) -> bool:
    """A store that is being drained serves on until it is stopped; then it has no figures."""
    return bool(node["state"] == "up" or (node["state"] == "draining" and "uptime_s" in node))


def _control(answer: Row) -> list[Problem]:
    if answer.get("controller", 1):
        return []
    reason = answer.get("control_text") or "none answers"
    text = f"no controller: {reason}. Reads and writes go on; stores are neither drained nor replaced"
    return [Problem(WARNING, text, "Start the stores that do not run")]


def _pause(answer: Row) -> list[Problem]:
    """Somebody wanted it, and may have forgotten it since."""
    if not answer.get("paused"):
        return []
    waiting = len(answer.get("moves") or ())
    text = "moves are paused" + (f", {waiting} wait" if waiting else "")
    lack = "nothing is drained, rebalanced or replaced, not even a store that is lost"
    return [Problem(WARNING, f"{text}: {lack}", "Go on: kvcli rebalance resume")]


def _away(node: Row) -> Problem:
    name, lack = node["name"], f"{node['partitions']} partitions lack it"
    if node["state"] == "foreign":
        return Problem(
            WARNING,
            f"{name} runs with another identity than it had, as after its disk was wiped: {lack}",
            f"Remove it: kvcli node remove {name} --force, then let it join as a new store: kvcli node add",
        )
    if node["state"] != "draining" and "uptime_s" in node:
        return Problem(
            WARNING,
            f"{name} answers routers, but the controller takes it for {node['state']}",
            "The network between stores may be cut, or its disk may have been wiped: kvcli node ls",
        )
    gone = f". If it does not come back: kvcli node remove {name} --force" if "heard_ms" in node else ""
    return Problem(WARNING, f"{name} is {node['state']}: {lack}", f"Start it again at {node['rpc']}{gone}")


def _of_node(node: Row) -> list[Problem]:
    found, name = [], node["name"]
    if not _is_up(node):
        found.append(_away(node))
    if failed := node.get("failed"):
        reasons = "; ".join(sorted({str(reason) for reason in failed.values()}))
        text = f"{name} does not serve {len(failed)} of its replicas: {reasons}"
        found.append(Problem(WARNING, text, _SHOW_GROUPS))
    if failing := node.get("failing_jobs"):
        text = f"{name} cannot flush or compact: {'; '.join(map(str, failing))}"
        found.append(Problem(CRITICAL, text, "Writes end when it lasts: look at its disk and its log"))
    free, size = node.get("disk_free_bytes"), node.get("disk_size_bytes")
    if free is not None and size is not None and free < min(DISK_FREE_BYTES, size * DISK_FREE_FRACTION):
        text = f"{name} has {free / (1 << 20):,.0f} MiB left on its disk"
        found.append(Problem(CRITICAL, text, "Make room there, or add a store: kvcli node add"))
    return found


def _versions(nodes: list[Row]) -> list[Problem]:
    versions = sorted({str(node["version"]) for node in nodes if "version" in node})
    if len(versions) < 2:
        return []
    text = f"nodes run different versions: {', '.join(versions)}"
    return [Problem(WARNING, text, "Finish the upgrade: kvcli deploy")]


def _leaders(table: list[Row], names: dict[int, str]) -> list[Problem]:
    unled: dict[int, list[int]] = {}
    for row in table:
        if not is_led(row):
            unled.setdefault(row["leader"], []).append(row["partition"])
    return [
        Problem(
            CRITICAL,
            f"{_partitions(found)} {names.get(leader, f'node {leader}')} as leader, which does not answer",
            "Another is elected if a majority of the replicas is up",
        )
        if leader
        else Problem(
            CRITICAL,
            f"{_partitions(found)} no leader: nothing is written there, and only what may be stale is read, "
            "until a majority of the replicas is up",
            "Start the stores that are down",
        )
        for leader, found in sorted(unled.items())
    ]


def _replicas(table: list[Row], names: dict[int, str], told: set[int]) -> list[Problem]:
    """Of partitions that lack a replica of a node of which nothing was told."""
    lacking: dict[tuple[int, int, str], list[int]] = {}
    for row in table:
        away = {replica["id"] for replica in row["replicas"] if not replica["up"]}
        if away - told:
            total = len(row["replicas"])
            missing = ", ".join(sorted(names[node] for node in away))
            lacking.setdefault((total - len(away), total, missing), []).append(row["partition"])
    return [
        Problem(
            WARNING,
            f"{_partitions(found)} {up} of {total} replicas reachable: {away} "
            f"{'is' if total - up == 1 else 'are'} missing",
            _SHOW_GROUPS,
        )
        for (up, total, away), found in sorted(lacking.items())
    ]


def _lags(table: list[Row], names: dict[int, str]) -> list[Problem]:
    behind: dict[int, list[tuple[int, int]]] = {}
    for row in table:
        for replica in row["replicas"]:
            if replica["up"] and (replica["lag"] or 0) > LAG_ENTRIES_MAX:
                behind.setdefault(replica["id"], []).append((row["partition"], replica["lag"]))
    return [
        Problem(
            WARNING,
            f"{names[node]} is behind by up to {max(lag for _, lag in found):,} entries in partition "
            f"{ranges(partition for partition, _ in found)}",
            f"If that grows, its disk or its network is too slow: kvcli node show {names[node]}",
        )
        for node, found in sorted(behind.items())
    ]


def _partitions(found: list[int]) -> str:
    return f"partition {ranges(found)} has" if len(found) == 1 else f"partitions {ranges(found)} have"
