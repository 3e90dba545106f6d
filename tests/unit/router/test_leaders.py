"""Who leads a partition, as the router finds out: hints, refusals without one, lost leaders, stale reads."""

from __future__ import annotations

from collections import Counter

import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_RETRY
from router.retries import ELECTION_SECONDS_MAX, HOPS_MAX
from shared.messages import Item
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, changed, ok, put

KEY = b"k"
GET = protocol.encode_get(KEY)


class Group:
    """A partition of three replicas: `first` is where the map says its leader is, `second` and `third` follow
    in the order of the map.
    """

    def __init__(self) -> None:
        self.harness = Harness(replicas=3, stores=THREE_STORES)
        self.partition = self.harness.partition(KEY)
        self.first, self.second, self.third = self.harness.map.replicas[self.partition]

    def believed(self) -> int:
        return self.harness.router.topology.leaders[self.partition]

    def refuse(self, node: int, item: Item, leader: int | None = None) -> None:
        self.harness.refuse(node, item, Status.NOT_LEADER, leader=leader)

    def wait(self, seconds: float = ELECTION_SECONDS_MAX) -> tuple[int, Item]:
        """The next attempt of the only part."""
        end = self.harness.clock.monotonic() + seconds
        while self.harness.clock.monotonic() < end:
            self.harness.pass_time(0.001)
            if found := self.harness.items():
                (only,) = found
                return only
        raise AssertionError(f"nothing within {seconds} s")


@pytest.fixture
def group() -> Group:
    return Group()


class TestHints:
    def test_a_hint_is_followed_at_once_and_remembered(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        node, item = harness.item()
        assert node == group.first
        group.refuse(node, item, leader=group.third)
        again, second = harness.item()
        assert again == group.third
        assert second.flags == 0, "a refusal says that nothing was applied"
        assert second.token != item.token
        harness.answer(again, second, ok(1))
        assert harness.results() == [[0, 1]]
        harness.send(put(KEY))
        assert harness.item()[0] == group.third
        assert harness.count("parts_redirected") == 1
        assert harness.count("parts_retried") == 0

    def test_all_that_was_refused_together_follows_one_hint(self, group: Group) -> None:
        for _ in range(20):
            group.harness.send(put(KEY))
        for node, item in group.harness.items():
            group.refuse(node, item, leader=group.second)
        assert Counter(node for node, _ in group.harness.items()) == {group.second: 20}

    def test_two_that_name_each_other_do_not_spin_and_do_not_hide_the_third(self, group: Group) -> None:
        """One that was cut off and one that still believes in it: who leads is found all the same."""
        harness, asked = group.harness, []
        harness.send(put(KEY))
        other = {group.first: group.second, group.second: group.first}
        at_once = 0
        node, item = harness.item()
        while node != group.third:
            asked.append(node)
            assert len(asked) < 10
            group.refuse(node, item, leader=other[node])
            if found := harness.items():
                ((node, item),) = found
                at_once += 1
            else:
                assert at_once == HOPS_MAX
                at_once = 0
                node, item = group.wait()
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]
        assert group.believed() == group.third

    def test_in_every_pause_at_most_three_attempts_go_out(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY), timeout_ms=2000)
        began, sent = harness.clock.monotonic(), 0
        while harness.router.busy:
            for node, item in harness.items():
                sent += 1
                group.refuse(node, item, leader=group.second if node == group.first else group.first)
                assert sum(map(len, harness.router.outbox_stores.values())) <= 1
            if not any(harness.router.outbox_stores.values()):
                harness.pass_time(0.001)
        assert harness.clock.monotonic() - began < 2
        assert sent <= (HOPS_MAX + 1) * 25
        [[status, message]] = harness.results()
        assert status == Status.UNAVAILABLE
        assert f"partition {group.partition} has no leader that could be reached in time" in message
        assert "nothing was applied" in message

    @pytest.mark.parametrize("named", ["nobody", "itself", "a stranger", "one that is down", "nonsense"])
    def test_a_hint_that_leads_nowhere_is_none(self, group: Group, named: str) -> None:
        harness = group.harness
        if named == "one that is down":
            harness.router.on_backend(group.third, False)
        harness.send(put(KEY))
        node, item = harness.item()
        if named == "nonsense":
            harness.answer(node, item, protocol.pack({"message": "no", "leader": "x"}), Status.NOT_LEADER)
        else:
            hints = {"nobody": 0, "itself": node, "a stranger": 77, "one that is down": group.third}
            group.refuse(node, item, leader=hints[named])
        assert harness.items() == [], "not at once"
        assert group.wait()[0] == group.second

    def test_the_refusal_of_one_that_is_not_believed_in_any_more_does_not_turn_the_router(
        self, group: Group
    ) -> None:
        """Refusals arrive late: the second was written before the store knew the new leader."""
        harness = group.harness
        harness.send(put(KEY))
        harness.send(put(KEY))
        (node, early), (_, late) = harness.items()
        group.refuse(node, early, leader=group.third)
        group.refuse(node, late, leader=group.second)
        assert group.believed() == group.third
        assert [node for node, _ in harness.items()] == [group.third] * 2

    def test_a_guess_yields_to_a_hint(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        harness.send(put(KEY))
        (node, blind), (_, seeing) = harness.items()
        group.refuse(node, blind)
        assert group.believed() == group.second
        group.refuse(node, seeing, leader=group.third)
        assert group.believed() == group.third

    def test_what_came_late_for_the_deadline_is_not_sent_once_more(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY), timeout_ms=400)
        node, item = harness.item()
        harness.clock.advance(0.36)
        group.refuse(node, item, leader=group.second)
        assert harness.items() == []
        assert harness.results()[0][0] == Status.UNAVAILABLE


