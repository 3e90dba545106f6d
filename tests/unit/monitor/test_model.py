"""monitor/model.py: who is heard and who is gone, what has changed, and that nothing old is shown as live."""

from __future__ import annotations

import pytest

from kvclient.errors import ProtocolError
from kvclient.health import CRITICAL, WARNING
from monitor.history import POINTS, SERIES, History
from monitor.model import EVENTS_MAX, FORGET_S, ROUTERS_MAX, SETTLE_S
from monitor.watched import GONE_S
from shared.figuresmessage import StoreFigures
from shared.hashing import xxh64
from tests.unit.monitor.watchedworld import PARTITIONS, World, front

GONE = int(GONE_S) + 1


def said(world: World) -> list[str]:
    return [event.text for event in world.model.picture.events]


def test_a_monitor_without_a_map_says_what_it_waits_for() -> None:
    world = World()
    (problem,) = world.model.picture.problems
    assert problem.level == WARNING
    assert "tcp://127.0.0.1:7200" in problem.text


def test_one_that_has_just_begun_does_not_call_everything_gone() -> None:
    world = World()
    world.model.on_map(world.map.encode())
    world.clock.advance(1)
    world.model.tick(0)
    (problem,) = world.model.picture.problems
    assert (problem.level, problem.text) == (WARNING, "the monitor has just begun: it hears 0 of 3 stores")
    assert not any(store.gone for store in world.model.picture.stores)
    world.clock.advance(GONE)
    world.model.tick(0)
    assert world.model.picture.problems[0].level == CRITICAL
    assert "no store is heard" in world.model.picture.problems[0].text


def test_a_healthy_cluster_has_no_problem_and_rates() -> None:
    world = World()
    world.second(5)
    picture = world.model.picture
    assert picture.problems == []
    assert picture.events == ()
    store, router = picture.stores[0], picture.routers[0]
    assert (store.reads_per_s, store.writes_per_s, store.cpu) == (100, 10, 0.5)
    assert (router.reads_per_s, router.requests_per_s, router.errors_per_s) == (1000, 51, 1)
    assert (store.leads, store.partitions, store.lag) == (2, PARTITIONS, 0)
    assert store.log_write_p99_ms == pytest.approx(2, rel=1)


def test_a_store_that_is_heard_for_the_first_time_has_not_changed_its_state() -> None:
    world = World()
    world.silent.add("store3")
    world.second(2)
    world.silent.clear()
    world.second()
    assert said(world) == ["partition 2 is led by store3"]


def test_a_silent_store_is_gone_and_nothing_of_it_is_shown() -> None:
    world = World()
    world.second(3)
    world.silent.add("store3")
    world.second(GONE)
    store = world.model.picture.stores[2]
    assert (store.gone, store.figures, store.reads_per_s, store.leads, store.state) == (
        True,
        {},
        None,
        None,
        "down",
    )
    assert store.heard_s == GONE
    first = world.model.picture.problems[0]
    assert (first.level, "store3 as leader, which does not answer" in first.text) == (CRITICAL, True)
    assert "store3 is silent" in said(world)
    world.silent.clear()
    world.second()
    assert not world.model.picture.stores[2].gone
    assert world.model.picture.stores[2].reads_per_s is None, "a rate over its silence is none"
    assert "store3 is heard" in said(world)[:2]


def test_leaders_that_change_are_counted_and_told_together() -> None:
    world = World()
    world.second(3)
    world.leaders, world.term = dict.fromkeys(world.leaders, 2), 2
    world.second()
    assert world.model.picture.leader_changes == (1,) * PARTITIONS
    assert set(said(world)) == {
        "partitions 0, 3 are led by store2, before by store1",
        "partition 2 is led by store2, before by store3",
    }


def test_a_leadership_that_is_handed_over_is_no_outage() -> None:
    """The one that had it is heard before the one that has it."""
    world = World()
    world.second(3)
    world.leaders[0], world.term = 0, 2
    world.second()
    assert world.model.picture.problems == []
    assert world.model.picture.table[0]["leader"] == 1
    world.leaders[0] = 2
    world.second()
    assert said(world) == ["partition 0 is led by store2, before by store1"]


def test_a_partition_that_nobody_leads_for_longer_is_told() -> None:
    world = World()
    world.second(3)
    world.leaders[0], world.term = 0, 2
    world.second(int(SETTLE_S) + 1)
    first = world.model.picture.problems[0]
    assert (first.level, "partition 0 has no leader" in first.text) == (CRITICAL, True)
    assert said(world) == ["partition 0 has no leader"]


def test_a_leader_that_is_gone_is_not_shown_for_longer() -> None:
    world = World()
    world.second(3)
    world.leaders[0] = 0
    world.silent.add("store1")
    world.second(int(GONE_S))
    assert world.model.picture.table[0]["leader"] == 1
    world.second()
    assert world.model.picture.table[0]["leader"] == 0


def test_a_restart_is_told_and_is_no_rate() -> None:
    world = World()
    world.second(3)
    world.extra["store1"] = {"pid": 999, "requests": {"reads": 5, "writes": 5}}
    world.second()
    assert said(world) == ["store1 was restarted"]
    assert world.model.picture.stores[0].reads_per_s is None


