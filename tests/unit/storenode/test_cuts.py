"""storenode/cuts.py and cutpages.py on real logs and engines: what a backup reads is one moment of a
partition, whatever happens meanwhile, and it costs a store no more than its bounds.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvclient import protocol
from kvclient.errors import ProtocolError, Status
from shared.backupmessages import BackupCommand, BackupRequest, encode_backup_request
from shared.messages import decode_to_store
from shared.reactor import Reactor
from storenode.cuts import BUSY_MS, CUTS_MAX, IDLE_S, LIFE_S, READS_MAX, UNREADY_MS, Cuts
from tests.unit.storenode.grouphouse import ASKER, CLUSTER, House, founded

OPEN, READ, CLOSE = BackupCommand.OPEN, BackupCommand.READ, BackupCommand.CLOSE
DEADLINE_S = 10.0
RATE = 1 << 20

Answer = tuple[Status, dict[str, Any]]


class Backups:
    """The cuts of node `number` of a house."""

    def __init__(self, house: House, number: int = 1) -> None:
        self.house = house
        self.reactor = Reactor()
        self.paused_s = 0.0
        self.answers: dict[int, Answer] = {}
        self.token = 0
        self.cuts = Cuts(
            self.reactor,
            house.clock,
            number,
            CLUSTER,
            house.nodes[number].groups,
            self._answer,
            bytes_per_second=RATE,
            pause=self._pause,
        )

    def _answer(self, peer: bytes, token: int, status: int, body: bytes) -> None:
        assert peer == ASKER
        assert token not in self.answers, "answered twice"
        said = msgpack.unpackb(body) if status == 0 else protocol.decode_error(body)
        self.answers[token] = (Status(status), said)

    def _pause(self, seconds: float) -> None:
        self.paused_s += seconds

    def send(
        self,
        command: BackupCommand,
        *,
        partition: int = 0,
        cut: int = 5,
        start: bytes = b"",
        of: int = CLUSTER,
    ) -> int:
        self.token += 1
        self.cuts.on_request(ASKER, BackupRequest(self.token, of, command, partition, cut, start))
        return self.token

    def answer(self, token: int) -> Answer:
        deadline = time.monotonic() + DEADLINE_S
        while token not in self.answers:
            assert time.monotonic() < deadline, "no answer"
            self.reactor.call_later(0.002, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures
        return self.answers.pop(token)

    def ask(self, command: BackupCommand, **fields: Any) -> Answer:
        return self.answer(self.send(command, **fields))

    def said(self, command: BackupCommand, **fields: Any) -> dict[str, Any]:
        status, said = self.ask(command, **fields)
        assert status == Status.OK, said
        return said

    def records(self, cut: int = 5) -> dict[bytes, tuple[Any, ...]]:
        """All pages: key -> value, version, and the expiry of a timed page."""
        found: dict[bytes, tuple[Any, ...]] = {}
        start: bytes | None = b""
        while start is not None:
            page = self.said(READ, cut=cut, start=start)
            assert zlib.crc32(page["records"]) == page["crc"]
            unpacker = msgpack.Unpacker()
            unpacker.feed(page["records"])
            flat, width = list(unpacker), 4 if page["timed"] else 3
            assert len(flat) == page["count"] * width
            rows = [tuple(flat[at : at + width]) for at in range(0, len(flat), width)]
            assert [row[0] for row in rows] == sorted(row[0] for row in rows)
            assert not rows or rows[0][0] >= start
            found |= {row[0]: row[1:] for row in rows}
            start = page["next"]
        return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Nodes 1 to 3 founded partition 0, node 1 leads it and has `k`; node 4 has nothing."""
    yield from founded(tmp_path)


@pytest.fixture
def backups(house: House) -> Iterator[Backups]:
    made = Backups(house)
    yield made
    assert made.cuts.close()


def write(house: House, ops: bytes, number: int = 1) -> None:
    """A write through the leader, applied."""
    now = house.clock.monotonic()
    house.replica(number).propose((ASKER, 999), 0, 0, 0, 0, ops, now + 5, now)
    house.settle()
    assert house.nodes[number].answers.pop(999)[0] == Status.OK


# -- one moment


def test_a_cut_names_its_entry_and_has_all_before_it_and_nothing_after_it(
    house: House, backups: Backups
) -> None:
    for number in range(50):
        house.put(1, b"key%03d" % number, b"before")
    position = house.replica(1).machine.position
    assert backups.said(OPEN) == {
        "node": 1,
        "index": position.index,
        "term": position.term,
        "taken_ms": house.clock.wall_ms(),
    }
    for number in range(0, 50, 2):
        house.put(1, b"key%03d" % number, b"after")
    write(house, protocol.encode_delete(b"key001"))
    house.put(1, b"key999", b"new")
    found = backups.records()
    assert set(found) == {b"k", *(b"key%03d" % number for number in range(50))}
    assert {row[0] for key, row in found.items() if key != b"k"} == {b"before"}


