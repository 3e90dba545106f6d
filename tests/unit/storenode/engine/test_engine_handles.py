"""The bound on open tables: what is read is right and stays readable however few descriptors there are."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient.errors import Corruption
from storenode.engine import Engine, Options, Shared
from storenode.engine.handles import Handles
from storenode.engine.shared import OPEN_FILES_MAX, default_open_files
from storenode.engine.vfs import File, Vfs

TABLES = 12
KEYS = [b"%04d" % number for number in range(40 * TABLES)]
APART = Options(level0_trigger=100, level0_slow=100, level0_stop=100, block_bytes=256, compression="none")
"""Each flush stays a table of its own."""


def value_of(key: bytes) -> bytes:
    return key * 10


CONTENT = [(key, value_of(key)) for key in KEYS]


def fill(engine: Engine) -> None:
    for number in range(TABLES):
        for key in KEYS[number::TABLES]:
            engine.put(key, value_of(key))
        engine.flush()
    assert engine.stats()["levels"][0]["tables"] == TABLES


def open_tables(directory: Path) -> list[str]:
    """The tables that this process has open, also those whose names are gone."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed them
            continue
        if target.startswith(f"{directory}{os.sep}") and ".sst" in target:
            found.append(target)
    return found


@contextmanager
def opened(
    directory: Path, open_files: int, *, vfs: Vfs | None = None, cache_bytes: int = 0
) -> Iterator[Engine]:
    shared = Shared(str(directory), open_files=open_files, cache_bytes=cache_bytes, vfs=vfs)
    try:
        with engine_package.open(str(directory / "e"), options=APART, shared=shared) as engine:
            yield engine
    finally:
        shared.close()


class FewDescriptors(Vfs):
    """A process that may have so many tables open."""

    def __init__(self, directory: Path, most: int) -> None:
        self.directory = directory
        self.most = most

    def open(self, path: str, *, writable: bool = False) -> File:
        if path.endswith(".sst") and len(open_tables(self.directory)) >= self.most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return super().open(path, writable=writable)


@pytest.mark.parametrize("most", [1, 2, 5, TABLES])
def test_no_more_tables_are_open_than_allowed_and_all_can_be_read(tmp_path: Path, most: int) -> None:
    with opened(tmp_path, most) as engine:
        fill(engine)
        for key in random.Random(most).sample(KEYS, 60):
            assert engine.get(key) == value_of(key)
            assert len(open_tables(tmp_path)) <= most
        assert engine.scan() == CONTENT
        assert engine.multi_get(KEYS) == [value_of(key) for key in KEYS]
        assert len(open_tables(tmp_path)) <= most
        files = engine.shared.stats()["files"]
        assert files["open"] == len(open_tables(tmp_path))
        assert files["open_max"] == most
        assert files["reads"] > 60
        assert (files["reopened"] > 0) == (files["evicted"] > 0) == (most < TABLES)
        engine.compact()
        assert engine.scan() == CONTENT
    assert open_tables(tmp_path) == []


def test_a_table_that_is_read_often_stays_open(tmp_path: Path) -> None:
    with opened(tmp_path, 3) as engine:
        fill(engine)
        with engine.snapshot() as snapshot:
            often, *others = [table for run in snapshot._view().runs for table in run]
        often.properties()
        for other in others:
            before = engine.shared.stats()["files"]["reopened"]
            often.properties()
            assert engine.shared.stats()["files"]["reopened"] == before
            other.properties()


def test_blocks_in_the_cache_need_no_descriptor(tmp_path: Path) -> None:
    with opened(tmp_path, 1, cache_bytes=8 << 20) as engine:
        fill(engine)
        assert engine.scan() == CONTENT
        assert engine.multi_get(KEYS) == [value_of(key) for key in KEYS]
        before = engine.shared.stats()["files"]
        assert engine.scan() == CONTENT
        assert [engine.get(key) for key in KEYS] == [value_of(key) for key in KEYS]
        assert engine.shared.stats()["files"] == before


