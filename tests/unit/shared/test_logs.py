"""Log lines: their form, their level, and that nothing below the level is even rendered."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from shared import logs


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    logs.configure("info", "console")


def test_json_lines_have_event_level_time_and_bound_fields() -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out, process="store", node="store1")
    logs.get("service").info("listening", endpoint="tcp://127.0.0.1:7200")
    line = json.loads(out.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "listening",
        "level": "info",
        "component": "service",
        "process": "store",
        "node": "store1",
        "endpoint": "tcp://127.0.0.1:7200",
    }


def test_every_event_is_one_line_whatever_its_fields_hold() -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    logs.get("a").warning("odd", text="two\nlines", raw=b"\xff\n", thing=object)
    logs.get("a").warning("even")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["odd", "even"]


def test_lines_below_the_level_are_not_written_and_their_fields_not_rendered() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    out = io.StringIO()
    logs.configure("warning", "json", stream=out)
    log = logs.get("a")
    log.debug("no", thing=Unprintable())
    log.info("no", thing=Unprintable())
    assert out.getvalue() == ""
    log.warning("yes")
    log.error("yes")
    assert len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_logged_with_its_traceback(form: logs.Format) -> None:
    out = io.StringIO()
    logs.configure("info", form, stream=out)
    try:
        raise RuntimeError("the reason")
    except RuntimeError:
        logs.get("a").exception("handler_failed", handler="on_batch")
    text = out.getvalue()
    assert "handler_failed" in text
    assert "RuntimeError: the reason" in text
    assert "test_logs.py" in text


def test_the_console_form_is_readable_and_uncoloured_when_not_on_a_terminal() -> None:
    out = io.StringIO()
    logs.configure("info", "console", stream=out, node="store1")
    logs.get("service").info("listening", port=7200)
    assert "\x1b" not in out.getvalue()
    for part in ("listening", "port=7200", "node=store1", "component=service"):
        assert part in out.getvalue()


def test_a_logger_made_before_configure_follows_it() -> None:
    early = logs.get("early")
    out = io.StringIO()
    logs.configure("debug", "json", stream=out)
    early.debug("hello")
    assert json.loads(out.getvalue())["component"] == "early"


def test_a_logger_that_has_logged_follows_a_new_configuration() -> None:
    first, second = io.StringIO(), io.StringIO()
    log = logs.get("a")
    logs.configure("debug", "json", stream=first)
    log.debug("one")
    logs.configure("info", "json", stream=second)
    log.debug("two")
    log.info("three")
    assert [json.loads(line)["event"] for line in first.getvalue().splitlines()] == ["one"]
    assert [json.loads(line)["event"] for line in second.getvalue().splitlines()] == ["three"]


def test_bound_fields_are_added_to_every_line_of_that_logger_only() -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    log = logs.get("a")
    log.bind(partition=7).info("one")
    log.info("two")
    one, two = map(json.loads, out.getvalue().splitlines())
    assert one["partition"] == 7
    assert "partition" not in two


class Full(io.StringIO):
    """A log file on a full disk, or a pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_line_that_cannot_be_written_is_lost_and_fails_nobody() -> None:
    """The reactor logs the failures of handlers: that this failed too ended the process."""
    for format in ("json", "console"):
        logs.configure("info", format, stream=Full())
        logs.get("full").error("log_write_refused")
    closed = io.StringIO()
    closed.close()
    logs.configure("info", "json", stream=closed)
    try:
        raise ValueError
    except ValueError:
        logs.get("full").exception("handler_failed")
