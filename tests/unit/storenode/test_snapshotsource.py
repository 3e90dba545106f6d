"""Who gives snapshots away: how many, how fast, for how long, and what is left of them (nothing)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvclient.errors import ProtocolError, Status, Unavailable
from shared.clock import ManualClock
from shared.reactor import Reactor
from storenode import snapshotsource
from storenode.bulkprotocol import (
    Answer,
    Chunk,
    Close,
    Closed,
    Open,
    Opened,
    Read,
    Refusal,
    Request,
    decode_answer,
    encode_request,
)
from storenode.engine import codec
from storenode.engine.vfs import Vfs
from storenode.snapshotsource import IDLE_S, PREPARING_MS, READS_MAX, BulkSource, Made
from tests.unit.storenode.bulkworld import sizes, write_files

DEADLINE_S = 10.0
RATE = 1 << 20
KIB = 1 << 10


class Source:
    """A source on a clock that only its own pauses and the test move."""

    def __init__(self, root: Path) -> None:
        self.root = root / "snapshots"
        self.clock = ManualClock(monotonic=1000.0)
        self.reactor = Reactor()
        self.files = {"a.sst": os.urandom(600 * KIB), "manifest/data.mdb": os.urandom(100)}
        self.applied = 10
        self.refusal: Exception | None = None
        self.answers: list[Answer] = []
        self.token = 0
        self.paused_s = 0.0
        self.source = self.start()

    def start(self) -> BulkSource:
        return BulkSource(
            self.reactor,
            self.make,
            lambda peer, body: self.answers.append(decode_answer(body)),
            str(self.root),
            Vfs(),
            self.clock,
            bytes_per_second=RATE,
            pause=self.pause,
        )

    def make(self, group: int, directory: str) -> Made:
        write_files(directory, self.files)
        if self.refusal is not None:
            raise self.refusal
        return Made(self.applied, b"state", sizes(self.files))

    def pause(self, seconds: float) -> None:
        self.paused_s += seconds
        self.clock.advance(seconds)

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what}"
            self.turn()
        assert not self.reactor.failures

    def turn(self) -> None:
        self.reactor.call_later(0.002, lambda: None)
        self.reactor._turn()

    def ask(self, request: Request) -> Answer:
        self.source.on_request(b"peer", encode_request(request))
        self.until(lambda: self.answers, "answer")
        return self.answers.pop(0)

    def open(self, group: int = 1, *, node: int = 2, at_least: int = 1) -> Answer:
        self.token += 1
        return self.ask(Open(self.token, group, at_least, node))

    def opened(self, group: int = 1, *, node: int = 2, at_least: int = 1) -> Opened:
        """Ask until it is prepared."""
        while not isinstance(answer := self.open(group, node=node, at_least=at_least), Opened):
            assert isinstance(answer, Refusal)
            assert (answer.status, answer.retry_after_ms) == (Status.BUSY, PREPARING_MS), answer
            self.turn()
        return answer

    def read(self, snapshot: int, name: str, offset: int, length: int) -> Answer:
        self.token += 1
        return self.ask(Read(self.token, snapshot, name, offset, length))

    def directories(self) -> list[str]:
        return sorted(os.listdir(self.root))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Source]:
    source = Source(tmp_path)
    yield source
    assert source.source.close()
    source.reactor.close()


def test_a_snapshot_is_named_summed_and_read_as_it_was_made(made: Source) -> None:
    opened = made.opened()
    assert opened.state == b"state"
    assert {file.name: (file.size, file.crc) for file in opened.files} == {
        name: (len(content), codec.masked_crc32c(content)) for name, content in made.files.items()
    }
    chunk = made.read(opened.snapshot, "a.sst", 1000, 5000)
    assert isinstance(chunk, Chunk)
    assert chunk.data == made.files["a.sst"][1000:6000]
    assert chunk.crc == codec.masked_crc32c(chunk.data)


def test_what_is_not_in_a_snapshot_is_not_read(made: Source) -> None:
    opened = made.opened()
    for name, offset, length, status in (
        ("b.sst", 0, 1, Status.NOT_FOUND),
        ("a.sst", 600 * KIB, 1, Status.INVALID_REQUEST),
        ("a.sst", 600 * KIB - 1, 2, Status.INVALID_REQUEST),
    ):
        answer = made.read(opened.snapshot, name, offset, length)
        assert isinstance(answer, Refusal)
        assert answer.status == status
    other = made.read(opened.snapshot + 1, "a.sst", 0, 1)
    assert isinstance(other, Refusal)
    assert other.status == Status.NOT_FOUND
    with pytest.raises(ProtocolError):
        made.source.on_request(b"peer", b"\xc0")


def test_nobody_gets_more_bytes_than_the_bucket_allows(made: Source) -> None:
    begin = made.clock.monotonic()
    opened = made.opened()
    count = 100
    for _ in range(count):
        answer = made.read(opened.snapshot, "a.sst", 0, 500 * KIB)
        assert isinstance(answer, Chunk)
    made.read(opened.snapshot, "a.sst", 0, 1)  # its answer comes after the pause for those before
    elapsed = made.clock.monotonic() - begin
    summed = sum(map(len, made.files.values()))
    burst = 1 << 20
    assert made.paused_s == pytest.approx(elapsed)
    assert elapsed == pytest.approx((summed + count * 500 * KIB - burst) / RATE, rel=0.02)


def test_at_most_two_are_served_and_the_next_one_waits_its_turn(made: Source) -> None:
    first, _ = made.opened(1), made.opened(2)
    refused = made.open(3)
    assert isinstance(refused, Refusal)
    assert refused.status == Status.BUSY
    assert refused.retry_after_ms > 0
    assert len(made.directories()) == 2
    assert isinstance(made.ask(Close(99, first.snapshot, 2)), Closed)
    made.opened(3)
    made.until(lambda: [name[:4] for name in made.directories()] == ["0002", "0003"], "removal")


def test_who_asks_for_the_same_group_shares_a_snapshot_until_the_last_one_closes_it(made: Source) -> None:
    first = made.opened(node=2)
    second = made.opened(node=3)
    assert first.snapshot == second.snapshot
    assert made.source.made == 1
    made.ask(Close(98, first.snapshot, 2))
    made.ask(Close(98, first.snapshot, 2))
    assert isinstance(made.read(first.snapshot, "a.sst", 0, 1), Chunk)
    made.ask(Close(99, first.snapshot, 3))
    assert isinstance(made.read(first.snapshot, "a.sst", 0, 1), Refusal)
    made.until(lambda: not made.directories(), "removal")


def test_a_snapshot_that_is_too_old_is_not_given(made: Source) -> None:
    old = made.opened(node=3, at_least=10)
    made.applied = 20
    new = made.opened(node=4, at_least=11)
    assert new.snapshot != old.snapshot
    assert made.source.pinned(1) == 10
    refused = made.open(1, at_least=21)
    assert isinstance(refused, Refusal)
    assert refused.status == Status.BUSY
    made.ask(Close(99, old.snapshot, 3))
    assert made.source.pinned(1) == 20
    refused = made.open(1, at_least=21)
    assert isinstance(refused, Refusal)
    assert refused.status == Status.UNAVAILABLE
    assert made.source.pinned(2) is None
    made.until(lambda: len(made.directories()) == 1, "removal of what was not given")


def test_a_node_that_restarts_again_and_again_takes_one_place_for_each_group(made: Source) -> None:
    """It had missed more after each start; what it had begun to pull before kept the places for a minute."""
    for applied in range(10, 15):
        made.applied = applied
        newest = made.opened(1, at_least=applied)
    assert made.source.pinned(1) == 14
    assert isinstance(made.read(newest.snapshot, "a.sst", 0, 1), Chunk)
    made.opened(2)
    made.until(lambda: [name[:4] for name in made.directories()] == ["0001", "0002"], "removal")


def test_a_snapshot_that_nobody_reads_is_removed_and_one_that_is_read_stays(made: Source) -> None:
    idle, read = made.opened(1), made.opened(2)
    made.clock.advance(IDLE_S - 1)
    made.read(read.snapshot, "a.sst", 0, 1)
    made.source.drop_idle()
    assert made.source.figures()["snapshots_served"] == 2
    made.clock.advance(2)
    made.source.drop_idle()
    assert isinstance(made.read(idle.snapshot, "a.sst", 0, 1), Refusal)
    assert isinstance(made.read(read.snapshot, "a.sst", 0, 1), Chunk)
    made.until(lambda: [name[:4] for name in made.directories()] == ["0002"], "removal")


def test_idle_snapshots_are_looked_for_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotsource, "_CHECK_S", 0.01)
    source = Source(tmp_path)
    source.opened()
    source.clock.advance(IDLE_S)
    source.until(lambda: not source.directories(), "removal")
    assert source.source.close()
    source.reactor.close()


def test_what_an_earlier_process_left_is_removed_at_the_start(made: Source) -> None:
    made.opened()
    assert made.source.close()
    assert len(made.directories()) == 1
    write_files(str(made.root), {"0009-x/manifest/data.mdb": b"x", "0009-x/1.sst": b"y"})
    made.source = made.start()
    assert made.directories() == []


@pytest.mark.parametrize("error", [Unavailable("no leader"), OSError(28, "No space left on device")])
def test_a_snapshot_that_cannot_be_made_is_a_refusal_and_leaves_nothing(
    made: Source, error: Exception
) -> None:
    made.refusal = error
    refused = made.open()
    assert isinstance(refused, Refusal)
    assert refused.status == Status.UNAVAILABLE
    assert str(error) in refused.message
    made.until(lambda: not made.directories(), "removal")
    assert made.source.figures()["snapshots_served"] == 0
    made.refusal = None
    made.opened()


def test_a_file_that_cannot_be_read_ends_that_snapshot_only(made: Source) -> None:
    opened, other = made.opened(1), made.opened(2)
    (directory,) = [name for name in made.directories() if name.startswith("0001")]
    os.truncate(made.root / directory / "a.sst", 100)
    answer = made.read(opened.snapshot, "a.sst", 0, 200)
    assert isinstance(answer, Refusal)
    assert answer.status == Status.UNAVAILABLE
    made.until(lambda: made.source.figures()["snapshots_served"] == 1, "end of the snapshot")
    assert isinstance(made.read(other.snapshot, "a.sst", 0, 200), Chunk)
    assert made.source.failed == 1


def test_reads_that_pile_up_are_refused(made: Source) -> None:
    opened = made.opened()
    for token in range(READS_MAX + 10):
        made.source.on_request(b"peer", encode_request(Read(token, opened.snapshot, "a.sst", 0, 10)))
    made.until(lambda: len(made.answers) == READS_MAX + 10, "answers")
    refused = [answer for answer in made.answers if isinstance(answer, Refusal)]
    assert [answer.token for answer in refused] == list(range(READS_MAX, READS_MAX + 10))
    assert all(answer.status == Status.BUSY for answer in refused)
    made.answers.clear()
    assert isinstance(made.read(opened.snapshot, "a.sst", 0, 1), Chunk)
