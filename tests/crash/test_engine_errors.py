"""Every operation on the disk fails once: what was promised stays, nothing is promised that could be lost,
nothing leaks, and what can go on does.

Native code writes tables by itself: for those the disk really is full.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption
from storenode.engine import EngineFailed, EngineReadOnly, Options, Shared
from storenode.engine.errors import EngineError
from storenode.engine.vfs import File, Vfs
from tests.crash.crashlife import EngineLife, Expected, State, differences, nothing_yet
from tests.crash.crashvfs import Crash, CrashVfs, Step
from tests.crash.diskfault import Fault
from tests.smalldisk import small_disk_at

SMALL = Options(
    memtable_bytes=1 << 12, table_bytes=1 << 12, base_bytes=1 << 12, level_ratio=2, level0_trigger=2
)
MOST = 400
"""More operations of one kind than the workload has."""


class FaultyLife(EngineLife):
    """A life that knows what each error means for what may be found afterwards."""

    failed = False
    outside = False
    """Something failed that is none of the engine's own files."""
    unknown: Sequence[State] = ()
    """What the entries that failed would have made; they may be found or not."""

    def try_act(self, steps: int) -> None:
        for number in range(steps):
            self.attempt(put=number % 3 == 2)
            if number % 4 == 3:
                self.maintain(everything=number % 8 == 7)
            if number == 5:
                self.attempt_ingest()
            if number == 6:
                self.attempt_checkpoint()

    def attempt(self, *, put: bool = False) -> None:
        before, known = len(self.states), self.states[-1]
        try:
            if put:
                self.put()
            else:
                self.log_and_apply([self.operations() for _ in range(self.dice.choice((1, 3)))])
            assert not self.failed, "acknowledged after a failed sync"
        except EngineReadOnly:
            del self.states[before:]  # nothing was logged, so nothing of it may ever be found
            assert not self.failed
        except EngineFailed:
            if not self.failed:  # otherwise it was not even tried
                self.failed = True
                self.unknown = self.states[before:]
            del self.states[before:]
        assert differences(self.engine, known if self.failed else self.states[-1]) == []

    def attempt_ingest(self) -> None:
        before = len(self.states)
        try:
            self.ingest()
            assert not self.failed
        except EngineReadOnly:
            del self.states[before:]
            assert not self.failed
        except EngineFailed:
            if not self.failed:
                self.failed = True
                self.unknown = self.states[before:]
            del self.states[before:]
        except OSError:  # of the prepared table: the engine never heard of it
            self.outside = True
            del self.states[before:]
        if not self.failed:
            assert differences(self.engine, self.states[-1]) == []

    def attempt_checkpoint(self) -> None:
        try:
            self.checkpoint()
        except EngineReadOnly:
            pass
        except EngineFailed:
            self.failed = True
        except OSError:
            self.outside = True
        if not self.checkpoints:
            names = os.listdir(self.directory)
            assert not [name for name in names if name.startswith("checkpoint-")]
            if not self.failed:
                self.checkpoint()

    def maintain(self, *, everything: bool) -> None:
        try:
            self.engine.compact() if everything else self.engine.flush()
        except EngineReadOnly:
            pass
        except EngineFailed:
            self.failed = True
        else:
            self.promised = len(self.states) - 1


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def run_with(fault: Fault, directory: Path, seed: int) -> FaultyLife | None:
    """The workload on a disk with this fault; None if it kept the engine from being opened."""
    descriptors = open_descriptors()
    dice = random.Random(seed)
    directory.mkdir()
    vfs = CrashVfs(str(directory))
    vfs.native_writes = False
    vfs.hook = fault
    life = FaultyLife(vfs, str(directory), SMALL, nothing_yet(), dice)
    try:
        life.open()
    except (OSError, EngineError):
        assert fault.struck
        shared = getattr(life, "shared", None)
        if shared is not None:
            shared.close()
        del life
        assert open_descriptors() == descriptors
        return None
    life.try_act(11)
    life.shared.wait_for(lambda: not life.engine.background.running)
    if life.engine.background.broken and not life.failed:  # by a compaction that nobody has met yet
        life.attempt()
    vfs.hook = None
    life.shared.wait_for(lambda: not life.engine.background.running)
    life.attempt()  # what a worker met behind the last step shows in the next one
    check_after(life, fault)
    crash = vfs.crash(Step("after", fault.kind, fault.path))
    life.engine.close()
    life.shared.close()
    check_states(life, crash)
    del crash
    assert open_descriptors() == descriptors
    return life


def check_after(life: FaultyLife, fault: Fault) -> None:
    final = (
        fault.struck
        and not life.outside
        and (
            fault.kind == "sync directory"
            or (fault.kind == "sync" and (fault.error == errno.EIO or fault.path.endswith(".wal")))
            or (fault.kind == "write" and fault.error == errno.EIO)
        )
    )
    assert life.failed is final, (fault.kind, fault.path, life.failed)
    if not life.failed:
        life.attempt()
        life.engine.compact()
        assert life.engine.verify() == []
        assert life.engine.stats()["failures"] == {}
        assert not life.failed


