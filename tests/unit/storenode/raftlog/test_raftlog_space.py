"""Segments: when they begin, what pins them, how they go and come back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from storenode.engine.vfs import File, Vfs
from storenode.raft.messages import Entry, HardState
from storenode.raftlog import LogFailed, RaftLog, Record

SEGMENT_BYTES = 1024


def opened(path: Path, segment_bytes: int = SEGMENT_BYTES, vfs: Vfs | None = None) -> RaftLog:
    return RaftLog(vfs or Vfs(), str(path / "raft"), 1, segment_bytes=segment_bytes)


def write(log: RaftLog, *records: Record) -> None:
    log.installed(log.write(list(records)))


def fill(log: RaftLog, first: int, stop: int, group: int = 1, size: int = 200) -> None:
    for index in range(first, stop):
        write(log, Record(group, None, None, index, [Entry(1, 0, bytes(size))]))


def cut(log: RaftLog, index: int, group: int = 1) -> None:
    write(log, Record(group, None, (index, log.group(group).term(index)), 0, []))


def names(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "raft").iterdir())


def test_segments_have_their_whole_size_from_the_start(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 20)
    assert len(names(tmp_path)) > 3
    assert {each.stat().st_size for each in (tmp_path / "raft").iterdir()} == {SEGMENT_BYTES}
    log.close()


class FullFile(File):
    """There is no room for it; the kernel's error names no file."""

    def reserve(self, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_room_for_a_new_segment_that_one_is_named(tmp_path: Path) -> None:
    class FullDisk(Vfs):
        def create(self, path: str) -> File:
            whole = super().create(path)
            return FullFile(path, whole.detach())

    log = opened(tmp_path)
    fill(log, 1, 2)
    log.close()
    log = opened(tmp_path, vfs=FullDisk())
    with pytest.raises(LogFailed, match=r"00000002\.log: No space left on device"):
        fill(log, 2, 10)
    log.close()


def test_a_batch_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 2)
    fill(log, 2, 3, size=5000)
    fill(log, 3, 4)
    sizes = [(tmp_path / "raft" / name).stat().st_size for name in names(tmp_path)]
    assert (sizes[0], sizes[1] > 5000, sizes[2]) == (SEGMENT_BYTES, True, SEGMENT_BYTES)
    log.close()
    again = opened(tmp_path)
    assert [len(entry.data) for entry in again.group(1).entries(1, 4, 1 << 20)] == [200, 5000, 200]
    cut(again, 3)
    again.collect()
    write(again)
    again.collect()
    assert again.stats()["spares"] == 1  # the large one is no use as one
    again.close()


def test_a_segment_goes_when_a_durable_batch_says_that_nobody_needs_it(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 20)
    held = log.bytes_held
    assert log.pinned_by() == [1]
    cut(log, 19)
    assert log.collect() == 0
    written = log.write([])
    assert log.collect() == 0
    log.installed(written)
    assert log.pinned_by() == []
    freed = log.collect()
    assert freed > 0
    assert freed % SEGMENT_BYTES == 0
    assert log.bytes_held <= held - freed + SEGMENT_BYTES
    assert log.collect() == 0
    log.close()


def test_the_newest_segment_never_goes(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 3)
    cut(log, 2)
    for _ in range(3):
        assert log.collect() == 0
        write(log)
    assert log.pinned_by() == []
    log.close()


def test_one_slow_group_pins_the_oldest_segment_for_all(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 2, group=2)
    fill(log, 1, 20, group=1)
    cut(log, 19, group=1)
    log.collect()
    write(log)
    assert (log.collect(), log.pinned_by()) == (0, [2])
    cut(log, 1, group=2)
    log.collect()
    write(log)
    assert log.collect() > 0
    log.close()


def test_a_group_that_is_forgotten_pins_nothing_once_that_is_durable(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 2, group=2)
    fill(log, 1, 20, group=1)
    cut(log, 19, group=1)
    gone = log.forget(2)
    log.collect()
    write(log)
    assert log.collect() == 0
    write(log, gone)
    log.collect()
    write(log)
    assert log.collect() > 0
    log.close()


def test_entries_that_were_replaced_pin_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 10)
    write(log, Record(1, None, None, 1, [Entry(2, 0, b"")]))
    log.collect()
    write(log)
    assert log.collect() > 0
    log.close()
    again = opened(tmp_path)
    assert again.group(1).entries(1, 2, 100) == [Entry(2, 0, b"")]
    again.close()


def test_at_most_two_segments_wait_and_are_used_before_new_ones_are_made(tmp_path: Path) -> None:
    created: list[str] = []

    class Watching(Vfs):
        def create(self, path: str) -> File:
            created.append(path)
            return super().create(path)

    log = opened(tmp_path, vfs=Watching())
    fill(log, 1, 30)
    cut(log, 29)
    log.collect()
    write(log)
    log.collect()
    assert log.stats()["spares"] == 2
    assert len([name for name in names(tmp_path) if name.endswith(".spare")]) == 2
    made = len(created)
    segments = log.stats()["segments"]
    first = 30
    while log.stats()["segments"] < segments + 2:
        fill(log, first, first + 1)
        first += 1
    assert (len(created), log.stats()["spares"]) == (made, 0)
    log.close()
    again = opened(tmp_path)
    assert again.group(1).last_index == first - 1
    again.close()


def test_old_batches_of_a_recycled_segment_never_come_back(tmp_path: Path) -> None:
    """The same records again and again, so that old batches lie exactly where new ones would."""
    log = opened(tmp_path)
    for turn in range(1, 60):
        write(log, Record(1, HardState(turn, 0, 0), None, turn, [Entry(turn, 0, bytes(200))]))
        cut(log, turn)
        log.collect()
        if turn % 7 == 0:
            log._writer.close()  # the process dies
            log = opened(tmp_path)
            assert log.group(1).hard_state == (turn, 0, 0)
            assert (log.group(1).first_index, log.group(1).last_index) == (turn + 1, turn)
    log.close()


def test_spares_and_segments_that_came_back_are_removed_at_the_next_start(tmp_path: Path) -> None:
    log = opened(tmp_path)
    fill(log, 1, 12)
    first = (tmp_path / "raft" / "00000001.log").read_bytes()
    cut(log, 11)
    log.collect()
    write(log)
    log.collect()
    left = [name for name in names(tmp_path) if name.endswith(".log")]
    log.close()
    assert len(left) < len(names(tmp_path))
    (tmp_path / "raft" / "00000001.log").write_bytes(first)
    again = opened(tmp_path)
    assert names(tmp_path) == left
    assert again.group(1).last_index == 11
    again.close()


@pytest.mark.parametrize("segment_bytes", [0, 87, 1 << 32])
def test_a_senseless_size_of_segments_is_refused(tmp_path: Path, segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes must be"):
        opened(tmp_path, segment_bytes)
