"""What is left of an engine after it was killed, its disk was full, or its files were damaged.

The rule everywhere: every acknowledged write is there with its value, or opening (or reading) says what is
damaged. Never a wrong value.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import Corruption
from storenode.engine import Engine, Options, Shared, codec
from storenode.engine.vfs import File, Vfs

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)


def log_and_apply(engine: Engine, number: int, count: int = 1) -> None:
    """Entry `number`: `count` puts whose values tell their keys."""
    ops = b"".join(protocol.encode_put(*pair(number * 1000 + i)) for i in range(count))
    first = engine.next_sequence
    wal = engine.append([(first, 1000 + number, ops)])
    engine.apply(ops, first, 1000 + number, wal)


def pair(number: int) -> tuple[bytes, bytes]:
    return b"key-%08d" % number, b"value-%08d-" % number + b"x" * (number % 50)


def files(directory: Path, kind: str) -> list[Path]:
    return sorted(directory.glob(f"*.{kind}"))


CHILD = """
import sys
import storenode.engine
from kvclient import protocol
from storenode.engine import Options

options = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)
engine = storenode.engine.open(sys.argv[1], options=options)
number = engine.next_sequence - 1
while True:
    entries, batch = [], []
    first = engine.next_sequence
    for _ in range(1 + number % 7):
        number += 1
        key, value = b"key-%08d" % number, b"value-%08d-" % number + b"x" * (number % 50)
        ops = protocol.encode_put(key, value)
        entries.append((first, 1000 + number, ops))
        first += 1
    wal = engine.append(entries)
    print(number, flush=True)  # acknowledged from here on
    for first, now_ms, ops in entries:
        engine.apply(ops, first, now_ms, wal)
"""


def test_kill_9_in_the_middle_of_writing_loses_nothing(tmp_path: Path) -> None:
    random_source = random.Random(9)
    acknowledged = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        goal = acknowledged + random_source.randrange(200, 900)
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged >= goal:
                break
        assert acknowledged >= goal, "the child did not write"
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        child.wait(10)
        child.stdout.close()
        if rest and rest[-1].isdecimal():
            acknowledged = max(acknowledged, int(rest[-1]))
        with engine_package.open(str(tmp_path), options=SMALL) as engine:
            assert engine.next_sequence > acknowledged
            found = engine.scan()
            assert found == [pair(number) for number in range(1, engine.next_sequence)]
            assert engine.verify() == []


@pytest.fixture
def logged(tmp_path: Path) -> tuple[Path, list[int]]:
    """A directory with one log of five records, not closed cleanly, and where each record begins (and the
    last one ends)."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    engine = engine_package.open(str(source))
    ends = [48]
    for number in range(1, 6):
        log_and_apply(engine, number)
        ends.append(engine.length)
    shutil.copytree(source, copy)
    engine.close()
    return copy, ends


def values_after_opening(directory: Path) -> int:
    """How many of the five entries are there; they must be the first ones, and whole."""
    with engine_package.open(str(directory)) as engine:
        found = engine.scan()
        assert found == [pair(number * 1000) for number in range(1, len(found) + 1)]
        assert engine.next_sequence == len(found) + 1
        log_and_apply(engine, len(found) + 1)
    with engine_package.open(str(directory)) as engine:
        assert len(engine.scan()) == len(found) + 1
    return len(found)


def test_a_log_cut_at_any_byte_of_its_last_record_opens_without_that_record(
    logged: tuple[Path, list[int]], tmp_path: Path
) -> None:
    directory, ends = logged
    for length in range(ends[-2], ends[-1]):
        copy = tmp_path / f"cut-{length}"
        shutil.copytree(directory, copy)
        os.truncate(files(copy, "wal")[0], length)
        assert values_after_opening(copy) == 4
        shutil.rmtree(copy)
    assert values_after_opening(directory) == 5