class TestNobodyLeads:
    def test_the_replicas_are_asked_in_turn_with_growing_pauses(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY), timeout_ms=20_000)
        nodes, pauses = [], []
        node, item = harness.item()
        for _ in range(12):
            nodes.append(node)
            group.refuse(node, item)
            assert harness.items() == [], "not at once"
            before = harness.clock.monotonic()
            node, item = group.wait(0.21)
            pauses.append(harness.clock.monotonic() - before)
        assert nodes == [group.first, group.second, group.third] * 4
        assert 0.019 <= pauses[0] <= 0.041
        assert all(0.099 <= pause <= 0.201 for pause in pauses[4:])
        assert len({round(pause, 3) for pause in pauses[4:]}) > 3, (
            "without jitter all would come back together"
        )

    def test_the_first_that_serves_is_believed_in(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        harness.send(put(KEY))
        for node, item in harness.items():
            group.refuse(node, item)
        harness.pass_time(0.041)
        (node, served), (_, refused) = harness.items()
        assert node == group.second
        group.refuse(node, refused)
        assert group.believed() == group.third
        harness.answer(node, served, ok(1))
        assert group.believed() == group.second

    def test_what_a_leader_answers_after_it_has_named_another_changes_nothing(self, group: Group) -> None:
        """It answers what it had begun; that does not mean that it leads again."""
        harness = group.harness
        elsewhere = next(key for key in harness.keys(1, 8) if harness.partition(key) != group.partition)
        harness.send(put(elsewhere))
        group.refuse(*harness.item())  # there is something to learn from answers, elsewhere
        harness.send(put(KEY))
        harness.send(put(KEY))
        (node, begun), (_, refused) = harness.items()
        group.refuse(node, refused, leader=group.third)
        harness.answer(node, begun, ok(1))
        assert group.believed() == group.third

    def test_a_group_of_one_is_asked_again(self) -> None:
        harness = Harness()
        harness.send(put(KEY))
        node, item = harness.item()
        harness.refuse(node, item, Status.NOT_LEADER)
        harness.pass_time(0.041)
        assert harness.item()[0] == node


class TestLostLeaders:
    def test_another_replica_is_asked_at_once_with_the_retry_flag(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        harness.send(GET, sequence=0)
        harness.items()
        harness.router.on_backend(group.first, False)
        write, read = harness.items()
        assert (write[0], write[1].flags) == (group.second, FLAG_RETRY)
        assert (read[0], read[1].flags) == (group.second, 0)

    def test_a_follower_that_still_believes_in_the_dead_leader_is_not_asked_without_a_pause(
        self, group: Group
    ) -> None:
        harness = group.harness
        harness.send(put(KEY))
        harness.items()
        harness.router.on_backend(group.first, False)
        node, item = harness.item()
        group.refuse(node, item, leader=group.first)
        assert harness.items() == []
        node, item = group.wait()
        assert (node, item.flags) == (group.third, FLAG_RETRY)
        group.refuse(node, item, leader=group.second)
        node, item = harness.item()
        assert (node, item.flags) == (group.second, FLAG_RETRY), (
            "refused or not, the first may have been applied"
        )
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]

    def test_refusals_after_a_lost_attempt_leave_the_outcome_unknown(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY), timeout_ms=500)
        harness.items()
        harness.router.on_backend(group.first, False)
        while harness.router.busy:
            for node, item in harness.items():
                group.refuse(node, item)
            harness.pass_time(0.01)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN

    def test_nobody_up_parks_and_the_first_that_comes_up_is_asked(self, group: Group) -> None:
        harness = group.harness
        for node in (1, 2, 3):
            harness.router.on_backend(node, False)
        harness.send(put(KEY))
        harness.pass_time(1)
        assert harness.items() == []
        harness.router.on_backend(group.third, True)
        assert harness.item()[0] == group.third

    def test_a_leader_that_came_back_is_found_by_a_hint(self, group: Group) -> None:
        harness = group.harness
        harness.router.on_backend(group.first, False)
        harness.send(put(KEY))
        node, item = harness.item()
        harness.router.on_backend(group.first, True)
        group.refuse(node, item, leader=group.first)
        assert harness.item()[0] == group.first


