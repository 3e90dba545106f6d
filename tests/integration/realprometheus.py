"""A real Prometheus, Debian's, beside a real cluster: runs the shipped configuration, is asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import metricspage
from tests.ports import free_ports

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing: apt-get install prometheus"
)


class Prometheus:
    """A Prometheus of its own, on a free port, with the shipped rules. `every`: how often it scrapes and
    evaluates, if not as shipped.
    """

    def __init__(self, directory: Path, target: str, every: str | None = None) -> None:
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        shipped = yaml.safe_load((metricspage.ALERTS.parent / "prometheus.yml").read_text())
        (job,) = shipped["scrape_configs"]
        job["static_configs"][0]["targets"] = [target]
        if every is not None:
            shipped["global"] = dict.fromkeys(
                ("scrape_interval", "scrape_timeout", "evaluation_interval"), every
            )
        shipped["rule_files"] = [str(metricspage.ALERTS)]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(shipped))
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def rules(self) -> dict[str, dict[str, Any]]:
        """By name: state, health, last evaluation and error."""
        groups = self.get("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.query('up{job="ringkv"} == 1'))
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def selectors_of_rules() -> Iterator[str]:
    """What rules look at; values that a healthy cluster does not show (a status, a role) are left open."""
    known = metricspage.families()
    for rule in metricspage.alerts():
        for selector in metricspage.selectors(rule["expr"]):
            family = known[metricspage.family_of(selector.name, known)]
            fixed = [
                f'{label}{operator}"{value}"'
                for label, operator, value in selector.matchers
                if not family.labels.get(label)
            ]
            yield f"{selector.name}{{{','.join(fixed)}}}"


def expressions_of_panels(window: str) -> Iterator[str]:
    """What the dashboard asks, with rates over `window`."""
    for _, expression in metricspage.panels():
        yield expression.replace("$cluster", "ringkv").replace("$__rate_interval", window)
