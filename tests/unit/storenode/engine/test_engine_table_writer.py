"""Writing prepared tables: what is refused, and what is left of one that was given up."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

import storenode.engine as engine_package
from storenode.engine import TableWriter
from storenode.engine.vfs import File, Vfs


def test_keys_must_ascend_strictly(tmp_path: Path) -> None:
    with TableWriter(str(tmp_path / "p")) as table:
        table.add(b"b", b"")
        for wrong in (b"b", b"a"):
            with pytest.raises(ValueError, match=f"keys must ascend: {wrong!r} comes after b'b'"):
                table.add(wrong, b"")
            with pytest.raises(ValueError, match="comes after b'b'"):
                table.delete(wrong)
        with pytest.raises(ValueError, match="b'c' comes after b'd'"):
            table.add_many([(b"d", b""), (b"c", b"")])
        assert table.entries == 2
        table.add(b"e", b"")


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with TableWriter(str(tmp_path / "p")) as table:
        for key, value in ((b"", b""), (b"k" * 65536, b""), (b"k", bytes((64 << 20) + 1))):
            with pytest.raises(ValueError, match=r"a key has 1\.\.65535 bytes and a value at most"):
                table.add(key, value)
        with pytest.raises(TypeError, match="keys and values are bytes, not str and bytes"):
            table.add("key", b"")  # type: ignore[arg-type]
        for deadline in (-1, 1 << 64):
            with pytest.raises(ValueError, match="deadline_ms must be in"):
                table.add(b"k", b"", deadline)
        table.add(b"k" * 65535, b"")
    with pytest.raises(FileExistsError):
        TableWriter(str(tmp_path / "p"))


def test_an_unfinished_file_is_removed_and_an_empty_one_never_made(tmp_path: Path) -> None:
    path = tmp_path / "p"
    table = TableWriter(str(path))
    with pytest.raises(KeyError), table:
        raise KeyError(table.add(b"k", b""))
    assert not path.exists()
    with pytest.raises(ValueError, match="at least one entry"), TableWriter(str(path)):
        pass
    assert not path.exists()
    with pytest.raises(ValueError, match="finished or was discarded"):
        table.add(b"l", b"")
    table.discard()
    path.write_bytes(b"of somebody else")
    table.discard()
    assert path.exists()


def test_a_disk_that_is_full_while_a_table_is_written(tmp_path: Path) -> None:
    class Full(Vfs):
        def create(self, path: str) -> File:
            file = super().create(path)
            file.close()
            file.fd = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
            return file

    table = TableWriter(str(tmp_path / "p"), vfs=Full())
    with pytest.raises(OSError, match="No space left on device"):
        table.add_many((b"%08d" % number, os.urandom(100)) for number in range(100_000))
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="finished or was discarded"):
        table.finish()


def test_add_many_writes_what_add_writes(tmp_path: Path) -> None:
    pairs = [(b"%06d" % number, b"v" * (number % 50)) for number in range(5000)]
    assert all(left < right for left, right in pairwise(pairs))
    with TableWriter(str(tmp_path / "many")) as many, TableWriter(str(tmp_path / "single")) as single:
        many.add_many(iter(pairs))
        for pair in pairs:
            single.add(*pair)
    with engine_package.open(str(tmp_path / "engine")) as engine:
        engine.ingest([str(tmp_path / "many")])
        assert engine.scan() == pairs
    assert os.stat(tmp_path / "many").st_size == os.stat(tmp_path / "single").st_size
