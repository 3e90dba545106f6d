"""storenode/checksums.py on real logs and engines: replicas that hold the same, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import Corruption, Status
from shared.groupmessages import GroupCommand
from storenode.checksums import CUTS_MAX, KEEP_S, PAGE_ENTRIES, Digest, digest_of
from storenode.groups import TICK_S
from storenode.replica.statemachine import Cut
from tests.unit.storenode.grouphouse import House, Reply, founded

CHECKSUM, DIGEST = GroupCommand.CHECKSUM, GroupCommand.DIGEST
KEYS = 3 * PAGE_ENTRIES // 2  # of more than one page; the house has put one more


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it; node 4 has nothing."""
    for made in founded(tmp_path):
        ops = b"".join(protocol.encode_put(b"k%05d" % number, b"v%d" % number) for number in range(KEYS))
        write(made, ops)
        yield made


def write(house: House, ops: bytes) -> None:
    now = house.clock.monotonic()
    house.replica(1).propose((b"client", 0), 0, 0, 0, 0, ops, now + 5, now)
    house.settle()
    house.nodes[1].answers.clear()


def sums(reply: Reply) -> dict[int, str]:
    """By node; of a member that has none, what it said."""
    status, answer = reply
    assert status == Status.OK, answer
    return {member["id"]: member.get("digest") or member["error"] for member in answer["members"]}


def spoil(house: House, number: int, ops: bytes) -> None:
    """Changes what one replica holds, behind Raft's back: all its checksums are right."""
    engine = house.replica(number).machine.engine
    engine.apply([ops], engine.next_sequence, 1)
    engine.end_entry()


def test_replicas_that_hold_the_same_have_the_same_sum(house: House) -> None:
    reply = house.run(1, CHECKSUM, 0)
    found = sums(reply)
    assert set(found) == {1, 2, 3}
    assert len(set(found.values())) == 1
    assert {member["entries"] for member in reply[1]["members"]} == {KEYS + 1}
    assert reply[1]["index"] == house.replica(1).machine.position.index
    house.put(1, b"k00007", b"another value")
    again = sums(house.run(1, CHECKSUM, 0))
    assert len(set(again.values())) == 1
    assert again != found


@pytest.mark.parametrize(
    "ops",
    [
        protocol.encode_put(b"k00042", b"v-42"),
        protocol.encode_delete(b"k01400"),
        protocol.encode_put(b"more", b""),
    ],
    ids=["another value", "a key less", "a key more"],
)
def test_a_replica_that_differs_is_found(house: House, ops: bytes) -> None:
    spoil(house, 3, ops)
    found = sums(house.run(1, CHECKSUM, 0))
    assert found[1] == found[2] != found[3]


def test_an_expired_key_is_expired_on_all_replicas(house: House) -> None:
    write(house, protocol.encode_put(b"short", b"x", 100))
    house.tick(round(1 / TICK_S))
    reply = house.run(1, CHECKSUM, 0)
    assert len(set(sums(reply).values())) == 1
    assert reply[1]["members"][0]["entries"] == KEYS + 1


def test_writes_that_come_after_the_cut_are_not_in_it(house: House) -> None:
    expected = sums(house.run(1, CHECKSUM, 0))
    token = house.tell(1, CHECKSUM, 0)
    now = house.clock.monotonic()
    for number in range(50):  # in the same turn, behind the entry that asks for the cut
        ops = protocol.encode_put(b"late%d" % number, b"x")
        house.replica(1).propose((b"client", number), 0, 0, 0, 0, ops, now + 5, now)
    house.tick(2)
    house.nodes[1].answers.clear()
    assert sums(house.reply(1, token)) == expected
    assert sums(house.run(1, CHECKSUM, 0)) != expected


def test_a_member_that_is_away_is_told_of(house: House) -> None:
    house.stop(3)
    found = sums(house.run(1, CHECKSUM, 0, timeout_ms=2000))
    assert found[1] == found[2]
    assert found[3] == "it did not answer in time"


def test_a_member_that_is_cut_off_has_not_applied_it_in_time(house: House) -> None:
    house.cut_off = {3}
    found = sums(house.run(1, CHECKSUM, 0, timeout_ms=2000))
    assert found[1] == found[2]
    assert "was not applied in time" in found[3]