def check_states(life: FaultyLife, crash: Crash) -> None:
    """What the process left, and what a loss of power would have."""
    expected = Expected([*life.states, *life.unknown], life.promised, life.checkpoints)
    reopen(life.directory, expected)
    for number, kept in enumerate((0.0, 0.6)):
        directory = f"{life.directory}-{number}"
        crash.lose_power(directory, life.dice, kept)
        reopen(directory, expected)


def reopen(directory: str, expected: Expected) -> None:
    life = EngineLife(Vfs(), directory, SMALL, expected, random.Random(1))
    life.open()
    life.close()


KINDS = ["write", "sync", "create", "unlink", "mkdir", "sync directory", "commit", "link", "rename"]
TELLING = {
    ("write", errno.EIO),
    ("write", errno.ENOSPC),
    ("sync", errno.EIO),
    ("sync", errno.ENOSPC),
    ("create", errno.ENOSPC),
    ("unlink", errno.EIO),
    ("mkdir", errno.ENOSPC),
    ("sync directory", errno.EIO),
    ("commit", errno.ENOSPC),
    ("link", errno.ENOSPC),
    ("rename", errno.EIO),
}
"""The pairs of the default run; the others differ from them in little."""

PAIRS = [
    pytest.param(
        kind,
        error,
        id=f"{kind}-{errno.errorcode[error]}",
        marks=() if (kind, error) in TELLING else pytest.mark.long,
    )
    for kind in KINDS
    for error in (errno.EIO, errno.ENOSPC, errno.EROFS)
]


@pytest.mark.parametrize(("kind", "error"), PAIRS)
def test_any_operation_may_fail_once(place: Path, kind: str, error: int) -> None:
    struck = 0
    for n in range(1, MOST):
        fault = Fault(kind, n, error)
        run_with(fault, place / f"run-{n}", seed=n)
        if not fault.struck:
            break
        struck += 1
    else:
        raise AssertionError("the workload never came to its end")
    assert struck >= {"mkdir": 4, "link": 3, "rename": 1}.get(kind, 5)


def test_a_failed_sync_of_a_table_or_its_directory_is_final(place: Path) -> None:
    """It may have cost more than the table: the name of a log, of which a later sync says nothing."""
    for kind, suffix in (("sync", ".sst"), ("sync directory", "")):
        directory = place / kind
        directory.mkdir()
        vfs = CrashVfs(str(directory))
        shared = Shared(str(directory), vfs=vfs)
        engine = engine_package.open(str(directory / "engine"), shared=shared)
        engine.put(b"k", b"v", sync=True)

        def fail(vfs: CrashVfs, step: Step, kind: str = kind, suffix: str = suffix) -> None:
            if (step.when, step.kind) == ("before", kind) and step.path.endswith(suffix):
                vfs.hook = None
                raise OSError(errno.EIO, os.strerror(errno.EIO), step.path)

        vfs.hook = fail
        with pytest.raises(EngineFailed, match="sync failed: Input/output error"):
            engine.flush()
        for sync in (False, True):
            with pytest.raises(EngineFailed, match="open the engine anew"):
                engine.put(b"l", b"", sync=sync)
        with pytest.raises(EngineFailed, match="open the engine anew"):
            engine.flush()
        assert engine.scan() == [(b"k", b"v")]
        engine.close()
        shared.close()


def test_a_write_that_cannot_be_taken_back_is_final(place: Path) -> None:
    vfs = CrashVfs(str(place))
    shared = Shared(str(place), vfs=vfs)
    engine = engine_package.open(str(place / "engine"), shared=shared)
    engine.put(b"k", b"v", sync=True)

    def fail(vfs: CrashVfs, step: Step) -> None:
        if step.when == "before" and step.kind in ("write", "truncate"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step.path)

    vfs.hook = fail
    with pytest.raises(EngineFailed, match="truncate failed"):
        engine.put(b"l", b"", sync=True)
    vfs.hook = None
    for sync in (False, True):
        with pytest.raises(EngineFailed, match="truncate failed"):
            engine.put(b"l", b"", sync=sync)
    assert engine.scan() == [(b"k", b"v")]
    engine.close()
    shared.close()


class FullForTables(Vfs):
    """While `full`, native code writes tables to a device that has no room."""

    full = True

    def create(self, path: str) -> File:
        file = super().create(path)
        if self.full and path.endswith(".sst"):
            file.close()
            file.fd = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
        return file


