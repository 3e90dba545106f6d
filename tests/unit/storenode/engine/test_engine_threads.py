"""Reads from other threads, while one writes and workers flush and compact: always whole, always one
moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, EngineClosed, Options, Shared
from storenode.engine.view import View

KEYS = [b"key-%03d" % number for number in range(60)]
ROUNDS = 150
TINY = Options(
    memtable_bytes=16 << 10,
    table_bytes=8 << 10,
    base_bytes=16 << 10,
    block_bytes=256,
    level_ratio=2,
    level0_trigger=2,
)


def value_of(round_: int) -> bytes:
    return b"%06d" % round_ * 12


def round_of(value: bytes | None) -> int:
    """Which round wrote a value; AssertionError if no round did."""
    assert value is not None, "vanished"
    round_ = int(value[:6])
    assert value == value_of(round_), "torn"
    return round_


def only_one(values: list[bytes | None]) -> int:
    rounds = {round_of(value) for value in values}
    assert len(rounds) == 1, f"of several moments: {sorted(rounds)}"
    return rounds.pop()


def by_get(engine: Engine) -> int:
    return min(round_of(engine.get(key)) for key in KEYS[::7])


def by_multi_get(engine: Engine) -> int:
    return only_one(engine.multi_get(KEYS))


def by_scan(engine: Engine) -> int:
    pairs = engine.scan()
    assert [key for key, _ in pairs] == KEYS
    return only_one([value for _, value in pairs])


def by_scan_back(engine: Engine) -> int:
    pairs = engine.scan(KEYS[10], KEYS[50], reverse=True)
    assert [key for key, _ in pairs] == KEYS[10:50][::-1]
    return only_one([value for _, value in pairs])


def by_read(engine: Engine) -> int:
    ops = b"".join(map(protocol.encode_get, KEYS[::3]))
    return only_one([result[1] for result in protocol.decode_results(engine.read(ops, 1))])


def by_snapshot(engine: Engine) -> int:
    with engine.snapshot() as snapshot:
        found = only_one([value for _, value in snapshot.scan()])
        assert [round_of(snapshot.get(key)) for key in KEYS[::9]] == [found] * len(KEYS[::9])
        assert only_one([value for _, value in snapshot.scan(reverse=True)]) == found
    return found


class Reader(threading.Thread):
    """Reads in one way until it is told to stop; what it finds never goes back."""

    def __init__(self, engine: Engine, ways: list[Callable[[Engine], int]]) -> None:
        super().__init__()
        self.engine = engine
        self.ways = ways
        self.stop = False
        self.reads = 0
        self.last = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop:
                for way in self.ways:
                    found = way(self.engine)
                    assert found >= self.last, f"{way.__name__} went back from {self.last} to {found}"
                    self.last = found
                    self.reads += 1
                self.engine.stats()
                self.engine.pressure()
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.error = error


def write_rounds(engine: Engine, first: int, count: int) -> None:
    """Each round is one entry, in which every key gets the same value."""
    for round_ in range(first, first + count):
        engine.write(b"".join(protocol.encode_put(key, value_of(round_)) for key in KEYS))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_readers_see_every_entry_as_a_whole_and_never_go_back(tmp_path: Path, cache_bytes: int) -> None:
    shared = Shared(str(tmp_path), cache_bytes=cache_bytes, open_files=2)
    with engine_package.open(str(tmp_path / "e"), options=TINY, shared=shared) as engine:
        write_rounds(engine, 1, 1)
        readers = [
            Reader(engine, [by_get, by_multi_get]),
            Reader(engine, [by_scan, by_read]),
            Reader(engine, [by_snapshot, by_scan_back, by_get]),
        ]
        for reader in readers:
            reader.start()
        round_ = 2
        while round_ <= ROUNDS or not all(reader.reads >= 20 or reader.error for reader in readers):
            write_rounds(engine, round_, 1)
            round_ += 1
        for reader in readers:
            reader.stop = True
        for reader in readers:
            reader.join()
        assert [reader.error for reader in readers] == [None] * len(readers)
        assert engine.counters.flushes > 5
        assert engine.counters.compactions > 1
        assert by_scan(engine) == by_get(engine) == round_ - 1
    shared.close()


def test_an_entry_that_is_being_applied_is_not_seen(tmp_path: Path) -> None:
    """Its memtable has it, but nobody may see half of it: not even `get`, which would go back afterwards."""
    with engine_package.open(str(tmp_path), options=TINY) as engine:
        write_rounds(engine, 1, 1)
        ops = b"".join(protocol.encode_put(key, value_of(2)) for key in KEYS)
        engine._view().apply(ops, engine.next_sequence, 1)
        for way in (by_get, by_multi_get, by_scan, by_scan_back, by_read, by_snapshot):
            assert way(engine) == 1
        engine.next_sequence += len(KEYS)
        for way in (by_get, by_multi_get, by_scan, by_scan_back, by_read, by_snapshot):
            assert way(engine) == 2


def test_closing_under_readers_ends_them_with_a_clear_error(tmp_path: Path) -> None:
    engine = engine_package.open(str(tmp_path), options=TINY)
    write_rounds(engine, 1, 30)
    engine.flush()
    readers = [Reader(engine, [by_multi_get, by_scan]), Reader(engine, [by_get]), Reader(engine, [by_read])]
    for reader in readers:
        reader.start()
    while not all(reader.reads or reader.error for reader in readers):
        write_rounds(engine, 30, 1)
    engine.close()
    for reader in readers:
        reader.join()
        assert isinstance(reader.error, EngineClosed), reader.error


@pytest.mark.parametrize("way", [by_multi_get, by_scan, by_scan_back, by_read, by_snapshot])
def test_what_is_compacted_away_while_a_read_begins_is_not_missed(
    tmp_path: Path, way: Callable[[Engine], int]
) -> None:
    """With a sequence from before and a view from after, the version that it may see would be gone."""
    with engine_package.open(str(tmp_path), options=TINY) as engine, pytest.MonkeyPatch.context() as patch:
        write_rounds(engine, 1, 1)
        moment_of_now = engine.moment

        def moment_after_a_compaction() -> tuple[View, int]:
            patch.undo()
            write_rounds(engine, 2, 1)
            engine.compact()
            return moment_of_now()

        patch.setattr(engine, "moment", moment_after_a_compaction)
        assert way(engine) == 2