def test_a_member_that_catches_up_in_time_has_its_sum(house: House) -> None:
    house.cut_off = {3}
    token = house.tell(1, CHECKSUM, 0)
    house.settle()
    assert token not in house.nodes[1].group_replies
    house.cut_off = set()
    house.tick(3)
    assert len(set(sums(house.reply(1, token)).values())) == 1


def test_one_at_a_time_and_only_at_the_leader(house: House) -> None:
    house.cut_off = {3}
    first = house.tell(1, CHECKSUM, 0)
    status, answer = house.run(1, CHECKSUM, 0)
    assert (status, answer["message"]) == (Status.BUSY, "other checksums are under way")
    house.cut_off = set()
    house.tick(3)
    assert house.reply(1, first)[0] == Status.OK
    assert house.run(2, CHECKSUM, 0)[0] == Status.NOT_LEADER
    assert house.run(4, CHECKSUM, 0)[0] == Status.WRONG_REPLICA


def test_a_leader_that_leads_no_more_says_so(house: House) -> None:
    house.cut_off = {1}
    token = house.tell(1, CHECKSUM, 0, timeout_ms=60_000)
    for _ in range(100):
        if house.leader() in (2, 3):
            break
        house.tick()
    house.cut_off = set()
    house.tick(5)
    status, answer = house.reply(1, token)
    assert (status, answer["leader"]) == (Status.NOT_LEADER, house.leader())


def test_only_a_cut_that_is_held_has_a_sum(house: House) -> None:
    index = house.run(1, CHECKSUM, 0)[1]["index"]
    assert house.run(2, DIGEST, 2, other=index)[0] == Status.OK
    status, answer = house.run(2, DIGEST, 2, other=index - 1)
    assert (status, "no cut of it" in answer["message"]) == (Status.CONDITION_FAILED, True)
    assert house.run(2, DIGEST, 3, other=index)[0] == Status.INVALID_REQUEST
    assert house.run(4, DIGEST, 4, other=index)[0] == Status.UNAVAILABLE
    house.tick(round(KEEP_S / TICK_S) + 1)
    assert house.run(2, DIGEST, 2, other=index)[0] == Status.CONDITION_FAILED


def test_cuts_are_bounded_and_a_restart_holds_none(house: House) -> None:
    checksums = house.nodes[2].commands._checksums
    for _ in range(2):
        house.run(1, CHECKSUM, 0)
    assert list(checksums._cuts) == [0]
    snapshot = house.replica(2).machine.engine.snapshot()
    for partition in range(1, CUTS_MAX + 2):
        machine = SimpleNamespace(cut=Cut(7, snapshot))
        checksums.keep(SimpleNamespace(partition=partition, machine=machine))  # type: ignore[arg-type]
    assert list(checksums._cuts) == list(range(2, CUTS_MAX + 2))
    index = house.run(1, CHECKSUM, 0)[1]["index"]
    house.stop(2)
    house.start(2)
    house.tick(5)
    assert house.run(2, DIGEST, 2, other=index)[0] in (Status.OK, Status.CONDITION_FAILED)
    assert len(house.nodes[2].commands._checksums._cuts) <= 1


def page(entries: bytes, resume: bytes | None) -> bytes:
    fields: list[Any] = [0, 1, entries]
    return bytes(msgpack.packb(fields if resume is None else [*fields, resume]))


def test_a_sum_does_not_depend_on_pages() -> None:
    whole = iter([page(b"aabb", None)])
    parts = iter([page(b"a", b"x"), page(b"ab", b"y"), page(b"b", None)])
    one, other = digest_of(lambda _: next(whole), 0, 5.0), digest_of(lambda _: next(parts), 0, 5.0)
    assert (one.digest, one.bytes) == (other.digest, other.bytes)
    assert other == Digest(3, 4, one.digest)


def test_a_sum_ends_at_its_deadline_and_is_as_slow_as_it_is_told() -> None:
    with pytest.raises(TimeoutError, match="not summed up in time"):
        digest_of(lambda _: page(b"x" * 100, b"go on"), 1000, 0.3)


def test_damage_is_no_sum() -> None:
    with pytest.raises(Corruption, match="status 40: block 7"):
        digest_of(lambda _: bytes(msgpack.packb([40, "block 7"])), 0, 5.0)
