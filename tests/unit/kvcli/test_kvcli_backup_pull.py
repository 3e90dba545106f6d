"""How a partition is pulled: what is asked again, what begins the partition anew, what ends the job."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvclient.cli import retrying
from kvclient.cli.backupfile import Cut, PartitionReader
from kvclient.cli.backuppull import CUTS_PER_PARTITION_MAX, Pace, Puller, Stopped
from kvclient.cli.backupset import Row
from kvclient.cli.failure import Failure
from kvclient.cli.retrying import Patience
from kvclient.errors import Conflict, Corruption, KVError, KVTimeout, ProtocolError, Unavailable

CLUSTER = "0123456789abcdef"
KEYS = 25
PAGE = 10


class Store:
    """Answers `backup` with pages of ten; each cut is one entry later and has other values. `trouble` is
    called before each answer and may raise, or give another answer.
    """

    def __init__(self, trouble: Callable[[Store, str, tuple[Any, ...]], Any] | None = None) -> None:
        self.cuts: dict[int, int] = {}
        self.opened = 0
        self.asked: list[str] = []
        self._trouble = trouble or (lambda store, verb, arguments: None)

    def admin(self, command: str, *arguments: Any, timeout: float | None = None) -> Any:
        assert command == "backup"
        verb, *rest = arguments
        self.asked.append(verb)
        answer = self._trouble(self, verb, tuple(rest))
        if answer is not None:
            return answer
        if verb == "open":
            assert rest[0] == 7
            self.opened += 1
            self.cuts[rest[1]] = self.opened
            return {"node": 2, "index": self.opened, "term": 1, "taken_ms": 5}
        if verb == "close":
            self.cuts.pop(rest[1], None)
            return {}
        return self.page(rest[1], rest[2])

    def page(self, number: int, start: bytes) -> Row:
        if number not in self.cuts:
            raise Conflict("no such cut")
        keys = [b"k%02d" % at for at in range(KEYS)]
        left = [key for key in keys if key >= start]
        value = b"of cut %d" % self.cuts[number]
        records = b"".join(msgpack.packb(field) for key in left[:PAGE] for field in (key, value, 1))
        return {
            "count": len(left[:PAGE]),
            "timed": False,
            "records": records,
            "crc": zlib.crc32(records),
            "next": left[PAGE] if len(left) > PAGE else None,
        }


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_SECONDS_FIRST", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partition-0007.rkb"


def pull(store: Store, path: Path, patience: Patience | None = None) -> Row:
    patience = patience or Patience(1.0, lambda error: None)
    moved: list[tuple[int, int]] = []
    puller = Puller(
        store.admin,
        CLUSTER,
        {2: "store2"},
        patience,
        Pace(None, patience.stopped),
        lambda records, size: moved.append((records, size)),
    )
    row = puller.pull(7, path)
    assert sum(records for records, _ in moved) == row["records"], "what was thrown away is not counted"
    assert sum(size for _, size in moved) == row["raw_bytes"]
    return row


def values(path: Path, row: Row) -> set[bytes]:
    """The values in the file; it has all keys."""
    cut = Cut(7, CLUSTER, row["index"], row["term"], row["taken_ms"])
    blocks = list(PartitionReader(path, cut, row["bytes"]).blocks())
    records = [record for block in blocks for record in block.records]
    assert [record.key for record in records] == [b"k%02d" % at for at in range(KEYS)]
    return {record.value for record in records}


def once(verb: str, error: KVError | Row, at: int = 2) -> Callable[[Store, str, tuple[Any, ...]], Any]:
    """The `at`th `verb` meets an error, or gets this answer."""

    def trouble(store: Store, asked: str, arguments: tuple[Any, ...]) -> Any:
        if asked == verb and store.asked.count(verb) == at:
            if isinstance(error, KVError):
                raise error
            return error
        return None

    return trouble


def test_a_partition_comes_whole_and_its_cut_is_closed(path: Path) -> None:
    store = Store()
    row = pull(store, path)
    assert (row["node"], row["index"], row["records"]) == ("store2", 1, KEYS)
    assert values(path, row) == {b"of cut 1"}
    assert store.asked == ["open", "read", "read", "read", "close"]
    assert store.cuts == {}


def test_a_page_that_got_lost_or_damaged_is_asked_for_again(path: Path) -> None:
    damaged = {"count": 1, "timed": False, "records": b"\xc4\x01k\xc4\x01v\x01", "crc": 1, "next": None}
    for error in (KVTimeout("slow"), damaged):
        store = Store(once("read", error))
        row = pull(store, path)
        assert values(path, row) == {b"of cut 1"}
        assert store.asked == ["open", *["read"] * 4, "close"]


def test_a_cut_that_is_gone_begins_the_partition_anew(path: Path) -> None:
    """Nothing of the first cut is in the file."""
    for error in (Conflict("no such cut"), Unavailable("store2 cannot be reached")):
        store = Store(once("read", error))
        row = pull(store, path)
        assert (row["index"], row["records"]) == (2, KEYS)
        assert values(path, row) == {b"of cut 2"}
        assert store.asked == ["open", "read", "read", "close", "open", "read", "read", "read", "close"]


def test_a_partition_that_never_ends_is_given_up(path: Path) -> None:
    def trouble(store: Store, verb: str, arguments: tuple[Any, ...]) -> None:
        if verb == "read" and arguments[2]:
            raise Conflict("no such cut")

    store = Store(trouble)
    with pytest.raises(Failure, match=r"partition 7 was begun 5 times .* no such cut"):
        pull(store, path)
    assert store.opened == CUTS_PER_PARTITION_MAX


def test_what_does_not_mend_ends_it_at_once_and_closes_the_cut(path: Path) -> None:
    for answer in (
        Corruption("damaged"),
        {"count": 1, "timed": False, "records": b"", "crc": 0, "next": None},
        {"count": 0, "timed": False, "records": b"", "crc": 0, "next": b""},
        {"count": 0, "timed": False, "records": "", "crc": 0, "next": None},
        {"timed": False, "records": b"", "crc": 0, "next": None},
        {},
    ):
        store = Store(once("read", answer, at=1))
        with pytest.raises((Corruption, ProtocolError)):
            pull(store, path)
        assert store.cuts == {}
        assert store.asked == ["open", "read", "close"]


def test_a_cluster_that_stays_away_ends_it(path: Path) -> None:
    def trouble(store: Store, verb: str, arguments: tuple[Any, ...]) -> None:
        raise Unavailable("nobody leads")

    store = Store(trouble)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        pull(store, path, Patience(0.05, lambda error: None))
    assert time.monotonic() - began < 5
    assert set(store.asked) == {"open"}


def test_a_job_that_is_stopped_ends_with_the_page(path: Path) -> None:
    patience = Patience(1.0, lambda error: None)

    def trouble(store: Store, verb: str, arguments: tuple[Any, ...]) -> None:
        if verb == "read":
            patience.stop()

    store = Store(trouble)
    with pytest.raises(Stopped):
        pull(store, path, patience)
    assert store.asked == ["open", "read", "close"]


def test_the_pace_is_of_all_threads_and_ends_with_the_job() -> None:
    stopped = threading.Event()
    pace = Pace(1 << 20, stopped)
    began = time.monotonic()
    pace.take(1 << 17)
    assert time.monotonic() - began >= 0.12
    threads = [threading.Thread(target=pace.take, args=(1 << 30,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    stopped.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
