"""`kvcli top`: the cluster as it is now, drawn again and again until q or Ctrl-C; or once.

Owns the figures of a moment (rates are differences of two answers of the ADMIN command `status`) and the
screen. A terminal is left as it was found, whatever happens. Plain ANSI: no full-screen library is loaded.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from kvclient.cli.app import App, current
from kvclient.cli.command import command
from kvclient.cli.failure import Failure, code_name
from kvclient.cli.output import Cell, table_cell
from kvclient.cli.units import DURATION, show_bytes, show_latency, show_seconds
from kvclient.errors import ConnectError, Exit, InvalidRequest, KVError
from kvclient.health import is_led, problems

_COLUMNS = (
    "node", "state", "leads", "partitions", "lag", "reads_per_s", "writes_per_s", "log_p99", "memory", "disk",
    "uptime",
)  # fmt: skip

# Shorter and the rates are noise, and the cluster is asked for nothing.
_INTERVAL_MIN: Final = 0.2

_SCREEN_ON = "\x1b[?1049h\x1b[?25l"
_SCREEN_OFF = "\x1b[?25h\x1b[?1049l"

Row = dict[str, Any]


@command("top")
@click.option("-i", "--interval", type=DURATION, default=2.0, show_default="2s", help="Between two looks.")
@click.option("--once", is_flag=True, help="Print one table, with the rates of one interval, and end.")
def top(interval: float, once: bool) -> None:
    """Watch nodes, ops, latencies, leaders and moves. q or Ctrl-C ends it.

    Ops of a node are parts of requests that it took: a read at its leader, a write at its leader. With -o
    json, or when stdout is no terminal, as with --once.
    """
    app = current()
    interval = max(interval, _INTERVAL_MIN)
    live = not once and app.output.form == "table" and app.output.terminal and sys.stdin.isatty()
    before = Moment(app.client().admin("status"))
    if not live:
        time.sleep(interval)
        print_once(app, picture(before, Moment(app.client().admin("status"))))
        return
    with contextlib.suppress(KeyboardInterrupt), _screen() as key_pressed:
        _watch(app, before, interval, key_pressed)


class Moment:
    """An answer of `status`, and when it came."""

    def __init__(self, answer: Row, at: float | None = None) -> None:
        self.answer = answer
        self.at = time.monotonic() if at is None else at
        self.nodes: dict[int, Row] = {node["id"]: node for node in answer["nodes"]}


def picture(before: Moment, now: Moment) -> Row:
    """What there is to show, as JSON data: rates per second, latencies in seconds; None: not known."""
    answer, seconds = now.answer, max(now.at - before.at, 1e-9)
    router: Row = answer["router_figures"]
    requests = _rate(before.answer["router_figures"], router, "requests_ops", seconds)
    return {
        "cluster": answer["name"],
        "epoch": answer["epoch"],
        "router": answer["router"],
        "requests_per_s": requests,
        "p50_s": _seconds(router.get("latency_p50_us")),
        "p99_s": _seconds(router.get("latency_p99_us")),
        "partitions": answer["partitions"],
        "led": sum(map(is_led, answer.get("groups", ()))),
        "paused": answer.get("paused"),
        "moves": [
            {
                name: move[name]
                for name in ("partition", "source", "target", "reason", "stage", "done", "waits")
            }
            for move in answer.get("moves") or ()
        ],
        "problems": problems(answer),
        "nodes": [_node(before.nodes.get(number, {}), node, seconds) for number, node in now.nodes.items()],
    }


def _node(before: Row, node: Row, seconds: float) -> Row:
    counted, was = node.get("requests", {}), before.get("requests", {})
    known = ("id", "name", "state", "leads", "partitions", "lag", "memory_bytes", "disk_bytes", "uptime_s")
    return {
        **{name: node.get(name) for name in known},
        "reads_per_s": _rate(was, counted, "reads", seconds),
        "writes_per_s": _rate(was, counted, "writes", seconds),
        "log_write_p99_s": _seconds(node.get("log_write_time", {}).get("p99_us")),
    }


def _rate(before: Row, now: Row, name: str, seconds: float) -> float | None:
    """Of a counter; None where there are no two looks at it, or a process has begun anew."""
    if name not in before or name not in now or now[name] < before[name]:
        return None
    counted: int = now[name] - before[name]
    return round(counted / seconds, 1)


def _seconds(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


# -- once


def print_once(app: App, shown: Row) -> None:
    """In the format asked for."""
    if app.output.form in ("json", "jsonl"):
        app.output.document(shown)
        return
    if app.output.form == "table":
        for line in lines(shown, len(shown["nodes"]) + 1000, 1000):
            app.output.line(line)
        return
    with app.output.rows("nodes", _COLUMNS) as rows:
        for node in shown["nodes"]:
            cells = _cells(node)
            rows.add(*(cells[column] for column in _COLUMNS))


def _cells(node: Row) -> dict[str, Cell]:
    def show(name: str, form: Callable[[Any], str]) -> str | None:
        return None if node[name] is None else form(node[name])

    return {
        "node": node["name"],
        **{name: node[name] for name in ("state", "leads", "partitions", "lag")},
        **{name: show(name, lambda rate: f"{rate:,.0f}") for name in ("reads_per_s", "writes_per_s")},
        "log_p99": show("log_write_p99_s", show_latency),
        "memory": show("memory_bytes", show_bytes),
        "disk": show("disk_bytes", show_bytes),
        "uptime": show("uptime_s", show_seconds),
    }


# -- the screen


def lines(shown: Row, height: int, width: int) -> list[str]:
    """The picture for a screen of this size; what does not fit is counted."""
    found = [_headline(shown), "", *_table(shown["nodes"]), ""]
    names = {node["id"]: node["name"] for node in shown["nodes"]} | {0: "-"}
    for move in shown["moves"]:
        done = "" if move["done"] is None else f" {move['done']:.0%}"
        waits = f", waits: {move['waits']}" if move["waits"] else ""
        way = f"{names.get(move['source'], '?')} -> {names.get(move['target'], '?')}"
        found.append(f"move of {move['partition']}: {way}, {move['reason']}, {move['stage']}{done}{waits}")
    found += [f"problem: {problem}" for problem in shown["problems"]]
    if len(found) > height:
        found = [*found[: max(0, height - 1)], f"... {len(found) - height + 1} more lines"]
    return [line[:width] for line in found]


def _headline(shown: Row) -> str:
    def latency(name: str) -> str:
        return "-" if not shown[name] else show_latency(shown[name])

    requests = "-" if shown["requests_per_s"] is None else f"{shown['requests_per_s']:,.0f}"
    parts = [
        f"cluster {shown['cluster']}",
        "DEGRADED" if shown["problems"] else "healthy",
        f"{shown['led']} of {shown['partitions']} partitions led",
        f"{requests} requests/s via {shown['router']}",
        f"p50 {latency('p50_s')}, p99 {latency('p99_s')} since it began",
        f"{len(shown['moves'])} moves" + (", paused" if shown["paused"] else ""),
        time.strftime("%H:%M:%S"),
    ]
    return " · ".join(parts)


def _table(nodes: list[Row]) -> list[str]:
    table = [[column.upper().replace("_PER_S", "/S").replace("_", " ") for column in _COLUMNS]]
    for node in nodes:
        cells = _cells(node)
        table.append([table_cell(cells[column], "utf8") for column in _COLUMNS])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = {0, 1}
    return [
        "  ".join(
            text.ljust(width) if place in left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _watch(app: App, before: Moment, interval: float, key_pressed: Callable[[float], str]) -> None:
    shown = [f"cluster {before.answer['name']}: looking for {show_seconds(interval)} ..."]
    while True:
        size = shutil.get_terminal_size()
        screen = "\x1b[H" + "".join(f"{line[: size.columns]}\x1b[K\r\n" for line in shown[: size.lines - 1])
        sys.stdout.write(screen + "\x1b[J")
        sys.stdout.flush()
        if key_pressed(interval) == "q":
            return
        try:
            now = Moment(app.client().admin("status"))
        except InvalidRequest:
            raise
        except KVError as error:  # it is watched until it comes back
            shown = [f"no answer: {error.message} ({code_name(error)})", *shown[1:]]
            if isinstance(error, ConnectError):
                app.close()
            continue
        shown = lines(picture(before, now), size.lines - 1, size.columns)
        before = now


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[float], str]]:
    """A screen of its own, and keys one by one: the function waits for one so many seconds, "" if none came,
    q if none will. The terminal is restored at the end.
    """
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    try:
        saved = termios.tcgetattr(descriptor)
    except termios.error as error:
        raise Failure(Exit.ERROR, f"stdin is no terminal that can be read by keys: {error}") from None

    def key_pressed(seconds: float) -> str:
        readable, _, _ = select.select([descriptor], [], [], seconds)
        return (os.read(descriptor, 1) or b"q").decode(errors="replace") if readable else ""

    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_SCREEN_ON)
        yield key_pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
        sys.stdout.write(_SCREEN_OFF)
        sys.stdout.flush()
