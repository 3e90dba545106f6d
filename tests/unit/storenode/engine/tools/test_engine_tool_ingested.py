"""The tools on engines with ingested tables: nothing is called damaged that is not, and a lost manifest
neither resurrects nor reorders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Engine, TableWriter
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    PARTIAL,
    Bench,
    content,
    flip,
    sections,
    tables,
)


def ingest(engine: Engine, entries: dict[bytes, bytes | None]) -> None:
    path = f"{engine.directory}.prepared"
    with TableWriter(path) as table:
        for key, value in sorted(entries.items()):
            table.delete(key) if value is None else table.add(key, value)
    engine.ingest([path], move=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Older and newer entries around an ingestion, each in a table of its own, the newest in the log."""
    with engine_package.open(str(tmp_path / "engine")) as engine:
        engine.put(b"a", b"1")
        engine.put(b"b", b"1")
        engine.flush()
        ingest(engine, {b"a": b"2", b"b": None, b"c": b"2"})
        engine.put(b"c", b"3")
    return tmp_path / "engine"


CONTENT = {b"a": b"2", b"c": b"3"}


def test_all_tools_know_the_sequence_that_the_manifest_has(directory: Path, bench: Bench) -> None:
    assert bench("verify", directory)["problems"] == []
    assert bench("repair", directory)["plan"] == []
    found = bench("find", directory, "--key", "a")
    in_tables = [row for row in found["versions"] if row["file"].endswith(".sst")]
    assert [(row["sequence"], row["note"]) for row in in_tables] == [(3, None), (1, None)]
    ingested = bench("dump-manifest", directory)["tables"][-1]
    assert (ingested["min_sequence"], ingested["max_sequence"]) == (3, 3)
    dump = bench("dump-table", "--entries", tables(directory)[-1])
    assert [row["sequence"] for row in dump["entries"]] == [0, 0, 0]
    (file_id,) = [row["value"] for row in dump["properties"] if row["name"] == "file_id"]
    assert file_id.startswith("prepared, ")


def test_an_ingested_table_of_a_lost_manifest_comes_after_those_with_smaller_numbers(
    directory: Path,
    bench: Bench,
) -> None:
    shutil.rmtree(directory / "manifest")
    bench("repair", "--yes", directory)
    assert content(directory) == CONTENT
    assert bench("verify", directory)["problems"] == []


def test_logs_of_before_and_after_are_told_apart_by_their_numbers(tmp_path: Path, bench: Bench) -> None:
    """Entries without effect stay in the old log. A delete among them, replayed over the table, would take an
    ingested key away; and the first entry after must not count as one of before."""
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        engine.delete(b"a")
        engine.delete(b"a")
        ingest(engine, {b"a": b"ingested", b"b": b"ingested"})
        engine.put(b"b", b"newer")
    shutil.rmtree(path / "manifest")
    bench("repair", "--yes", path)
    assert content(path) == {b"a": b"ingested", b"b": b"newer"}


