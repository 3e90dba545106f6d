"""The engine against an oracle, after thousands of crashes: power lost, or the process killed, at any step of
writing, flushing, compacting, closing and recovering, and again while it recovers from that.

What must hold is told in crashlife.py, which states are legal in crashvfs.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, EngineReadOnly, Options, Shared
from storenode.engine.vfs import Vfs
from tests.crash.crashlife import EngineLife, Expected, nothing_yet, random_options
from tests.crash.crashvfs import Crash, CrashVfs, Step
from tests.crash.oracle import STATES_LONG, Oracle, Plan, Watch, run_states

STATES_DEFAULT = 300
MOMENTS = 30
"""To crash at, at least, of one kind of operation."""


class EngineOracle(Oracle[EngineLife, Expected]):
    plan = Plan(
        steps=(10, 120), first=Watch(0.02, 24), later=Watch(0.15, 6), kills=0.25, twins=0.15, crashes=2
    )

    def random_options(self) -> Options:
        return random_options(self.dice)

    def life(self, vfs: Vfs, directory: str, expected: Expected | None) -> EngineLife:
        return EngineLife(vfs, directory, self.options, expected or nothing_yet(), self.dice)


def test_after_any_crash_a_prefix_with_all_that_was_promised_is_there(place: Path) -> None:
    run_states(EngineOracle, STATES_DEFAULT, 1, place)


def test_a_crash_at_any_step_of_the_first_opening_and_of_the_first_write(place: Path) -> None:
    for seed in range(8):
        oracle = EngineOracle(seed, place)
        life = oracle.first_life()
        life.watch(1.0, 80)
        life.open()
        life.log_and_apply([life.operations()])
        life.end()
        oracle.descend(life, 0)
        assert oracle.states >= 50


@pytest.mark.parametrize("operation", ["ingest", "checkpoint", "burst"])
def test_a_crash_at_any_step_of_an_ingestion_a_checkpoint_and_a_change_of_logs(
    place: Path, operation: str
) -> None:
    for seed in range(2):
        oracle = EngineOracle(seed, place)
        life = oracle.first_life()
        life.open()
        life.act(12)
        life.watch(1.0, 120)
        while len(life.crashes) < MOMENTS:  # how many a burst has depends on the workers
            getattr(life, operation)()
        life.end()
        oracle.descend(life, 0)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_after_thousands_of_crashes(place: Path) -> None:
    run_states(EngineOracle, STATES_LONG, random.randrange(1 << 32), place)


# What the oracle has found, each as the shortest way to it


def opened(vfs: CrashVfs) -> tuple[Shared, Engine]:
    shared = Shared(vfs.path, vfs=vfs)
    return shared, engine_package.open(os.path.join(vfs.path, "engine"), shared=shared)


def content_at(path: Path) -> list[tuple[bytes, bytes]]:
    with (
        contextlib.closing(Shared(str(path))) as shared,
        engine_package.open(str(path / "engine"), shared=shared) as engine,
    ):
        assert engine.verify() == []
        return engine.scan()


def crash_before(vfs: CrashVfs, wanted: str, act: Callable[[], object]) -> Crash:
    """The last moment before such a step while `act` runs."""
    found: list[Crash] = []

    def hook(vfs: CrashVfs, step: Step) -> None:
        if (step.when, step.kind) == ("before", wanted):
            found.append(vfs.crash(step))

    vfs.hook = hook
    act()
    vfs.hook = None
    return found[-1]


@pytest.fixture
def twin(place: Path) -> CrashVfs:
    (place / "first").mkdir()
    return CrashVfs(str(place / "first"))


STRICT = 0.0
"""Nothing survives that was not synced."""


def test_a_flush_makes_durable_that_a_write_changed_nothing(twin: CrashVfs, place: Path) -> None:
    """It took a sequence, which must not be given out twice."""
    shared, engine = opened(twin)
    engine.put(b"k", b"v")
    engine.flush()
    for key in (b"missing", b"other"):
        engine.delete(key)
    engine.flush()
    crash = twin.crash(Step("after", "flush", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "second"), random.Random(0), STRICT)
    shared, engine = opened(CrashVfs(str(place / "second")))
    assert engine.next_sequence == 4
    engine.close()
    shared.close()


def test_the_name_of_the_manifest_is_durable(twin: CrashVfs, place: Path) -> None:
    shared, engine = opened(twin)
    engine.put(b"k", b"v", sync=True)
    engine.flush()
    crash = twin.crash(Step("after", "flush", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "second"), random.Random(0), STRICT)
    assert content_at(place / "second") == [(b"k", b"v")]


def test_what_was_recovered_from_a_killed_process_outlasts_a_loss_of_power(
    twin: CrashVfs, place: Path
) -> None:
    """Somebody may have read it."""
    shared, engine = opened(twin)
    crash = crash_before(twin, "sync directory", lambda: engine.put(b"k", b"v", sync=True))
    engine.close()
    shared.close()
    again = crash.restart(str(place / "second"), random.Random(0))
    shared, engine = opened(again)
    assert engine.scan() == [(b"k", b"v")]
    crash = again.crash(Step("after", "open", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "third"), random.Random(0), STRICT)
    assert content_at(place / "third") == [(b"k", b"v")]


def test_a_directory_that_a_killed_process_made_is_durable(twin: CrashVfs, place: Path) -> None:
    with contextlib.closing(Shared(twin.path, vfs=twin)):
        crash = crash_before(twin, "sync directory", lambda: twin.make_directory(twin.path + "/engine"))
    again = crash.restart(str(place / "second"), random.Random(0))
    shared, engine = opened(again)
    engine.put(b"k", b"v", sync=True)
    crash = again.crash(Step("after", "put", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "third"), random.Random(0), STRICT)
    assert content_at(place / "third") == [(b"k", b"v")]


def test_a_torn_log_that_was_removed_does_not_come_back_under_its_successor(
    twin: CrashVfs, place: Path
) -> None:
    shared, engine = opened(twin)
    engine.put(b"k", b"v", sync=True)
    engine.retire_memtable()
    crash = crash_before(twin, "write", lambda: engine.put(b"l", b"w", sync=True))
    engine.close()
    shared.close()
    again = crash.restart(str(place / "second"), random.Random(0))
    shared, engine = opened(again)
    crash = crash_before(again, "sync directory", lambda: engine.put(b"m", b"x", sync=True))
    engine.close()
    shared.close()
    for seed in range(20):
        crash.lose_power(str(place / f"third-{seed}"), random.Random(seed), 0.5)
        assert content_at(place / f"third-{seed}")[0] == (b"k", b"v")


def test_entries_that_were_refused_in_the_middle_of_their_write_do_not_come_back(
    twin: CrashVfs, place: Path
) -> None:
    """Some of them are whole in what was written before the disk was full."""
    shared, engine = opened(twin)
    engine.put(b"k", b"v", sync=True)
    first = engine.next_sequence
    entries = [(first + n, 1, protocol.encode_put(b"refused-%d" % n, b"w")) for n in range(4)]

    def full(vfs: CrashVfs, step: Step) -> None:
        if (step.when, step.kind) == ("before", "write"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step.path)

    twin.hook = full
    with pytest.raises(EngineReadOnly):
        engine.append(entries)
    twin.hook = None
    crash = twin.crash(Step("after", "write", ""))
    engine.close()
    shared.close()
    for seed in range(40):
        crash.lose_power(str(place / f"second-{seed}"), random.Random(seed), 0.01)
        assert content_at(place / f"second-{seed}") == [(b"k", b"v")]


def test_a_manifest_that_was_never_committed_is_begun_anew(place: Path) -> None:
    page = os.sysconf("SC_PAGESIZE")
    for number, content in enumerate((b"", bytes(page), bytes(2 * page), b"x" * page + bytes(2 * page))):
        directory = place / f"{number}"
        (directory / "manifest").mkdir(parents=True)
        (directory / "manifest" / "data.mdb").write_bytes(content)
        assert content_at(directory) == []


class Elsewhere(CrashVfs):
    """No file can have a second name."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)


def test_copies_of_tables_are_durable(place: Path) -> None:
    """Where they cannot be links: of a checkpoint, and of an ingested table."""
    (place / "first").mkdir()
    vfs = Elsewhere(str(place / "first"))
    shared, engine = opened(vfs)
    with engine_package.TableWriter(vfs.path + "/prepared", vfs=vfs) as table:
        table.add(b"k", b"v")
    engine.ingest([vfs.path + "/prepared"])
    engine.checkpoint(vfs.path + "/copy")
    crash = vfs.crash(Step("after", "checkpoint", ""))
    engine.close()
    shared.close()
    crash.lose_power(str(place / "second"), random.Random(0), STRICT)
    assert content_at(place / "second") == [(b"k", b"v")]
    with engine_package.open(str(place / "second" / "copy")) as copy:
        assert copy.scan() == [(b"k", b"v")]
