"""`kvcli check`: is all well, in the words of people, programs, Nagios and Prometheus.

Owns what each check looks at, and its bounds; the formats are those of `kvclient.cli.report`. A cluster that
cannot be asked is critical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from kvclient import health as judgement
from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.failure import code_name, what_now
from kvclient.cli.report import FORMATS, Figure, Finding, Level, Report, judge, show
from kvclient.cli.units import DURATION, show_bytes, show_latency
from kvclient.errors import Exit, InvalidRequest, KVError

Row = dict[str, Any]

_LEVELS: Final = {judgement.WARNING: Level.WARNING, judgement.CRITICAL: Level.CRITICAL}

# Below the first a disk has to be looked after, below the second it fills up before somebody has.
_FREE_WARNING, _FREE_CRITICAL = 15.0, 5.0

# Levels that are so far over their size cost every read more tables, and owe the disk that much work.
_DEBT_WARNING: Final = 4 << 30

# The routers keep no request for longer.
_SUM_SECONDS_MAX: Final = 60.0

_PRESSURE_TEXTS = {
    1: "writes are slowed down: its disk or its processor is too slow for them",
    2: "writes have stopped until flushes and compactions have caught up",
}


@click.group("check")
def check() -> None:
    """Judge the cluster: text, json, nagios, or prometheus for the textfile collector.

    Exit code 0, or 11 if anything is not as it should be; with --format nagios 0 ok, 1 warning, 2 critical,
    3 unknown. With --format prometheus 0: the level is a metric.
    """


def _format(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--format", "form", type=click.Choice(FORMATS), help="[default: text, or json with -o json]"
    )(function)


def run(form: str | None, name: str, look: Callable[[App], Report]) -> None:
    """Make a check and show it. Trouble of the cluster is an outcome; wrong usage is not."""
    app = current()
    form = form or ("json" if app.output.form in ("json", "jsonl") else "text")
    try:
        report = look(app)
    except InvalidRequest:
        raise
    except KVError as error:
        text = f"{error.message.rstrip('.')}. {what_now(error)}".rstrip() + f" ({code_name(error)})"
        report = Report(name, "the cluster cannot be asked", [Finding(Level.CRITICAL, text)], [])
    code = show(app.output, form, report)
    if code != Exit.OK:
        quit_with(code)


# -- health


@command("health")
@_format
def health(form: str | None) -> None:
    """Judge what `status` and `group ls --problems` know: nodes, leaders, replicas, the controller."""
    run(form, "health", lambda app: health_of(app.client().admin("status")))


def health_of(answer: Row) -> Report:
    """By an answer of the ADMIN command `status`."""
    nodes: list[Row] = answer["nodes"]
    groups: list[Row] = answer.get("groups", [])
    found = judgement.judge(answer)
    up = sum(node["state"] in ("up", "draining") for node in nodes)
    led = sum(map(judgement.is_led, groups))
    lag = max((replica["lag"] or 0 for row in groups for replica in row["replicas"]), default=0)
    figures = [
        Figure("nodes", len(nodes), "Stores of the cluster map."),
        Figure("nodes_up", up, "Stores that are up."),
        Figure("partitions", answer["partitions"], "Partitions of the cluster map."),
        Figure("partitions_led", led, "Partitions with a leader that answers."),
        Figure("lag_entries", lag, "Most entries that a replica is behind its leader."),
        Figure("moves", len(answer.get("moves") or ()), "Moves of replicas, queued and under way."),
        Figure("problems", len(found), "Problems of `kvcli status`."),
    ]
    findings = [Finding(_LEVELS[problem.level], problem.sentence) for problem in found]
    findings += [Finding(Level.WARNING, text) for text in _short_of_voters(answer)]
    summary = f"{up} of {len(nodes)} nodes up, {led} of {answer['partitions']} partitions led"
    return Report("health", summary, findings, figures)


def _short_of_voters(answer: Row) -> list[str]:
    """Partitions with fewer voters than replicas, which no node that is down explains."""
    short: dict[int, list[int]] = {}
    for row in answer.get("groups", []):
        if 0 < len(row["voters"]) < answer["replicas"]:
            short.setdefault(len(row["voters"]), []).append(row["partition"])
    return [
        f"partition {judgement.ranges(found)}: {voters} of {answer['replicas']} voters. "
        "See: kvcli group ls --problems"
        for voters, found in sorted(short.items())
    ]


# -- disk


@command("disk")
@_format
@click.option("--warning", type=float, default=_FREE_WARNING, show_default=True, help="Per cent free.")
@click.option("--critical", type=float, default=_FREE_CRITICAL, show_default=True, help="Per cent free.")
def disk(form: str | None, warning: float, critical: float) -> None:
    """Judge the disks of all stores: free space, writes that wait, flushes that fail, compactions owed."""
    run(form, "disk", lambda app: disk_of(app.client().admin("status"), warning, critical))


def disk_of(answer: Row, warning: float, critical: float) -> Report:
    """By an answer of the ADMIN command `status`; bounds are per cent of the disk that are free."""
    findings: list[Finding] = []
    figures: list[Figure] = []
    for node in answer["nodes"]:
        if "disk_free_bytes" in node:
            figures += _figures_of_disk(node, warning, critical)
            findings += _findings_of_disk(node, warning, critical)
        elif node["state"] != "draining":
            text = f"{node['name']} is {node['state']} and says nothing of its disk. See: kvcli status"
            findings.append(Finding(Level.UNKNOWN, text))
    figures.sort(key=lambda figure: figure.name)
    asked = sum("disk_free_bytes" in node for node in answer["nodes"])
    least = min((node["disk_free_bytes"] for node in answer["nodes"] if "disk_free_bytes" in node), default=0)
    return Report("disk", f"{asked} disks, at least {show_bytes(least)} free", findings, figures)


def _figures_of_disk(node: Row, warning: float, critical: float) -> list[Figure]:
    of = (("node", node["name"]),)
    size = node.get("disk_size_bytes") or 0
    least = Figure("free_bytes", node["disk_free_bytes"], "Free for the store.", of, below=True)
    if size:
        least = least._replace(warning=size * warning / 100, critical=size * critical / 100)
    found = [least]
    if size:
        found.append(Figure("size_bytes", size, "Of the file system.", of))
    for figure, name, help_ in (
        ("pressure", "pressure", "0 fine, 1 writes are slowed down, 2 stopped."),
        ("stall_seconds", "stall_ms", "How long writes were slowed down or stopped since the store began."),
        ("compaction_debt_bytes", "compaction_debt_bytes", "What levels hold over their size."),
    ):
        if name in node:
            value = node[name] / 1000 if name == "stall_ms" else node[name]
            bound = _DEBT_WARNING if figure == "compaction_debt_bytes" else None
            found.append(Figure(figure, value, help_, of, bound))
    return found


def _findings_of_disk(node: Row, warning: float, critical: float) -> list[Finding]:
    name, free, size = node["name"], node["disk_free_bytes"], node.get("disk_size_bytes") or 0
    found: list[Finding] = []
    if size:
        share = Figure("free_percent", 100 * free / size, "", (), warning, critical, below=True)
        text = f"{name}: {show_bytes(free)} of {show_bytes(size)} free ({share.value:.1f} %) at"
        found += judge(
            share, f"{text} {node.get('data_dir', 'its data directory')}: add disk, or another store"
        )
    if failing := node.get("failing_jobs"):
        text = f"{name} cannot flush or compact: {'; '.join(map(str, failing))}"
        found.append(Finding(Level.CRITICAL, text))
    if pressure := node.get("pressure"):
        level = Level.CRITICAL if pressure >= max(_PRESSURE_TEXTS) else Level.WARNING
        found.append(Finding(level, f"{name}: {_PRESSURE_TEXTS[min(pressure, max(_PRESSURE_TEXTS))]}"))
    debt = Figure("compaction_debt_bytes", node.get("compaction_debt_bytes", 0), "", (), _DEBT_WARNING)
    return found + judge(debt, f"{name} owes compactions of {show_bytes(debt.value)}: reads get slower")


# -- perf


@command("perf")
@_format
@click.option("--ops", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Puts, and gets.")
@click.option("--value-bytes", type=click.IntRange(0, 65_536), default=128, show_default=True)
@click.option(
    "--within", type=DURATION, default=10.0, show_default="10s", help="End after this long at most."
)
@click.option("--warning", type=DURATION, default=0.1, show_default="100ms", help="99 of 100 within this.")
@click.option("--critical", type=DURATION, default=1.0, show_default="1s", help="99 of 100 within this.")
def perf(
    form: str | None, ops: int, value_bytes: int, within: float, warning: float, critical: float
) -> None:
    """Measure puts and gets, one at a time, on keys of its own that are deleted.

    The keys begin with `ringkv-check/` and a random number, live for a minute at most, and are spread over
    partitions.
    """
    from kvclient.cli.probe import Plan, measure

    plan = Plan(ops, value_bytes, within)
    run(form, "perf", lambda app: perf_of(measure(app.client(), plan), warning, critical))


def perf_of(latencies: dict[str, list[float]], warning: float, critical: float) -> Report:
    """Of the seconds that each op took, by kind."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    said: list[str] = []
    for kind, seconds in latencies.items():
        figures.append(Figure(f"{kind}_ops", len(seconds), f"How many {kind}s were measured."))
        if not seconds:
            findings.append(
                Finding(Level.UNKNOWN, f"no {kind} was measured in time: give it more with --within")
            )
            continue
        ordered = sorted(seconds)
        quantiles = [
            (name, _quantile(ordered, share)) for name, share in (("0.5", 0.5), ("0.99", 0.99), ("1", 1))
        ]
        for name, value in quantiles:
            bounds = (warning, critical) if name == "0.99" else (None, None)
            labels = (("quantile", name),)
            figures.append(Figure(f"{kind}_seconds", value, f"How long a {kind} took.", labels, *bounds))
        (_, half), (_, most), (_, longest) = quantiles
        said.append(f"{kind} p50 {show_latency(half)}, p99 {show_latency(most)}, max {show_latency(longest)}")
        slow = Figure(kind, most, "", (), warning, critical)
        bound = critical if most > critical else warning
        findings += judge(slow, f"{kind}: p99 is {show_latency(most)}, over {show_latency(bound)}")
    return Report("perf", "; ".join(said) or "nothing was measured", findings, figures)


def _quantile(ordered: list[float], share: float) -> float:
    """The least of the values that `share` of all are at or below."""
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


# -- data


@command("data")
@_format
@click.option(
    "--partition",
    "partitions",
    type=click.IntRange(0, 4095),
    multiple=True,
    help="Only these. [default: all]",
)
@click.option(
    "--within",
    type=DURATION,
    default=_SUM_SECONDS_MAX,
    show_default="60s",
    help="For one partition, at most.",
)
def data(form: str | None, partitions: tuple[int, ...], within: float) -> None:
    """Compare what the replicas of each partition hold, by checksums at one and the same entry.

    Stores read all of their data for it, no faster than `kvcli rebalance set --bandwidth`, beside their work.
    A replica that differs from the others is named; clients go on meanwhile.
    """
    from kvclient.cli.checkdata import ask_sums, data_of

    run(form, "data", lambda app: data_of(*ask_sums(app, partitions, min(within, _SUM_SECONDS_MAX))))


for _command in (health, perf, disk, data):
    check.add_command(_command)