def test_tables_that_native_code_finds_no_room_for_are_written_later(tmp_path: Path) -> None:
    vfs = FullForTables()
    descriptors = open_descriptors()
    shared = Shared(str(tmp_path), vfs=vfs)
    engine = engine_package.open(str(tmp_path), shared=shared)
    expected = [(b"%04d" % number, b"v" * 50) for number in range(20)]
    for pair in expected:
        engine.put(*pair)
    for _ in range(3):
        with pytest.raises(EngineReadOnly, match=r"No space left on device: .*\.sst"):
            engine.flush()
    expected.append((b"more", b""))
    engine.put(*expected[-1], sync=True)
    assert engine.scan() == expected
    vfs.full = False
    with contextlib.suppress(EngineReadOnly):  # of a try that had begun before
        engine.flush()
    engine.compact()
    assert engine.scan() == expected
    assert engine.verify() == []
    engine.close()
    shared.close()
    tables = {path.name for path in tmp_path.glob("*.sst")}
    assert len(tables) == len(list(engine.tree.version.tables()))
    del engine, shared
    assert open_descriptors() == descriptors


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    with small_disk_at(tmp_path_factory.mktemp("disk"), 4) as disk:
        yield disk


@pytest.mark.parametrize("pages", range(1, 60, 4))
def test_a_disk_that_is_full_after_any_number_of_pages(small_disk: Path, pages: int) -> None:
    """Native writers, LMDB and all: what was acknowledged is there, and with room it goes on."""
    descriptors = open_descriptors()
    directory, filler = str(small_disk / f"engine-{pages}"), small_disk / "filler"
    expected: list[tuple[bytes, bytes]] = []
    engine = engine_package.open(directory, options=SMALL)
    fill(filler, pages)
    try:
        for number in range(2000):
            pair = (b"%06d" % number, os.urandom(100))
            try:
                engine.write(protocol.encode_put(*pair), sync=number % 3 == 0)
            except EngineReadOnly:
                break
            expected.append(pair)
        else:
            raise AssertionError("the disk was not full")
        with contextlib.suppress(EngineReadOnly):  # a flush may have given back the room of its log
            engine.compact()
        assert engine.scan() == expected
    finally:
        filler.unlink()
    try:
        engine.compact()
    except EngineReadOnly:  # of a compaction that began when there was no room
        engine.compact()
    engine.put(b"one more", b"", sync=True)
    assert engine.scan() == [*expected, (b"one more", b"")]
    assert engine.verify() == []
    engine.close()
    with engine_package.open(directory, options=SMALL) as engine:
        assert engine.scan() == [*expected, (b"one more", b"")]
    del engine
    assert open_descriptors() == descriptors
    subprocess.run(["rm", "-r", directory], check=True)


def fill(filler: Path, pages: int) -> None:
    """Leave this many pages free."""
    free = os.statvfs(filler.parent).f_bfree
    with open(filler, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, (free - pages) * os.sysconf("SC_PAGESIZE"))


FLUSHES = """
import sys
import storenode.engine
with storenode.engine.open(sys.argv[1]) as engine:
    for number in range(40):
        engine.put(b"%d" % number, b"")
        engine.flush()
"""

OPENS = """
import sys
import storenode.engine
from kvclient.errors import Corruption
try:
    storenode.engine.open(sys.argv[1])
except Corruption as error:
    print(error)
"""


def child(program: str, directory: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return done.stdout.decode()


RECEIVES = """
import sys
from storenode.engine.manifest import Manifest
Manifest(sys.argv[1]).close()
"""


def test_a_manifest_that_was_received_on_a_full_disk_is_opened_without_a_bus_error(small_disk: Path) -> None:
    """LMDB's lock file was made and mapped where there was no room for it: a signal ended the store."""
    directory, filler = small_disk / "received", small_disk / "filler"
    child(RECEIVES, directory)
    assert os.listdir(directory) == ["data.mdb"]
    fill(filler, 0)
    try:
        child(RECEIVES, directory)
    finally:
        filler.unlink()
        subprocess.run(["rm", "-r", directory], check=True)


def test_a_manifest_that_was_cut_short_is_corruption_and_no_bus_error(tmp_path: Path) -> None:
    child(FLUSHES, tmp_path)
    manifest = tmp_path / "manifest" / "data.mdb"
    whole = manifest.read_bytes()
    page = os.sysconf("SC_PAGESIZE")
    for pages in (0, 1, 2, 3, 5, 9):
        manifest.write_bytes(whole[: pages * page])
        said = child(OPENS, tmp_path)
        assert said or pages > 2, pages  # pages that are free may be missing
    manifest.write_bytes(whole)
    assert child(OPENS, tmp_path) == ""


def test_a_used_manifest_that_lost_a_header_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    child(FLUSHES, tmp_path)
    manifest = tmp_path / "manifest" / "data.mdb"
    page = os.sysconf("SC_PAGESIZE")
    content = bytearray(manifest.read_bytes())
    content[:page] = bytes(page)
    manifest.write_bytes(content)
    with pytest.raises(Corruption, match=r"data\.mdb"):
        engine_package.open(str(tmp_path))
    assert manifest.read_bytes() == content
