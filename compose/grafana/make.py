"""Writes the Grafana dashboard: `python compose/grafana/make.py` after a change here; a test compares.

Owns what is shown, in which order and with which expression; families are those of docs/monitor.md section 2.
Of several monitors of a cluster each tells the same: `total` and `value` count it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent / "dashboards" / "ringkv.json"

WIDTH = 24  # of the grid
ROW_HEIGHT = 1
STAT_HEIGHT = 4
GRAPH_HEIGHT = 8

RED, YELLOW, GREEN = "red", "yellow", "green"
RATE = "$__rate_interval"
SERVED = 'op=~"read|write|scan|barrier"'
FAILED = (
    'status=~"busy|corruption|internal|not_leader|outcome_unknown|read_only|timeout|unavailable'
    '|wrong_replica"'
)

Panel = dict[str, Any]


def total(family: str, by: str = "", match: str = "") -> str:
    """A counter's growth per second, summed up to the labels `by`."""
    rate = f"rate({_selector(family, match)}[{RATE}])"
    return f"sum {_by(by)}(max without (instance) ({rate}))"


def value(family: str, by: str = "", match: str = "") -> str:
    """The largest value of a gauge, for each value of the labels `by`."""
    return f"max {_by(by)}({_selector(family, match)})"


def quantile(of: float, family: str, by: str = "", match: str = "") -> str:
    """A quantile of a histogram over the last moments, for each value of the labels `by`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({of}, {total(f'{family}_bucket', labels, match)})"


def _selector(family: str, match: str) -> str:
    return f'{family}{{cluster="$cluster"{"," if match else ""}{match}}}'


def _by(labels: str) -> str:
    return f"by ({labels}) " if labels else ""


# -- panels


def stat(
    title: str, expression: str, unit: str = "short", *, steps: list[tuple[float | None, str]], **words: str
) -> Panel:
    """One number; its colour by the steps it has passed. `words`: texts for values, `v0="..."`."""
    names = {name.removeprefix("v"): {"text": text} for name, text in words.items()}
    defaults = {
        "unit": unit,
        "mappings": [{"type": "value", "options": names}] if names else [],
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": start, "color": color} for start, color in steps],
        },
    }
    return {
        "type": "stat",
        "title": title,
        "targets": [_target(expression, "")],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"},
    }


def graph(
    title: str, unit: str, *lines: tuple[str, str], stacked: bool = False, description: str = ""
) -> Panel:
    """Lines over time; each is an expression and the name of its series."""
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if stacked else "none"}}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "targets": [_target(expression, legend) for expression, legend in lines],
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def heatmap(title: str, family: str, match: str) -> Panel:
    """How many requests took how long."""
    target = _target(total(f"{family}_bucket", "le", match), "{{le}}") | {"format": "heatmap"}
    return {
        "type": "heatmap",
        "title": title,
        "targets": [target],
        "options": {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64},
            "yAxis": {"unit": "s"},
        },
    }


def _target(expression: str, legend: str) -> dict[str, Any]:
    return {"expr": expression, "legendFormat": legend}


# -- rows

FINE: list[tuple[float | None, str]] = [(None, GREEN)]
NONE_IS_FINE: list[tuple[float | None, str]] = [(None, GREEN), (1, RED)]

UNLED = f"count({value('ringkv_partition_has_leader', 'partition')} == 0) or vector(0)"
LACKING = (
    f"count({value('ringkv_partition_replicas_up', 'partition')}"
    f" < on () group_left {value('ringkv_cluster_replication_factor')}) or vector(0)"
)
ERROR_SHARE = (
    f"({total('ringkv_requests_total', match=f'{SERVED},{FAILED}')} or vector(0))"
    f" / ({total('ringkv_requests_total', match=SERVED)} > 0) or vector(0)"
)
FILES = f"{value('ringkv_process_open_fds', 'process')} / {value('ringkv_process_max_fds', 'process')}"

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        stat(
            "Verdict",
            value("ringkv_cluster_verdict"),
            steps=[(None, GREEN), (1, YELLOW), (2, RED)],
            v0="ok",
            v1="warning",
            v2="critical",
        ),
        stat(
            "Stores missing",
            f"count({value('ringkv_node_up', 'node')} == 0) or vector(0)",
            steps=[(None, GREEN), (1, YELLOW), (2, RED)],
        ),
        stat(
            "Routers missing",
            f"count({value('ringkv_router_up', 'router')} == 0) or vector(0)",
            steps=[(None, GREEN), (1, YELLOW)],
        ),
        stat("Partitions without leader", UNLED, steps=NONE_IS_FINE),
        stat("Partitions that lack a replica", LACKING, steps=[(None, GREEN), (1, YELLOW)]),
        stat("Errors", ERROR_SHARE, "percentunit", steps=[(None, GREEN), (0.01, YELLOW), (0.05, RED)]),
        stat("Requests", total("ringkv_requests_total", match=SERVED), "reqps", steps=FINE),
        stat("Data, with all copies", f"sum({value('ringkv_disk_used_bytes', 'node')})", "bytes", steps=FINE),
    ],
    "Requests": [
        graph(
            "Requests", "reqps", (total("ringkv_requests_total", "op", SERVED), "{{op}}"), stacked=True
        ),
        graph(
            "Requests that failed",
            "reqps",
            (f"{total('ringkv_requests_total', 'status', f'{SERVED},{FAILED}')} or vector(0)", "{{status}}"),
            description="Without those that were wrong, such as values over the limit.",
        ),
        graph(
            "Duration at the routers",
            "s",
            (quantile(0.5, "ringkv_request_duration_seconds", "op"), "{{op}} half"),
            (quantile(0.99, "ringkv_request_duration_seconds", "op"), "{{op}} 99 of 100"),
        ),
        heatmap("Duration of writes", "ringkv_request_duration_seconds", 'op="write"'),
        graph(
            "Requests of each router",
            "reqps",
            (total("ringkv_requests_total", "router", SERVED), "{{router}}"),
        ),
        graph("Under way", "short", (value("ringkv_router_in_flight_parts", "router"), "{{router}}")),
    ],
    "Partitions": [
        graph("Partitions led", "short", (value("ringkv_store_leads", "node"), "{{node}}"), stacked=True),
        graph(
            "Changes of leader",
            "short",
            (
                f"sum(max without (instance) (increase("
                f"{_selector('ringkv_partition_leader_changes_total', '')}[{RATE}])))",
                "changes",
            ),
        ),
        graph(
            "Entries behind",
            "short",
            (value("ringkv_raft_lag_entries", "node"), "{{node}}"),
            description="Of the replica on each store that is farthest behind.",
        ),
        graph(
            "Replicas up, in the worst partition",
            "short",
            (f"min({value('ringkv_partition_replicas_up', 'partition')})", "up"),
            (value("ringkv_cluster_replication_factor"), "wanted"),
        ),
        graph(
            "Moves",
            "short",
            (value("ringkv_moves", "stage"), "{{stage}}"),
            stacked=True,
            description="Replicas on their way to another store; kvcli rebalance status.",
        ),
        graph(
            "Entries of the log", "short", (total("ringkv_log_entries_total", "node"), "{{node}} entries/s")
        ),
    ],
    "Disks": [
        graph("Space used", "bytes", (value("ringkv_disk_used_bytes", "node"), "{{node}}")),
        graph("Space left", "bytes", (value("ringkv_disk_free_bytes", "node"), "{{node}}")),
        graph(
            "Writes of the log, with fdatasync",
            "s",
            (quantile(0.5, "ringkv_log_write_duration_seconds", "node"), "{{node}} half"),
            (quantile(0.99, "ringkv_log_write_duration_seconds", "node"), "{{node}} 99 of 100"),
        ),
        graph("Log written", "Bps", (total("ringkv_log_written_bytes_total", "node"), "{{node}}")),
        graph(
            "Flushes and compactions",
            "Bps",
            (total("ringkv_engine_flushed_bytes_total", "node"), "{{node}} flushed"),
            (
                total("ringkv_engine_compaction_bytes_total", "node, direction"),
                "{{node}} compaction {{direction}}",
            ),
        ),
        graph(
            "Pressure",
            "short",
            (value("ringkv_engine_pressure", "node"), "{{node}}"),
            (total("ringkv_engine_stall_seconds_total", "node"), "{{node}} held up"),
            description="1: writes are slowed down, 2: they wait for flushes and compactions. "
            "Held up: which part of the time.",
        ),
        graph(
            "Compactions owed", "bytes", (value("ringkv_engine_compaction_debt_bytes", "node"), "{{node}}")
        ),
        graph(
            "Blocks looked up in the cache",
            "short",
            (total("ringkv_engine_cache_lookups_total", "outcome"), "{{outcome}}"),
        ),
        graph("Memtables", "bytes", (value("ringkv_engine_memtable_bytes", "node"), "{{node}}")),
    ],
    "Network": [
        graph(
            "Second attempts of routers",
            "short",
            (total("ringkv_router_retries_total", "reason"), "{{reason}}"),
            (total("ringkv_router_expired_total"), "expired"),
        ),
        graph(
            "Responses that nobody took",
            "short",
            (total("ringkv_router_dropped_responses_total", "reason"), "{{reason}}"),
        ),
        graph("Bus", "Bps", (total("ringkv_bus_bytes_total", "node, direction"), "{{node}} {{direction}}")),
        graph(
            "Frames of the bus that were lost",
            "short",
            (total("ringkv_bus_lost_frames_total", "node"), "{{node}}"),
            description="Raft repairs them; many of them are a network, or a store, that does not keep up.",
        ),
    ],
    "Processes": [
        graph(
            "Processors",
            "short",
            (total("ringkv_process_cpu_seconds_total", "process"), "{{process}}"),
            description="1: one processor.",
        ),
        graph("Memory", "bytes", (value("ringkv_process_resident_memory_bytes", "process"), "{{process}}")),
        graph("Open files, of those allowed", "percentunit", (FILES, "{{process}}")),
        graph(
            "Monitor",
            "s",
            (value("ringkv_monitor_scrape_seconds"), "a scrape"),
            (value("ringkv_monitor_loop_lag_seconds"), "loop late by"),
        ),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "uid": "ringkv",
        "title": "ringkv",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_laid_out()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    query = "label_values(ringkv_cluster_info, cluster)"
    yield {
        "name": "cluster",
        "label": "Cluster",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "cluster"},
        "refresh": 1,
        "sort": 1,
    }


def _laid_out() -> Iterator[Panel]:
    """Every panel with its place: stats share a line, graphs are two to a line."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield _placed({"type": "row", "title": title, "collapsed": False}, number, 0, y, WIDTH, ROW_HEIGHT)
        y += ROW_HEIGHT
        is_stats = panels[0]["type"] == "stat"
        a_line = len(panels) if is_stats else 2
        width, height = WIDTH // a_line, STAT_HEIGHT if is_stats else GRAPH_HEIGHT
        for index, panel in enumerate(panels):
            number += 1
            across, down = index % a_line, index // a_line
            yield _placed(panel, number, across * width, y + down * height, width, height)
        y += -(-len(panels) // a_line) * height


def _placed(panel: Panel, number: int, x: int, y: int, width: int, height: int) -> Panel:
    placed = {"id": number, **panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}}
    if "targets" in panel:
        placed["datasource"] = {"type": "prometheus", "uid": "${datasource}"}
        letters = "ABCDEFGH"
        placed["targets"] = [
            {"refId": letter, **target} for letter, target in zip(letters, panel["targets"], strict=False)
        ]
    return placed


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text())
