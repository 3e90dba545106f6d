"""storenode/steering.py: when reports leave, how maps are taken and asked for, where orders go."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from kvclient.errors import ProtocolError, Status
from shared import messages
from shared.clock import ManualClock
from shared.clustermap import ClusterMap, Node
from shared.groupmessages import GroupCommand, GroupReply, GroupRequest
from shared.messages import Fault, MapReply
from storenode.control.controller import Order
from storenode.control.reports import Heading, Report, decode_report
from storenode.control.state import ControlState, Member
from storenode.maps import Maps
from storenode.steering import EARLY_S, MAP_EVERY, REPORT_S, TICK_S, Steering

CLUSTER = 0xC1


def make_map(nodes: int = 3, epoch: int = 1) -> ClusterMap:
    made = [
        Node(number, f"store{number}", f"rpc{number}", f"bus{number}", f"events{number}")
        for number in range(1, nodes + 1)
    ]
    return attrs.evolve(ClusterMap.bootstrap("test", 4, 2, made[:3]), nodes=tuple(made), epoch=epoch)


class House:
    """Steering with everything around it played by the test; `run` lets time pass."""

    def __init__(self) -> None:
        self.clock = ManualClock(50.0)
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.maps = Maps(make_map())
        self.changed = False
        self.sequence = 0
        self.reports: list[tuple[float, Report]] = []
        self.own: list[Report] = []
        self.others: list[bytes] = []
        self.said: list[bytes] = []
        self.peers: dict[int, str] = {}
        self.asked: list[tuple[str, Any, bool, Callable[[Any], object]]] = []
        self.known: dict[int, str] = {}
        self.ticks = 0
        self.steering = Steering(
            CLUSTER,
            self.clock,
            lambda seconds, callback: self.timers.append((self.clock.monotonic() + seconds, callback)),
            self.maps,
            SimpleNamespace(hear=self.known.setdefault, settle=self.known.update),  # type: ignore[arg-type]
            SimpleNamespace(report=self._report, changed=lambda: self.changed),  # type: ignore[arg-type]
            SimpleNamespace(ask=self._ask),  # type: ignore[arg-type]
        )
        self.steering.start(
            SimpleNamespace(  # type: ignore[arg-type]
                set_peers=self._set_peers,
                say_report=lambda encoded: self.reports.append(
                    (self.clock.monotonic(), decode_report(encoded))
                ),
                say_map=self.said.append,
            ),
            SimpleNamespace(tick=self._tick, hear=self.others.append, hear_report=self.own.append),  # type: ignore[arg-type]
        )

    def _tick(self) -> None:
        self.ticks += 1

    def _set_peers(self, peers: dict[int, str]) -> None:
        self.peers = dict(peers)

    def _report(self, epoch: int, now: float) -> Report:
        self.sequence += 1
        self.changed = False
        return Report(CLUSTER, 1, "", epoch, "1.0", 0, self.sequence, 0)

    def _ask(
        self,
        endpoint: str,
        encode: Callable[[int], bytes],
        deadline: float,
        done: Callable[[Any], object],
        *,
        once: bool = False,
    ) -> None:
        assert deadline > self.clock.monotonic()
        self.asked.append((endpoint, messages.decode_to_store(encode(7)), once, done))

    def run(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while self.timers and min(self.timers, key=lambda timer: timer[0])[0] <= end:
            timer = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.clock.advance(max(0.0, timer[0] - self.clock.monotonic()))
            timer[1]()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))


@pytest.fixture
def house() -> House:
    return House()


def test_a_report_a_second_which_the_own_office_hears_too(house: House) -> None:
    house.run(5 * REPORT_S + 1)
    times = [at for at, _ in house.reports]
    gaps = [after - before for before, after in pairwise(times)]
    assert all(REPORT_S <= gap <= REPORT_S + 2 * TICK_S for gap in gaps)
    assert house.own == [report for _, report in house.reports]
    assert house.ticks > 50


def test_what_changed_is_told_soon_but_not_all_the_time(house: House) -> None:
    house.run(0.5)
    count = len(house.reports)
    house.changed = True
    house.run(2 * TICK_S)
    assert len(house.reports) == count + 1
    at = house.clock.monotonic()
    for _ in range(100):
        house.changed = True
        house.run(0.01)
    early = [time for time, _ in house.reports if time > at]
    assert 5 <= len(early) <= 1 / EARLY_S


def test_the_map_is_said_with_every_tenth_report_and_when_it_is_new(house: House) -> None:
    house.run(MAP_EVERY * (REPORT_S + TICK_S) + 1)
    assert house.said == [house.maps.encoded]
    newer = make_map(4, 2)
    house.maps.take(newer)
    assert house.said[-1] == newer.encode()
    assert house.peers[4] == "events4"
    house.run(REPORT_S + 2 * TICK_S)
    assert house.reports[-1][1].epoch == 2


def test_a_newer_map_is_taken_and_others_are_not_looked_at(house: House) -> None:
    newer = make_map(3, 5)
    house.steering.on_map(newer.encode())
    assert house.maps.map == newer
    house.steering.on_map(make_map(3, 4).encode())
    house.steering.on_map(make_map(3, 5).encode()[:40])
    house.steering.on_map(b"\xc1")
    assert house.maps.map == newer
    with pytest.raises(ProtocolError):
        house.steering.on_map(make_map(3, 6).encode()[:-1])
    foreign = attrs.evolve(make_map(3, 9), cluster_id="0" * 16)
    house.steering.on_map(foreign.encode())
    assert house.maps.map == newer


def test_who_reports_a_higher_epoch_is_asked_for_its_map_once_at_a_time(house: House) -> None:
    higher, same = Heading(CLUSTER, 2, "a" * 32, 4), Heading(CLUSTER, 3, "b" * 32, 1)
    house.steering.on_report(same, b"same")
    assert not house.asked
    house.steering.on_report(higher, b"higher")
    house.steering.on_report(higher, b"again")
    ((endpoint, request, once, done),) = house.asked
    assert (endpoint, request, once) == ("rpc2", messages.MapRequest(7), False)
    assert house.others == [b"same", b"higher", b"again"]
    assert house.known == {2: "a" * 32, 3: "b" * 32}
    done(MapReply(7, make_map(3, 4).encode()))
    assert house.maps.map.epoch == 4
    house.steering.on_report(higher, b"")
    assert len(house.asked) == 1


@pytest.mark.parametrize(
    "reply", [None, Fault("no"), MapReply(7, b"\xc1"), MapReply(7, make_map(3, 9).encode()[:-1])]
)
def test_a_map_that_does_not_come_is_asked_for_again(house: House, reply: Any) -> None:
    higher = Heading(CLUSTER, 2, "", 4)
    house.steering.on_report(higher, b"")
    house.asked[0][3](reply)
    assert house.maps.map.epoch == 1
    house.steering.on_report(higher, b"")
    assert len(house.asked) == 2


def test_a_reporter_that_the_map_does_not_have_is_not_asked(house: House) -> None:
    house.steering.on_report(Heading(CLUSTER, 9, "", 4), b"")
    assert not house.asked


def test_the_state_in_force_brings_its_map_and_its_disks(house: House) -> None:
    state = ControlState.first(make_map()).remap(
        members=(Member(1, "c" * 32, 1), Member(2, "", 1), Member(3, "", 1))
    )
    house.steering.in_force(state)
    assert house.maps.map == state.map
    assert house.known[1] == "c" * 32


def test_orders_go_once_to_the_stores_and_refusals_are_counted(house: House) -> None:
    house.steering.order(Order(3, 0xFFFF, "replace", 2, 1))
    ((endpoint, request, once, done),) = house.asked
    assert (endpoint, once) == ("rpc3", True)
    assert isinstance(request, GroupRequest)
    assert (request.cluster, request.partition, request.flags) == (CLUSTER, 0xFFFF, 0)
    assert (request.command, request.node, request.other) == (GroupCommand.REPLACE, 2, 1)
    done(GroupReply(7, Status.OK, b"\x80"))
    assert house.steering.orders_refused == 0
    done(None)
    assert house.steering.orders_refused == 1
    house.steering.order(Order(9, 1, "erase", 9, 4))
    assert len(house.asked) == 1, "the map does not have that node"
