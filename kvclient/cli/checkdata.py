"""What `kvcli check data` finds: replicas of a partition that do not hold the same (docs/raft.md section 10).

Owns the questions, one partition after the other, and the judgement of the answers: the majority is right.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from kvclient.cli.app import App
from kvclient.cli.progress import Progress
from kvclient.cli.report import Figure, Finding, Level, Report
from kvclient.cli.units import show_bytes
from kvclient.errors import ConnectError, InvalidRequest, KVError

Row = dict[str, Any]


def ask_sums(app: App, partitions: tuple[int, ...], within: float) -> tuple[Row, list[Row]]:
    """The answer of `status`, and each partition's `group checksum`; its `error` where there is none."""
    client = app.client()
    answer: Row = client.admin("status")
    chosen = sorted(set(partitions)) or range(answer["partitions"])
    progress = Progress("partitions compared:", None, not app.settings.quiet)
    told: list[Row] = []
    try:
        for done, partition in enumerate(chosen):
            progress.say(f"{done} of {len(chosen)}")
            try:
                told.append(client.admin("group", "checksum", partition, timeout=within))
            except (InvalidRequest, ConnectError):
                raise
            except KVError as error:
                told.append({"partition": partition, "error": error.message.rstrip(".")})
    finally:
        progress.clear()
    return answer, told


def data_of(answer: Row, told: list[Row]) -> Report:
    """By an answer of `status`, for names, and those of `group checksum`."""
    names = {node["id"]: node["name"] for node in answer["nodes"]}
    findings: list[Finding] = []
    compared = differing = size = entries = 0
    for one in told:
        sums = {member["id"]: member for member in one.get("members", ()) if "digest" in member}
        odd = _odd_ones({node: member["digest"] for node, member in sums.items()})
        compared += len(sums) > 1
        differing += len(odd)
        entries += max((member["entries"] for member in sums.values()), default=0)
        size += sum(member["bytes"] for member in sums.values())
        findings += _findings_of_data(one, names, sums, odd)
    figures = [
        Figure("partitions", len(told), "Partitions that were to be compared."),
        Figure("partitions_compared", compared, "Partitions of which at least two replicas were compared."),
        Figure("replicas_differing", differing, "Replicas that hold something else than the others."),
        Figure("entries", entries, "Entries compared, each once."),
        Figure("read_bytes", size, "What the stores have read for it."),
    ]
    summary = f"{compared} of {len(told)} partitions compared, {entries:,} entries, {show_bytes(size)} read"
    return Report("data", summary, findings, figures)


def _odd_ones(digests: dict[int, str]) -> list[int]:
    """Those that differ from the majority; all, if there is none."""
    if len(set(digests.values())) < 2:
        return []
    counted = Counter(digests.values()).most_common()
    most, times = counted[0]
    if times * 2 <= len(digests):
        return sorted(digests)
    return sorted(node for node, digest in digests.items() if digest != most)


def _findings_of_data(one: Row, names: dict[int, str], sums: dict[int, Row], odd: list[int]) -> list[Finding]:
    partition = one["partition"]
    if "error" in one:
        return [Finding(Level.UNKNOWN, f"partition {partition} was not compared: {one['error']}")]
    found: list[Finding] = []
    called = [names.get(node, f"node {node}") for node in odd]
    at = f"at entry {one['index']:,}"
    if odd and len(odd) == len(sums):
        text = f"partition {partition}: the replicas on {', '.join(called)} all differ {at}"
        found.append(Finding(Level.CRITICAL, f"{text}. Nobody can tell which is right; do not remove any"))
    elif odd:
        text = f"partition {partition}: the replica on {', '.join(called)} differs from the others {at}"
        remedy = "Replace that store: stop it, kvcli node remove NAME --force, then let a new one join"
        found.append(Finding(Level.CRITICAL, f"{text}. {remedy}"))
    for member in one["members"]:
        if "error" in member:
            name = names.get(member["id"], f"node {member['id']}")
            text = f"partition {partition}: the replica on {name} was not compared: {member['error']}"
            found.append(Finding(Level.UNKNOWN, text))
    return found
