"""repair that makes the manifest anew from the tables, and repairs that die half way."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storenode import engine
from storenode.engine.manifest import Manifest, State
from storenode.engine.vfs import Vfs
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    ERROR,
    OK,
    PARTIAL,
    Bench,
    Content,
    content,
    flip,
    levels,
    logs,
    make_table,
    sections,
    tables,
    tamper,
)


@pytest.mark.parametrize(
    "harm", ["missing", "empty", "truncated", "garbage", "fresh", "state", "table", "page"]
)
def test_a_lost_or_damaged_manifest_is_rebuilt_from_the_tables(
    harm: str, copy: Path, wanted: Content, bench: Bench
) -> None:
    data = copy / "manifest" / "data.mdb"
    if harm == "missing":
        shutil.rmtree(copy / "manifest")
    elif harm == "empty":
        data.write_bytes(b"")
    elif harm == "truncated":
        os.truncate(data, 2 * 4096 + 100)
    elif harm == "garbage":
        data.write_bytes(random.Random(1).randbytes(50_000))
    elif harm == "fresh":
        shutil.rmtree(copy / "manifest")
        (copy / "manifest").mkdir()
        Manifest(str(copy / "manifest")).close()
    elif harm == "page":
        changed = bytearray(data.read_bytes())
        changed[2 * 4096 : 6 * 4096] = random.Random(2).randbytes(4 * 4096)
        data.write_bytes(changed)
    else:
        tamper(data.parent, 1 if harm == "state" else 2)
    bench("verify", copy, code=DAMAGED)
    bench("dump-manifest", copy, code=DAMAGED if harm != "fresh" else OK)
    before = {path.name: path.read_bytes() for path in (*tables(copy), *logs(copy))}
    assert "rebuild-manifest" in {row["action"] for row in bench("repair", copy, code=DAMAGED)["plan"]}
    assert before == {path.name: path.read_bytes() for path in (*tables(copy), *logs(copy))}
    done = bench("repair", "--yes", copy)
    assert done["lost"] == []
    assert done["problems"] == []
    assert content(copy) == wanted
    kept = {path.name: path.read_bytes() for path in Path(done["quarantine"][0]["directory"]).iterdir()}
    for name, raw in before.items():
        assert (copy / name).exists() or kept[f"0000-{name}"] == raw or name.endswith(".wal"), name


def test_tables_whose_sequences_interleave_are_merged_so_that_no_old_value_comes_back(
    tmp_path: Path, bench: Bench
) -> None:
    """The deeper table has the higher sequence, by another key: the order of sequences would be wrong."""
    deep = make_table(tmp_path, 5, [(b"a", 3, 1, b"old"), (b"gone", 4, 1, b"old"), (b"z", 100, 1, b"new")])
    upper = make_table(tmp_path, 4, [(b"a", 50, 1, b"new"), (b"gone", 51, 0, b"")])
    (tmp_path / "manifest").mkdir()
    made = Manifest(str(tmp_path / "manifest"))
    made.load(0)
    made.commit(0, State(6, 0, 100, 0), [deep._replace(level=6), upper._replace(level=5)], ())
    made.close()
    assert bench("verify", tmp_path)["problems"] == []
    shutil.rmtree(tmp_path / "manifest")
    plan = bench("repair", tmp_path, code=DAMAGED)["plan"]
    actions = ["rebuild-manifest", "cannot-know", "take-out", "take-out", "merge", "merge"]
    assert [row["action"] for row in plan] == actions
    bench("repair", "--yes", tmp_path)
    assert content(tmp_path) == {b"a": b"new", b"z": b"new"}


def test_tables_in_the_order_of_their_sequences_stay_as_they_are(tmp_path: Path, bench: Bench) -> None:
    make_table(tmp_path, 3, [(b"a", 1, 1, b"old"), (b"b", 2, 1, b"old")])
    make_table(tmp_path, 4, [(b"b", 5, 1, b"new"), (b"c", 6, 1, b"new")])
    make_table(tmp_path, 2, [(b"x", 7, 1, b"alone")])
    bench("repair", "--yes", tmp_path)
    assert levels(tmp_path) == {3: 0, 4: 0, 2: 6}
    assert content(tmp_path) == {b"a": b"old", b"b": b"new", b"c": b"new", b"x": b"alone"}


def test_salvage_of_a_table_that_was_never_finished_leaves_to_the_logs_what_is_theirs(
    tmp_path: Path, bench: Bench
) -> None:
    """A half-written flush holds the outcome of increments that the log repeats: they must not count
    twice."""
    from kvclient.protocol import encode_increment

    with engine.open(str(tmp_path)) as opened:
        opened.put(b"aaa", b"1")
        opened.flush()
        for _ in range(3):
            opened.write(encode_increment(b"counter", 1), sync=True)
    half = make_table(tmp_path, 77, [(b"counter", 4, 1, b"3")])
    os.truncate(tmp_path / "000077.sst", half.size - 80)
    shutil.rmtree(tmp_path / "manifest")
    bench("repair", "--salvage", "--yes", tmp_path)
    assert content(tmp_path) == {b"aaa": b"1", b"counter": b"3"}


CRASHER = """
import os, sys
from storenode import engine
from storenode.engine import shared, vfs
class Dying(vfs.Vfs):
    def sync_directory(self, path):
        if any(name.endswith(".sst") for name in os.listdir(path)):
            os.kill(os.getpid(), 9)  # tables are written, the manifest does not know
        super().sync_directory(path)
made = shared.Shared(sys.argv[1], vfs=Dying())
opened = engine.open(sys.argv[1], shared=made)
for number in range(500):
    opened.put(b"key%03d" % number, b"v" * 50, sync=number == 499)
opened.flush()
"""


def test_an_engine_killed_in_the_middle_of_a_flush_is_sound(tmp_path: Path, bench: Bench) -> None:
    dead = subprocess.run([sys.executable, "-c", CRASHER, tmp_path], check=False, timeout=60)
    assert dead.returncode == -9
    (orphan,) = tables(tmp_path)
    found = bench("verify", tmp_path)
    assert [row["file"] for row in found["notes"]] == [str(orphan)]
    assert bench("repair", "--yes", tmp_path)["plan"] == []
    shutil.rmtree(tmp_path / "manifest")
    os.truncate(orphan, orphan.stat().st_size // 2)
    (lost,) = bench("repair", "--yes", "--salvage", tmp_path, code=PARTIAL)["lost"]
    assert orphan.name in lost["what"]  # nobody can know that the log has it all
    assert len(content(tmp_path)) == 500


def test_a_repair_that_dies_in_front_of_the_rename_has_changed_nothing(
    copy: Path, wanted: Content, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "manifest")
    flip(tables(copy)[0], sections(tables(copy)[0])["filter"])
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}

    def full(self: Vfs, source: str, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    with monkeypatch.context() as patch:
        patch.setattr(Vfs, "link", full)
        bench("repair", "--yes", "--salvage", copy, code=ERROR)
    assert "No space left on device" in bench.errors
    assert before == {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    bench("repair", "--yes", "--salvage", copy)
    assert content(copy) == wanted


def test_a_repair_that_dies_behind_the_rename_is_finished_by_the_next(
    copy: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tables(copy)[0]
    flip(path, 30)
    flip(logs(copy)[-1], 3000)

    def broken(self: Vfs, path: str) -> None:
        raise OSError(5, "Input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr("storenode.engine.tools.repair._clear", broken)
        bench("repair", "--yes", "--salvage", copy, code=ERROR)
    bench("repair", "--yes", "--salvage", copy, code=PARTIAL)
    bench("verify", copy)
    content(copy)