class TestLostSight:
    """A store that leads no more cannot tell what became of a write; whoever leads now can."""

    def lose_sight(self, group: Group, **details: int) -> None:
        node, item = group.harness.item()
        group.harness.refuse(node, item, Status.OUTCOME_UNKNOWN, **details)

    def test_after_the_pause_the_next_leader_is_asked_with_the_retry_flag(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        asked_at = harness.clock.monotonic()
        self.lose_sight(group, retry_after_ms=50)
        assert harness.items() == []
        node, item = group.wait()
        assert harness.clock.monotonic() >= asked_at + 0.050
        assert (node, item.flags) == (group.second, FLAG_RETRY)
        group.refuse(node, item, leader=group.third)
        node, item = harness.item()
        assert (node, item.flags) == (group.third, FLAG_RETRY)
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]

    def test_a_part_of_a_scattered_write_is_asked_for_again_alone(self, group: Group) -> None:
        harness = group.harness
        other = next(b"%d" % n for n in range(99) if harness.partition(b"%d" % n) != group.partition)
        harness.send(put(KEY) + put(other))
        for node, item in harness.items():
            if item.partition == group.partition:
                harness.refuse(node, item, Status.OUTCOME_UNKNOWN, retry_after_ms=50)
            else:
                harness.answer(node, item, ok(7))
        node, item = group.wait()
        assert (item.partition, item.flags) == (group.partition, FLAG_RETRY)
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1], [0, 7]]

    def test_the_verdict_of_the_session_table_is_final(self, group: Group) -> None:
        group.harness.send(put(KEY))
        self.lose_sight(group)
        [result] = group.harness.results()
        assert result == [Status.OUTCOME_UNKNOWN, "no"]

    def test_a_write_without_a_session_is_not_sent_again(self, group: Group) -> None:
        group.harness.send(put(KEY), client_id=0, sequence=0)
        self.lose_sight(group, retry_after_ms=50)
        [result] = group.harness.results()
        assert result == [Status.OUTCOME_UNKNOWN, "no"]

    def test_where_no_time_is_left_for_the_pause_the_outcome_is_unknown(self, group: Group) -> None:
        group.harness.send(put(KEY), timeout_ms=200)
        self.lose_sight(group, retry_after_ms=5000)
        [result] = group.harness.results()
        assert result[0] == Status.OUTCOME_UNKNOWN

    def test_refusals_of_the_others_until_the_deadline_leave_the_outcome_unknown(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY), timeout_ms=500)
        self.lose_sight(group, retry_after_ms=50)
        while harness.router.busy:
            for node, item in harness.items():
                assert item.flags == FLAG_RETRY
                group.refuse(node, item)
            harness.pass_time(0.01)
        assert harness.results()[0][0] == Status.OUTCOME_UNKNOWN


