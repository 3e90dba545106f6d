"""Partitions x replicas: a tile for each partition, and in words what is not as it should be.

Owns the letters. Pure. There may be 4,096 tiles of three replicas and more, so a tile says nothing but
number, roles and node ids in some 60 bytes; the words beside them group what is alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kvclient.health import ranges
from monitor.page.html import Html, element, joined

Row = dict[str, Any]

PARTITIONS_MAX: Final = 4096
"""What a cluster may have."""
_REPLICAS_MAX: Final = 8
"""A group of five with a learner or two; a group of more is one that no move has made."""
_FINDINGS_MAX: Final = 20
"""Groups of partitions that are told apart: what one lost store leaves behind is one or two."""
_RANGES_MAX: Final = 12
_MEMBERS_MAX: Final = 8
"""Replicas named in one finding."""


class Mark(NamedTuple):
    letter: str
    look: str
    meaning: str


_MARKS: Final = {
    "leader": Mark("L", "leader", "leader"),
    "follower": Mark("F", "", "follower"),
    "learner": Mark("N", "learner", "new copy, learning"),
    "candidate": Mark("C", "late", "candidate"),
    "lagging": Mark("B", "late", "far behind"),
    "failed": Mark("X", "lost", "failed"),
    "gone": Mark("G", "lost", "gone"),
    "unknown": Mark("U", "lost", "unknown"),
}


def grid(partitions: list[Row], nodes: list[Row]) -> Html:
    """The section's content: legend, what is not well in words, tiles."""
    if not partitions:
        return element("p", "Not known yet: the monitor has no cluster map.", class_="none")
    shown = partitions[:PARTITIONS_MAX]
    ids = {str(node["name"]): int(node["id"]) for node in nodes}
    return joined(
        _legend({_mark(replica) for row in shown for replica in row["replicas"]}),
        _findings(shown),
        element("ol", Html("".join(_tile(row, ids) for row in shown)), class_="tiles", tabindex="0"),
    )


def _mark(replica: Row) -> Mark:
    state = replica.get("state")
    if state in ("gone", "failed") or (state == "lagging" and replica.get("role") != "leader"):
        return _MARKS[state]
    return _MARKS.get(str(replica.get("role")), _MARKS["unknown"])


def _tile(row: Row, ids: dict[str, int]) -> str:
    """By hand rather than by `element`, for there are 4,096 of it: only numbers and our own words go in."""
    cells = []
    for replica in row["replicas"][:_REPLICAS_MAX]:
        mark, node = _mark(replica), ids.get(replica["node"])
        late = mark.letter == "L" and replica.get("state") == "lagging"
        look = "late" if late else mark.look
        cells.append(f"<i{f' class={look}' if look else ''}>{mark.letter}{'?' if node is None else node}</i>")
    if not cells:
        cells.append("<i class=lost>none</i>")
    look = {"ok": "", "degraded": " class=degraded"}.get(row["state"], " class=down")
    return f"<li{look}><b>{int(row['id'])}</b>{''.join(cells)}"


def _legend(used: set[Mark]) -> Html:
    keys = [
        joined(element("i", mark.letter, class_=mark.look or None), " ", mark.meaning, " ")
        for mark in _MARKS.values()
        if mark in used
    ]
    told = "A tile is a partition: its number, then for each replica a letter and the number of its store."
    return element("p", told, " ", *(element("span", key, class_="sample") for key in keys), class_="letters")


def _findings(partitions: list[Row]) -> Html:
    """Lines such as `partitions 0-15: store3 gone`, alike ones together, worst first."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Row]] = {}
    for row in partitions:
        odd = tuple(
            sorted(
                (str(one["node"]), _oddity(one)) for one in row["replicas"][:_REPLICAS_MAX] if _oddity(one)
            )
        )
        if odd or row["state"] != "ok":
            found.setdefault((row["state"], odd), []).append(row)
    order = sorted(found.items(), key=lambda item: (item[0][0] != "down", -len(item[1])))
    lines = [_finding(state, odd, rows) for (state, odd), rows in order[:_FINDINGS_MAX]]
    if not lines:
        return Html("")
    if left := len(order) - len(lines):
        lines.append(
            element(
                "li", f"and {left:,} other kinds. All of them: ", element("code", "kvcli group ls --problems")
            )
        )
    return element("ul", *lines, class_="findings")


def _finding(state: str, odd: Iterable[tuple[str, str]], rows: list[Row]) -> Html:
    which = ranges((row["id"] for row in rows), _RANGES_MAX)
    lags = [
        one["lag"] for row in rows for one in row["replicas"] if one.get("lag") and one["state"] == "lagging"
    ]
    reasons = [f"{node} {oddity}" for node, oddity in list(odd)[:_MEMBERS_MAX]] or ["a replica is missing"]
    told = ", ".join(["not served", *reasons] if state == "down" else reasons)
    behind = f", by up to {max(lags):,} entries" if lags else ""
    return element(
        "li",
        element("b", f"{'Partition' if len(rows) == 1 else 'Partitions'} {which}"),
        f": {told}{behind}",
        class_=state if state in ("down", "degraded") else None,
    )


def _oddity(replica: Row) -> str:
    state = replica.get("state")
    if state == "ok":
        return {"candidate": "asks for votes"}.get(str(replica.get("role")), "")
    return {
        "lagging": "is far behind",
        "learner": "is learning",
        "failed": "has failed",
        "gone": "is gone",
    }.get(str(state), "is unknown")
