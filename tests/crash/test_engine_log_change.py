"""A log that is begun before the one before it is durable: what is found after a loss of power is a prefix,
and what was durable once is never given up for a hole of a crash."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient.errors import Corruption
from storenode.engine import Engine, Shared
from storenode.engine.vfs import File, Vfs
from storenode.engine.wal import HEADER_BYTES
from tests.crash.crashvfs import CrashVfs, Step
from tests.crash.test_engine_crash_oracle import STRICT, content_at


def pair(number: int) -> tuple[bytes, bytes]:
    return b"key-%d" % number, b"value-%d" % number


def pairs(count: int) -> list[tuple[bytes, bytes]]:
    return [pair(number) for number in range(count)]


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Engine]:
    """An engine whose workers do nothing: nobody syncs but who is told to."""
    shared = Shared(str(directory))
    engine = engine_package.open(str(directory / "engine"), shared=shared)
    engine.background.stop()
    yield engine
    engine.close()
    shared.close()


def written(directory: Path, story: str) -> Path:
    """A directory as a crash of the process leaves it. `story`: `p`, the next pair; `P`, that synced; `s`, a
    sync; `|`, from here on another log."""
    with writing(directory / "first") as engine:
        number = 0
        for step in story:
            if step == "|":
                engine.retire_memtable()
            elif step == "s":
                engine._log.sync()
            else:
                engine.put(*pair(number), sync=step == "P")
                number += 1
        return Path(shutil.copytree(directory / "first", directory / "left"))


def logs(left: Path) -> list[Path]:
    return sorted((left / "engine").glob("*.wal"))


def sound_end(log: Path) -> int:
    """Where the records end: they end with something, zeros follow."""
    return len(log.read_bytes().rstrip(b"\0")) + 7 & ~7


def found_after(left: Path, damaged: str = "") -> int:
    """How many pairs are there: the first ones, and the same ones again after one more was written."""
    found = content_at(left)
    assert found == pairs(len(found)), damaged
    shared = Shared(str(left))
    with engine_package.open(str(left / "engine"), shared=shared) as engine:
        assert engine.next_sequence == len(found) + 1
        engine.put(b"more", b"")
    shared.close()
    assert content_at(left) == [*found, (b"more", b"")]
    return len(found)


def test_logs_that_were_begun_without_a_sync_are_all_there_after_a_crash_of_the_process(
    tmp_path: Path,
) -> None:
    left = written(tmp_path, "pp|p|pp|p")
    assert len(logs(left)) == 4
    assert found_after(left) == 6


@pytest.mark.parametrize("number", range(4))
def test_what_follows_a_log_that_lost_its_end_is_given_up(tmp_path: Path, number: int) -> None:
    """At whatever byte, whole as the later logs are."""
    left = written(tmp_path, "p|p|p|p")
    end = sound_end(logs(left)[number])
    lengths = [0, 1, HEADER_BYTES - 1, HEADER_BYTES, *range(HEADER_BYTES + 1, end, 8), end - 1]
    for length in lengths:
        copy = Path(shutil.copytree(left, tmp_path / f"{length}"))
        os.truncate(logs(copy)[number], length)
        assert found_after(copy, f"cut at {length}") == number
    gone = Path(shutil.copytree(left, tmp_path / "gone"))
    logs(gone)[number].unlink()
    assert found_after(gone) == number


@pytest.mark.parametrize("number", range(3))
def test_what_follows_a_log_of_which_only_zeros_came_is_given_up(tmp_path: Path, number: int) -> None:
    left = written(tmp_path, "p|p|p")
    for kept in (0, 32, HEADER_BYTES, HEADER_BYTES + 16):
        copy = Path(shutil.copytree(left, tmp_path / f"{kept}"))
        log = logs(copy)[number]
        content = log.read_bytes()
        log.write_bytes(content[:kept] + bytes(len(content) - kept))
        assert found_after(copy) == number


@pytest.mark.parametrize(
    "story", ["P|p", "p|ps|pp", "p|P", "p|pP", "p|p|P", "p|p|pP", "p|p|ps|p", "p|p|pps|p", "ps|p|p"]
)
def test_damage_in_a_log_that_was_durable_is_told(tmp_path: Path, story: str) -> None:
    """By the header of the next log, or by any record behind the sync."""
    left = written(tmp_path, story)
    first = logs(left)[0]
    end = sound_end(first)
    for length in (0, 20, HEADER_BYTES, end - 8):
        copy = Path(shutil.copytree(left, tmp_path / f"{length}"))
        os.truncate(logs(copy)[0], length)
        before = {log.name: log.read_bytes() for log in logs(copy)}
        with pytest.raises(Corruption, match=r"00000\d\.wal"):
            content_at(copy)
        assert {log.name: log.read_bytes() for log in logs(copy)} == before, "nothing was changed"
    logs(left)[0].unlink()
    with pytest.raises(Corruption, match=r"00000\d\.wal"):
        content_at(left)


def test_of_a_log_that_was_synced_before_its_last_entries_only_these_may_be_missing(tmp_path: Path) -> None:
    left = written(tmp_path, "Pp|p")
    first = logs(left)[0]
    second_at = first.read_bytes().index(b"key-1") & ~7
    end = sound_end(first)
    with_one = Path(shutil.copytree(left, tmp_path / "one"))
    os.truncate(logs(with_one)[0], end - 8)
    assert found_after(with_one) == 1
    os.truncate(first, second_at - 40)
    with pytest.raises(Corruption, match=r"000001\.wal|000002\.wal"):
        content_at(left)


def test_a_log_with_anything_behind_the_length_that_the_next_one_knows_is_damaged(tmp_path: Path) -> None:
    left = written(tmp_path, "pp|p")
    content = bytearray(logs(left)[0].read_bytes())
    content[-1] = 1
    logs(left)[0].write_bytes(content)
    with pytest.raises(Corruption, match=r"000001\.wal: damaged record"):
        content_at(left)


def test_the_header_of_the_log_that_the_manifest_needs_is_durable(tmp_path: Path) -> None:
    """Whatever else is gone: without it the store would begin anew behind what is in tables."""
    shared = Shared(str(tmp_path / "first"))
    engine = engine_package.open(str(tmp_path / "first" / "engine"), shared=shared)
    engine.put(*pair(0))
    engine.flush()
    engine.background.stop()
    engine.put(*pair(1))
    needed = engine.tree.log_number
    left = Path(shutil.copytree(tmp_path / "first", tmp_path / "left"))
    engine.close()
    shared.close()
    (log,) = (log for log in logs(left) if int(log.stem) == needed)
    os.truncate(log, 20)
    with pytest.raises(Corruption, match=rf"{log.name}: damaged log header"):
        content_at(left)


class PutsMeanwhile(CrashVfs):
    """Somebody writes when a flush creates its table."""

    engine: Engine | None = None

    def create(self, path: str) -> File:
        if path.endswith(".sst") and self.engine is not None:
            engine, self.engine = self.engine, None
            engine.put(*pair(1))
        return super().create(path)


def test_the_manifest_never_needs_a_log_that_could_vanish(place: Path) -> None:
    """One that was begun behind the sync before the flush."""
    (place / "first").mkdir()
    vfs = PutsMeanwhile(str(place / "first"))
    shared = Shared(vfs.path, vfs=vfs, workers=0)
    engine = engine_package.open(os.path.join(vfs.path, "engine"), shared=shared)
    engine.put(*pair(0))
    engine.retire_memtable()
    vfs.engine = engine
    while shared.run_pending():
        pass
    assert vfs.engine is None
    assert engine.tree.log_number == engine._log.number
    crash = vfs.crash(Step("after", "commit", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "second"), random.Random(0), STRICT)
    assert content_at(place / "second") == pairs(2)


def test_of_a_recovery_that_gives_logs_up_nothing_depends_on_what_of_it_was_done(
    place: Path,
) -> None:
    """Power is lost at any step of it, and at any step of the next write."""
    left = written(place, "p|p|p|p")
    os.truncate(logs(left)[1], sound_end(logs(left)[1]) - 8)
    vfs = CrashVfs(str(left))
    crashes = []
    vfs.hook = lambda vfs, step: crashes.append(vfs.crash(step))
    shared = Shared(vfs.path, vfs=vfs)
    engine = engine_package.open(os.path.join(vfs.path, "engine"), shared=shared)
    assert engine.scan() == pairs(1)
    promised = len(crashes)
    engine.put(b"more", b"")
    engine.put(b"most", b"", sync=True)
    durable = len(crashes)
    vfs.hook = None
    engine.close()
    shared.close()
    seen = set()
    for number, crash in enumerate(crashes[:durable]):
        for seed in range(12):
            again = place / f"{number}-{seed}"
            crash.lose_power(str(again), random.Random(seed))
            found = content_at(again)
            assert found[:1] == pairs(1)
            added = [key for key, _ in found[1:]]
            assert added == [b"more", b"most"][: len(added)]
            assert number >= promised or not added
            seen.add(len(added))
            shutil.rmtree(again)
    assert promised >= 6
    assert seen == {0, 1, 2}


def test_what_was_recovered_from_logs_that_a_killed_process_never_synced_is_durable(
    place: Path,
) -> None:
    """Somebody may have read it."""
    (place / "first").mkdir()
    vfs = CrashVfs(str(place / "first"))
    shared = Shared(vfs.path, vfs=vfs)
    engine = engine_package.open(os.path.join(vfs.path, "engine"), shared=shared)
    engine.background.stop()
    for number in range(3):
        engine.retire_memtable()
        engine.put(*pair(number))
    killed = vfs.crash(Step("after", "put", ""))
    engine.close()
    shared.close()
    again = killed.restart(str(place / "second"), random.Random(0))
    shared = Shared(again.path, vfs=again, workers=0)
    engine = engine_package.open(os.path.join(again.path, "engine"), shared=shared)
    assert engine.scan() == pairs(3)
    cut = again.crash(Step("after", "open", ""))
    engine.close()
    shared.close()
    cut.lose_power(str(place / "third"), random.Random(0), STRICT)
    assert content_at(place / "third") == pairs(3)


class FailsLate(Vfs):
    """A disk that fails to sync the file of one name."""

    name = ""

    def create(self, path: str) -> File:
        return FailsLateFile(self, path, super().create(path).fd)


class FailsLateFile(File):
    def __init__(self, disk: FailsLate, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.disk = disk

    def sync(self) -> None:
        if os.path.basename(self.path) == self.disk.name:
            self.disk.name = ""  # as a kernel does: it tells once, and the next sync succeeds
            raise OSError(5, os.strerror(5), self.path)
        super().sync()


def test_a_failed_sync_of_a_log_that_ended_is_final(tmp_path: Path) -> None:
    disk = FailsLate()
    shared = Shared(str(tmp_path), vfs=disk)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    engine.background.stop()
    engine.put(*pair(0))
    engine.retire_memtable()
    engine.put(*pair(1))
    disk.name = "000001.wal"
    with pytest.raises(engine_package.EngineFailed, match=r"000001\.wal: sync failed"):
        engine.put(*pair(2), sync=True)
    for sync in (False, True):
        with pytest.raises(engine_package.EngineFailed, match="open the engine anew"):
            engine.put(*pair(3), sync=sync)
    assert engine.scan() == pairs(2)
    assert engine.synced == 0
    engine.close()
    shared.close()
