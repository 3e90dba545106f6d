"""The import engine: acknowledged prefixes, retries, rejects, and continuing exactly behind what is done."""

from __future__ import annotations

import io
import json
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvclient.cli import importer
from kvclient.cli.importer import Done, Importer, RejectFile
from kvclient.cli.records import FormatError, Item, LinesReader, Reject
from kvclient.cli.retrying import Patience
from kvclient.errors import (
    ConnectError,
    InvalidRequest,
    KVError,
    OutcomeUnknown,
    ReadOnly,
    Unavailable,
    ValueTooLarge,
)


class Cluster:
    """Takes puts; `trouble` decides per item which error it meets, or raises for the request."""

    def __init__(
        self, trouble: Callable[[dict[bytes, bytes]], dict[bytes, KVError]] = lambda items: {}
    ) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.batches: list[list[bytes]] = []
        self._trouble = trouble
        self._lock = threading.Lock()

    def put_many(self, items: dict[bytes, bytes]) -> Cluster.Result:
        failed = self._trouble(items)
        with self._lock:
            self.batches.append(list(items))
            self.keys.update((key, value) for key, value in items.items() if key not in failed)
        return Cluster.Result([(index, failed[key]) for index, key in enumerate(items) if key in failed])

    class Result:
        def __init__(self, errors: list[tuple[int, KVError]]) -> None:
            self.errors = errors


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "BATCH_RECORDS", 10)


def words(count: int) -> bytes:
    return b"".join(b"w%06d\n" % number for number in range(count))


def run(cluster: Cluster, data: bytes, path: Path, done: Done | None = None, patience: float = 5.0) -> Done:
    done = done or Done()
    file = io.BytesIO(data)
    file.seek(done.mark.get("offset", 0))
    rejects = RejectFile(path / "rejects", done.rejects_size)
    try:
        Importer(
            cluster.put_many, Patience(patience, lambda error: None), done, rejects, lambda done: None
        ).run(LinesReader(file, done.mark))
    finally:
        rejects.close()
    return done


def reject_lines(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in (path / "rejects").read_bytes().splitlines()]


def test_everything_arrives_and_is_counted(tmp_path: Path) -> None:
    cluster = Cluster()
    done = run(cluster, words(95), tmp_path)
    assert sorted(cluster.keys) == words(95).split()
    assert (done.imported, done.rejected, done.offset) == (95, 0, len(words(95)))
    assert not (tmp_path / "rejects").exists()


def test_bad_records_go_to_the_reject_file_in_order(tmp_path: Path) -> None:
    data = words(15) + b"\n" + b"x" * 5000 + b"\n" + words(3) + b"\n"
    done = run(Cluster(), data, tmp_path)
    assert reject_lines(tmp_path) == [16, 17, 21]
    assert (done.imported, done.rejected) == (18, 3)


def test_transient_failures_are_retried(tmp_path: Path) -> None:
    left = {"tries": 5}
    lock = threading.Lock()

    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        with lock:
            left["tries"] -= 1
            remaining = left["tries"]
        if remaining == 3:
            raise ConnectError("nobody there")
        if remaining > 0:
            return {key: OutcomeUnknown("who knows") for key in list(items)[::2]}
        return {}

    cluster = Cluster(trouble)
    assert run(cluster, words(40), tmp_path).imported == 40
    assert sorted(cluster.keys) == words(40).split()


def test_only_failed_items_are_sent_again(tmp_path: Path) -> None:
    first: set[bytes] = set()

    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        failed: dict[bytes, KVError] = {
            k: Unavailable("away") for k in items if k == b"w000003" and k not in first
        }
        first.update(items)
        return failed

    cluster = Cluster(trouble)
    run(cluster, words(10), tmp_path)
    assert cluster.batches[1:] == [[b"w000003"]]


def test_what_the_cluster_refuses_is_rejected_with_its_line(tmp_path: Path) -> None:
    cluster = Cluster(lambda items: {key: ValueTooLarge("too large") for key in items if key == b"w000012"})
    done = run(cluster, words(20), tmp_path)
    assert reject_lines(tmp_path) == [13]
    assert (done.imported, done.rejected) == (19, 1)


def test_a_request_refused_as_a_whole_is_taken_apart(tmp_path: Path) -> None:
    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        if b"w000012" in items:
            raise InvalidRequest("something in here")
        return {}

    cluster = Cluster(trouble)
    done = run(cluster, words(20), tmp_path)
    assert reject_lines(tmp_path) == [13]
    assert (done.imported, len(cluster.keys)) == (19, 19)


