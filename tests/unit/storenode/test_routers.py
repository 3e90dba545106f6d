"""storenode/routers.py: who is told of, for how long, and how many."""

from __future__ import annotations

import pytest

from kvclient.errors import ProtocolError
from shared.clock import ManualClock
from storenode.routers import HEARD_S, ROUTERS_MAX, Routers


def test_a_router_is_told_of_until_it_was_silent_for_too_long() -> None:
    clock = ManualClock()
    routers = Routers(clock)
    routers.hear("router1", "tcp://h1:7100")
    clock.advance(HEARD_S - 1)
    routers.hear("router2", "tcp://h2:7100")
    assert [one["name"] for one in routers.figures()] == ["router1", "router2"]
    clock.advance(2)
    assert routers.figures() == [{"name": "router2", "front": "tcp://h2:7100"}]


def test_one_front_is_one_router_under_its_newest_name() -> None:
    routers = Routers(ManualClock())
    routers.hear("router1", "tcp://h1:7100")
    routers.hear("renamed", "tcp://h1:7100")
    assert routers.figures() == [{"name": "renamed", "front": "tcp://h1:7100"}]


def test_the_list_is_bounded_and_has_room_again_when_one_has_gone() -> None:
    clock = ManualClock()
    routers = Routers(clock)
    for number in range(ROUTERS_MAX + 5):
        routers.hear("r", f"tcp://h:{7100 + number}")
    assert len(routers.figures()) == ROUTERS_MAX
    clock.advance(HEARD_S + 1)
    routers.hear("late", "tcp://late:7100")
    assert [one["name"] for one in routers.figures()] == ["late"]


@pytest.mark.parametrize(
    "front", ["", "h:7100", "tcp://0.0.0.0:7100", "tcp://h:*", "ipc:///tmp/x", "tcp://h:99999"]
)
def test_an_address_that_nobody_can_connect_to_is_refused(front: str) -> None:
    routers = Routers(ManualClock())
    with pytest.raises(ProtocolError):
        routers.hear("r", front)
    assert routers.figures() == []
