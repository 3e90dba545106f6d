"""verify on sound, damaged and foreign files: what it finds, and what it leaves alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from storenode import engine
from storenode.engine import codec
from storenode.engine.manifest import Manifest, State
from storenode.engine.tools.tablefile import TableFile, context, mask
from storenode.engine.vfs import Vfs
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    PARTIAL,
    Bench,
    Content,
    content,
    logs,
    make_table,
    tables,
    whats,
)


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


def test_an_engine_that_never_flushed_is_sound_even_without_its_manifest(
    tmp_path: Path, bench: Bench
) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"a", b"1", sync=True)
    assert bench("verify", tmp_path)["checked"][0]["records"] == 2
    shutil.rmtree(tmp_path / "manifest")
    assert bench("repair", tmp_path)["plan"] == []
    assert content(tmp_path) == {b"a": b"1"}


def test_logs_that_a_crash_left_torn_are_sound_and_those_that_were_durable_are_not(
    tmp_path: Path, bench: Bench
) -> None:
    """As opening sees it: what was begun behind a torn log goes with it."""
    with engine.open(str(tmp_path / "first")) as opened:
        opened.background.stop()
        for key in (b"a", b"b", b"c"):
            opened.put(key, b"1")
            opened.retire_memtable()
        torn = Path(shutil.copytree(tmp_path / "first", tmp_path / "torn"))
        opened.put(b"d", b"1", sync=True)
        durable = Path(shutil.copytree(tmp_path / "first", tmp_path / "durable"))
    for copy in (torn, durable):
        second = logs(copy)[1]
        second.write_bytes(second.read_bytes()[:60])
    found = bench("verify", torn)
    assert found["problems"] == []
    notes = [(Path(note["file"]).name, note["what"]) for note in found["notes"]]
    assert [name for name, _ in notes] == ["000002.wal", "000003.wal"], notes
    assert bench("repair", torn) == {"schema": 1, "plan": [], "lost": []}
    (torn / "manifest" / "data.mdb").unlink()
    assert bench("repair", torn)["lost"] == []
    assert content(torn) == {b"a": b"1"}
    assert "000002.wal" in str(bench("verify", durable, code=DAMAGED)["problems"])
    assert bench("repair", durable, code=DAMAGED)["lost"] != []


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


def test_a_foreign_table_is_found(copy: Path, bench: Bench) -> None:
    first, second = tables(copy)[:2]
    shutil.copy(second, first)
    assert f"the table of another engine or number: engine 0, number {int(second.stem)}" in whats(
        bench("verify", copy, code=DAMAGED)
    )
    bench("repair", "--yes", copy, code=PARTIAL)
    content(copy)


def test_a_torn_tail_is_no_damage(copy: Path, wanted: Content, bench: Bench) -> None:
    log = logs(copy)[-1]
    with log.open("ab") as file:
        file.write(b"\x01garbage of a write that never ended" * 3)
    notes = bench("verify", copy)["notes"]
    assert ["torn tail" in row["what"] for row in notes] == [True]
    assert bench("repair", "--yes", copy)["plan"] == []
    assert content(copy) == wanted


def test_names_that_mean_nothing_are_noted(copy: Path, bench: Bench) -> None:
    names = ["garbage", "12.sst", "00001x.wal", "000099.tmp", "٣.sst"]
    for name in names:
        (copy / name).write_bytes(b"?")
    (copy / "000555.sst").mkdir()
    found = bench("verify", copy)
    assert {Path(row["file"]).name for row in found["notes"]} == {*names, "000555.sst"}
