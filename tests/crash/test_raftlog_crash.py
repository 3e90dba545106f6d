"""The Raft log against a model, after crashes at any step of writing, of changing segments, of removing and
reusing them, of closing and of recovering, and again while it recovers from that.

Every group must be as after some batch, not older than the last one whose write returned, and every group as
after the same one. Which states are legal is told in crashvfs.py.
"""

from __future__ import annotations

import errno
import os
import random
import re
from pathlib import Path

import pytest

from storenode.engine.vfs import File, Vfs
from storenode.raft.messages import Entry, HardState
from storenode.raftlog import LogCorrupt, LogFailed, RaftLog, Record
from storenode.raftlog.segment import BATCH_HEAD_BYTES, HEADER_BYTES
from tests.crash.crashvfs import Crash, CrashVfs, Step
from tests.crash.oracle import STATES_LONG, Oracle, Plan, Watch, run_states
from tests.crash.raftloglife import NODE, Allowed, Options, RaftLogLife, random_options

STATES_DEFAULT = 400


class RaftLogOracle(Oracle[RaftLogLife, Allowed]):
    plan = Plan(steps=(1, 60), first=Watch(0.05, 10), later=Watch(0.15, 3), kills=0.4, twins=0.3, crashes=3)

    def random_options(self) -> Options:
        return random_options(self.dice)

    def life(self, vfs: Vfs, directory: str, expected: Allowed | None) -> RaftLogLife:
        return RaftLogLife(vfs, directory, self.options, expected or Allowed([{}]), self.dice)


def test_after_any_crash_every_group_is_as_after_the_same_batch(place: Path) -> None:
    run_states(RaftLogOracle, STATES_DEFAULT, 1, place)


def test_a_crash_at_any_step_of_the_first_opening_and_of_the_first_writes(place: Path) -> None:
    for seed in range(6):
        oracle = RaftLogOracle(1000 + seed, place)
        life = oracle.first_life()
        life.watch(1.0, 60)
        life.open()
        life.act(oracle.dice.randint(1, 3))
        life.end()
        oracle.descend(life, 0)
        assert oracle.states >= 20


class Refusing:
    """Makes the n-th step of a kind fail."""

    def __init__(self, kind: str, error: int) -> None:
        self.kind = kind
        self.error = error
        self.tries = 0

    def __call__(self, vfs: CrashVfs, step: Step) -> None:
        if step.kind == self.kind and step.when == "before":
            self.tries += 1
            raise OSError(self.error, os.strerror(self.error), step.path)


def opened(place: Path, vfs: Vfs | None = None, **options: int) -> RaftLog:
    return RaftLog(vfs or Vfs(), str(place / "raft"), NODE, **{"segment_bytes": 2000, **options})


def record(index: int, data: bytes = b"x", group: int = 1) -> Record:
    return Record(group, HardState(1, 0, 0), None, index, [Entry(1, 0, data)])


def datas(log: RaftLog, group: int = 1) -> list[bytes]:
    view = log.group(group)
    return [entry.data for entry in view.entries(view.first_index, view.last_index + 1, 1 << 20)]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("write", errno.EIO), ("write", errno.ENOSPC), ("sync", errno.EIO), ("sync", errno.ENOSPC)],
)
def test_an_error_of_a_write_or_of_a_sync_is_final(place: Path, kind: str, error: int) -> None:
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    log.installed(log.write([record(1, b"one")]))
    refusing = vfs.hook = Refusing(kind, error)
    with pytest.raises(LogFailed, match=os.strerror(error)) as first:
        log.write([record(2, b"two")])
    vfs.hook = None
    with pytest.raises(LogFailed) as second:
        log.write([record(2, b"again")])
    assert str(second.value) == str(first.value)
    assert refusing.tries == 1
    assert datas(log) == [b"one"]
    crash = vfs.crash(Step("after", "failure", ""))
    log.close()
    for seed in range(20):
        directory = place / f"lost{seed}"
        crash.lose_power(str(directory), random.Random(seed))
        again = opened(directory)
        assert datas(again) in ([b"one"], [b"one", b"two"])
        again.close()