def test_a_log_cut_inside_its_header_is_an_empty_one(logged: tuple[Path, list[int]], tmp_path: Path) -> None:
    directory, _ = logged
    for length in (0, 1, 47, 48):
        copy = tmp_path / f"cut-{length}"
        shutil.copytree(directory, copy)
        os.truncate(files(copy, "wal")[0], length)
        assert values_after_opening(copy) == 0


def test_a_flipped_bit_before_the_last_record_is_corruption_that_names_file_and_offset(
    logged: tuple[Path, list[int]], tmp_path: Path
) -> None:
    directory, ends = logged
    content = files(directory, "wal")[0].read_bytes()
    for offset in range(ends[-2]):
        copy = tmp_path / "flipped"
        shutil.copytree(directory, copy)
        damaged = bytearray(content)
        damaged[offset] ^= 1 << (offset % 8)
        files(copy, "wal")[0].write_bytes(damaged)
        with pytest.raises(Corruption, match=r"000001\.wal: .*offset \d+"):
            engine_package.open(str(copy))
        assert files(copy, "wal")[0].read_bytes() == bytes(damaged), "a damaged log must be left as it is"
        shutil.rmtree(copy)


def test_a_flipped_bit_in_the_last_record_drops_it_or_nothing(
    logged: tuple[Path, list[int]], tmp_path: Path
) -> None:
    """No later record vouches for the last one: it counts as never durable. See docs/formats.md section 2."""
    directory, ends = logged
    content = files(directory, "wal")[0].read_bytes()
    for offset in range(ends[-2], ends[-1], 3):
        copy = tmp_path / f"flipped-{offset}"
        shutil.copytree(directory, copy)
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        files(copy, "wal")[0].write_bytes(damaged)
        assert values_after_opening(copy) == 4


def test_room_reserved_in_a_log_is_no_damage_and_what_is_written_there_is(
    logged: tuple[Path, list[int]], tmp_path: Path
) -> None:
    directory, ends = logged
    content = files(directory, "wal")[0].read_bytes()
    assert len(content) > ends[-1], "no room was reserved"
    assert not any(content[ends[-1] :])
    engine_id, number = 0, 1
    first = tmp_path / "first"
    shutil.copytree(directory, first)
    following = first / "000002.wal"
    record = codec.wal_records([(6, 6, protocol.encode_put(b"six", b""))], number + 1, 48, 0)
    following.write_bytes(codec.wal_header(engine_id, number + 1, number, ends[-1]) + record)
    dirty = tmp_path / "dirty"
    shutil.copytree(first, dirty)
    with engine_package.open(str(first)) as engine:
        assert len(engine.scan()) == 6, "a log that is not the last may have room too"
    damaged = bytearray(content)
    damaged[-1] = 1
    files(dirty, "wal")[0].write_bytes(damaged)
    with pytest.raises(Corruption, match=rf"000001\.wal: damaged record \(offset {ends[-1]}\)"):
        engine_package.open(str(dirty))


def test_after_a_clean_close_every_flipped_bit_of_an_entry_is_found(
    logged: tuple[Path, list[int]], tmp_path: Path
) -> None:
    directory, _ = logged
    with engine_package.open(str(directory)) as engine:
        log_and_apply(engine, 6)
    newest = files(directory, "wal")[-1]
    content = newest.read_bytes()
    for offset in range(0, len(content) - 32, 5):
        damaged = bytearray(content)
        damaged[offset] ^= 0x04
        newest.write_bytes(damaged)
        with pytest.raises(Corruption, match=newest.name):
            engine_package.open(str(directory))
    newest.write_bytes(content)
    with engine_package.open(str(directory)) as engine:
        assert len(engine.scan()) == 6


