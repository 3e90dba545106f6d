"""Stores, routers, moves and events as tables and lists.

Owns columns and their order. Pure. Every table becomes a list of cards on narrow screens, for which each cell
carries its column's name.
"""

from __future__ import annotations

from typing import Any, Final

from monitor.page import words
from monitor.page.html import Html, element, joined, name

Row = dict[str, Any]

NODES_MAX: Final = 64
"""A cluster has at most 50 stores, and the monitor knows at most 64 routers."""
_MOVES_MAX: Final = 40
"""Two screens. At most 16,384 are queued, of which those under way are few and come first."""
_EVENTS_MAX: Final = 100
_EVENTS_OPEN: Final = 12

_STATES: Final = {
    "up": ("up", "fine"),
    "draining": ("draining", "busy"),
    "suspect": ("suspect", "warning"),
    "down": ("down", "critical"),
    "foreign": ("foreign disk", "critical"),
}
_MARKS: Final = {
    "fine": "\N{BLACK CIRCLE}",
    "busy": "\N{CIRCLE WITH LEFT HALF BLACK}",
    "warning": "\N{BLACK UP-POINTING TRIANGLE}",
    "critical": "\N{BLACK SQUARE}",
    "ok": "\N{BLACK CIRCLE}",
}
_PROSE: Final = frozenset({"Store", "State", "Router", "From", "To", "Why", "Stage", "Progress", "Waits for"})
"""Columns that are read from the left; all others are numbers."""
_HIGH: Final = 0.8
_FULL: Final = 0.95
"""Beyond these shares of a limit a bar is a warning, and critical: as the monitor judges disks."""


def mark(level: str) -> Html:
    """A shape and a colour for a level; the word stands beside it."""
    return element("span", _MARKS.get(level, "?"), class_=f"mark {level}", aria_hidden="true")


def nodes(rows: list[Row]) -> Html:
    """The table of the stores."""
    if not rows:
        return element("p", "Not known yet: the monitor has no cluster map.", class_="none")
    return _table(
        ("Store", "State", "Leads", "Replicas", "Lag", "Reads/s", "Writes/s", "Log p99", "CPU", "Memory",
         "Disk", "Open files", "Up for"),
        [_node(row) for row in rows[:NODES_MAX]],
    )  # fmt: skip


def _node(row: Row) -> Row:
    word, level = _STATES.get(str(row["state"]), (name(row["state"]), "critical"))
    badge = element("span", "controller", class_="badge") if row["controller"] else ""
    zone = joined(" in ", name(row["zone"])) if row["zone"] else ""
    place = element("small", name(row["rpc"]), zone)
    bad = row["failed"] or 0
    return {
        "class": "gone" if row["gone"] else None,
        "Store": joined(element("i", row["id"]), element("b", name(row["name"])), badge, place),
        "State": joined(mark(level), word, _heard(row)),
        "Leads": words.count(row["leads"]),
        "Replicas": joined(
            row["partitions"], element("small", f"{bad} failed", class_="critical") if bad else ""
        ),
        "Lag": words.count(row["lag"]),
        "Reads/s": words.count(row["reads_per_s"]),
        "Writes/s": words.count(row["writes_per_s"]),
        "Log p99": words.milliseconds(row["log_write_p99_ms"]),
        **_process(row),
        "Disk": _disk(row),
    }


def routers(rows: list[Row]) -> Html:
    """The table of the routers."""
    if not rows:
        return element("p", "No router has said who it is yet.", class_="none")
    return _table(
        ("Router", "State", "Stores", "Requests/s", "Errors/s", "p50", "p99", "In flight", "Epoch", "CPU",
         "Memory", "Open files", "Up for"),
        [_router(row) for row in rows[:NODES_MAX]],
    )  # fmt: skip


def _router(row: Row) -> Row:
    word, level = ("gone", "critical") if row["gone"] else ("up", "fine")
    return {
        "class": "gone" if row["gone"] else None,
        "Router": joined(element("b", name(row["name"])), element("small", name(row["front"]))),
        "State": joined(mark(level), word, _heard(row)),
        "Stores": words.count(row["stores_up"]),
        "Requests/s": words.count(row["ops_per_s"]),
        "Errors/s": words.count(row["errors_per_s"]),
        "p50": words.milliseconds(row["p50_ms"]),
        "p99": words.milliseconds(row["p99_ms"]),
        "In flight": words.count(row["in_flight"]),
        "Epoch": words.count(row["epoch"]),
        **_process(row),
    }


