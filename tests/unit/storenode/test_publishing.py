"""storenode/publishing.py: what is said, how often, and that a defect ends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from shared import figuresmessage
from shared.figuresmessage import StoreFigures
from storenode.publishing import EVERY_S, SLOWEST_S, Publishing


class Loop:
    """Timers that the test lets run."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.said: list[bytes] = []
        self.figures: Callable[[], dict[str, Any]] = lambda: {"keys": len(self.said)}
        Publishing(self.call_later, 7, 3, lambda: self.figures(), self.said.append)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        self.timers.append((seconds, callback))

    def turn(self) -> float:
        """Runs the one timer; when the next one is due."""
        ((_, callback),) = self.timers
        self.timers.clear()
        callback()
        return self.timers[0][0]


def test_figures_are_said_at_once_and_once_a_second() -> None:
    loop = Loop()
    assert loop.turn() == EVERY_S
    assert [figuresmessage.decode(one) for one in loop.said] == [
        StoreFigures(7, 3, {"keys": 0}),
        StoreFigures(7, 3, {"keys": 1}),
    ]


def test_a_figure_that_fails_is_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop()
    loop.figures = lambda: {"keys": 1 // 0}
    assert loop.turn() == EVERY_S
    loop.figures = dict
    loop.turn()
    assert len(loop.said) == 2


def test_what_costs_much_is_done_less_often_but_often_enough() -> None:
    loop = Loop()

    def busy() -> dict[str, Any]:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
        return {}

    loop.figures = busy
    assert loop.turn() == SLOWEST_S
