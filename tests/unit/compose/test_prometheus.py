"""Alert rules and dashboard name what docs/monitor.md promises, and every alert has its runbook and test.

promtool's own checks run where it is installed (Debian package `prometheus`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import metricspage
from tests.metricspage import ALERTS, DASHBOARD, ROOT

FAMILIES = metricspage.families()
RULES = metricspage.alerts()
EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in RULES] + metricspage.panels()
NAMES = [rule["alert"] for rule in RULES]
FOLDER = ALERTS.parent

# What Prometheus and its configuration add to every series, and a histogram to its buckets.
ADDED = {"cluster", "instance", "job", "le"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def test_the_page_was_understood() -> None:
    assert len(FAMILIES) > 80
    assert FAMILIES["ringkv_node_state"].labels["state"] >= {"up", "suspect", "down", "draining", "foreign"}


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS)
def test_every_expression_names_families_labels_and_values_of_the_page(name: str, expression: str) -> None:
    named = list(metricspage.selectors(expression))
    assert named or 'up{job="ringkv"}' in expression, f"{name} looks at nothing of ours"
    labels = set(ADDED)
    for selector in named:
        family = FAMILIES.get(metricspage.family_of(selector.name, FAMILIES))
        assert family, f"{name}: docs/monitor.md has no {selector.name}"
        assert (family.kind == "counter") == selector.name.endswith("_total")
        labels |= family.labels.keys()
        for label, _, value in selector.matchers:
            values = family.labels.get(label, set())
            assert label in family.labels or label in ADDED, f"{name}: {selector.name} has no label {label}"
            assert not values or set(value.split("|")) <= values, f"{name}: {label} is never {value}"
    assert metricspage.grouped_labels(expression) <= labels, f"{name} groups by labels that nothing has"


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert said.keys() == {"summary", "action", "runbook"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(said.values())))
    kept = metricspage.grouped_labels(rule["expr"]) | ({"instance"} if "up{" in rule["expr"] else set())
    assert used <= kept, "the text names labels that the expression does not keep"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    headings = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### Ringkv")]
    assert sorted(headings) == sorted(NAMES)
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_every_alert_has_a_test_that_it_fires_and_that_it_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    assert [test["name"] for test in tests] == NAMES
    for test, rule in zip(tests, RULES, strict=True):
        checks = test["promql_expr_test"]
        assert all(f'alertname="{test["name"]}"' in check["expr"] for check in checks)
        assert checks[-1]["exp_samples"], "does it ever fire?"
        clusters = set(re.findall(r'cluster="(\w+)"', str(test["input_series"])))
        fires = set(re.findall(r'cluster="(\w+)"', str(checks[-1]["exp_samples"])))
        others = len(test["input_series"]) - len(fires)
        assert clusters - fires or others, "what does it not fire for?"
        assert "for" not in rule or checks[0]["exp_samples"] == [], "does it wait?"


def test_the_dashboard_is_what_its_script_makes() -> None:
    script = ROOT / "compose" / "grafana" / "make.py"
    made = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(script)!r})['text'](), end='')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == DASHBOARD.read_text(), "run: python compose/grafana/make.py"


def test_panels_of_the_dashboard_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in yaml.safe_load(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_scrapes_the_monitor_and_grafana_asks_prometheus() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "ringkv"
    assert job["static_configs"] == [{"targets": ["monitor:7300"], "labels": {"cluster": "ringkv"}}]
    assert all((FOLDER / name).exists() for name in prometheus["rule_files"])
    sources = ROOT / "compose" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(sources.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "alerts.yml")


@needs_promtool
def test_promtool_sees_every_alert_fire_when_it_should() -> None:
    promtool("test", "rules", "alerts_test.yml")