def _process(row: Row) -> Row:
    return {
        "CPU": words.share(row["cpu"]),
        "Memory": words.size(row["memory_bytes"]),
        "Open files": _files(row),
        "Up for": joined(words.duration(row["uptime_s"]), _version(row["version"])),
    }


def _version(version: str | None) -> Html:
    return element("small", name(version)) if version else Html("")


def _heard(row: Row) -> Html:
    if not row["gone"]:
        return Html("")
    since = "never heard" if row["heard_s"] is None else f"heard {words.duration(row['heard_s'])} ago"
    return element("small", since)


def _disk(row: Row) -> Html:
    used, free, whole = row["disk_bytes"], row["disk_free_bytes"], row["disk_size_bytes"]
    if free is None or not whole:
        return joined(words.size(used))
    return joined(
        words.size(used),
        _bar(1 - free / whole, _look(1 - free / whole)),
        element("small", f"{words.size(free)} free"),
    )


def _files(row: Row) -> Html:
    opened, limit = row["open_fds"], row["max_fds"]
    if opened is None or not limit:
        return joined(words.count(opened))
    return joined(
        words.count(opened), element("small", f"of {words.count(limit)}", class_=_look(opened / limit))
    )


def _bar(part: float, look: str | None = None) -> Html:
    width = f"{min(max(part, 0.0), 1.0) * 100:.1f}%"
    return element(
        "svg",
        element("rect", width=width, height="100%", class_=look),
        class_="bar",
        aria_hidden="true",
    )


def _look(part: float) -> str | None:
    return "critical" if part > _FULL else "warning" if part > _HIGH else None


def moves(rows: list[Row], cluster: Row) -> Html:
    """Those under way first, in the order of the queue."""
    paused = element(
        "p", mark("warning"), "The queue is paused. To go on: ", element("code", "kvcli rebalance resume")
    )
    head = paused if cluster["paused"] else Html("")
    if not rows:
        known = cluster["paused"] is not None
        told = "Nothing is being moved." if known else "Not known: no controller answers."
        return joined(head, element("p", told, class_="none"))
    ordered = sorted(rows, key=lambda row: row["stage"] == "waiting")
    shown = [_move(row) for row in ordered[:_MOVES_MAX]]
    left = len(rows) - len(shown)
    more = (
        element("p", f"and {left:,} more. All of them: ", element("code", "kvcli rebalance status"))
        if left
        else ""
    )
    columns = ("Partition", "From", "To", "Why", "Stage", "Progress", "Waits for")
    return joined(head, _table(columns, shown), more)


def _move(row: Row) -> Row:
    partition = "control" if row["partition"] == 65535 else row["partition"]
    return {
        "class": "waiting" if row["stage"] == "waiting" else None,
        "Partition": partition,
        "From": name(row["source"] or words.UNKNOWN),
        "To": name(row["target"] or words.UNKNOWN),
        "Why": name(row["reason"]),
        "Stage": name(row["stage"]),
        "Progress": _progress(row["done"], row["bytes"]),
        "Waits for": row["waits"] or "",
    }


def _progress(done: float | None, size: int) -> Html:
    """Without a size, which nobody knows before the copy has begun, there is no `0 % of 0 B`."""
    if done is None or not (done or size):
        return joined(words.size(size) if size else words.UNKNOWN)
    return joined(_bar(done), words.share(done), f" of {words.size(size)}" if size else "")


def events(rows: list[Row], now_ms: int) -> Html:
    """Newest first; older ones are folded."""
    if not rows:
        return element("p", "Nothing has happened since the monitor was started.", class_="none")
    lines = [
        element(
            "li",
            element("time", words.clock(row["at_ms"], now_ms), datetime=words.iso(row["at_ms"])),
            mark(row["level"]),
            element("span", row["text"]),
        )
        for row in rows[:_EVENTS_MAX]
    ]
    recent, older = lines[:_EVENTS_OPEN], lines[_EVENTS_OPEN:]
    folded = element(
        "details",
        element("summary", words.plural(len(older), "older event")),
        element("ol", *older, class_="events"),
    )
    return joined(element("ol", *recent, class_="events"), folded if older else "")


def _table(columns: tuple[str, ...], rows: list[Row]) -> Html:
    prose = {column: "prose" if column in _PROSE else None for column in columns}
    head = [element("th", column, scope="col", class_=prose[column]) for column in columns]
    body = [
        element(
            "tr",
            *(element("td", row[column], data_label=column, class_=prose[column]) for column in columns),
            class_=row["class"],
        )
        for row in rows
    ]
    return element("table", element("thead", element("tr", *head)), element("tbody", *body))