def test_a_cut_stays_through_flush_compaction_snapshot_and_loss_of_leadership(
    house: House, backups: Backups
) -> None:
    house.put(1, b"a", b"1")
    backups.said(OPEN)
    engine = house.replica(1).machine.engine
    for number in range(5):
        house.put(1, b"a", b"%d" % (number + 2))
        engine.flush()
    engine.compact_range()  # type: ignore[attr-defined]  # the replica needs less of an engine than it is
    house.elect(2)
    assert house.replica(1).raft.leader == 2
    assert backups.records() == {b"a": (b"1", 2), b"k": (b"v", 1)}


def test_versions_are_those_of_the_partition_and_keys_are_any_bytes(house: House, backups: Backups) -> None:
    keys = [b"\x00", b"\xff" * 4096, b"{tag}\n", bytes(range(256))]
    for key in keys:
        house.put(1, key, key[::-1])
    backups.said(OPEN)
    found = backups.records()
    assert [found[key] for key in keys] == [(key[::-1], number) for number, key in enumerate(keys, 2)]


def test_a_ttl_is_told_as_the_time_when_the_key_ends(house: House, backups: Backups) -> None:
    began = house.clock.wall_ms()
    write(house, protocol.encode_put(b"timed", b"x", 60_000))
    write(house, protocol.encode_put(b"gone", b"x", 1))
    house.clock.advance(1.0)
    house.tick()
    house.put(1, b"lasting", b"y")
    backups.said(OPEN)
    house.clock.advance(30.0)
    page = backups.said(READ)
    assert (page["count"], page["timed"]) == (3, True)
    found = backups.records()
    assert found[b"timed"][2] == began + 60_000
    assert found[b"lasting"][2] == found[b"k"][2] == 0
    assert b"gone" not in found


def test_large_values_make_small_pages(house: House, backups: Backups) -> None:
    values = {b"v%d" % number: random.Random(number).randbytes(3 << 20) for number in range(3)}
    for key, value in values.items():
        house.put(1, key, value)
    backups.said(OPEN)
    assert backups.said(READ)["count"] == 2, "3 MiB, and k; two of 3 MiB would be over 4"
    found = backups.records()
    assert {key: row[0] for key, row in found.items() if key != b"k"} == values


