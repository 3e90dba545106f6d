"""The history as charts: SVG for who has no JavaScript, and the same points for uPlot.

Owns thinning and scales. Pure. The points of a chart are in `data-points`, a JSON array of arrays: Unix
seconds, then each series, null where nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from monitor.page import words
from monitor.page.html import Html, element, joined

Row = dict[str, Any]
Points = Sequence[float | None]

POINTS_MAX: Final = 360
"""Points of a chart: about one for two pixels of its width. An hour is a point every 10 s."""
_STEPS: Final = (2, 4, 10, 20, 60, 120, 600)
_WIDTH: Final = 720
_HEIGHT: Final = 140


class Series(NamedTuple):
    """One line: its name in the history, its caption, its look in page.css, what a bucket's points become."""

    name: str
    caption: str
    look: str
    fold: Callable[[list[float]], float]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


THROUGHPUT: Final = (
    Series("ops_per_s", "requests", "main", _mean),
    Series("errors_per_s", "errors", "bad", _mean),
)
LATENCY: Final = (Series("p99_ms", "p99", "main", max), Series("p50_ms", "p50", "minor", _mean))


def thinned(history: Row, series: Sequence[Series]) -> list[Points]:
    """Times and each series in at most `POINTS_MAX` points. Buckets begin at multiples of their length, so
    that a point stays what it is when a newer one comes.
    """
    times: list[int] = history.get("at_s") or []
    if not times:
        return [[] for _ in range(len(series) + 1)]
    span = times[-1] - times[0]
    step = next((step for step in _STEPS if span // step < POINTS_MAX), span // (POINTS_MAX - 1) + 1)
    buckets: dict[int, list[int]] = {}
    for index, at in enumerate(times):
        buckets.setdefault(at // step * step, []).append(index)
    starts = sorted(buckets)[-POINTS_MAX:]
    return [
        starts,
        *(_folded(history.get(one.name) or [], one, [buckets[at] for at in starts]) for one in series),
    ]


def chart(key: str, title: str, now: Html, history: Row, series: Sequence[Series], unit: str) -> Html:
    """A figure; `unit` is `per_s` or `ms` and says how page.js writes the axis."""
    times, *lines = thinned(history, series)
    lines = [_worth(one, line) for one, line in zip(series, lines, strict=True)]
    known = any(value is not None for line in lines for value in line) and _span(times) > 0
    legend = [element("span", one.caption, class_=f"key {one.look}") for one in series]
    still = _still(times, lines, series, unit) if known else element("span", "no history yet", class_="since")
    return element(
        "figure",
        element("figcaption", element("h2", title), element("span", *legend, class_="legend"), now),
        element("div", element("div", still, class_="still"), element("div", class_="plot"), class_="frame"),
        id=key,
        data_points=Html(json.dumps([times, *lines], separators=(",", ":"))) if known else None,
        data_series=json.dumps([[one.caption, one.look] for one in series]) if known else None,
        data_unit=unit,
    )


def _still(times: Points, lines: Sequence[Points], series: Sequence[Series], unit: str) -> Html:
    """The drawing and what its ends mean."""
    top = _ceiling(max(value for line in lines for value in line if value is not None))
    span = _span(times)
    ago = words.duration(span if span < 120 else round(span / 60) * 60)
    return joined(
        element("span", words.milliseconds(top) if unit == "ms" else words.count(top), class_="top"),
        element(
            "svg",
            *(_path(times, line, one.look, top) for one, line in zip(series, lines, strict=True)),
            class_="line",
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            preserveAspectRatio="none",
            aria_hidden="true",
        ),
        element("span", ago, " ago", class_="since"),
        element("span", "now", class_="until"),
    )


def _folded(values: Points, one: Series, buckets: list[list[int]]) -> Points:
    folded: list[float | None] = []
    for bucket in buckets:
        known = [value for index in bucket if index < len(values) and (value := values[index]) is not None]
        folded.append(float(f"{one.fold(known):.4g}") if known else None)
    return folded


def _worth(one: Series, line: Points) -> Points:
    """Errors are drawn only if there were any, rather than as a red line at the bottom."""
    return line if one.look != "bad" or any(line) else [None] * len(line)


def _span(times: Points) -> int:
    """Seconds from the first point to the last."""
    return int((times[-1] or 0) - (times[0] or 0)) if times else 0


def _ceiling(value: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten; at least 1."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    return next((power * factor for factor in (1, 2, 2.5, 5) if value <= power * factor), power * 10)


def _path(times: Points, line: Points, look: str, top: float) -> Html:
    """A line with gaps where nothing is known; a point alone is a dot's width."""
    begin, width = (times[0] if times else 0) or 0, _WIDTH / max(_span(times), 1)
    commands: list[str] = []
    pen = "M"
    for at, value in zip(times, line, strict=True):
        if value is None:
            pen = "M"
            continue
        x = ((at or 0) - begin) * width
        y = _HEIGHT - value / top * (_HEIGHT - 2) - 1
        commands.append(f"{pen}{x:.1f} {y:.1f}" + ("h1" if pen == "M" else ""))
        pen = "L"
    return joined(element("path", d=Html("".join(commands)), class_=look)) if commands else Html("")