@pytest.mark.parametrize("kind", ["create", "write", "sync", "sync directory"])
def test_a_new_segment_that_cannot_be_begun_is_final_and_harmless(place: Path, kind: str) -> None:
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    log.installed(log.write([record(1, bytes(1500))]))
    vfs.hook = Refusing(kind, errno.ENOSPC)
    with pytest.raises(LogFailed):
        log.write([record(2, bytes(1500))])
    vfs.hook = None
    with pytest.raises(LogFailed):
        log.write([record(2)])
    crash = vfs.crash(Step("after", "failure", ""))
    log.close()
    for seed in range(20):
        directory = place / f"lost{seed}"
        crash.lose_power(str(directory), random.Random(seed))
        again = opened(directory)
        assert datas(again) == [bytes(1500)]
        again.installed(again.write([record(2, b"two")]))
        again.close()


def test_a_batch_that_a_failed_sync_left_in_memory_only_is_made_durable_before_it_is_believed(
    place: Path,
) -> None:
    """The next process reads it from the page cache, and a sync alone would not write it any more."""
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    vfs.hook = Refusing("sync", errno.EIO)
    with pytest.raises(LogFailed):
        log.write([record(1, b"one")])
    vfs.hook = None
    log.close()
    done: list[tuple[int, bytes] | str] = []

    class Noting(File):
        def write_at(self, offset: int, data: bytes) -> None:
            done.append((offset, data))
            super().write_at(offset, data)

        def sync(self) -> None:
            done.append("sync")
            super().sync()

    class NotingVfs(Vfs):
        def open(self, path: str, *, writable: bool = False) -> File:
            return Noting(path, super().open(path, writable=writable).detach())

    whole = (place / "data" / "raft" / "00000001.log").read_bytes()
    again = opened(place / "data", NotingVfs())
    assert datas(again) == [b"one"]
    offset, data = next(each for each in done if each != "sync" and each[0] == HEADER_BYTES)
    assert len(data) > BATCH_HEAD_BYTES
    assert data == whole[offset : offset + len(data)]
    assert "sync" in done[done.index((offset, data)) :]
    again.close()


def test_a_torn_tail_is_cut_and_no_later_write_completes_it(place: Path) -> None:
    """A batch lost one sector; the next life writes a batch with the same bytes there, and of that only this
    sector survives: what was cut must not be whole again."""
    log = opened(place, segment_bytes=8192)
    log.installed(log.write([record(1, b"one")]))
    written = log.write([record(2, b"a" * 3000)])
    log._writer.close()  # the process dies
    path = place / "raft" / "00000001.log"
    whole = path.read_bytes()
    lost = whole[:1024] + bytes(512) + whole[1536:]
    path.write_bytes(lost)
    cut = opened(place, segment_bytes=8192)
    assert datas(cut) == [b"one"]
    cut._writer.close()
    settled = path.read_bytes()
    path.write_bytes(settled[:1024] + whole[1024:1536] + settled[1536:])
    again = opened(place, segment_bytes=8192)
    assert datas(again) == [b"one"]
    assert not any(settled[written.offset : written.offset + 24])
    again.close()


def test_damage_to_what_was_durable_is_refused_and_named_or_harmless(place: Path) -> None:
    """One flipped bit, anywhere. Only the newest batch may go: nothing proves that it was durable."""
    log = opened(place, segment_bytes=300)
    for index in range(1, 9):
        log.installed(log.write([record(index, bytes([index]) * 40), record(index, b"y", 2)]))
    log._writer.close()  # no mark: the process dies
    dice = random.Random(1)
    files = sorted((place / "raft").iterdir())
    assert len(files) > 2
    refused: list[str] = []
    unchanged = True
    for file in files:
        content = file.read_bytes()
        for _ in range(150):
            at = dice.randrange(len(content))
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
            before = {each: each.read_bytes() for each in files}
            try:
                again = opened(place, segment_bytes=300)
            except LogCorrupt as error:
                refused.append(str(error))
                unchanged = {each: each.read_bytes() for each in files} == before
            else:
                assert len(datas(again)) in ((8,) if file != files[-1] else (7, 8))
                assert len(datas(again)) == len(datas(again, 2))
                again._writer.close()
            assert unchanged, "a refused log was changed"
            for each in files:
                each.write_bytes(before[each] if each != file else content)
            for each in set((place / "raft").iterdir()) - set(files):
                each.unlink()
    assert len(refused) > 200
    assert all(re.search(r"0000000\d\.log: offset \d+: .*peers", message) for message in refused)


