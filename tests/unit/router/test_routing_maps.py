"""How the router finds out that its map is old, and what a new one changes."""

from __future__ import annotations

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.protocol import FLAG_RETRY, Kind
from router.requests import Budget
from router.topology import MAP_RETRY_SECONDS
from shared.clustermap import ClusterMap, Node
from tests.unit.router.conftest import PARTITIONS, STORES, Harness, changed, ok, put


class TestMaps:
    def test_a_malformed_request_that_waited_for_the_map_is_refused_then(self) -> None:
        harness = Harness(with_map=False)
        harness.send(b"\xc1")
        harness.send(b"", kind=Kind.MAP)
        harness.router.on_map(harness.map.encode())
        assert [response.status for response in harness.responses()] == [Status.INVALID_REQUEST, Status.OK]
        assert harness.idle

    def test_requests_wait_for_the_first_map(self) -> None:
        harness = Harness(with_map=False)
        harness.send(put(b"k"))
        harness.send(b"", kind=Kind.MAP)
        assert harness.responses() == []
        assert harness.router.should_ask_map()
        assert not harness.router.should_ask_map()
        harness.pass_time(0.5)
        harness.router.on_map(harness.map.encode())
        assert harness.response()[2:] == (Status.OK, harness.map.encode())
        harness.router.on_backend(harness.leader(b"k"), True)
        node, item = harness.item()
        assert item.timeout_ms <= 4450
        harness.answer(node, item, ok(1))
        assert harness.idle | bool(harness.responses())

    def test_without_a_map_the_seeds_are_named_in_time(self) -> None:
        harness = Harness(with_map=False)
        harness.send(put(b"k"), timeout_ms=1000)
        harness.pass_time(0.9)
        assert harness.responses() == []
        harness.pass_time(0.1)
        response = harness.response()
        assert response.status == Status.UNAVAILABLE
        assert "tcp://127.0.0.1:7200" in protocol.decode_error(response.body)["message"]
        assert harness.idle

    def test_early_requests_are_bounded_by_the_budget(self) -> None:
        harness = Harness(with_map=False, budget=Budget(2, 1 << 20))
        for _ in range(3):
            harness.send(put(b"k"))
        assert harness.response().status == Status.BUSY

    def test_ping_needs_no_map(self) -> None:
        harness = Harness(with_map=False)
        harness.send(b"", kind=Kind.PING)
        assert msgpack.unpackb(harness.response().body) == ["router1", "0.1", 0]

    def test_a_new_map_moves_what_waits(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.router.on_backend(1, False)
        harness.send(put(key))
        assert harness.items() == []
        assert harness.router.on_map(changed(harness.map, replicas=((2,),) * PARTITIONS))
        assert harness.item()[0] == 2
        harness.send(put(key))
        assert harness.item()[0] == 2

    def leave(self, harness: Harness) -> None:
        harness.router.on_map(changed(harness.map, nodes=STORES[1:], replicas=((2,),) * PARTITIONS))

    def test_a_node_that_left_the_map_may_answer_what_it_has(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), client_id=0, sequence=0)
        node, item = harness.item()
        self.leave(harness)
        assert set(harness.router.outbox_stores) == {2}
        assert harness.router.is_with(1)
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]
        assert not harness.router.is_with(1)
        assert harness.idle

    def test_what_a_node_that_left_refuses_goes_on_by_the_new_map(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        node, item = harness.item()
        self.leave(harness)
        harness.refuse(node, item, Status.WRONG_REPLICA)
        harness.pass_time(0.02)
        node, item = harness.item()
        assert (node, item.flags) == (2, 0)

    def test_a_node_that_left_the_map_and_went_down_is_lost(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        harness.items()
        self.leave(harness)
        harness.router.on_backend(1, False)
        node, item = harness.item()
        assert (node, item.flags) == (2, FLAG_RETRY)
        harness.router.on_backend(1, True)
        assert set(harness.router.outbox_stores) == {2}

    def test_what_was_not_sent_yet_goes_elsewhere_at_once(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key), client_id=0, sequence=0)
        self.leave(harness)
        node, item = harness.item()
        assert (node, item.flags) == (2, 0)
        assert harness.count("parts_retried") == 0

    def test_who_has_a_newer_map_is_asked_for_it_once(self, harness: Harness) -> None:
        harness.router.on_epoch(2, 2)
        assert harness.router.should_ask_map()
        assert harness.router.topology.take_informant() == 2
        harness.clock.advance(0.3)
        assert harness.router.should_ask_map(), "it has not answered"
        assert harness.router.topology.take_informant() == 0, "others may"

    def test_a_leader_that_the_map_does_not_have_yet_is_a_sign_of_a_newer_one(self, harness: Harness) -> None:
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        node, item = harness.item()
        assert not harness.router.should_ask_map()
        harness.refuse(node, item, Status.NOT_LEADER, leader=9)
        assert harness.router.should_ask_map()
        assert harness.router.topology.take_informant() == node

    def test_a_map_that_is_wholly_stale_heals_without_a_failed_request(self) -> None:
        """All replicas moved to stores that this router never heard of; those of its map refuse."""
        harness = Harness(replicas=2)
        key = harness.keys(1, 1)[0]
        harness.send(put(key))
        new = tuple(Node(id=number, name=f"new{number}", rpc=f"tcp://[::1]:{number}") for number in (7, 8))
        newer = changed(harness.map, nodes=(*STORES, *new), replicas=((7, 8),) * PARTITIONS)
        for _ in range(3):
            for node, item in harness.items():
                harness.refuse(node, item, Status.WRONG_REPLICA)
            assert harness.router.topology.next_question <= harness.clock.monotonic() + MAP_RETRY_SECONDS
            harness.pass_time(0.05)
        for node, item in harness.items():
            harness.refuse(node, item, Status.WRONG_REPLICA)
        harness.router.on_map(newer)
        harness.pass_time(0.5)
        assert harness.items() == [], "nobody there is reached yet"
        harness.router.on_backend(8, True)
        node, item = harness.item()
        assert node == 8
        harness.answer(node, item, ok(1))
        assert harness.results() == [[0, 1]]
        assert harness.idle

    def test_older_maps_and_maps_of_others_are_not_taken(self, harness: Harness) -> None:
        assert not harness.router.on_map(harness.map.encode())
        other = ClusterMap.bootstrap("other", PARTITIONS, 1, STORES)
        with pytest.raises(Exception, match="other"):
            harness.router.on_map(changed(other))
        with pytest.raises(Exception, match="cluster map"):
            harness.router.on_map(b"\xc1")
        assert harness.router.topology.map == harness.map

    def test_the_map_is_asked_for_again_every_ten_seconds(self, harness: Harness) -> None:
        harness.clock.advance(9.9)
        assert not harness.router.should_ask_map()
        harness.clock.advance(0.2)
        assert harness.router.should_ask_map()
