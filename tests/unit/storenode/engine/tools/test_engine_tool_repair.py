"""repair of damaged tables and logs: what could be kept is there, what is lost is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from storenode import engine
from storenode.engine.tools.logfile import LogFile
from storenode.engine.vfs import Vfs
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    OK,
    PARTIAL,
    Bench,
    Content,
    content,
    flip,
    levels,
    logs,
    sections,
    tables,
    whats,
)


@pytest.mark.parametrize("part", ["data", "filter", "index", "properties", "footer"])
def test_a_flipped_bit_in_a_table_is_found_and_repaired(
    part: str, copy: Path, wanted: Content, bench: Bench
) -> None:
    path = tables(copy)[0]
    number = int(path.stem)
    offset = sections(path)[part]
    rows = bench("dump-table", path, "--entries")["entries"]
    flip(path, offset)
    problems = bench("verify", copy, code=DAMAGED)["problems"]
    assert {row["file"] for row in problems} == {str(path)}
    assert any(abs(row["offset"] - offset) < 6000 for row in problems)
    dumped = bench("dump-table", path, "--entries", code=DAMAGED)
    assert dumped["problems"]
    readable = [row["key"] for row in dumped["entries"]]
    if part == "data":
        assert 0 < len(readable) < len(rows)
    else:
        assert readable == [row["key"] for row in rows]

    before = copy / "before"
    shutil.copytree(copy, before, ignore=shutil.ignore_patterns("before"))
    plan = bench("repair", "--salvage", copy, code=DAMAGED)
    assert {row["action"] for row in plan["plan"]} == {"take-out", "salvage"}
    assert path.exists()
    done = bench("repair", "--salvage", "--yes", copy, code=PARTIAL if part == "data" else OK)
    assert done["problems"] == []
    quarantined = Path(done["quarantine"][0]["directory"]) / f"0000-{path.name}"
    assert quarantined.read_bytes() == (before / path.name).read_bytes()
    shutil.rmtree(before)
    got = content(copy)
    if part != "data":
        assert got == wanted
        assert number not in levels(copy)
        return
    (lost,) = done["lost"]
    missing = {key for key in wanted if got.get(key) != wanted[key]}
    low, high = (lost["from_key"] or "").encode(), lost["until_key"].encode()
    assert missing | {key for key in got if key not in wanted} <= {
        key for key in {*wanted, *got} if low <= key <= high
    }
    assert all(row["min_sequence"] <= row["max_sequence"] for row in done["lost"])


def test_without_salvage_a_damaged_table_goes_as_a_whole(copy: Path, bench: Bench) -> None:
    path = tables(copy)[0]
    smallest, largest = (
        row["value"]
        for row in sorted(bench("dump-table", path)["properties"], key=lambda row: row["name"], reverse=True)
        if row["name"] in ("smallest", "largest")
    )
    flip(path, 30)
    (lost,) = bench("repair", copy, code=DAMAGED)["lost"]
    assert (lost["from_key"], lost["until_key"]) == (smallest, largest)
    assert "could be kept: --salvage" in lost["what"]
    bench("repair", "--yes", copy, code=PARTIAL)
    assert not path.exists()
    bench("verify", copy)
    content(copy)


def test_a_missing_table_is_found_and_its_range_is_told(copy: Path, bench: Bench) -> None:
    path = tables(copy)[0]
    smallest = bench("dump-table", path, "--entries")["entries"][0]["key"]
    path.unlink()
    assert f"{path} the table is missing" in whats(bench("verify", copy, code=DAMAGED))
    assert bench("stats", copy, code=DAMAGED)["engines"][0]["missing"] == 1
    (lost,) = bench("repair", "--yes", copy, code=PARTIAL)["lost"]
    assert lost["from_key"] == smallest
    bench("verify", copy)
    content(copy)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4000])
def test_a_truncated_table_is_found_and_taken_out(size: int, copy: Path, bench: Bench) -> None:
    path = tables(copy)[0]
    os.truncate(path, size)
    assert str(path) in whats(bench("verify", copy, code=DAMAGED))
    bench("dump-table", path, "--entries", code=DAMAGED)
    bench("repair", "--salvage", "--yes", copy, code=PARTIAL)
    bench("verify", copy)
    content(copy)


def test_a_damaged_log_is_found_and_cut_where_it_ends(copy: Path, wanted: Content, bench: Bench) -> None:
    log = logs(copy)[-1]
    reader = LogFile(Vfs(), str(log), int(log.stem), 0)
    cut = next(record for record in reader.records if b"log030" in record.ops)
    flip(log, cut.offset + 40)
    (problem,) = bench("verify", copy, code=DAMAGED)["problems"]
    assert (problem["file"], problem["offset"], problem["what"]) == (str(log), cut.offset, "damaged record")
    (lost,) = bench("repair", copy, code=DAMAGED)["lost"]
    assert f"after sequence {cut.first_sequence - 1} (30 sound ones from" in lost["what"]
    bench("repair", "--yes", copy, code=PARTIAL)
    bench("verify", copy)
    expected = {key: value for key, value in wanted.items() if not b"log030" <= key <= b"log059"}
    got = content(copy)
    got.pop(b"key0899", None)
    assert got == expected


@pytest.mark.parametrize("harm", ["header", "empty", "short", "garbage", "foreign", "missing"])
def test_a_log_that_is_none_is_found_and_taken_out(harm: str, tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path), options=engine.Options(memtable_bytes=4096)) as opened:
        opened.background.stop()  # nothing is flushed: all logs are needed
        for number in range(100):
            ops = codec_put(number)  # not by `write`, which waits for the flush
            sequence = opened.next_sequence
            opened.apply(ops, sequence, 1, opened.append([(sequence, 1, ops)]))
    first, second, *rest = logs(tmp_path)
    assert rest
    reader = LogFile(Vfs(), str(first), int(first.stem), 0)
    kept = sum(record.first_sequence > 0 for record in reader.records)
    if harm == "header":
        flip(second, 30)
    elif harm == "missing":
        second.unlink()
    else:
        junk = {
            "empty": b"",
            "short": b"rkv-wal\n",
            "garbage": os.urandom(5000),
            "foreign": first.read_bytes(),
        }
        second.write_bytes(junk[harm])
    found = bench("verify", tmp_path, code=DAMAGED)
    assert second.name in whats(found) or harm == "missing"
    done = bench("repair", "--yes", tmp_path, code=PARTIAL)
    taken = {Path(row["file"]).name for row in done["plan"] if row["action"] == "take-out"}
    assert taken == {path.name for path in (second, *rest) if harm != "missing" or path != second}
    assert sorted(content(tmp_path)) == [b"key%03d" % number for number in range(kept)]


def codec_put(number: int) -> bytes:
    from kvclient.protocol import encode_put

    return encode_put(b"key%03d" % number, b"v" * 200)


def test_a_deletion_survives_salvage_and_hides_what_lies_deeper(
    copy: Path, tmp_path: Path, bench: Bench
) -> None:
    directory = tmp_path / "deletion"
    with engine.open(str(directory)) as opened:
        opened.put(b"gone", b"old")
        opened.compact()
        opened.delete(b"gone")
        opened.put(b"there", b"yes")
        opened.flush()
    newest = tables(directory)[-1]
    flip(newest, sections(newest)["filter"])
    bench("repair", "--salvage", "--yes", directory)
    assert content(directory) == {b"there": b"yes"}


def test_the_newest_table_comes_back_from_its_log(tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"a", b"1")
        opened.put(b"b", b"2", sync=True)
        opened.flush()
    (table,) = tables(tmp_path)
    flip(table, 5)
    done = bench("repair", "--yes", tmp_path)
    assert done["lost"] == []
    assert {row["action"] for row in done["plan"]} == {"take-out"}
    assert content(tmp_path) == {b"a": b"1", b"b": b"2"}


def test_sequences_of_what_was_lost_are_not_given_out_again(tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"a", b"1")
        opened.flush()
        opened.put(b"b", b"2")
        opened.flush()
        following = opened.next_sequence
    for log in logs(tmp_path):
        log.unlink()
    shutil.rmtree(tmp_path / "manifest")
    flip(tables(tmp_path)[-1], 5)
    bench("repair", "--yes", tmp_path, code=PARTIAL)
    with engine.open(str(tmp_path)) as opened:
        assert opened.next_sequence == following
        assert opened.get(b"a") == b"1"
