"""Steps of storenode/office.py: when they are made, what they write and order, and how a controller fails."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from kvclient.errors import ProtocolError
from storenode.control.controller import Controller, Order, Step
from storenode.control.reports import encode_report
from storenode.control.state import ControlState
from storenode.office import BROKEN_S, NEWS_S, STEP_S
from tests.unit.storenode.officehouse import MAP, House


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a step was taken."""
    taken: list[float] = []
    step = Controller.step

    def counted(self: Controller, now: float) -> Step:
        taken.append(now)
        return step(self, now)

    monkeypatch.setattr(Controller, "step", counted)
    return taken


def test_a_step_a_second_and_soon_after_news(house: House, steps: list[float]) -> None:
    house.sit()
    steps.clear()
    for _ in range(30):
        house.turn(0.1)
    assert 2 <= len(steps) <= 3
    house.turn(STEP_S)
    steps.clear()
    house.office.hear(encode_report(house.report(2)))
    house.turn(NEWS_S / 2)
    assert not steps
    house.turn(NEWS_S)
    assert len(steps) == 1


def test_a_long_step_leaves_the_loop_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def slow(self: Controller, now: float) -> Step:
        taken.append(now)
        house.clock.advance(0.3)
        return Step(None, [])

    monkeypatch.setattr(Controller, "step", slow)
    house.sit()
    for _ in range(100):
        house.turn(0.1)
    assert 2 <= len(taken) <= 4


def test_incarnations_that_are_heard_get_into_the_state(house: House) -> None:
    house.sit()
    for node in range(1, 6):
        house.office.hear(encode_report(house.report(node)))
    for _ in range(4):
        house.turn(STEP_S)
    assert [member.incarnation for member in house.state().members] == [
        f"{node:032x}" for node in range(1, 6)
    ]


def test_orders_leave_with_the_step_that_gave_them(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(2, 1, "add-learner", 5, 0)
    monkeypatch.setattr(Controller, "step", lambda self, now: Step(None, [order]))
    house.sit()
    house.turn(STEP_S)
    assert order in house.orders


def test_what_is_no_report_is_told_to_who_brought_it(house: House) -> None:
    house.office.hear(b"\xc1")
    house.sit()
    with pytest.raises(ProtocolError):
        house.office.hear(b"\xc1")


@pytest.mark.parametrize("method", ["step", "hear", "view", "adopt"])
def test_a_defect_of_the_controller_ends_it_and_another_one_begins(
    house: House, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    house.sit()
    whole = getattr(Controller, method)
    monkeypatch.setattr(Controller, method, broken)
    house.office.hear(encode_report(house.report(2)))
    token = house.ask("set", transfers_per_node=3)
    house.turn(STEP_S)
    house.turn()
    assert not house.office.sits
    assert house.office.counters.snapshot()["failures"] == 1
    ((answered, _),) = house.statuses()
    assert answered == token
    monkeypatch.setattr(Controller, method, whole)
    house.turn(BROKEN_S)
    assert house.office.sits


def test_a_state_of_another_map_is_read_as_it_is(house: House) -> None:
    """Whatever this store's own map says."""
    smaller = attrs.evolve(MAP, epoch=9, nodes=MAP.nodes[:3], replicas=((1, 2, 3),) * 4, control=(1, 2, 3))
    house.group.value, house.group.version = ControlState.first(smaller).encode(), 1
    house.turn()
    assert house.in_force[-1].map == smaller