def test_more_records_than_a_page_holds(
    house: House, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storenode.cutpages.RECORDS_MAX", 10)
    for number in range(35):
        ttl = 60_000 if 10 <= number < 15 else None
        write(house, protocol.encode_put(b"a%02d" % number, b"%d" % number, ttl))
    backups.said(OPEN)
    found = backups.records()
    assert len(found) == 36
    assert [key for key, row in found.items() if len(row) > 2 and row[2]] == [
        b"a%02d" % number for number in range(10, 15)
    ]


# -- who may be asked


def test_only_the_leader_takes_a_cut_and_others_name_it(house: House) -> None:
    follower = Backups(house, 2)
    assert follower.ask(OPEN) == (
        Status.NOT_LEADER,
        {"message": "this store does not lead the partition", "leader": 1},
    )
    assert follower.ask(OPEN, partition=3)[0] == Status.WRONG_REPLICA
    assert follower.ask(OPEN, partition=0xFFFF)[0] == Status.WRONG_REPLICA
    assert follower.ask(OPEN, of=CLUSTER + 1)[0] == Status.INVALID_REQUEST
    follower.cuts.close()


def test_a_leader_that_is_cut_off_takes_no_cut(house: House, backups: Backups) -> None:
    """Another may lead already, and acknowledge what is not here."""
    house.cut_off = {1}
    house.clock.advance(2.0)
    status, said = backups.ask(OPEN)
    assert (status, said["retry_after_ms"]) == (Status.BUSY, UNREADY_MS)
    assert len(backups.cuts) == 0


def test_a_leader_that_has_entries_to_apply_takes_no_cut(house: House, backups: Backups) -> None:
    replica = house.replica(1)
    now = house.clock.monotonic()
    replica.propose((ASKER, 999), 0, 0, 0, 0, protocol.encode_put(b"late", b"x"), now + 5, now)
    apply, replica.apply = replica.apply, lambda *arguments: None  # type: ignore[method-assign]
    house.settle()
    assert replica.machine.position.index < replica.raft.commit
    assert backups.ask(OPEN)[0] == Status.BUSY
    replica.apply = apply  # type: ignore[method-assign]
    house.tick()
    backups.said(OPEN)
    assert b"late" in backups.records()


# -- bounds


def test_an_open_that_is_sent_again_gets_the_same_cut(house: House, backups: Backups) -> None:
    first = backups.said(OPEN)
    house.put(1, b"later", b"x")
    assert backups.said(OPEN) == first
    assert len(backups.cuts) == 1
    assert b"later" not in backups.records()


def test_a_cut_that_is_closed_is_gone_and_closing_is_always_done(backups: Backups) -> None:
    backups.said(OPEN)
    for _ in range(2):
        assert backups.said(CLOSE) == {}
        status, said = backups.ask(READ)
        assert status == Status.CONDITION_FAILED
        assert "no such cut" in said["message"]


def test_there_are_so_many_cuts_and_no_more(backups: Backups) -> None:
    for number in range(CUTS_MAX):
        backups.said(OPEN, cut=number + 1)
    status, said = backups.ask(OPEN, cut=99)
    assert (status, said["retry_after_ms"]) == (Status.BUSY, BUSY_MS)
    backups.said(CLOSE, cut=3)
    backups.said(OPEN, cut=99)


def test_a_cut_that_nobody_reads_goes_and_one_that_is_read_stays_for_an_hour(
    house: House, backups: Backups
) -> None:
    for cut in (1, 2):
        backups.said(OPEN, cut=cut)
    ends = house.clock.monotonic() + LIFE_S
    house.clock.advance(IDLE_S - 1)
    backups.said(READ, cut=2)
    house.clock.advance(1)
    backups.cuts.drop_old()
    assert backups.ask(READ, cut=1)[0] == Status.CONDITION_FAILED
    while house.clock.monotonic() < ends:
        backups.cuts.drop_old()
        backups.said(READ, cut=2)
        house.clock.advance(50)
    backups.cuts.drop_old()
    assert backups.ask(READ, cut=2)[0] == Status.CONDITION_FAILED
    assert len(backups.cuts) == 0


def test_reads_that_wait_are_bounded_and_all_are_answered(
    house: House, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups.said(OPEN)
    tokens = [backups.send(READ) for _ in range(READS_MAX + 3)]
    statuses = [backups.answer(token)[0] for token in tokens]
    assert statuses == [Status.OK] * READS_MAX + [Status.BUSY] * 3
    assert backups.ask(READ)[0] == Status.OK


def test_a_cut_that_is_closed_under_its_reads_answers_them(backups: Backups) -> None:
    backups.said(OPEN)
    tokens = [backups.send(READ) for _ in range(5)]
    backups.send(CLOSE)
    assert {backups.answer(token)[0] for token in tokens} <= {Status.OK, Status.CONDITION_FAILED}
    assert backups.ask(READ)[0] == Status.CONDITION_FAILED


def test_reading_is_slowed_down_to_the_rate(house: House, backups: Backups) -> None:
    house.put(1, b"big", random.Random(1).randbytes(2 * RATE))
    backups.said(OPEN)
    for _ in range(3):
        backups.said(READ)
    backups.cuts.close()  # behind the last pause
    assert backups.paused_s >= 5, "3 pages of 2 s; the first second is saved up"


def test_what_cannot_be_read_is_said_and_harms_nobody(
    house: House, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    backups.said(OPEN)
    with monkeypatch.context() as patch:
        patch.setattr("storenode.cuts.read_page", broken)
        status, said = backups.ask(READ)
    assert status == Status.INTERNAL
    assert "Input/output error" in said["message"]
    assert backups.ask(READ)[0] == Status.OK


# -- hostile bytes


def mutate(frame: bytes, dice: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(data))
        data[at] = dice.choice([data[at] ^ 1 << dice.randrange(8), 0x00, 0xFF, 0xC0, 0x90, 0xC4, 0xCF, 0xC6])
    return bytes(data[: dice.randrange(len(data)) + 1]) if dice.random() < 0.3 else bytes(data)


def test_mutated_frames_are_refused_or_answered(house: House, backups: Backups) -> None:
    seed = random.randrange(1 << 32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    seeds = [
        encode_backup_request(BackupRequest(7, CLUSTER, command, 0, 5, b"key"))
        for command in (OPEN, READ, CLOSE)
    ]
    heard = 0
    for _ in range(5000):
        try:
            request = decode_to_store(mutate(dice.choice(seeds), dice))
        except ProtocolError:
            continue
        if isinstance(request, BackupRequest):
            backups.token += 1
            heard += 1
            backups.cuts.on_request(ASKER, request._replace(token=backups.token))
            backups.answer(backups.token)
            assert len(backups.cuts) <= CUTS_MAX
    assert heard > 100, "most are no request at all"
    house.put(1, b"still", b"there")
    for number in list(backups.cuts._cuts):
        backups.said(CLOSE, cut=number)
    backups.said(OPEN)
    assert backups.records()[b"still"][0] == b"there"
