"""The short way of a put: the same as the long one, or nothing."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import storenode.engine
from kvclient.errors import InvalidRequest
from kvclient.protocol import encode_put
from storenode.engine import Engine, EngineFailed, Options, Shared
from storenode.engine.codec import wal_scan
from storenode.engine.vfs import File, Vfs
from storenode.engine.wal import HEADER_BYTES, Entry, LogWriter

LONG_WAY_FIRST = b"first"


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Entry]]:
    """The entries that went to the log by the long way."""
    seen: list[Sequence[Entry]] = []
    append = LogWriter.append

    def spy(log: LogWriter, entries: Sequence[Entry], *, sync: bool) -> int:
        seen.append(entries)
        return append(log, entries, sync=sync)

    monkeypatch.setattr(LogWriter, "append", spy)
    return seen


def log_entries(directory: Path) -> list[tuple[int, bytes]]:
    """(first_sequence, ops) of the newest log, in order."""
    path = max(directory.glob("*.wal"))
    entries, end = wal_scan(path.read_bytes(), int(path.stem), HEADER_BYTES)
    assert end == path.stat().st_size
    return [(sequence, ops) for sequence, _, ops in entries]


def test_the_short_way_logs_and_applies_what_the_long_one_does(
    tmp_path: Path, long_ways: list[Sequence[Entry]]
) -> None:
    pairs = [(b"key%03d" % number, bytes([number]) * (number * 16)) for number in range(250)]
    with storenode.engine.open(str(tmp_path)) as engine:
        for key, value in pairs:
            engine.put(key, value)
        assert len(long_ways) < 25, "only the first put, and where the log or the memtable takes room"
        assert engine.next_sequence == len(pairs) + 1
        assert engine.scan() == pairs
    assert log_entries(tmp_path) == [
        (number, encode_put(key, value)) for number, (key, value) in enumerate(pairs, 1)
    ]
    with storenode.engine.open(str(tmp_path)) as engine:
        assert engine.scan() == pairs
        assert engine.next_sequence == len(pairs) + 1


def test_a_full_log_and_a_full_memtable_end_the_short_way(tmp_path: Path) -> None:
    options = Options(memtable_bytes=16 << 10)
    with storenode.engine.open(str(tmp_path), options=options) as engine:
        for number in range(5000):
            engine.put(b"%06d" % (number % 700), b"%d" % number)
        engine.flush()
        assert engine.stats()["flushes"] > 5
        assert dict(engine.scan()) == {b"%06d" % (n % 700): b"%d" % n for n in range(4300, 5000)}


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (b"", b"v", InvalidRequest),
        (b"k" * 70_000, b"v", InvalidRequest),
        ("text", b"v", InvalidRequest),
        (b"k", "text", InvalidRequest),
    ],
    ids=["no key", "long key", "key is text", "value is text"],
)
def test_what_is_no_put_is_refused_as_ever(
    tmp_path: Path, key: bytes, value: bytes, error: type[Exception]
) -> None:
    with storenode.engine.open(str(tmp_path)) as engine:
        engine.put(LONG_WAY_FIRST, b"")
        with pytest.raises(error):
            engine.put(key, value)
        assert engine.scan() == [(LONG_WAY_FIRST, b"")]
        engine.put(b"after", b"")
        assert engine.next_sequence == 3


class HeldFile(File):
    """A file whose sync waits until it may go on."""

    holds = False
    held = False
    entered = threading.Event()
    go_on = threading.Event()

    def sync(self) -> None:
        if HeldFile.holds:
            HeldFile.held = True
            HeldFile.entered.set()
            try:
                assert HeldFile.go_on.wait(20)
            finally:
                HeldFile.held = False
        super().sync()


class HeldFiles(Vfs):
    def create(self, path: str) -> File:
        return HeldFile(path, super().create(path).fd)


@contextlib.contextmanager
def held_files(path: Path) -> Iterator[Engine]:
    """An engine whose syncs wait while `HeldFile.holds`."""
    HeldFile.entered.clear()
    HeldFile.go_on.clear()
    with contextlib.closing(Shared(str(path), vfs=HeldFiles())) as shared:
        engine = storenode.engine.open(str(path / "engine"), shared=shared)
        try:
            yield engine
        finally:
            HeldFile.holds = False
            HeldFile.go_on.set()
            engine.close()


def test_what_is_put_while_the_log_is_synced_is_not_taken_for_synced(tmp_path: Path) -> None:
    with held_files(tmp_path) as engine:
        engine.put(LONG_WAY_FIRST, b"")
        engine.put(b"before", b"")
        before = engine.stats()["log_bytes"]
        HeldFile.holds = True
        syncing = threading.Thread(target=engine._log.sync)
        syncing.start()
        assert HeldFile.entered.wait(20)
        engine.put(b"during", b"")
        HeldFile.go_on.set()
        syncing.join(20)
        assert engine.synced == before < engine.length


def test_a_log_that_is_begun_while_the_one_before_it_is_synced_is_not_taken_for_synced(
    tmp_path: Path,
) -> None:
    with held_files(tmp_path) as engine:
        engine.background.stop()
        engine.put(LONG_WAY_FIRST, b"")
        HeldFile.holds = True
        syncing = threading.Thread(target=engine._log.sync)
        syncing.start()
        assert HeldFile.entered.wait(20)
        engine.retire_memtable()
        engine.put(b"begins a log", b"")
        HeldFile.go_on.set()
        syncing.join(20)
        assert engine.synced == 0
        engine._log.sync()
        assert engine.synced == engine.length


def test_no_put_waits_for_a_sync_before_a_flush_nor_does_one_that_begins_a_log(tmp_path: Path) -> None:
    with held_files(tmp_path) as engine:
        engine.put(LONG_WAY_FIRST, b"")
        HeldFile.holds = True
        engine.retire_memtable()  # a worker begins with the sync
        assert HeldFile.entered.wait(20)
        for number in range(3):
            engine.write(encode_put(b"%d" % number, b"begins a log"))
            engine.put(b"%d" % number, b"short")
            if number < 2:
                engine.retire_memtable()
        assert HeldFile.held
        assert engine.synced == 0
        newest = engine._log.number
        HeldFile.go_on.set()
        engine.flush()
        assert engine._log.number == newest
        assert engine.synced == engine.length
        assert len(engine.scan()) == 4


def test_a_put_keeps_out_while_another_thread_appends(tmp_path: Path) -> None:
    with held_files(tmp_path) as engine:
        engine.put(LONG_WAY_FIRST, b"")
        HeldFile.holds = True
        appending = threading.Thread(target=engine.append, args=([(2, 1, encode_put(b"k", b"v"))],))
        appending.start()
        assert HeldFile.entered.wait(20)
        with pytest.raises(RuntimeError, match="two threads"):
            engine.put(b"other", b"")
        HeldFile.go_on.set()
        appending.join(20)
        assert engine.next_sequence == 2


LIMITED = """
import resource, sys
import storenode.engine
from storenode.engine import EngineFailed
engine = storenode.engine.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
number = 0
try:
    while True:
        engine.put(b"%06d" % number, b"v" * 100)
        number += 1
