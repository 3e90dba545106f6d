"""A store asks a cluster to take it in, over real sockets; the cluster answers as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import msgpack
import pytest

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared import messages, sockets
from shared.clustermap import ClusterMap, Node
from shared.controlmessages import ControlCommand, ControlRequest, encode_control_reply
from shared.hashing import xxh64
from shared.reactor import Reactor
from storenode.joining import Joined, Joining, Newcomer
from tests.unit.storenode.links import free_endpoint

DEADLINE_S = 10.0
ME = Newcomer("store4", "tcp://h4:1", "tcp://h4:2", "tcp://h4:3", "z", 2, "ab" * 16)

Says = Callable[[ControlRequest], tuple[int, bytes]]


def not_leader(leader: int, _: ControlRequest) -> tuple[int, bytes]:
    return Status.NOT_LEADER, encode_error("not the controller", leader=leader)


def joined_map(before: ClusterMap) -> ClusterMap:
    me = Node(4, ME.name, ME.rpc, ME.bus, ME.events, ME.zone, ME.weight)
    return attrs.evolve(before, epoch=before.epoch + 1, nodes=(*before.nodes, me))


def body(cluster_map: ClusterMap, node: Any = 4) -> bytes:
    fields = {"node": node, "cluster": cluster_map.name, "map": cluster_map.encode()}
    return bytes(msgpack.packb({**fields, "cluster_id": cluster_map.cluster_id}))


class Cluster:
    """Stores 1 to 3 of a cluster, as far as they listen."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.context = sockets.context()
        self.endpoints = [free_endpoint() for _ in range(3)]
        nodes = [Node(number, f"store{number}", rpc) for number, rpc in enumerate(self.endpoints, 1)]
        self.map = ClusterMap.bootstrap("prod", 4, 1, nodes)
        self.requests: list[tuple[int, ControlRequest]] = []
        self.joining: Joining | None = None
        self._sockets: list[sockets.Socket] = []

    def accept(self, _: ControlRequest) -> tuple[int, bytes]:
        return Status.OK, body(joined_map(self.map))

    def listen(self, node: int, says: Says, known: ClusterMap | None = None) -> None:
        socket = sockets.store_router(self.context, self.endpoints[node - 1], batch_bytes_max=1 << 20)
        self._sockets.append(socket)

        def on_messages(batch: list[list[bytes]]) -> None:
            for peer, frame in batch:
                request = messages.decode_to_store(frame)
                if isinstance(request, messages.MapRequest):
                    answer = messages.encode_map_reply(request.token, (known or self.map).encode())
                else:
                    assert isinstance(request, ControlRequest)
                    self.requests.append((node, request))
                    answer = encode_control_reply(request.token, *says(request))
                sockets.send_or_drop(socket, (peer, answer))

        self.reactor.add_reader(socket, on_messages)

    def ask(self, *endpoints: str, name: str = "prod") -> Joining:
        self.joining = Joining(self.reactor, self.context, ME, name, endpoints or self.endpoints)
        return self.joining

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            self.reactor.call_later(0.005, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def outcome(self) -> Joined | str:
        joining = self.joining
        assert joining is not None
        self.until(lambda: joining.joined is not None or joining.refusal is not None)
        found = joining.joined or joining.refusal
        assert found is not None
        return found

    def close(self) -> None:
        if self.joining is not None:
            self.joining.close()
        for socket in self._sockets:
            self.reactor.remove_reader(socket)
            socket.close(0)
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def test_the_controller_is_told_everything_and_gives_the_id(cluster: Cluster) -> None:
    cluster.listen(1, cluster.accept)
    cluster.ask(cluster.endpoints[0])
    assert cluster.outcome() == Joined(4, joined_map(cluster.map))
    _, request = cluster.requests[0]
    assert request.command is ControlCommand.JOIN
    assert request.cluster == xxh64(cluster.map.cluster_id.encode())
    assert msgpack.unpackb(request.arguments) == ME._asdict()


def test_whom_a_store_names_is_asked(cluster: Cluster) -> None:
    cluster.listen(1, partial(not_leader, 2))
    cluster.listen(2, cluster.accept)
    cluster.ask(cluster.endpoints[0])
    assert isinstance(cluster.outcome(), Joined)
    assert {node for node, _ in cluster.requests} == {1, 2}


@pytest.mark.parametrize("status", [Status.BUSY, Status.UNAVAILABLE, Status.NOT_LEADER, Status.UNSUPPORTED])
def test_what_time_mends_is_asked_again(cluster: Cluster, status: Status) -> None:
    def says(request: ControlRequest) -> tuple[int, bytes]:
        if len(cluster.requests) < 3:
            return status, encode_error("later")
        return cluster.accept(request)

    cluster.listen(1, says)
    cluster.ask()
    assert isinstance(cluster.outcome(), Joined)
    assert len({request.arguments for _, request in cluster.requests}) == 1


def test_a_store_that_comes_later_is_found(cluster: Cluster) -> None:
    joining = cluster.ask()
    end = time.monotonic() + 0.3
    cluster.until(lambda: time.monotonic() > end)
    assert joining.joined is None
    cluster.listen(2, cluster.accept)
    assert isinstance(cluster.outcome(), Joined)


def test_a_name_that_is_taken_ends_it_with_the_command(cluster: Cluster) -> None:
    taken = attrs.evolve(joined_map(cluster.map), nodes=(*cluster.map.nodes, Node(9, "store4", "tcp://h9:1")))
    refusal = (Status.CONDITION_FAILED, encode_error("the name store4 is taken"))
    cluster.listen(1, lambda request: refusal, taken)
    cluster.ask(cluster.endpoints[0])
    text = cluster.outcome()
    assert isinstance(text, str)
    assert "does not let this store join: the name store4 is taken" in text
    assert "\n  kvcli node remove store4 --force\n" in text


def test_an_address_that_is_taken_names_who_has_it(cluster: Cluster) -> None:
    taken = attrs.evolve(joined_map(cluster.map), nodes=(*cluster.map.nodes, Node(9, "other", ME.rpc)))
    refusal = (Status.CONDITION_FAILED, encode_error("the address is taken"))
    cluster.listen(1, lambda request: refusal, taken)
    cluster.ask(cluster.endpoints[0])
    text = cluster.outcome()
    assert isinstance(text, str)
    assert "is the address of other (node 9)" in text
    assert "\n  kvcli node remove other --force\n" in text


def test_another_cluster_is_not_joined(cluster: Cluster) -> None:
    cluster.listen(1, cluster.accept)
    cluster.ask(name="test")
    assert "belongs to cluster prod, the configuration names test" in str(cluster.outcome())
    assert not cluster.requests, "it was asked to join the wrong cluster"


def test_seeds_of_two_clusters_are_told_apart(cluster: Cluster) -> None:
    cluster.listen(1, partial(not_leader, 0))
    cluster.listen(2, partial(not_leader, 0), attrs.evolve(cluster.map, cluster_id="f" * 16))
    cluster.ask()
    assert f"two clusters named prod (ids {cluster.map.cluster_id} and" in str(cluster.outcome()) or (
        f"two clusters named prod (ids {'f' * 16} and" in str(cluster.outcome())
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda there: b"\xc1",
        lambda there: msgpack.packb([]),
        lambda there: msgpack.packb({"node": 4}),
        lambda there: msgpack.packb({"node": 4, "map": b"x"}),
        lambda there: body(there, 5),
        lambda there: body(there, [4]),
        lambda there: body(there, 1),
        lambda there: body(attrs.evolve(there, name="other")),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_reason_to_wait(
    cluster: Cluster, make: Callable[[ClusterMap], bytes]
) -> None:
    def says(request: ControlRequest) -> tuple[int, bytes]:
        return (
            (Status.OK, make(joined_map(cluster.map)))
            if len(cluster.requests) < 3
            else cluster.accept(request)
        )

    cluster.listen(1, says)
    cluster.ask(cluster.endpoints[0])
    assert cluster.outcome() == Joined(4, joined_map(cluster.map))


def test_a_leader_that_the_map_does_not_have_is_no_reason_to_spin(cluster: Cluster) -> None:
    cluster.listen(1, partial(not_leader, 77))
    cluster.ask(cluster.endpoints[0])
    end = time.monotonic() + 0.4
    cluster.until(lambda: time.monotonic() > end)
    assert 2 <= len(cluster.requests) < 20