def test_an_entry_that_was_refused_took_no_sequence(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        engine.put(b"a", b"old")
        with pytest.raises(Exception, match="malformed"):
            engine.write(b"\x93nonsense")
        ingest(engine, {b"a": b"ingested", b"b": b"ingested"})
        engine.put(b"b", b"newer")
    shutil.rmtree(path / "manifest")
    bench("repair", "--yes", path)
    assert content(path) == {b"a": b"ingested", b"b": b"newer"}


def test_two_ingestions_keep_their_order(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        for value in (b"1", b"2", b"3"):
            ingest(engine, {b"a": value, b"b" + value: b""})
        ingest(engine, {b"x": b""})
        engine.write(protocol.encode_put(b"x", b"newer"))
    shutil.rmtree(path / "manifest")
    bench("repair", "--yes", path)
    assert content(path) == {b"a": b"3", b"b1": b"", b"b2": b"", b"b3": b"", b"x": b"newer"}


def test_a_table_whose_place_nobody_knows_is_taken_out_and_told(directory: Path, bench: Bench) -> None:
    """A newer table with its keys may be a flush, or compacted from what was older."""
    with engine_package.open(str(directory)) as engine:
        engine.put(b"a", b"4")
        engine.flush()
    shutil.rmtree(directory / "manifest")
    done = bench("repair", "--yes", directory, code=PARTIAL)
    (lost,) = done["lost"]
    assert "ingest it again from the quarantine" in lost["what"]
    assert (lost["from_key"], lost["until_key"]) == ("a", "c")
    assert content(directory) == {b"a": b"4", b"b": b"1", b"c": b"3"}
    (kept,) = (directory / "quarantine").glob("*/*.sst")
    with engine_package.open(str(directory)) as engine:
        engine.ingest([str(kept)])
        assert dict(engine.scan()) == {b"a": b"2", b"c": b"2"}


def test_a_range_deletion_that_an_older_table_remembers_stays_below(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        for key in (b"a", b"b"):
            engine.put(key, b"old")
        engine.flush()
        engine.put(b"z", b"1")
        engine.delete_range(b"a", b"c")
        engine.delete_range(b"a", b"d")
        engine.flush()
        ingest(engine, {b"a": b"ingested"})
        expected = dict(engine.scan())
    shutil.rmtree(path / "manifest")
    bench("repair", "--yes", path)
    assert content(path) == expected == {b"a": b"ingested", b"z": b"1"}


def test_a_range_deletion_that_may_be_older_or_newer_is_told(tmp_path: Path, bench: Bench) -> None:
    """It was flushed without a table, and only one that was written later remembers it."""
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        for key in (b"a", b"b", b"d"):
            engine.put(key, b"old")
        engine.flush()
        engine.delete_range(b"a", b"c")
        engine.delete_range(b"a", b"d")
        engine.flush()
        ingest(engine, {b"a": b"ingested"})
        ingest(engine, {b"x": b"ingested"})
        engine.put(b"z", b"1")
        engine.flush()
    shutil.rmtree(path / "manifest")
    done = bench("repair", "--yes", path, code=PARTIAL)
    (lost,) = done["lost"]
    assert "ingest it again from the quarantine" in lost["what"]
    assert (lost["from_key"], lost["until_key"]) == ("a", "a")
    assert content(path) == {b"d": b"old", b"x": b"ingested", b"z": b"1"}


def test_keys_that_nothing_else_has_need_no_order(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        engine.put(b"a", b"1")
        engine.flush()
        ingest(engine, {b"m": b"2"})
        engine.put(b"z", b"3")
        engine.flush()
    shutil.rmtree(path / "manifest")
    bench("repair", "--yes", path)
    assert content(path) == {b"a": b"1", b"m": b"2", b"z": b"3"}


def test_a_damaged_ingested_table_is_salvaged_with_its_sequence(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path)) as engine:
        for key in (b"%04d" % number for number in range(400)):
            engine.put(key, b"old")
        engine.flush()
        ingest(engine, {b"%04d" % number: os.urandom(50) for number in range(400)})
        expected = dict(engine.scan())
    newest = tables(path)[-1]
    flip(newest, sections(newest)["filter"])
    assert bench("verify", path, code=DAMAGED)["problems"] != []
    bench("repair", "--salvage", "--yes", path)
    assert content(path) == expected


def test_an_engine_of_ingested_tables_alone_is_found_by_its_manifest(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "engine"
    with engine_package.open(str(path), engine_id=6) as engine:
        ingest(engine, {b"a": b"1"})
        engine.checkpoint(str(tmp_path / "copy"))
    for place in (path, tmp_path / "copy"):
        assert bench("verify", place)["problems"] == []
    assert bench("verify", path)["checked"][0]["partition"] == 6


def test_a_prepared_table_without_a_record_is_left_by_a_crash(directory: Path, bench: Bench) -> None:
    with TableWriter(str(directory / "000099.sst")) as table:
        table.add(b"a", b"of a crash between link and commit")
    found = bench("verify", directory)
    assert found["problems"] == []
    assert any("000099.sst" in note["file"] and "left by a crash" in note["what"] for note in found["notes"])
    with engine_package.open(str(directory)) as engine:
        assert dict(engine.scan()) == CONTENT
    assert not (directory / "000099.sst").exists()
