"""What a check found, in the words of people, programs, Nagios and Prometheus.

Owns the four formats and the exit codes that go with them. Knows no check. `text` and `json` end with 11 if
anything is not as it should be; `nagios` is one line and ends with 0, 1, 2 or 3; `prometheus` is a file for
the textfile collector, which carries the level itself, so it ends with 0.
"""

from __future__ import annotations

import enum
import time
from typing import Any, Final, NamedTuple

from kvclient.cli.output import Output
from kvclient.errors import Exit

FORMATS: Final = ("text", "json", "nagios", "prometheus")

# One line is read by people on a pager; the rest is in the text format.
_NAGIOS_FINDINGS_MAX: Final = 3


class Level(enum.IntEnum):
    """As Nagios counts them."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Finding(NamedTuple):
    """A sentence for something that is not as it should be."""

    level: Level
    text: str


class Figure(NamedTuple):
    """A number in a base unit. `name` ends in its unit; `labels` tell figures of one name apart. `warning`
    and `critical` are the bounds that it was judged by; `below`: it is bad to be under them.
    """

    name: str
    value: float
    help: str
    labels: tuple[tuple[str, str], ...] = ()
    warning: float | None = None
    critical: float | None = None
    below: bool = False


class Report(NamedTuple):
    """The outcome of one check. `summary` is what there is to say when all is well."""

    check: str
    summary: str
    findings: list[Finding]
    figures: list[Figure]

    @property
    def level(self) -> Level:
        """The worst of all; not to know is worse than a warning, as Nagios has it."""
        order = (Level.OK, Level.WARNING, Level.UNKNOWN, Level.CRITICAL)
        return max((finding.level for finding in self.findings), key=order.index, default=Level.OK)


def judge(figure: Figure, what: str) -> list[Finding]:
    """A finding if the figure is beyond one of its bounds."""
    for level, bound in ((Level.CRITICAL, figure.critical), (Level.WARNING, figure.warning)):
        if bound is not None and (figure.value < bound if figure.below else figure.value > bound):
            return [Finding(level, what)]
    return []


def show(output: Output, form: str, report: Report) -> Exit:
    """Write a report; the exit code that goes with it."""
    if form == "nagios":
        output.line(_nagios(report))
        return Exit(int(report.level))
    if form == "prometheus":
        output.stdout.write(_prometheus(report).encode())
        return Exit.OK
    if form == "json":
        output.document(_document(report))
    else:
        output.line(f"{report.check}: {report.level.name}: {report.summary}")
        for finding in report.findings:
            output.line(f"{finding.level.name.lower()}: {finding.text}")
    return Exit.DEGRADED if report.level else Exit.OK


def _document(report: Report) -> dict[str, Any]:
    return {
        "check": report.check,
        "level": report.level.name.lower(),
        "summary": report.summary,
        "findings": [{"level": one.level.name.lower(), "text": one.text} for one in report.findings],
        "figures": [
            {"name": one.name, "value": one.value, "labels": dict(one.labels)} for one in report.figures
        ],
    }


def _nagios(report: Report) -> str:
    """`RINGKV HEALTH OK - summary | label=value;warning;critical ...`."""
    texts = [finding.text for finding in sorted(report.findings, key=lambda one: -one.level)]
    said = "; ".join(texts[:_NAGIOS_FINDINGS_MAX]) or report.summary
    if len(texts) > _NAGIOS_FINDINGS_MAX:
        said += f"; and {len(texts) - _NAGIOS_FINDINGS_MAX} more"
    data = " ".join(map(_perfdata, report.figures))
    line = f"RINGKV {report.check.upper()} {report.level.name} - {_one_line(said)}"
    return f"{line} | {data}" if data else line


def _one_line(text: str) -> str:
    """A bar begins the figures, so that no other may be there."""
    return " ".join(text.replace("|", "/").split())


def _perfdata(figure: Figure) -> str:
    label = "_".join([figure.name, *(value for _, value in figure.labels)])
    unit = "s" if figure.name.endswith("_seconds") else "B" if figure.name.endswith("_bytes") else ""
    bounds = ";".join(_bound(bound, figure.below) for bound in (figure.warning, figure.critical))
    return f"'{label}'={_number(figure.value)}{unit};{bounds}".rstrip(";")


def _bound(bound: float | None, below: bool) -> str:
    """A range in which all is well: `N` is 0 to N, `N:` is N and more."""
    return "" if bound is None else _number(bound) + (":" if below else "")


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _prometheus(report: Report) -> str:
    check = Figure(
        "status", int(report.level), "0 ok, 1 warning, 2 critical, 3 unknown.", (("check", report.check),)
    )
    at = Figure("time_seconds", round(time.time()), "When it was checked.", (("check", report.check),))
    lines: list[str] = []
    told = ""
    for figure in [check, at, *report.figures]:
        own = figure in (check, at)
        name = "ringkv_check_" + ("" if own else f"{report.check}_") + figure.name
        if name != told:
            told = name
            lines += [f"# HELP {name} {figure.help}", f"# TYPE {name} gauge"]
        labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in figure.labels)
        lines.append(
            f"{name}{{{labels}}} {_number(figure.value)}" if labels else f"{name} {_number(figure.value)}"
        )
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