def test_routers_are_learnt_from_stores_and_forgotten_when_they_stay_away() -> None:
    world = World()
    world.second(2)
    world.silent.add("router2")
    world.second(GONE)
    assert [router.gone for router in world.model.picture.routers] == [False, True]
    assert "router2 does not answer at " + front(2) == world.model.picture.problems[0].text
    world.silent.add("router1")
    world.second(GONE)
    assert world.model.picture.problems[0].level == CRITICAL
    for number in (1, 2, 3):
        world.extra[f"store{number}"] = {"routers": []}
    world.clock.advance(FORGET_S)
    world.second()
    assert world.model.picture.routers == []


def test_two_routers_of_one_name_are_told_apart() -> None:
    world = World()
    twins = [{"name": "router", "front": front(n)} for n in (1, 2)]
    world.extra = {f"store{n}": {"routers": twins} for n in (1, 2, 3)}
    world.second(2)
    assert [router.name for router in world.model.picture.routers] == ["router", f"router@{front(2)}"]


def test_what_stores_claim_of_routers_is_bounded_and_checked() -> None:
    world = World()
    many = [{"name": "r", "front": f"tcp://10.0.0.1:{7000 + n}"} for n in range(ROUTERS_MAX + 9)]
    wrong = [7, {}, {"name": "r"}, {"name": 3, "front": "tcp://h:1"}, {"name": "r", "front": "http://h"}]
    world.extra["store1"] = {"routers": wrong + many}
    world.second(2)
    assert len(world.model.fronts) == ROUTERS_MAX
    assert all(one.startswith("tcp://10.0.0.1:") for one in world.model.fronts)


def test_moves_are_told_when_they_come_and_when_they_have_ended() -> None:
    world = World()
    world.second(2)
    move = {"id": 1, "partition": 2, "source": 1, "target": 3, "reason": "drain", "stage": "learner"}
    world.moves = [move, {"id": "none"}]
    world.second()
    assert said(world)[0] == "1 move queued"
    world.moves = []
    world.second()
    assert said(world)[0] == "the move of partition 2 from store1 to store3 has ended"


def test_a_cluster_without_a_controller_and_one_that_is_paused_have_a_problem() -> None:
    world = World()
    world.second(2)
    world.paused = True
    world.second()
    assert [one.text.split(":")[0] for one in world.model.picture.problems] == ["moves are paused"]
    world.show = False
    world.second(8)
    assert [one.text.split(":")[0] for one in world.model.picture.problems] == ["no controller"]
    assert "no controller answers" in said(world)


def test_events_are_bounded() -> None:
    world = World()
    world.second(2)
    for pid in range(EVENTS_MAX + 20):
        world.extra["store1"] = {"pid": 1000 + pid}
        world.second()
    assert len(world.model.picture.events) == EVENTS_MAX


def test_figures_of_another_cluster_or_of_a_stranger_are_refused() -> None:
    world = World()
    world.second()
    with pytest.raises(ProtocolError):
        world.model.on_store(StoreFigures(7, 1, {}))
    with pytest.raises(ProtocolError):
        world.model.on_store(StoreFigures(xxh64(world.map.cluster_id.encode()), 9, {}))
    with pytest.raises(ProtocolError):
        world.model.on_router("tcp://nobody:1", {})


@pytest.mark.parametrize(
    "value", [None, -1, "x" * 1000, [[1]], {"a": {"b": 1}}, float("nan"), 1 << 70, "\x00\n"]
)
def test_whatever_a_store_and_a_router_say_a_picture_is_made(value: object) -> None:
    """The heading was right; every figure may be anything."""
    world = World()
    world.second(2)
    for name in ("store1", "router1"):
        figures = world.store(1) if name == "store1" else world.router(1)
        world.extra[name] = dict.fromkeys(figures, value)
    world.second(2)
    assert len(world.model.picture.stores) == 3


def test_the_controller_is_the_store_that_sits_or_that_most_name() -> None:
    world = World()
    world.second()
    node = world.model.controller()
    assert node is not None
    assert node.id == 2
    world.silent.add("store2")
    world.second(GONE)
    for number in (1, 3):
        world.extra[f"store{number}"] = {"controller": 3}
    world.second()
    node = world.model.controller()
    assert node is not None
    assert node.id == 3


class TestHistory:
    def test_keeps_an_hour_and_what_was_not_known_is_none(self) -> None:
        history = History()
        for second in range(0, 2 * (POINTS + 10), 2):
            history.add(second, {"ops_per_s": float(second)} if second % 4 else {})
        found = history.last(3600)
        assert {len(line) for line in found.values()} == {POINTS}
        assert found["at_s"] == list(range(20, 2 * (POINTS + 10), 2))
        assert found["ops_per_s"][:4] == [None, 22, None, 26]
        assert set(found) == {"at_s", *SERIES}

    def test_gives_as_much_as_is_asked_for_and_there(self) -> None:
        history = History()
        assert history.last(10)["at_s"] == []
        for second in (2, 4, 6):
            history.add(second, {})
        assert history.last(4)["at_s"] == [4, 6]
        assert history.last(0)["at_s"] == []
