"""Requests that spread over partitions: scans, counts, barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvclient import protocol
from kvclient.errors import Status
from kvclient.health import ranges
from kvclient.protocol import FLAG_BARRIER, SCAN_COUNT, SCAN_REVERSE
from router.scatter import partition_scan
from shared.opstream import scan_fields
from tests.unit.router.conftest import PARTITIONS, Harness, ok, put

KEYS = [b"key%04d" % number for number in range(2000)]


class Data:
    """What the partitions hold, and a store's way of scanning it."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.count_page = len(KEYS)
        self.by_partition: dict[int, list[bytes]] = {number: [] for number in range(PARTITIONS)}
        for key in KEYS:
            self.by_partition[harness.partition(key)].append(key)

    def page(self, partition: int, ops: bytes) -> bytes:
        start, stop, limit, flags = scan_fields(ops)
        keys = [key for key in self.by_partition[partition] if start <= key and (stop is None or key < stop)]
        if flags & SCAN_COUNT:
            looked = min(len(keys), self.count_page)
            return ok(looked, b"", *keys[looked : looked + 1])
        if flags & SCAN_REVERSE:
            keys.reverse()
        entries = b"".join(
            protocol.pack(key) + protocol.pack(b"v") + protocol.pack(1) for key in keys[:limit]
        )
        if len(keys) <= limit:
            return ok(len(keys), entries)
        resume = keys[limit - 1] if flags & SCAN_REVERSE else keys[limit]
        return ok(limit, entries, resume)

    def scan(self, start: bytes, stop: bytes | None, limit: int, flags: int = 0) -> list[Any]:
        """One page through the router."""
        self.harness.send(protocol.encode_scan(start, stop, limit, flags), sequence=0)
        while items := self.harness.items():
            for node, item in items:
                self.harness.answer(node, item, self.page(item.partition, item.ops))
        [result] = self.harness.results()
        assert result[0] == Status.OK
        assert self.harness.idle
        return result

    def scan_all(self, start: bytes, stop: bytes | None, limit: int, flags: int = 0) -> list[bytes]:
        """Page by page to the end."""
        found: list[bytes] = []
        for _ in range(1000):
            _, count, entries, *resume = self.scan(start, stop, limit, flags)
            keys = [entry.key for entry in protocol.decode_entries(entries)]
            assert len(keys) == count <= limit
            found += keys
            if not resume:
                return found
            start, stop = (start, resume[0]) if flags & SCAN_REVERSE else (resume[0], stop)
        raise AssertionError("the scan does not end")


@pytest.fixture
def data(harness: Harness) -> Data:
    return Data(harness)


@pytest.mark.parametrize("limit", [1, 7, 32, 100, 1000, 10_000])
@pytest.mark.parametrize(("start", "stop"), [(b"", None), (b"key0500", b"key0777"), (b"x", None)])
def test_a_scan_has_every_key_once_in_order(data: Data, start: bytes, stop: bytes | None, limit: int) -> None:
    if limit == 1:
        stop = b"key0520" if stop else b"key0020"
    expected = [key for key in KEYS if start <= key and (stop is None or key < stop)]
    assert data.scan_all(start, stop, limit) == expected
    assert data.scan_all(start, stop, limit, SCAN_REVERSE) == expected[::-1]


def test_a_count_adds_up(data: Data) -> None:
    assert data.scan(b"", None, 10, SCAN_COUNT)[:2] == [0, 2000]
    assert data.scan(b"key0100", b"key0200", 10_000, SCAN_COUNT)[:2] == [0, 100]


@pytest.mark.parametrize("page", [1, 7, 100])
def test_a_partition_that_counts_in_pages_is_asked_until_it_is_through(data: Data, page: int) -> None:
    data.count_page = page
    assert data.scan(b"", None, 10, SCAN_COUNT) == [0, 2000, b""]
    assert data.scan(b"key0100", b"key0200", 10, SCAN_COUNT | SCAN_REVERSE) == [0, 100, b""]