def test_after_a_clean_close_not_even_the_newest_batch_can_be_damaged_unseen(place: Path) -> None:
    log = opened(place)
    log.installed(log.write([record(1, b"one")]))
    written = log.write([record(2, b"two")])
    log.installed(written)
    log.close()
    path = place / "raft" / "00000001.log"
    content = bytearray(path.read_bytes())
    content[written.offset + 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match=f"00000001.log: offset {written.offset}: batch 2 "):
        opened(place)


def test_the_end_of_a_segment_is_damaged_and_the_next_one_has_no_batch_yet(place: Path) -> None:
    """Only the header of the next segment proves that the lost batch was durable."""
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    written = log.write([record(1, bytes(1500))])
    log.installed(written)
    crashes: list[Crash] = []

    def begun(vfs: CrashVfs, step: Step) -> None:
        if step == Step("after", "sync directory", str(place / "data" / "raft")):
            crashes.append(vfs.crash(step))

    vfs.hook = begun
    log.write([record(2, bytes(1500))])
    vfs.hook = None
    log.close()
    crashes[0].lose_power(str(place / "lost"), random.Random(0), 0.0)
    opened(place / "lost").close()
    crashes[0].lose_power(str(place / "damaged"), random.Random(0), 0.0)
    path = place / "damaged" / "raft" / "00000001.log"
    content = bytearray(path.read_bytes())
    content[written.offset + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match=rf"00000001\.log: offset {written.offset}: batch 1 is damaged"):
        opened(place / "damaged")


def test_the_old_name_of_a_recycled_segment_never_comes_back_with_the_new_content(place: Path) -> None:
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    for index in range(1, 4):
        log.installed(log.write([record(index, bytes(1500))]))
    log.installed(log.write([Record(1, None, (1, 1), 0, [])]))
    log.collect()
    log.installed(log.write([]))
    assert log.collect() > 0
    crashes: list[Crash] = []
    vfs.hook = lambda vfs, step: crashes.append(vfs.crash(step))
    log.installed(log.write([record(4, bytes(1500))]))
    vfs.hook = None
    assert any(crash.step.kind == "rename" for crash in crashes)
    log.close()
    for number, crash in enumerate(crashes):
        for seed in range(10):
            directory = place / f"lost{number}.{seed}"
            crash.lose_power(str(directory), random.Random(seed), 0.5)
            again = opened(directory)
            assert len(datas(again)) in (2, 3)
            again.close()


def test_segments_are_removed_at_a_start_only_when_the_batch_that_says_so_is_durable(place: Path) -> None:
    """The process is killed before it synced that batch; then the power goes while the next one starts."""
    (place / "data").mkdir()
    vfs = CrashVfs(str(place / "data"))
    log = opened(place / "data", vfs)
    for index in range(1, 6):
        log.installed(log.write([record(index, bytes(1500))]))
    log.installed(log.write([Record(1, None, (4, 1), 0, [])]))
    log.collect()
    crashes: list[Crash] = []

    def take(vfs: CrashVfs, step: Step) -> None:
        if step.kind != "create":
            crashes.append(vfs.crash(step))

    vfs.hook = take
    log.write([])
    vfs.hook = None
    log.close()
    killed = next(crash for crash in crashes if crash.step[:2] == ("after", "write"))
    twin = killed.restart(str(place / "killed"), random.Random(0))
    crashes.clear()
    twin.hook = take
    opened(place / "killed", twin).close()
    twin.hook = None
    assert any(crash.step.kind == "unlink" for crash in crashes)
    for number, crash in enumerate(crashes):
        for seed in range(10):
            directory = place / f"lost{number}.{seed}"
            crash.lose_power(str(directory), random.Random(seed), 0.5)
            again = opened(directory)
            assert len(datas(again)) == 1
            again.close()


@pytest.mark.parametrize("gone", [1, 2])
def test_a_missing_segment_is_corruption(place: Path, gone: int) -> None:
    log = opened(place, segment_bytes=200)
    for index in range(1, 6):
        log.installed(log.write([record(index, bytes(100))]))
    log.close()
    (place / "raft" / f"{gone:08x}.log").unlink()
    with pytest.raises(LogCorrupt, match=rf"{gone:08x}\.log: offset 0: the segment is missing"):
        opened(place, segment_bytes=200)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_thousands_of_crashes(place: Path) -> None:
    run_states(RaftLogOracle, STATES_LONG, random.randrange(1 << 32), place)
