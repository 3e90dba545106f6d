"""dump-table, dump-manifest and stats: all there is, in every format, and which record is damaged."""

from __future__ import annotations

import json
from pathlib import Path

from kvclient.cli import text as cli_text
from storenode import engine
from storenode.engine.tools import printing
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    OPTIONS,
    Bench,
    flip,
    sections,
    tables,
    tamper,
    whats,
)


def test_stats_agree_with_the_engine(copy: Path, bench: Bench) -> None:
    found = bench("stats", copy)
    with engine.open(str(copy), options=OPTIONS) as opened:
        figures = opened.stats()
    (row,) = found["engines"]
    assert row["tables"] == figures["tables"]
    assert row["table_bytes"] == figures["table_bytes"]
    assert row["entries"] == figures["table_entries"]
    assert row["deletions"] == figures["table_deletions"]
    by_level = {level["level"]: level["bytes"] for level in found["levels"]}
    assert by_level == {n: one["bytes"] for n, one in enumerate(figures["levels"]) if one["tables"]}


def test_dump_table_shows_all_there_is(copy: Path, bench: Bench) -> None:
    path = tables(copy)[0]
    found = bench("dump-table", path, "--entries")
    properties = {row["name"]: row["value"] for row in found["properties"]}
    assert properties["file_id"] == f"engine 0, number {int(path.stem)}"
    assert len(found["entries"]) == properties["entries"]
    assert found["entries"][0]["key"] == properties["smallest"]
    assert found["entries"][-1]["key"] == properties["largest"]
    assert [row["offset"] for row in found["index"]] == sorted({row["block"] for row in found["entries"]})
    assert (
        bench("dump-table", copy, int(path.stem), "--entries", "--limit=2")["entries"] == found["entries"][:2]
    )


def test_binary_keys_look_as_in_all_commands(tmp_path: Path, bench: Bench) -> None:
    key, value = b"\xff\t\\\x1b", b"line\n"
    with engine.open(str(tmp_path)) as opened:
        opened.put(key, value)
        opened.flush()
    path = tables(tmp_path)[0]
    plain = bench.text("dump-table", path, "--entries", "--format=plain")
    assert b"\t".join([b"entries", b"0", cli_text.to_line(key), b"1", b"put", b"-", b"line\\n"]) in plain
    assert cli_text.to_terminal(key).encode() in bench.text("dump-table", path, "--entries", "--format=table")
    assert b"\tff095c1b\t" in bench.text("dump-table", path, "--entries", "--format=plain", "--encoding=hex")
    (entry,) = bench("dump-table", path, "--entries")["entries"]
    assert entry["key"] == cli_text.to_json(key)
    lines = bench.text("dump-table", path, "--entries", "--format=jsonl").splitlines()
    assert {"section": "entries", **entry} in [json.loads(line) for line in lines]
    for data in (key, value, b"plain", "ünï\u202e".encode(), b""):
        assert printing.printable(data) == cli_text.to_terminal(data)
        assert printing.plain_escape(data) == cli_text.to_line(data)
        assert printing.json_cell(data) == cli_text.to_json(data)


def test_a_table_without_an_index_is_read_past_a_damaged_block(copy: Path, bench: Bench) -> None:
    path = tables(copy)[0]
    rows = bench("dump-table", path, "--entries")["entries"]
    parts = sections(path)
    for part in ("data", "index", "footer"):
        flip(path, parts[part])
    left = bench("dump-table", path, "--entries", code=DAMAGED)["entries"]
    missing = [row for row in rows if row not in left]
    assert [row for row in rows if row not in missing] == left
    assert len({row["block"] for row in missing}) == 1


def test_dump_manifest_tells_which_record_is_damaged(copy: Path, bench: Bench) -> None:
    assert bench("dump-manifest", copy)["problems"] == []
    sound = bench("dump-manifest", copy)
    assert {row["number"] for row in sound["tables"]} == {int(path.stem) for path in tables(copy)}
    assert sound["states"][0]["records"] == len(sound["tables"])
    tamper(copy / "manifest", 2)
    found = bench("dump-manifest", copy, code=DAMAGED)
    assert [row["problem"] for row in found["records"]].count("checksum mismatch") == 1
    assert "the state record is not of these" in whats(found)