except EngineFailed:
    print(number)
"""


def test_a_write_that_stops_half_way_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, timeout=60, check=True
    )
    acknowledged = int(done.stdout)
    assert acknowledged > 50
    with storenode.engine.open(str(tmp_path)) as engine:
        found = engine.scan()
    assert acknowledged <= len(found) <= acknowledged + 1, "of the put that failed nothing is known"
    assert found == [(b"%06d" % number, b"v" * 100) for number in range(len(found))]


PUTTING = """
import sys
import storenode.engine
engine = storenode.engine.open(sys.argv[1])
number = 0
while True:
    engine.put(b"%08d" % number, b"v" * 100)
    number += 1
    if number % 5000 == 0:
        print(number, flush=True)
"""


def test_kill_9_loses_no_put_that_returned(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PUTTING, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(20)][-1]
        child.kill()
    with storenode.engine.open(str(tmp_path)) as engine:
        found = engine.scan()
    assert len(found) >= acknowledged
    assert found == [(b"%08d" % number, b"v" * 100) for number in range(len(found))]


def test_a_broken_engine_takes_no_short_way(tmp_path: Path) -> None:
    engine: Engine = storenode.engine.open(str(tmp_path))
    try:
        engine.put(LONG_WAY_FIRST, b"")
        engine.background.broken = "broken on purpose"
        with pytest.raises(EngineFailed, match="on purpose"):
            engine.put(b"k", b"")
        assert engine.get(b"k") is None
    finally:
        engine.background.broken = None
        engine.close()