def test_many_threads_share_one_descriptor(tmp_path: Path) -> None:
    """Each opens what another has just closed; nobody reads from a wrong or a closed file."""
    wrong: list[object] = []

    def read(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(60):
                key = dice.choice(KEYS)
                if engine.get(key) != value_of(key):
                    wrong.append(key)
                some = dice.sample(KEYS, 8)
                if engine.multi_get(some) != [value_of(one) for one in some]:
                    wrong.append(some)
            if engine.scan() != CONTENT:
                wrong.append("scan")
        except Exception as error:  # noqa: BLE001 - told to the test
            wrong.append(error)

    with opened(tmp_path, 1) as engine:
        fill(engine)
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(open_tables(tmp_path)) <= 1
        assert engine.shared.stats()["files"]["reopened"] > 100


def test_a_snapshot_reads_tables_whose_names_are_gone(tmp_path: Path) -> None:
    """They were replaced, the engine was closed, and who opened it next removed them."""
    with opened(tmp_path, 1) as engine:
        fill(engine)
        replaced = engine.snapshot()
        engine.compact()
        kept = engine.snapshot()
        engine.put(KEYS[0], b"later")
        engine.flush()
    with opened(tmp_path, 1) as engine:
        left = {name for name in os.listdir(tmp_path / "e") if name.endswith(".sst")}
        assert len(left) == 2
        shutil.rmtree(tmp_path / "e", ignore_errors=True)
        assert replaced.scan() == kept.scan() == CONTENT
        assert replaced.get(KEYS[-1]) == kept.get(KEYS[-1]) == value_of(KEYS[-1])
        replaced.close()
        kept.close()
        assert len(open_tables(tmp_path)) <= 1


def test_a_table_is_removed_when_its_last_snapshot_is_closed_and_not_before(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as engine:
        fill(engine)
        snapshot = engine.snapshot()
        engine.compact()
        names = [f"{tmp_path}/e/{table.number:06d}.sst" for run in snapshot._view().runs for table in run]
        assert all(map(os.path.exists, names))
        assert snapshot.scan() == CONTENT
        snapshot.close()
    assert not any(map(os.path.exists, names))
    assert open_tables(tmp_path) == []


def test_out_of_descriptors_closes_tables_that_are_idle(tmp_path: Path) -> None:
    with opened(tmp_path, 1000, vfs=FewDescriptors(tmp_path, 4)) as engine:
        fill(engine)
        assert engine.scan() == CONTENT
        assert [engine.get(key) for key in KEYS] == [value_of(key) for key in KEYS]
        assert 1 <= len(open_tables(tmp_path)) <= 4
        engine.compact()
        engine.shared.wait_for(lambda: not engine.tree.retired)  # what it replaced is still open till then
        assert engine.scan() == CONTENT


def test_out_of_descriptors_with_none_to_close_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    vfs = FewDescriptors(tmp_path, 100)
    with opened(tmp_path, 1, vfs=vfs) as engine:
        fill(engine)
        vfs.most = 0
        for read in (engine.scan, lambda: [engine.get(key) for key in KEYS], lambda: engine.multi_get(KEYS)):
            with pytest.raises(OSError, match=r"Too many open files.*ulimit -n.*\.sst") as caught:
                read()
            assert caught.value.errno == errno.EMFILE
        vfs.most = 100
        assert engine.scan() == CONTENT


def test_another_file_under_the_name_is_not_read(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as engine:
        fill(engine)
        for name in os.listdir(tmp_path / "e"):
            if name.endswith(".sst"):
                os.rename(tmp_path / "e" / name, tmp_path / "e" / f"{name}.old")
        tables = sorted(tmp_path.glob("e/*.old"))
        for table, other in zip(tables, tables[1:] + tables[:1], strict=True):
            shutil.copy(other, str(table).removesuffix(".old"))
        with pytest.raises(Corruption, match="checksum"):
            engine.scan()


def test_the_default_is_half_of_what_the_process_may_open_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {100: 50, 1: 1, 1 << 20: OPEN_FILES_MAX, -1: OPEN_FILES_MAX}
    for soft, expected in limits.items():
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, -1))
        assert default_open_files() == expected


def test_a_bound_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open_files"):
        Shared(str(tmp_path), open_files=0)


def test_other_errors_of_opening_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Handles(Vfs(), 1).open(str(tmp_path / "nothing"))
