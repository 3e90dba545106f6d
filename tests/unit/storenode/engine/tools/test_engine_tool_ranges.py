"""The offline tools and range deletions: shown, respected, and found again without a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storenode import engine
from storenode.engine.manifest import Manifest
from tests.unit.storenode.engine.tools.bench import DAMAGED, OK, Bench, content, tables, tamper

KEYS = [b"key%03d" % number for number in range(100)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A table of 100 keys, a range deletion over ten of them, a table that remembers it, one key put again,
    and a second range deletion in the log."""
    with engine.open(str(tmp_path / "engine")) as opened:
        for key in KEYS:
            opened.put(key, b"value")
        opened.compact()
        opened.delete_range(KEYS[10], KEYS[20])  # sequence 101
        opened.put(KEYS[15], b"again")
        opened.put(KEYS[50], b"newer")
        opened.flush()
        opened.delete_range(KEYS[90], None, sync=True)  # sequence 104
    return tmp_path / "engine"


WANTED = {key: b"value" for key in KEYS[:90] if not KEYS[10] <= key < KEYS[20]} | {
    KEYS[15]: b"again",
    KEYS[50]: b"newer",
}


def test_dumps_show_range_deletions(directory: Path, bench: Bench) -> None:
    dumped = bench("dump-manifest", directory)
    shown = {"section": "range_deletions", "engine": 0, "sequence": 101, "start": "key010", "stop": "key020"}
    assert [{"section": "range_deletions"} | row for row in dumped["range_deletions"]] == [shown]
    assert dumped["states"][0]["records"] == 3
    assert [row["cleaned_sequence"] for row in dumped["tables"]] == [100, 103]
    first, second = sorted(tables(directory), key=lambda path: path.stat().st_size, reverse=True)
    assert bench("dump-table", first)["range_deletions"] == []
    (row,) = bench("dump-table", second)["range_deletions"]
    assert (row["sequence"], row["start"], row["stop"]) == (101, "key010", "key020")
    assert "range_deletions" not in {row["name"] for row in bench("dump-table", second)["properties"]}
    assert bench("stats", directory)["engines"][0]["range_deletions"] == 1
    assert bench("verify", directory)["problems"] == []


def test_find_tells_what_a_range_deletion_hides(directory: Path, bench: Bench) -> None:
    def told(key: str) -> list[tuple[str, int, str, str | None]]:
        found = bench("find", f"--key={key}", directory)["versions"]
        rows = [(Path(row["file"]).suffix, row["sequence"], row["kind"], row["note"]) for row in found]
        return [row for row in rows if row[0] != ".wal" or row[1] > 103]

    deletes = "range deletion 101 deletes it"
    assert told("key011") == [(".mdb", 101, "delete_range", None), (".sst", 12, "put", deletes)]
    assert told("key015")[0] == (".mdb", 101, "delete_range", None)
    assert sorted(told("key015")[1:]) == [(".sst", 16, "put", deletes), (".sst", 102, "put", None)]
    assert told("key020") == [(".sst", 21, "put", None)]
    in_log = (".wal", 104, "delete_range", None)
    assert told("key095") == [in_log, (".sst", 96, "put", "range deletion 104 deletes it")]


@pytest.mark.parametrize("harm", ["missing", "state record", "range record"])
def test_without_a_sound_manifest_tables_tell_of_range_deletions(
    harm: str, directory: Path, bench: Bench
) -> None:
    assert content(Path(shutil.copytree(directory, directory.parent / "copy"))) == WANTED
    if harm == "missing":
        shutil.rmtree(directory / "manifest")
    else:
        tamper(directory / "manifest", 1 if harm == "state record" else 3)
    bench("verify", directory, code=DAMAGED)
    done = bench("repair", "--yes", directory)
    assert done["lost"] == []
    assert "cannot-know" not in {row["action"] for row in done["plan"]}
    assert [row["sequence"] for row in bench("dump-manifest", directory)["range_deletions"]] == [101]
    assert content(directory) == WANTED
    assert bench("verify", directory)["problems"] == []


def test_a_repair_that_keeps_the_manifest_keeps_its_range_deletions(directory: Path, bench: Bench) -> None:
    """A stranger makes it be written anew."""
    made = Manifest(str(directory / "manifest"))
    state, metas = made.load(0)
    assert state is not None
    made.commit(7, state._replace(range_deletions=()), (), ())
    made.close()
    bench("repair", "--yes", directory, code=10)
    assert [row["sequence"] for row in bench("dump-manifest", directory)["range_deletions"]] == [101]
    assert content(directory) == WANTED
    assert len(metas) == 2


@pytest.mark.parametrize("known", [True, False])
def test_what_no_table_remembers_is_told_where_it_can_be(tmp_path: Path, bench: Bench, known: bool) -> None:
    with engine.open(str(tmp_path)) as opened:
        for key in KEYS:
            opened.put(key, b"value")
        opened.flush()
        opened.put(KEYS[0], b"in the log")  # a new log
        opened.flush()
        opened.delete_range(KEYS[50], KEYS[60])
        if not known:
            opened.flush()  # into the manifest alone
            opened.delete_range(b"x", None)  # in a new log
            opened.flush()
        opened.put(KEYS[1], b"in the log", sync=True)
    shutil.rmtree(tmp_path / "manifest")
    done = bench("repair", "--yes", tmp_path, code=OK)
    notes = [row["detail"] for row in done["plan"] if row["action"] == "cannot-know"]
    wanted = "range deletions after 101 that no table remembers: what they deleted is back"
    assert notes == ([] if known else [wanted])
    assert (KEYS[55] in content(tmp_path)) is not known


def test_verify_knows_a_range_deletion_that_cannot_be(directory: Path, bench: Bench) -> None:
    made = Manifest(str(directory / "manifest"))
    state, _ = made.load(0)
    assert state is not None
    (one,) = state.range_deletions
    made.commit(0, state._replace(range_deletions=(one, one._replace(sequence=500))), (), ())
    made.close()
    (problem,) = bench("verify", directory, code=DAMAGED)["problems"]
    assert problem["what"] == "range deletion 500: 103 is the last sequence in tables"
