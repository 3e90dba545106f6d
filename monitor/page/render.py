"""The status page: one status document in, one complete HTML document out.

Owns what stands where. Pure: knows neither time nor sockets. What it reads is docs/monitor.md section 3. The
page is complete as it is; page.js only fetches it again and puts in what has changed, so that what is seen
with JavaScript and without is made here, once. It has at most `PAGE_BYTES_MAX`, whatever the status says.
"""

from __future__ import annotations

import re
from typing import Any, Final

from monitor.page import words
from monitor.page.charts import LATENCY, THROUGHPUT, chart
from monitor.page.grid import grid
from monitor.page.html import Html, element, joined
from monitor.page.tables import events, mark, moves, nodes, routers

Row = dict[str, Any]

PAGE_BYTES_MAX: Final = 3 << 19
"""1.5 MiB. 4,096 partitions x 3 on 50 stores take 0.3 MiB when all is well, 16 partitions 26 KiB."""
_PROBLEMS_MAX: Final = 12
"""Of which the first is the verdict; who reads on does so in `kvcli status`."""
_COMMAND: Final = re.compile(r"(\bkvcli .+?)(?=[,;]|\.\s|\.?$)")
_COMMANDS_MAX: Final = 9
_LEVELS: Final = {"ok": "OK", "warning": "Warning", "critical": "Critical"}
_ASSETS: Final = "page"


def render(status: Row) -> str:
    """The document for one answer of `/api/v1/status`."""
    cluster, level = status["cluster"], _level(status["verdict"]["level"])
    title = f"{cluster['name'] or 'ringkv'}: {_LEVELS[level].lower()}"
    return "<!doctype html>\n" + element(
        "html",
        _head(title),
        element(
            "body",
            _masthead(status),
            element(
                "main",
                _verdict(status["verdict"], status["problems"], level),
                _totals(status["totals"]),
                _charts(status),
                _section("stores", "Stores", nodes(status["nodes"])),
                _section("routers", "Routers", routers(status["routers"])),
                _section("partitions", "Partitions", grid(status["partitions"], status["nodes"])),
                _section("moves", "Moves", moves(status["moves"], cluster)),
                _section("events", "Events", events(status["events"], status["at_ms"])),
            ),
            _footer(status["monitor"]),
        ),
        lang="en",
    )


def _head(title: str) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href=f"{_ASSETS}/icon.svg", type="image/svg+xml"),
        element("link", rel="stylesheet", href=f"{_ASSETS}/uplot.css"),
        element("link", rel="stylesheet", href=f"{_ASSETS}/page.css"),
        element("noscript", element("meta", http_equiv="refresh", content="10")),
        element("script", src=f"{_ASSETS}/uplot.js", defer=True),
        element("script", src=f"{_ASSETS}/page.js", defer=True),
    )


def _masthead(status: Row) -> Html:
    cluster, at_ms = status["cluster"], status["at_ms"]
    known = bool(cluster["partitions"])
    shape = (
        f"{words.plural(cluster['partitions'], 'partition')} \N{MULTIPLICATION SIGN} "
        f"{words.plural(cluster['replication_factor'], 'replica')}"
    )
    facts = (
        (shape, f"epoch {cluster['epoch']}", f"controller {cluster['controller'] or 'unknown'}")
        if known
        else ("no cluster map yet",)
    )
    return element(
        "header",
        element("h1", cluster["name"] or "ringkv"),
        element("p", *(element("span", fact) for fact in facts), class_="facts"),
        element(
            "p",
            element("span", "as of ", class_="asof"),
            element("time", words.clock(at_ms), " UTC", datetime=words.iso(at_ms), id="at", data_ms=at_ms),
        ),
        element("p", id="silent", role="alert", hidden=True),
    )


