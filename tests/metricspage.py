"""The families of docs/monitor.md section 2, and what expressions of PromQL name: so that rules and dashboard
can be held to the page without a Prometheus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kvclient.errors import Status

ROOT = Path(__file__).resolve().parents[1]
ALERTS = ROOT / "compose" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "compose" / "grafana" / "dashboards" / "ringkv.json"

# What the chapters of the page say of all their families.
_COMMON: dict[str, dict[str, set[str]]] = {
    "Processes": {"process": set(), "role": {"store", "router", "monitor"}},
    "Requests, at the routers": {"router": set()},
    "Stores": {"node": set()},
}
_ROW = re.compile(r"^\| `(ringkv_\w+)` \| (\w+) \| (.*)\|$", re.MULTILINE)
_LABEL = re.compile(r"`(\w+)`(?: \(((?:`\w+`(?:, )?)+)[^)]*\))?")
_SELECTOR = re.compile(r"\b(ringkv_\w+)(\{[^}]*\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|group_left|ignoring) ?\(([^)]*)\)")


class Family(NamedTuple):
    """A family of the page. `labels`: by name, the values that are listed; none listed: any."""

    kind: str
    labels: dict[str, set[str]]


class Selector(NamedTuple):
    """A selector in an expression: the series that it names, and its matchers."""

    text: str
    name: str
    matchers: tuple[tuple[str, str, str], ...]


def families() -> dict[str, Family]:
    """By name, as the page has them."""
    page = (ROOT / "docs" / "monitor.md").read_text()
    chapters = page[page.index("## 2.") : page.index("## 3.")].split("\n### ")[1:]
    found = {}
    for chapter in chapters:
        title = chapter.splitlines()[0]
        for name, kind, rest in _ROW.findall(chapter):
            listed = rest.split("|")[0] if title != "Processes" else ""
            labels = {label: set(re.findall(r"`(\w+)`", values)) for label, values in _LABEL.findall(listed)}
            found[name] = Family(kind, {**_COMMON.get(title, {}), **labels})
    statuses = {status.name.lower() for status in Status}
    found["ringkv_requests_total"].labels.update(
        op={"read", "write", "scan", "barrier", "admin", "map", "ping", "unknown"}, status=statuses
    )
    found["ringkv_store_answers_total"].labels.update(status=statuses)
    return found


def family_of(name: str, known: dict[str, Family]) -> str:
    """The family that a series belongs to: a histogram's series have endings."""
    for ending in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(ending)
        if base != name and base in known and known[base].kind == "histogram":
            return base
    return name


def selectors(expression: str) -> Iterator[Selector]:
    """All selectors of our families in an expression."""
    for name, matchers in _SELECTOR.findall(expression):
        yield Selector(name + matchers, name, tuple(_MATCHER.findall(matchers)))


def grouped_labels(expression: str) -> set[str]:
    """Labels by which an expression groups or matches."""
    return {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")} - {""}


def alerts() -> list[dict[str, Any]]:
    """The alert rules, as written."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    """Title and expression of everything that the dashboard draws."""
    drawn = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in drawn for target in panel.get("targets", ())]