class TestMaps:
    def test_a_new_map_does_not_forget_who_leads(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        group.refuse(*harness.item(), leader=group.third)
        harness.items()
        harness.router.on_map(changed(harness.map, replicas=((1, 2, 3),) * PARTITIONS))
        assert group.believed() == group.third

    def test_a_leader_that_left_the_partition_is_forgotten(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        group.refuse(*harness.item(), leader=group.third)
        harness.router.on_map(changed(harness.map, replicas=((group.second, group.first),) * PARTITIONS))
        assert group.believed() == group.second


class TestStaleReads:
    def test_go_to_every_replica_in_its_turn(self, group: Group) -> None:
        for _ in range(30):
            group.harness.send(GET, read_mode=5000, sequence=0)
        assert Counter(node for node, _ in group.harness.items()) == {1: 10, 2: 10, 3: 10}

    def test_go_to_those_that_are_up(self, group: Group) -> None:
        group.harness.router.on_backend(group.first, False)
        for _ in range(10):
            group.harness.send(GET, read_mode=2, sequence=0)
        assert {node for node, _ in group.harness.items()} == {group.second, group.third}

    @pytest.mark.parametrize("read_mode", [0, 1])
    def test_others_go_to_the_leader(self, group: Group, read_mode: int) -> None:
        for _ in range(10):
            group.harness.send(GET, read_mode=read_mode, sequence=0)
        assert {node for node, _ in group.harness.items()} == {group.first}

    def test_a_write_beside_them_takes_them_to_the_leader(self, group: Group) -> None:
        for _ in range(10):
            group.harness.send(GET + put(KEY), read_mode=5000)
        assert {node for node, _ in group.harness.items()} == {group.first}

    def test_of_several_partitions_are_spread_as_well(self, group: Group) -> None:
        keys = [b"key%d" % number for number in range(40)]
        for _ in range(6):
            group.harness.send(b"".join(map(protocol.encode_get, keys)), read_mode=5000, sequence=0)
        found = {node for node, item in group.harness.items() if item.partition == group.partition}
        assert found == {1, 2, 3}

    @pytest.mark.parametrize("status", [Status.NOT_LEADER, Status.UNAVAILABLE])
    def test_one_that_a_replica_could_not_serve_goes_to_the_leader(
        self, group: Group, status: Status
    ) -> None:
        harness = group.harness
        for _ in range(3):
            harness.send(GET, read_mode=5000, sequence=0)
        items = [(node, item) for node, item in harness.items() if node != group.first]
        for node, item in items:
            harness.refuse(node, item, status)
        harness.pass_time(0.02)
        assert [node for node, _ in harness.items()] == [group.first] * 2

    def test_an_answer_of_a_follower_does_not_make_it_the_leader(self, group: Group) -> None:
        harness = group.harness
        harness.send(put(KEY))
        group.refuse(*harness.item())
        guess = group.believed()
        for _ in range(3):
            harness.send(GET, read_mode=5000, sequence=0)
        for node, item in harness.items():
            harness.answer(node, item, ok(b"v", 1))
        assert group.believed() == guess
