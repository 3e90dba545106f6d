"""The operators' command `healthy`."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from tests.unit.router.conftest import PARTITIONS, THREE_STORES, Harness, changed
from tests.unit.router.operators import ask, group, replicated, reply, show


@pytest.fixture
def three() -> Harness:
    return Harness(replicas=3, stores=THREE_STORES)


class TestHealthy:
    """One fault each; what is named is not the fault of another test."""

    def said(self, three: Harness, figures: dict[int, dict[str, Any]], **shown: Any) -> str:
        ask(three, "healthy")
        show(three, **{"nodes": dict.fromkeys((1, 2, 3), "up"), **shown})
        reply(three, figures)
        response = three.response()
        if response.status == Status.OK:
            assert msgpack.unpackb(response.body)["nodes"] == 3
            return ""
        assert response.status == Status.UNAVAILABLE
        message = protocol.decode_error(response.body)["message"]
        assert message.startswith("not healthy: ")
        return str(message).removeprefix("not healthy: ")

    def test_is_ok_when_all_is_well(self, three: Harness) -> None:
        assert self.said(three, replicated(leader=2)) == ""

    def test_a_move(self, three: Harness) -> None:
        assert self.said(three, replicated(leader=2), moves=[{}, {}]) == "2 moves are not done"

    def test_a_state(self, three: Harness) -> None:
        text = self.said(three, replicated(leader=2), nodes={1: "suspect", 2: "up", 3: "up"})
        assert text == "store1 (tcp://127.0.0.1:7200) is suspect"

    def test_a_node_that_is_drained_is_fine_when_it_holds_nothing(self, three: Harness) -> None:
        draining = {1: "draining", 2: "up", 3: "up"}
        text = self.said(three, replicated(leader=2), nodes=draining)
        assert text == "store1 is draining and holds 8 replicas"
        three.router.on_map(changed(three.map, replicas=((2, 3),) * PARTITIONS))
        figures = replicated(leader=2)
        for node in (2, 3):
            for said in figures[node]["groups"].values():
                said.update(voters=[2, 3], match={"2": 10, "3": 10})
        figures[1]["groups"] = {}
        assert self.said(three, figures, nodes=draining) == ""

    def test_a_node_that_is_away(self, three: Harness) -> None:
        three.router.on_backend(3, False)
        text = self.said(three, replicated(leader=2, silent=3))
        assert "store3 (tcp://127.0.0.1:7220) does not answer" in text
        assert "partition 0-7: the replica on store3 does not answer" in text

    def test_a_store_of_another_identity(self, three: Harness) -> None:
        text = self.said(three, replicated(leader=2), nodes={1: "up", 2: "up", 3: "foreign"})
        assert text == "store3 (tcp://127.0.0.1:7220) is foreign"

    def test_a_row_that_is_not_settled(self, three: Harness) -> None:
        figures = replicated(leader=2)
        figures[2]["groups"]["4"].update(voters=[1, 2], learners=[3])
        text = self.said(three, figures)
        assert text == (
            "partition 4: its voters are nodes 1-2, those of the map 1-3; "
            "partition 4: the replica on store3 is a learner"
        )

    def test_a_replica_that_is_behind(self, three: Harness) -> None:
        figures = replicated(leader=2)
        for partition in ("1", "2"):
            figures[2]["groups"][partition].update(commit=2000)
            figures[1]["groups"][partition].update(applied=999)
            figures[3]["groups"][partition].update(applied=1000)
            figures[2]["groups"][partition].update(match={"1": 2000, "3": 2000}, applied=2000)
        assert (
            self.said(three, figures)
            == "partition 1-2: the replica on store1 is more than 1000 entries behind"
        )

    def test_a_replica_that_failed(self, three: Harness) -> None:
        figures = replicated(leader=2)
        figures[3]["failed"] = {"6": "the disk is full"}
        assert self.said(three, figures) == "partition 6: the replica on store3 has failed"

    def test_a_partition_without_a_leader(self, three: Harness) -> None:
        figures = replicated(leader=2)
        for said in figures.values():
            said["groups"]["5"] = group("follower", term=5)
        assert self.said(three, figures) == "partition 5: no leader that answers"

    def test_the_control_partition(self, three: Harness) -> None:
        figures = replicated(leader=2)
        figures[1]["groups"]["65535"] = group("leader", 1, voters=[1, 2], match={"2": 10}, learners=[])
        figures[2]["groups"]["65535"] = group("follower", 1)
        text = self.said(three, figures)
        assert text == "the control partition: its voters are nodes 1-2, those of the map 1-3"

    def test_without_a_controller_nothing_is_known(self, three: Harness) -> None:
        ask(three, "healthy")
        reply(three, replicated(leader=2))
        three.without_controller()
        message = protocol.decode_error(three.response().body)["message"]
        assert message == "not healthy: no controller: no control partition"