def test_permanent_errors_end_it_at_once_and_done_is_a_prefix(tmp_path: Path) -> None:
    cluster = Cluster(lambda items: {key: ReadOnly("disk full") for key in items if key == b"w000045"})
    done = Done()
    with pytest.raises(ReadOnly):
        run(cluster, words(100), tmp_path, done)
    assert done.imported == done.mark["line"] == 40
    assert words(100).split()[:40] == sorted(cluster.keys)[:40]


def test_patience_ends(tmp_path: Path) -> None:
    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        run(Cluster(trouble), words(1), tmp_path, patience=0.05)


def test_continuing_sends_nothing_acknowledged_again(tmp_path: Path) -> None:
    data = words(25) + b"\n" + words(200)[200:]
    lines = data.count(b"\n")
    failing = Cluster(lambda items: {key: ReadOnly("full") for key in items if key == b"w000077"})
    done = Done()
    with pytest.raises(ReadOnly):
        run(failing, data, tmp_path, done)
    acknowledged = data.splitlines()[: done.mark["line"]]
    assert 60 <= len(acknowledged) < 80
    state = json.loads(json.dumps(done.state()))
    working = Cluster()
    done = run(working, data, tmp_path, Done(state))
    assert not set(acknowledged) & {key for batch in working.batches for key in batch}
    assert sorted({*failing.keys, *working.keys}) == words(200).split()
    assert (done.imported, done.rejected) == (lines - 1, 1)
    assert reject_lines(tmp_path) == [26]


def test_rejects_written_behind_the_state_are_not_doubled(tmp_path: Path) -> None:
    rejects = RejectFile(tmp_path / "rejects")
    data = b"\n\n" + words(30)
    run(Cluster(), data, tmp_path)
    before = (tmp_path / "rejects").read_bytes()
    rejects.close()
    run(Cluster(), data, tmp_path, Done({"rejects_size": len(before) // 2, "mark": {}}))
    assert len((tmp_path / "rejects").read_bytes()) == len(before) // 2 + len(before)


def test_the_last_record_of_a_key_wins(tmp_path: Path) -> None:
    """Batches with a common key never overlap in time."""
    flying: list[set[bytes]] = []
    lock = threading.Lock()
    overlaps: list[object] = []
    proceed = threading.Event()

    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        mine = set(items)
        with lock:
            overlaps.extend(mine & other for other in flying if mine & other)
            flying.append(mine)
        proceed.wait(0.01)
        with lock:
            flying.remove(mine)
        return {}

    def lines() -> Iterator[bytes]:
        for number in range(30):
            yield b"same\n"
            yield from (b"k%d-%d\n" % (number, n) for n in range(9))

    cluster = Cluster(trouble)
    assert run(cluster, b"".join(lines()), tmp_path).imported == 300
    assert overlaps == []
    assert len(cluster.batches) == 30


def test_what_is_readable_in_front_of_a_bad_end_is_loaded(tmp_path: Path) -> None:
    class Torn(LinesReader):
        def __iter__(self) -> Iterator[Item]:
            yield from super().__iter__()
            raise FormatError("cut off")

    cluster = Cluster()
    done = Done()
    load = Importer(
        cluster.put_many, Patience(5, lambda error: None), done, RejectFile(tmp_path / "r"), lambda done: None
    )
    with pytest.raises(FormatError):
        load.run(Torn(io.BytesIO(words(25)), {}))
    assert sorted(cluster.keys) == words(25).split()
    assert done.imported == 25


def test_at_most_the_window_is_in_flight(tmp_path: Path) -> None:
    flying = []
    peak = []
    lock = threading.Lock()
    pause = threading.Event()

    def trouble(items: dict[bytes, bytes]) -> dict[bytes, KVError]:
        with lock:
            flying.append(1)
            peak.append(len(flying))
        pause.wait(0.005)
        with lock:
            flying.pop()
        return {}

    run(Cluster(trouble), words(300), tmp_path)
    assert 1 < max(peak) <= importer.IN_FLIGHT


def test_rejects_cut_off_by_a_full_disk_are_written_again_whole(tmp_path: Path) -> None:
    rejects = RejectFile(tmp_path / "rejects")
    bad = [Reject(number, "bad", b"x" * 100) for number in (1, 2)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError, match="rejects"):
            rejects.write(bad)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rejects.size == 0
    rejects.write(bad)
    rejects.close()
    assert reject_lines(tmp_path) == [1, 2]
    assert rejects.size == (tmp_path / "rejects").stat().st_size
