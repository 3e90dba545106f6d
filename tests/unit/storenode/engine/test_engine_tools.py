"""The offline tools on sound, damaged, half-written and foreign files: what they find, what they refuse, and
that a repaired engine opens with exactly what could be kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvclient.cli import text as cli_text
from shared.hashing import partition_of
from storenode import engine
from storenode.engine import codec
from storenode.engine.manifest import Manifest, State
from storenode.engine.tools import blocks, places, printing
from storenode.engine.tools.__main__ import run
from storenode.engine.tools.logfile import LogFile
from storenode.engine.tools.tablefile import TableFile, context, mask
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

OK, ERROR, USAGE, NOT_FOUND, UNAVAILABLE, PARTIAL, DAMAGED = 0, 1, 2, 3, 8, 10, 11

Content = dict[bytes, bytes]


class Bench:
    """Runs tools and looks at what they print."""

    def __init__(self, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capsysbinary
        self.errors = ""

    def __call__(self, *arguments: object, code: int = OK) -> dict[str, Any]:
        """The json document that a tool prints; its exit code must be `code`."""
        got = run([*map(str, arguments), "--format=json", "--traceback"])
        out, err = self._capture.readouterr()
        self.errors = err.decode()
        assert "Traceback" not in self.errors
        assert got == code, (got, out, err)
        return json.loads(out) if out else {}  # type: ignore[no-any-return]

    def text(self, *arguments: object, code: int = OK) -> bytes:
        assert run([*map(str, arguments)]) == code
        return self._capture.readouterr().out


@pytest.fixture
def bench(capsysbinary: pytest.CaptureFixture[bytes]) -> Bench:
    return Bench(capsysbinary)


OPTIONS = engine.Options(memtable_bytes=32 << 10, table_bytes=16 << 10, level0_trigger=12)


def content(directory: Path) -> Content:
    with engine.open(str(directory)) as opened:
        return dict(opened.scan())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """An engine with tables in level 0 and in deeper ones, deletions, and entries that are only in logs."""
    directory = tmp_path_factory.mktemp("engine") / "original"
    chance = random.Random(7)
    with engine.open(str(directory), options=OPTIONS) as opened:
        for number in range(3000):
            opened.put(b"key%04d" % chance.randrange(900), chance.randbytes(20).hex().encode())
            if number % 11 == 0:
                opened.delete(b"key%04d" % chance.randrange(900))
        opened.flush()
        opened.compact()
        for number in range(900):
            opened.put(b"key%04d" % chance.randrange(450), chance.randbytes(20).hex().encode())
            if number % 5 == 0:
                opened.delete(b"key%04d" % chance.randrange(450))
        opened.flush()
        for number in range(60):
            opened.put(b"log%03d" % number, b"only in the log", sync=True)
        opened.delete(b"key0899")
    return directory, content(Path(shutil.copytree(directory, directory.parent / "read")))


@pytest.fixture
def copy(original: tuple[Path, Content], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "copy"))


@pytest.fixture
def wanted(original: tuple[Path, Content]) -> Content:
    return original[1]


def tables(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.sst"))


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.wal"))


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x10
    path.write_bytes(raw)


def sections(path: Path) -> dict[str, int]:
    """An offset inside each part of a table."""
    with TableFile(Vfs(), str(path), int(path.stem), 0) as table:
        footer, index = table.footer(), table.index()
    return {
        "data": index[len(index) // 2].handle.offset + 20,
        "filter": footer.filter_block.offset + 3,
        "index": footer.index_block.offset + 3,
        "properties": footer.properties_block.offset + 3,
        "footer": path.stat().st_size - 20,
    }


def whats(document: dict[str, Any]) -> str:
    return " | ".join(f"{row['file']} {row['what']}" for row in document["problems"])


def levels(directory: Path) -> dict[int, int]:
    """Level by table number."""
    made = Manifest(str(directory / "manifest"))
    try:
        return {table.number: table.level for table in made.load(0)[1]}
    finally:
        made.close()


# What is sound


def test_a_sound_engine_is_found_sound_and_repair_leaves_it_alone(
    copy: Path, wanted: Content, bench: Bench
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    found = bench("verify", copy)
    assert found["schema"] == 1
    assert found["problems"] == []
    (checked,) = found["checked"]
    assert checked["tables"] == len(tables(copy))
    assert checked["logs"] == len(logs(copy))
    assert checked["entries"] > 500
    assert checked["records"] >= 61
    assert bench("repair", copy)["plan"] == []
    assert bench("repair", "--yes", copy) == {"schema": 1, "plan": [], "lost": []}
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert before == {path: raw for path, raw in after.items() if path in before}
    assert {path.name for path in after.keys() - before.keys()} <= {"LOCK"}
    assert content(copy) == wanted


def test_an_empty_engine_is_sound_with_every_tool(tmp_path: Path, bench: Bench) -> None:
    engine.open(str(tmp_path)).close()
    assert bench("verify", tmp_path)["checked"][0]["tables"] == 0
    assert bench("stats", tmp_path)["levels"] == []
    assert [row["kind"] for row in bench("dump-manifest", tmp_path)["records"]] == ["format"]
    assert bench("find", "--key=k", tmp_path, code=NOT_FOUND)["versions"] == []
    assert bench("repair", "--yes", tmp_path)["plan"] == []


def test_an_engine_that_never_flushed_is_sound_even_without_its_manifest(
    tmp_path: Path, bench: Bench
) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"a", b"1", sync=True)
    assert bench("verify", tmp_path)["checked"][0]["records"] == 2
    shutil.rmtree(tmp_path / "manifest")
    assert bench("repair", tmp_path)["plan"] == []
    assert content(tmp_path) == {b"a": b"1"}


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


def test_find_tells_every_version_of_a_key(tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"k", b"first")
        opened.put(b"other", b"x")
        opened.flush()
        opened.delete(b"k")
        opened.put(b"k", b"second", sync=True)
    found = bench("find", "--key=k", tmp_path)["versions"]
    told = [(Path(row["file"]).suffix, row["sequence"], row["kind"], row["value_size"]) for row in found]
    told.remove((".wal", 1, "put", 5))  # the first memtable's log is needed until a new one has begun
    assert told == [(".wal", 3, "delete", None), (".wal", 4, "put", 6), (".sst", 1, "put", 5)]
    assert [row["level"] for row in found][-2:] == [None, 0]
    assert bench("find", "--key=6b", "--encoding=hex", tmp_path)["versions"] == found
    assert bench("find", "--key=absent", tmp_path, code=NOT_FOUND)["versions"] == []
    bench("find", "--key=x", "--encoding=hex", tmp_path, code=USAGE)


def test_find_also_looks_into_tables_that_no_manifest_names_and_behind_damage(
    copy: Path, bench: Bench
) -> None:
    shutil.rmtree(copy / "manifest")
    log = logs(copy)[-1]
    reader = LogFile(Vfs(), str(log), int(log.stem), 0)
    entry = next(record for record in reader.records if b"log030" in record.ops)
    flip(log, reader.records[0].offset + 40)
    found = bench("find", "--key=log030", copy, code=DAMAGED)
    assert [(row["offset"], row["note"]) for row in found["versions"]] == [(entry.offset, "behind damage")]
    assert "damaged record" in whats(found)
    orphan = bench("find", "--key=key0001", copy, code=DAMAGED)["versions"]
    assert orphan
    assert {row["note"] for row in orphan} == {"not in the manifest"}


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


def test_partitions_are_those_of_the_routers() -> None:
    chance = random.Random(1)
    keys = [chance.randbytes(chance.randrange(1, 30)) for _ in range(500)]
    keys += [b"{a}b", b"x{tag}y", b"{}", b"{", b"}{", b"a{}{b}", b"{a}{b}"]
    for bits in (0, 1, 4, 12):
        assert [places.partition_of(key, bits) for key in keys] == [partition_of(key, bits) for key in keys]


# Damage is found


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


def test_a_foreign_table_is_found(copy: Path, bench: Bench) -> None:
    first, second = tables(copy)[:2]
    shutil.copy(second, first)
    assert f"the table of another engine or number: engine 0, number {int(second.stem)}" in whats(
        bench("verify", copy, code=DAMAGED)
    )
    bench("repair", "--yes", copy, code=PARTIAL)
    content(copy)


def resealed(path: Path, offset: int, size: int, change: Callable[[bytearray], None]) -> None:
    """Change a block and make its checksum right again: what only the other checks can find."""
    raw = bytearray(path.read_bytes())
    block = bytearray(raw[offset : offset + size + 1])
    change(block)
    crc = mask(codec.crc32c(bytes(block), context(int(path.stem), offset)))
    raw[offset : offset + size + 5] = block + crc.to_bytes(4, "little")
    path.write_bytes(raw)


def test_contents_that_contradict_each_other_are_found_behind_sound_checksums(
    tmp_path: Path, bench: Bench
) -> None:
    meta = make_table(tmp_path, 1, [(b"key%03d" % n, n + 1, 1, b"v" * 50) for n in range(200)])
    path = tmp_path / "000001.sst"
    (tmp_path / "manifest").mkdir()
    made = Manifest(str(tmp_path / "manifest"))
    made.commit(0, State(2, 0, 200, 0), [meta], ())
    made.close()
    with TableFile(Vfs(), str(path), 1, 0) as table:
        footer, first = table.footer(), table.index()[0].handle
    original = path.read_bytes()
    assert bench("verify", tmp_path)["problems"] == []

    def found(offset: int, size: int, change: Callable[[bytearray], None]) -> str:
        path.write_bytes(original)
        resealed(path, offset, size, change)
        return whats(bench("verify", tmp_path, code=DAMAGED))

    def set_byte(at: int, value: int) -> Callable[[bytearray], None]:
        def change(block: bytearray) -> None:
            block[at] = value

        return change

    said = found(*first, set_byte(3, ord("z")))
    assert "is out of order" in said
    assert "above what the index says" in said
    assert "unknown block type" in found(*first, set_byte(first.size, 7))
    assert "the filter hides key" in found(
        *footer.filter_block, lambda block: block.__setitem__(slice(0, 256), bytes(256))
    )
    assert "malformed filter" in found(*footer.filter_block, set_byte(footer.filter_block.size - 8, 99))
    place = original.index(b"entries", footer.properties_block.offset) - footer.properties_block.offset
    assert "the properties say" in found(*footer.properties_block, set_byte(place + 7, 0x81))


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


def test_a_torn_tail_is_no_damage(copy: Path, wanted: Content, bench: Bench) -> None:
    log = logs(copy)[-1]
    with log.open("ab") as file:
        file.write(b"\x01garbage of a write that never ended" * 3)
    notes = bench("verify", copy)["notes"]
    assert ["torn tail" in row["what"] for row in notes] == [True]
    assert bench("repair", "--yes", copy)["plan"] == []
    assert content(copy) == wanted


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


# The manifest


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
        Manifest(
            str(Path(copy / "manifest").absolute()) if (copy / "manifest").mkdir() is None else ""
        ).close()
    elif harm == "page":
        raw = bytearray(data.read_bytes())
        raw[2 * 4096 : 6 * 4096] = random.Random(2).randbytes(4 * 4096)
        data.write_bytes(raw)
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


def tamper(directory: Path, tag: int) -> None:
    """Flip a bit in the value of a record with this tag."""
    with lmdb.open(str(directory)) as env, env.begin(write=True) as transaction:
        key, value = next((k, bytes(v)) for k, v in transaction.cursor() if k[4] == tag and k[0] == 0)
        transaction.put(key, value[:9] + bytes([value[9] ^ 1]) + value[10:])


def test_dump_manifest_tells_which_record_is_damaged(copy: Path, bench: Bench) -> None:
    assert bench("dump-manifest", copy)["problems"] == []
    sound = bench("dump-manifest", copy)
    assert {row["number"] for row in sound["tables"]} == {int(path.stem) for path in tables(copy)}
    assert sound["states"][0]["records"] == len(sound["tables"])
    tamper(copy / "manifest", 2)
    found = bench("dump-manifest", copy, code=DAMAGED)
    assert [row["problem"] for row in found["records"]].count("checksum mismatch") == 1
    assert "the state record is not of these" in whats(found)


def make_table(directory: Path, number: int, versions: list[tuple[bytes, int, int, bytes]]) -> TableMeta:
    file = Vfs().create(str(directory / f"{number:06d}.sst"))
    writer = blocks.TableWriter(file, number, number, 1)
    for key, sequence, kind, value in versions:
        writer.add(key, sequence, kind, value, 0)
    finished = writer.finish()
    file.close()
    return TableMeta(level=0, **finished)


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


# Crashes


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


# What is refused


def test_directories_that_are_no_engine_are_refused(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "partitions" / "0003").mkdir(parents=True)
    for verb in (["verify"], ["stats"], ["dump-manifest"], ["find", "--key=k"], ["repair", "--yes"]):
        for path, told in (
            (tmp_path / "nowhere", "does not exist"),
            (tmp_path / "file", "is a file"),
            (tmp_path / "partitions", "holds no engine"),
            (tmp_path / "partitions" / "0003", f"give the store's directory, {tmp_path}"),
        ):
            assert bench(*verb, path, code=USAGE) == {}
            assert told in bench.errors
            assert bench.errors.count("\n") == 1
    for path in (tmp_path, tmp_path / "file", tmp_path / "000001.sst"):
        bench("dump-table", path, code=USAGE)
    bench("verify", code=USAGE)
    bench("nonsense", code=USAGE)


def test_an_engine_in_use_is_refused_with_the_process(tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"a", b"1")
        opened.flush()
        for verb in (["verify"], ["stats"], ["repair"], ["repair", "--yes"], ["find", "--key=a"]):
            assert bench(*verb, tmp_path, code=UNAVAILABLE) == {}
            assert f"in use by process {os.getpid()}." in bench.errors
        assert bench("dump-table", tables(tmp_path)[0], "--entries")["entries"][0]["value"] == "1"
    bench("verify", tmp_path)


def test_names_that_mean_nothing_are_noted(copy: Path, bench: Bench) -> None:
    names = ["garbage", "12.sst", "00001x.wal", "000099.tmp", "٣.sst"]
    for name in names:
        (copy / name).write_bytes(b"?")
    (copy / "000555.sst").mkdir()
    found = bench("verify", copy)
    assert {Path(row["file"]).name for row in found["notes"]} == {*names, "000555.sst"}


# A store's directory


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, dict[int, Content]]:
    """Four partitions; the third was never written to."""
    root = tmp_path / "data"
    made = engine.Shared(str(root))
    written: dict[int, Content] = {}
    for number in range(4):
        with engine.open(str(root / "partitions" / f"{number:04}"), shared=made, engine_id=number) as opened:
            keys = [b"k%03d" % n for n in range(200) if partition_of(b"k%03d" % n, 2) == number]
            written[number] = {} if number == 2 else {key: b"v" + key for key in keys}
            for key, value in written[number].items():
                opened.put(key, value)
            opened.flush()
    made.close()
    (root / "identity.json").write_text(json.dumps({"format": 1, "partition_count": 4}))
    return root, written


def test_a_store_is_checked_and_repaired_partition_by_partition(
    store: tuple[Path, dict[int, Content]], bench: Bench
) -> None:
    root, written = store
    found = bench("verify", root)
    assert [row["partition"] for row in found["checked"]] == [0, 1, 2, 3]
    key = next(iter(written[3])).decode()
    assert {row["partition"] for row in bench("find", f"--key={key}", root)["versions"]} == {3}
    (table,) = tables(root / "partitions" / "0001")
    flip(table, 10)
    assert [row["partition"] for row in bench("verify", root, code=DAMAGED)["problems"]] == [1]
    bench("dump-table", root, 2, code=USAGE)
    assert "add --partition" in bench.errors
    bench("dump-table", root, int(table.stem), "--partition=1", "--entries", code=DAMAGED)
    bench("find", f"--key={key}", root)
    for log in logs(root / "partitions" / "0001"):
        log.unlink()
    bench("repair", "--yes", root, code=PARTIAL)
    assert stored(root) == {**written, 1: {}}
    shutil.rmtree(root / "manifest")
    bench("repair", "--yes", root)
    assert stored(root) == {**written, 1: {}}


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


def stored(root: Path) -> dict[int, Content]:
    made = engine.Shared(str(root))
    found: dict[int, Content] = {}
    for number in range(4):
        directory = str(root / "partitions" / f"{number:04}")
        with engine.open(directory, shared=made, engine_id=number) as opened:
            found[number] = dict(opened.scan())
    made.close()
    return found


def test_a_lost_partition_directory_is_told_as_lost(
    store: tuple[Path, dict[int, Content]], bench: Bench
) -> None:
    root, written = store
    shutil.rmtree(root / "partitions" / "0000")
    assert "which has no directory" in whats(bench("verify", root, code=DAMAGED))
    (lost,) = bench("repair", "--yes", root, code=PARTIAL)["lost"]
    assert (lost["partition"], lost["what"]) == (0, "all of partition 0: its directory is missing")
    assert stored(root) == {**written, 0: {}}


# Whatever the bytes are


def test_random_damage_never_ends_in_more_than_a_line(copy: Path, tmp_path: Path, bench: Bench) -> None:
    """Every tool, on files with random damage: found or harmless; after a repair the engine opens."""
    chance = random.Random(os.environ.get("RINGKV_SEED", "5"))
    deadline = time.monotonic() + 8
    for _ in range(6):
        if time.monotonic() > deadline:
            break
        directory = tmp_path / "victim"
        shutil.copytree(copy, directory)
        for _ in range(chance.randrange(1, 4)):
            path = chance.choice([*tables(directory), *logs(directory), directory / "manifest" / "data.mdb"])
            raw = bytearray(path.read_bytes())
            for _ in range(chance.randrange(1, 20)):
                if raw:
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
            path.write_bytes(raw[: chance.randrange(len(raw) + 1)] if chance.random() < 0.3 else raw)
        for verb in (["verify"], ["stats"], ["dump-manifest"], ["find", "--key=key0001"]):
            assert run([*verb, str(directory), "--format=jsonl"]) in (OK, NOT_FOUND, DAMAGED)
        assert run(["repair", "--yes", "--salvage", str(directory), "--format=jsonl"]) in (OK, PARTIAL)
        assert run(["verify", str(directory)]) == OK
        content(directory)
        shutil.rmtree(directory)
