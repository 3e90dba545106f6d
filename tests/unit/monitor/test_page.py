"""The status page without a browser: what it says, what it never lets in, how large it gets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from monitor.page import CONTENT_SECURITY_POLICY, Answer, respond
from monitor.page.charts import LATENCY, POINTS_MAX, THROUGHPUT, thinned
from monitor.page.render import PAGE_BYTES_MAX, render
from tests.unit.monitor import samples

Row = dict[str, Any]

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=y>&\x00\u202e" + "z" * 5000
VOID = {"meta", "link", "br"}
UNCLOSED = {"li"}
"""May end without an end tag, by the standard; tiles save bytes so."""


class Page(HTMLParser):
    """Elements with their attributes, and the text that is read."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self._texts: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            if tag in UNCLOSED and self.open[-1] == tag:
                self.open.pop()
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1] in UNCLOSED and self.open[-1] != tag:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._texts.append(data)


def page(status: Row) -> Page:
    parsed = Page(render(status))
    assert not parsed.open, "an element is not closed"
    return parsed


STATES: dict[str, tuple[Callable[[], Row], list[str]]] = {
    "healthy": (
        samples.healthy,
        [
            "orchard", "16 partitions \N{MULTIPLICATION SIGN} 3 replicas", "epoch 12", "controller store1",
            "14:42:07 UTC", "All is well", "18,432", "16,500 reads 1,932 writes", "1.21 ms", "6.40 ms",
            "3 of 3", "1.20M", "tcp://127.0.0.1:7201 in b", "5,500", "2.31 ms", "42 %", "router2",
            "Nothing is being moved.", "0 L1 F2 F3", "2026-11-22 13:42:07", "up for 2 h 30 min",
            "60 min ago",
        ],
    ),
    "a store is down": (
        samples.store_down,
        [
            "Warning", "store3 is down: 16 partitions lack it, and 1 more",
            "kvcli node remove store3 --force",
            "router2 is gone", "kvcli dev start router2", "heard 37 s ago", "2 of 3",
            "Partitions 0-15 : store3 is gone", "G3", "16 degraded",
        ],
    ),
    "a rebalance runs": (
        samples.rebalancing,
        [
            "learner", "63 % of 96.0 MiB", "store4 is busy with other moves", "control", "N4", "B3",
            "Partition 5 : store3 is far behind, by up to 12,345 entries", "draining",
        ],
    ),
    "nothing is known": (
        samples.unknown,
        [
            "Critical", "no store is heard", "kvcli status asks the routers", "never heard", "0 of 3",
            "Not known: no controller answers.",
            "Partitions 0-15 : not served, store1 is gone, store2 is gone, store3 is gone",
            "controller unknown", "G1",
        ],
    ),
    "the monitor was just started": (
        samples.started,
        [
            "no cluster map yet", "there is no cluster map yet", "No router has said who it is yet.",
            "no history yet", "Nothing has happened since the monitor was started.",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_the_page_says_everything_without_javascript(name: str) -> None:
    make, expected = STATES[name]
    text = page(make()).text
    missing = [words for words in expected if words not in text]
    assert not missing, text


def test_commands_in_a_remedy_are_told_from_prose() -> None:
    status = samples.store_down()
    status["verdict"]["remedy"] = (
        "Remove it: kvcli node remove a.b --force, then let it join: kvcli node add. See: kvcli node ls"
    )
    commands = re.findall(r"<code>(.*?)</code>", render(status))
    assert commands[:3] == ["kvcli node remove a.b --force", "kvcli node add", "kvcli node ls"]


def test_what_is_not_known_is_never_a_number() -> None:
    text = page(samples.unknown()).text
    totals = text[text.index("Requests/s") : text.index("Throughput")]
    assert totals.count("\N{EN DASH}") == 7
    for stale in ("0.42", "180 MiB", "2.31 ms", "5,500"):
        assert stale not in text


def test_who_is_gone_has_no_figures() -> None:
    rows = re.findall(r'<tr class="gone">(.*?)</tr>', render(samples.store_down()))
    cells = [re.findall(r'<td data-label="([^"]*)"[^>]*>(.*?)</td>', row) for row in rows]
    known = [{label for label, content in row if content != "\N{EN DASH}"} for row in cells]
    assert known == [{"Store", "State", "Replicas"}, {"Router", "State"}]


def hostile(value: Any) -> Any:
    """The same shape, every text of it an attack."""
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", STATES)
def test_hostile_texts_are_shown_as_text(name: str) -> None:
    make, _ = STATES[name]
    attacked = page(hostile(make()))
    for tag, attributes in attacked.elements:
        assert tag != "img"
        assert tag != "script" or (attributes["src"] or "").startswith("page/")
        assert not [key for key in attributes if key.startswith("on")]
    assert "<script>alert" in attacked.text
    assert not {"\x00", "\u202e"} & set(attacked.text)


@pytest.mark.parametrize("name", STATES)
def test_the_page_keeps_its_content_security_policy(name: str) -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    make, _ = STATES[name]
    for tag, attributes in page(make()).elements:
        assert tag not in {"style", "base", "form", "iframe", "object", "embed", "img"}
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        if tag == "script":
            assert attributes["src"]
        for key in ("src", "href", "xlink:href"):
            if target := attributes.get(key):
                assert re.fullmatch(r"(page/[a-z.]+|metrics|readyz|api/v1/status)", target), target


def test_what_the_page_asks_for_is_there_and_asks_for_nothing_further() -> None:
    wanted = {
        target
        for tag, attributes in page(samples.healthy()).elements
        if tag in {"script", "link"} and (target := attributes.get("src") or attributes.get("href"))
    }
    assert len(wanted) == 5
    for target in wanted:
        answer = get(f"/{target}")
        body = answer.body.decode()
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert not re.search(r"@import|url\(|\beval\(|new Function|innerHTML|document\.write", body), target
        addresses = set(re.findall(r"https?://[^\s\"')]*", body))
        assert addresses <= {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}, target


def get(path: str) -> Answer:
    answer = respond(path, samples.healthy)
    assert answer is not None
    return answer


def test_the_server_gets_the_page_its_files_and_nothing_else() -> None:
    assert get("/").content_type == "text/html; charset=utf-8"
    assert get("/").body.startswith(b"<!doctype html>")
    assert get("/page/page.js").content_type == "text/javascript; charset=utf-8"
    for path in ("/page/", "/page/render.py", "/page/../config.yaml", "/page/uplot/LICENSE", "/metrics", ""):
        assert respond(path, samples.healthy) is None


def test_only_the_page_itself_asks_for_the_status() -> None:
    def status() -> Row:
        raise AssertionError("asked")

    assert respond("/page/page.css", status) is not None
    assert respond("/other", status) is None


def test_the_licence_of_what_is_shipped_is_shipped() -> None:
    assert "MIT License" in files("monitor.page").joinpath("uplot/LICENSE").read_text()


def test_the_largest_cluster_fits() -> None:
    status = samples.healthy(stores=50, partitions=4096)
    html = render(status)
    assert len(html.encode()) < PAGE_BYTES_MAX // 2
    tiles = re.findall(r"<li><b>(\d+)</b><i class=leader>L\d+</i><i>F\d+</i><i>F\d+</i>", html)
    assert tiles == [str(number) for number in range(4096)]


def test_the_worst_status_fits() -> None:
    """More of everything than there can be, all of it wrong and of any length."""
    status = samples.store_down()
    lost = {"node": "&" * 5000, "role": "gone", "state": "gone", "lag": None}
    status["partitions"] = [
        {"id": number, "leader": None, "term": 1, "commit": 1, "state": "down",
         "replicas": [lost | {"node": f"{number % 97}{'&' * 5000}"}] * 64}
        for number in range(9999)
    ]  # fmt: skip
    status["nodes"] *= 1000
    status["routers"] *= 1000
    status["moves"] = samples.rebalancing()["moves"] * 4000
    status["events"] *= 1000
    status["problems"] *= 1000
    for name in ("nodes", "routers", "moves", "events", "problems"):
        for row in status[name]:
            row.update({key: "&" * 5000 for key, value in row.items() if isinstance(value, str)})
    status["history"] = samples.history(100_000)
    html = render(status)
    assert len(html.encode()) < PAGE_BYTES_MAX
    page(status)


def test_a_chart_has_few_points_that_stay_what_they_are() -> None:
    hour = samples.history(1800)
    times, p99, p50 = thinned(hour, LATENCY)
    assert len(times) == len(p99) == len(p50) <= POINTS_MAX
    assert max(value for value in p99 if value is not None) == pytest.approx(
        max(v for v in hour["p99_ms"] if v), 1e-3
    )
    assert None in p50, "a time when nothing was known is a gap"
    later = {name: values[5:] for name, values in hour.items()}
    assert (
        dict(zip(times, p99, strict=True)).items()
        >= dict(list(zip(*thinned(later, LATENCY)[:2], strict=True))[1:]).items()
    )
    assert thinned(samples.history(0), THROUGHPUT) == [[], [], []]


def test_the_points_are_what_the_script_draws() -> None:
    figures = [attributes for tag, attributes in page(samples.healthy()).elements if tag == "figure"]
    assert [figure["id"] for figure in figures] == ["throughput", "latency"]
    for figure in figures:
        points = json.loads(figure["data-points"] or "")
        series = json.loads(figure["data-series"] or "")
        assert len(points) == len(series) + 1
        assert len({len(line) for line in points}) == 1


def test_a_move_of_unknown_size_is_not_said_to_have_none() -> None:
    status = samples.rebalancing()
    for move in status["moves"]:
        move["bytes"] = 0
    status["moves"][0]["done"] = 0.0
    shown = page(status).text
    assert "0 B" not in shown
    assert "63 %" in shown