def test_a_log_that_is_missing_or_shorter_than_the_next_one_says_is_corruption(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), workers=1)
    options = Options(memtable_bytes=1)
    blocked = NoTables()
    shared.vfs = blocked  # flushes fail, so that logs pile up
    engine = engine_package.open(str(tmp_path), options=options, shared=shared)
    for number in range(1, 4):
        log_and_apply(engine, number)
    copy = tmp_path / "copy"
    copy.mkdir()
    for log in files(tmp_path, "wal"):
        shutil.copy(log, copy)
    engine.close()
    shared.close()
    logs = files(copy, "wal")
    assert len(logs) == 3
    assert values_after_opening(shutil.copytree(copy, tmp_path / "whole")) == 3
    short = shutil.copytree(copy, tmp_path / "short")
    os.truncate(short / logs[1].name, logs[1].stat().st_size - 8)
    with pytest.raises(Corruption, match=logs[1].name):
        engine_package.open(str(short))
    missing = shutil.copytree(copy, tmp_path / "missing")
    (missing / logs[1].name).unlink()
    with pytest.raises(Corruption, match="follows log"):
        engine_package.open(str(missing))
    first = shutil.copytree(copy, tmp_path / "first")
    (first / logs[0].name).unlink()
    with pytest.raises(Corruption, match="is missing"):
        engine_package.open(str(first))