def test_each_partition_is_asked_once_for_its_share(harness: Harness) -> None:
    harness.send(protocol.encode_scan(b"a", b"b", 1000), sequence=0)
    items = [item for _, item in harness.items()]
    assert sorted(item.partition for item in items) == list(range(PARTITIONS))
    assert {scan_fields(item.ops) for item in items} == {(b"a", b"b", 1000 // 8 + 4 * 12 + 8, 0)}


@pytest.mark.parametrize(
    ("limit", "flags", "asked"),
    [(1, 0, 1), (32, 0, 32), (33, 0, 18), (10_000, 0, 737), (10_000, SCAN_COUNT, 10_000)],
)
def test_the_share_of_a_limit(limit: int, flags: int, asked: int) -> None:
    assert scan_fields(partition_scan(protocol.encode_scan(b"", None, limit, flags), 16))[2] == asked


def test_the_share_is_never_over_the_limit() -> None:
    for limit in range(1, 10_001, 37):
        assert scan_fields(partition_scan(protocol.encode_scan(b"", None, limit), 1))[2] == limit


@pytest.mark.parametrize("how", ["refusal", "result", "deadline"])
def test_a_scan_fails_as_a_whole_when_one_partition_fails(harness: Harness, data: Data, how: str) -> None:
    harness.send(protocol.encode_scan(b"", None, 100), sequence=0, timeout_ms=1000)
    bad, *others = harness.items()
    fail: dict[str, Callable[[], object]] = {
        "refusal": lambda: harness.refuse(*bad, Status.CORRUPTION),
        "result": lambda: harness.answer(*bad, protocol.pack((int(Status.CORRUPTION), "no"))),
        "deadline": lambda: harness.pass_time(1),
    }
    if how != "deadline":
        fail[how]()
    for node, item in others:
        harness.answer(node, item, data.page(item.partition, item.ops))
    if how == "deadline":
        fail[how]()
    [[status, _message]] = harness.results()
    assert status == (Status.TIMEOUT if how == "deadline" else Status.CORRUPTION)
    assert harness.idle


def test_a_scan_that_several_partitions_refuse_is_answered_once(harness: Harness) -> None:
    harness.send(protocol.encode_scan(b"", None, 100), sequence=0)
    for node, item in harness.items():
        harness.refuse(node, item, Status.CORRUPTION)
    assert len(harness.results()) == 1
    assert harness.idle


def test_a_page_that_is_nonsense_is_an_internal_error(harness: Harness, data: Data) -> None:
    harness.send(protocol.encode_scan(b"", None, 100), sequence=0)
    for node, item in harness.items():
        harness.answer(
            node, item, b"\x93\x00" if item.partition == 3 else data.page(item.partition, item.ops)
        )
    assert harness.response().status == Status.INTERNAL
    assert harness.idle


@pytest.mark.parametrize(
    "page",
    [b"", b"\x93\x00", b"\xc0", ok(1, b"") * 2, ok(b"1", b"", b"k"), ok(1, b"", 7), ok(1, b"", b"k", 0)],
)
def test_counts_that_are_nonsense_are_one_internal_error(harness: Harness, page: bytes) -> None:
    """Each such partition gave an answer of its own, or the rest of the store's batch was lost."""
    harness.send(protocol.encode_scan(b"", None, 100, SCAN_COUNT), sequence=0)
    for node, item in harness.items():
        harness.answer(node, item, page)
    assert harness.response().status == Status.INTERNAL
    assert harness.idle


def test_a_scan_beside_other_ops_is_refused(harness: Harness) -> None:
    harness.send(protocol.encode_scan(b"", None, 100) + put(b"k"))
    assert harness.response().status == Status.INVALID_REQUEST
    assert harness.items() == []


def test_pages_that_wait_for_others_count_against_the_budget(harness: Harness) -> None:
    harness.send(protocol.encode_scan(b"", None, 1000), sequence=0)
    first, *others = harness.items()
    harness.answer(*first, ok(1, protocol.pack(b"k") + protocol.pack(bytes(2 << 20)) + protocol.pack(1)))
    harness.send(put(b"k"))
    assert harness.response().status == Status.BUSY
    for node, item in others:
        harness.answer(node, item, ok(0, b""))
    assert harness.results()[0][:2] == [0, 1]
    assert harness.idle


class TestBarrier:
    def test_goes_through_every_partition_once_and_without_a_session(self, harness: Harness) -> None:
        harness.send(b"", flags=FLAG_BARRIER)
        items = harness.items()
        assert sorted(item.partition for _, item in items) == list(range(PARTITIONS))
        for node, item in items:
            assert (item.flags, item.client_id, item.sequence, item.ops) == (FLAG_BARRIER, 0, 0, b"")
            assert node == harness.map.replicas[item.partition][0]
            assert harness.responses() == []
            harness.answer(node, item, b"")
        assert harness.response()[2:] == (Status.OK, b"")
        assert harness.idle

    def test_names_the_partitions_and_nodes_that_are_missing(self, harness: Harness) -> None:
        harness.router.on_backend(2, False)
        harness.send(b"", flags=FLAG_BARRIER, timeout_ms=1000)
        for node, item in harness.items():
            harness.answer(node, item, b"")
        harness.pass_time(1)
        response = harness.response()
        assert response.status == Status.UNAVAILABLE
        message = protocol.decode_error(response.body)["message"]
        missing = [number for number in range(PARTITIONS) if harness.map.replicas[number][0] == 2]
        assert f"partition {ranges(missing)}:" in message
        assert "store2" in message
        assert "store1" not in message

    def test_is_sent_again_to_a_store_that_comes_back_and_never_as_a_retry(self, harness: Harness) -> None:
        harness.send(b"", flags=FLAG_BARRIER)
        harness.items()
        harness.router.on_backend(1, False)
        harness.router.on_backend(2, False)
        harness.router.on_backend(1, True)
        harness.router.on_backend(2, True)
        items = harness.items()
        assert len(items) == PARTITIONS
        assert {item.flags for _, item in items} == {FLAG_BARRIER}

    def test_its_message_stays_short(self) -> None:
        assert ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3, 7, 9-10"
        assert ranges(range(4096)) == "0-4095"
        assert ranges([]) == ""
