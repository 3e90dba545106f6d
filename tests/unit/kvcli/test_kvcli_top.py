"""`kvcli top`: rates of two answers, what is drawn of them, and that a terminal is left as it was."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from typing import Any

import pytest

from kvclient.cli import top
from kvclient.cli.app import App
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from tests.unit.kvcli.test_kvcli_status import degraded, healthy


def answer(reads: int, writes: int, **fields: Any) -> dict[str, Any]:
    figures = {"requests_ops": reads + writes, "latency_p50_us": 500, "latency_p99_us": 2500}
    made = healthy() | {"router_figures": figures, "moves": [], "paused": False, "controller": 1} | fields
    for node in made["nodes"]:
        node |= {"requests": {"reads": reads, "writes": writes}, "log_write_time": {"p99_us": 1500}}
    return made


MOVE = {
    "id": 1, "partition": 3, "source": 1, "target": 2, "reason": "drain", "stage": "learner", "done": 0.25,
    "waits": "", "bytes": 1,
}  # fmt: skip


def shown(**fields: Any) -> dict[str, Any]:
    before = top.Moment(answer(100, 50), 10.0)
    return top.picture(before, top.Moment(answer(300, 60, **fields), 12.0))


def test_rates_are_of_the_time_between_two_answers() -> None:
    found = shown()
    assert (found["requests_per_s"], found["p50_s"], found["p99_s"]) == (105.0, 0.0005, 0.0025)
    first = found["nodes"][0]
    assert (first["reads_per_s"], first["writes_per_s"], first["log_write_p99_s"]) == (100.0, 5.0, 0.0015)
    assert (found["led"], found["problems"]) == (4, [])


def test_a_process_that_began_anew_has_no_rate_yet() -> None:
    before, now = top.Moment(answer(300, 300), 10.0), top.Moment(answer(1, 1), 12.0)
    found = top.picture(before, now)
    assert found["requests_per_s"] is None
    assert {node["reads_per_s"] for node in found["nodes"]} == {None}


def test_a_store_that_is_down_has_a_row_all_the_same() -> None:
    gone = degraded() | {"router_figures": {}}
    found = top.lines(top.picture(top.Moment(gone, 1.0), top.Moment(gone, 2.0)), 100, 200)
    row = next(line for line in found if line.startswith("store3"))
    assert row.split()[:5] == ["store3", "down", "-", "4", "-"]
    assert any(line.startswith("problem: store3 is down") for line in found)


def test_moves_are_shown_and_what_does_not_fit_is_counted() -> None:
    found = top.lines(shown(moves=[MOVE]), 100, 200)
    assert "move of 3: store1 -> store2, drain, learner 25%" in found
    assert "1 moves" in found[0]
    few = top.lines(shown(moves=[MOVE] * 50), 20, 40)
    assert len(few) == 20
    assert few[-1] == "... 38 more lines"
    assert max(map(len, few)) == 40


def once(form: str) -> str:
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, form, "utf8", False)

    class Client:
        def admin(self, command: str) -> dict[str, Any]:
            assert command == "status"
            return answer(1, 1)

        def close(self) -> None:
            pass

    app.client = lambda: Client()  # type: ignore[assignment, method-assign, return-value]
    with cli.make_context("kvcli", ["top", "--once", "--interval", "1ms"], obj=app) as context:
        cli.invoke(context)
    return stream.getvalue().decode()


def test_once_prints_one_document_or_one_table() -> None:
    document = json.loads(once("json"))
    assert (document["schema"], len(document["nodes"])) == (1, 3)
    assert len(once("plain").splitlines()) == 3
    table = once("table")
    assert "READS/S" in table
    assert "\x1b" not in table


SCREEN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from kvclient.cli.top import _screen
with _screen() as key_pressed:
    print("ready", flush=True)
    while key_pressed(30.0) != "q":
        pass
"""


@pytest.mark.parametrize("ending", ["q", "signal"])
def test_the_terminal_is_left_as_it_was(ending: str) -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        child = subprocess.Popen([sys.executable, "-c", SCREEN], stdin=slave, stdout=slave, stderr=slave)
        told = _read_until(master, b"ready")
        assert b"\x1b[?1049h" in told
        assert termios.tcgetattr(slave) != before
        if ending == "q":
            os.write(master, b"q")
        else:
            child.send_signal(signal.SIGINT)
        assert b"\x1b[?1049l" in _read_until(master, b"\x1b[?1049l")
        child.wait(60)
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def _read_until(master: int, wanted: bytes) -> bytes:
    told, deadline = b"", time.monotonic() + 60
    while wanted not in told:
        assert time.monotonic() < deadline, told
        if select.select([master], [], [], 1.0)[0]:
            told += os.read(master, 4096)
    return told