class NoTables(Vfs):
    """A disk on which logs find room, but tables do not while `full`."""

    def __init__(self) -> None:
        self.full = True

    def create(self, path: str) -> File:
        if self.full and path.endswith(".sst"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().create(path)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A closed engine of some small tables on two levels."""
    directory = tmp_path / "tables"
    with engine_package.open(str(directory), options=SMALL) as engine:
        for number in range(1, 60):
            log_and_apply(engine, number, count=10)
        engine.compact()
        for number in range(60, 70):
            log_and_apply(engine, number, count=10)
        engine.flush()
    return directory


def everything() -> list[tuple[bytes, bytes]]:
    return sorted(pair(number * 1000 + i) for number in range(1, 70) for i in range(10))


def damage_reported(directory: Path, keys: list[bytes]) -> list[str]:
    """What opening, reading some keys and verifying say is damaged; every value read must be right."""
    expected = dict(everything())
    reported = []
    try:
        with engine_package.open(str(directory), options=SMALL) as engine:
            for key in keys:
                try:
                    value = engine.get(key)
                except Corruption as error:
                    reported.append(str(error))
                else:
                    assert value == expected[key]
            return reported + engine.verify()
    except Corruption as error:
        return [str(error)]


def test_a_flipped_bit_in_a_table_is_found_by_whoever_reads_it(tables: Path) -> None:
    random_source = random.Random(4)
    keys = [key for key, _ in everything()]
    for _ in range(150):
        path = random_source.choice(files(tables, "sst"))
        content = path.read_bytes()
        offset = random_source.randrange(len(content))
        damaged = bytearray(content)
        damaged[offset] ^= 1 << random_source.randrange(8)
        path.write_bytes(damaged)
        reported = damage_reported(tables, random_source.sample(keys, 100))
        assert reported, f"bit at {offset} of {path.name}"
        assert all(path.name in problem and "offset" in problem for problem in reported)
        path.write_bytes(content)
    with engine_package.open(str(tables), options=SMALL) as engine:
        assert engine.scan() == everything()


def test_a_write_that_needs_a_damaged_block_answers_corruption_and_changes_nothing(tables: Path) -> None:
    path = max(files(tables, "sst"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with engine_package.open(str(tables), options=SMALL) as engine:
        broken = next(key for key, _ in everything() if _is_damaged(engine, key))
        ops = (
            protocol.encode_delete(broken)
            + protocol.encode_put(b"other", b"value")
            + protocol.encode_put(broken, b"new")
        )
        first = engine.next_sequence
        results = protocol.decode_results(engine.apply(ops, first, 0, engine.append([(first, 0, ops)])))
        assert results[0][0] == 40
        assert path.stem in results[0][1]
        assert results[1:] == [[0, first + 1], [0, first + 2]]
        assert path.name in engine.stats()["damage"]
        assert engine.multi_get([b"other", broken]) == [b"value", b"new"]


def _is_damaged(engine: Engine, key: bytes) -> bool:
    try:
        engine.get(key)
    except Corruption:
        return True
    return False


def test_a_table_that_is_missing_short_or_another_one_is_refused(tables: Path) -> None:
    first, second = files(tables, "sst")[:2]
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(Corruption, match=f"{first.name}: the table is missing"):
        engine_package.open(str(tables))
    first.write_bytes(content[:-1])
    with pytest.raises(Corruption, match=f"{first.name}: .* bytes, the manifest says"):
        engine_package.open(str(tables))
    other = second.read_bytes()
    first.write_bytes(
        (other + bytes(len(content)))[: len(content)] if len(other) < len(content) else other[-len(content) :]
    )
    with pytest.raises(Corruption, match=first.name):
        engine_package.open(str(tables))


def test_unfinished_tables_of_a_crash_are_removed_and_newer_ones_are_not(tables: Path) -> None:
    (tables / "999990.sst").write_bytes(b"half a table")
    with engine_package.open(str(tables), options=SMALL) as engine:
        assert engine.scan() == everything()
        log_and_apply(engine, 70)
    assert not (tables / "999990.sst").exists()
    assert int(files(tables, "wal")[-1].stem) > 999990, "numbers of removed files are not used again"
    old_manifest = (tables / "manifest" / "data.mdb").read_bytes()
    with engine_package.open(str(tables), options=SMALL) as engine:
        engine.flush()
        log_and_apply(engine, 71)
        engine.flush()
    newest = files(tables, "sst")
    (tables / "manifest" / "data.mdb").write_bytes(old_manifest)
    with pytest.raises(Corruption):
        engine_package.open(str(tables))
    assert files(tables, "sst") == newest


def test_tables_without_the_manifest_that_names_them_are_not_taken_for_orphans(tables: Path) -> None:
    for path in [*files(tables, "wal"), tables / "manifest" / "data.mdb"]:
        path.unlink()
    kept = files(tables, "sst")
    with pytest.raises(Corruption, match="the manifest is not the newest"):
        engine_package.open(str(tables))
    assert files(tables, "sst") == kept


FLIPS = """
import os, sys
import storenode.engine
from kvclient.errors import Corruption
directory, content = sys.argv[1], open(sys.argv[1] + "/manifest/data.mdb", "rb").read()
for offset in map(int, sys.argv[2:]):
    damaged = bytearray(content)
    damaged[offset] ^= 1 << (offset % 8)
    child = os.fork()
    if child == 0:
        with open(directory + "/manifest/data.mdb", "wb") as file:
            file.write(damaged)
        try:
            with storenode.engine.open(directory) as engine:
                found = engine.scan()
            right = len(found) == 690 and all(v.startswith(b"value" + k[3:] + b"-") for k, v in found)
            os._exit(0 if right else 1)
        except (Corruption, OSError, storenode.engine.EngineError):
            os._exit(2)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    print("result", offset, os.WEXITSTATUS(status) if os.WIFEXITED(status) else "killed", flush=True)
"""


def test_a_flipped_bit_in_the_manifest_is_refused_or_harmless(tables: Path) -> None:
    """LMDB itself has no checksums and may die of a damaged page; it must never make us open with
    something missing."""
    copy = tables.parent / "copy"
    size = (tables / "manifest" / "data.mdb").stat().st_size
    random_source = random.Random(5)
    offsets = [str(random_source.randrange(size)) for _ in range(120)]
    shutil.copytree(tables, copy)
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(copy), *offsets],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    results = [line.split() for line in done.stdout.splitlines() if line.startswith("result")]
    assert len(results) == len(offsets)
    assert {result for _, _, result in results} <= {"0", "2", "killed"}, done.stdout + done.stderr