def _verdict(verdict: Row, problems: list[Row], level: str) -> Html:
    others = [
        element("li", mark(_level(one["level"])), element("span", one["text"]), _remedy(one["remedy"]))
        for one in problems[1:_PROBLEMS_MAX]
    ]
    if left := len(problems) - _PROBLEMS_MAX:
        told = f"and {left:,} more. All of them: "
        others += [element("li", told, element("code", "kvcli status"))] if left > 0 else []
    return element(
        "section",
        element("p", mark(level), _LEVELS[level], class_="level"),
        element("p", "All is well" if level == "ok" else verdict["text"], class_="sentence"),
        _remedy(verdict["remedy"]),
        element("ul", *others, class_="problems") if others else "",
        id="verdict",
        class_=level,
    )


def _remedy(remedy: str) -> Html:
    """Prose, the commands in it as such: each goes to the end of its clause."""
    parts = _COMMAND.split(remedy)
    said = (element("code", part) if index % 2 else part for index, part in enumerate(parts[:_COMMANDS_MAX]))
    return element("p", *said, class_="remedy") if remedy else Html("")


def _totals(totals: Row) -> Html:
    wrong = [
        element("small", f"{words.count(totals[f'partitions_{state}'])} {state}", class_=look)
        for state, look in (("degraded", "warning"), ("down", "critical"))
        if totals[f"partitions_{state}"]
    ]
    tiles = (
        ("Requests/s", words.count(totals["ops_per_s"]), _split(totals)),
        ("p50", words.milliseconds(totals["p50_ms"]), ""),
        ("p99", words.milliseconds(totals["p99_ms"]), ""),
        ("Errors/s", words.count(totals["errors_per_s"]), ""),
        ("Stores up", _of(totals["nodes_up"], totals["nodes"]), ""),
        ("Routers up", _of(totals["routers_up"], totals["routers"]), ""),
        ("Partitions ok", words.count(totals["partitions_ok"]), joined(*wrong)),
        ("Keys", words.count(totals["keys"]), _note("estimated", totals["keys"])),
        (
            "On disk",
            words.size(totals["disk_bytes"]),
            _note(f"{words.size(totals['disk_free_bytes'])} free", totals["disk_free_bytes"]),
        ),
        ("Memory", words.size(totals["memory_bytes"]), ""),
    )
    shown = (element("div", element("dt", name), element("dd", value, more)) for name, value, more in tiles)
    return element("section", element("dl", *shown), id="totals", aria_label="Figures")


def _split(totals: Row) -> Html:
    reads, writes = totals["reads_per_s"], totals["writes_per_s"]
    if reads is None or writes is None:
        return Html("")
    return joined(
        element("small", f"{words.count(reads)} reads"), element("small", f"{words.count(writes)} writes")
    )


def _note(text: str, figure: float | None) -> Html:
    """What is said below a figure that is known."""
    return Html("") if figure is None else element("small", text)


def _of(part: int, whole: int) -> Html:
    return joined(part, element("span", f" of {whole}", class_="of"))


def _charts(status: Row) -> Html:
    totals, history = status["totals"], status["history"]
    rate = element("b", words.count(totals["ops_per_s"]), "" if totals["ops_per_s"] is None else "/s")
    late = element("b", "p99 ", words.milliseconds(totals["p99_ms"]))
    return element(
        "section",
        chart("throughput", "Throughput", rate, history, THROUGHPUT, "per_s"),
        chart("latency", "Latency", late, history, LATENCY, "ms"),
        id="charts",
        aria_label="The last hour",
    )


def _section(key: str, title: str, content: Html) -> Html:
    return element("section", element("h2", title), content, id=key)


def _footer(monitor: Row) -> Html:
    links = (
        ("metrics", "metrics for Prometheus"),
        ("api/v1/status", "this status as JSON"),
        ("readyz", "readiness"),
    )
    told = (
        f"Monitor {monitor['name']} {monitor['version']}, up for {words.duration(monitor['uptime_s'])}, "
        f"{words.size(monitor['memory_bytes'])} of memory."
    )
    return element(
        "footer",
        element("p", told),
        element("p", *(element("a", caption, href=target) for target, caption in links)),
        element("noscript", element("p", "Without JavaScript this page loads itself again every 10 s.")),
    )


def _level(level: str) -> str:
    return level if level in _LEVELS else "critical"
