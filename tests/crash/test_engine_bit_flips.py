"""Damage of every kind to every kind of file: it is reported, or it is harmless. Never a wrong value, never a
process that dies or hangs.

A table and a manifest say for each byte whether it is the right one. A log cannot do so for its end, which
may be torn: which entries may be missing there is what docs/formats.md section 2 says, computed here a second
time. LMDB trusts its pages: of a damaged manifest the process may die, but only so that it never goes on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.engine_damage import Damage, Outcome, damaged
from tests.crash.engine_specimen import ENTRIES, FLUSHED, make
from tests.property.memory_directory import memory_directory

BLOCK_BYTES = 4096
"""Of a disk: what is lost at once."""

DEATHS = {"SIGSEGV", "SIGBUS", "SIGABRT"}

ROOT = Path(__file__).parents[2]


class Specimens(NamedTuple):
    crashed: Path
    closed: Path
    work: Path


@pytest.fixture(scope="module")
def specimens() -> Iterator[Specimens]:
    with memory_directory("engine-damage-") as directory:
        yield Specimens(*make(directory), directory / "work")


def outcomes(specimen: Path, work: Path, damages: list[Damage]) -> list[Outcome]:
    """What became of each damage."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.engine_damage", str(specimen), str(work)],
        input="".join(json.dumps(damage) + "\n" for damage in damages),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(damages)
    return found


def names(directory: Path, kind: str) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob(f"*.{kind}"))


def written(file: Path) -> int:
    """The bytes of a file up to the zeros that only reserve room, and a few of them."""
    content = file.read_bytes()
    return min(len(content), len(content.rstrip(b"\0")) + 8)


def flips(source: random.Random, directory: Path, files: list[str], count: int) -> list[Damage]:
    sizes = [written(directory / file) for file in files]
    chosen = source.choices(list(zip(files, sizes, strict=True)), sizes, k=count)
    return [Damage(file, "flip", source.randrange(size), bit=source.randrange(8)) for file, size in chosen]


def coarse(source: random.Random, directory: Path, files: list[str]) -> list[Damage]:
    """Zeroed disk blocks, files cut short, ranges from elsewhere, and files in each other's place."""
    damages = []
    for file in files:
        size = written(directory / file)
        for offset in range(0, size, BLOCK_BYTES):
            damages.append(Damage(file, "zero", offset, BLOCK_BYTES))
        cuts = {0, 1, size - 1, size // 2, source.randrange(size), size // BLOCK_BYTES * BLOCK_BYTES} - {size}
        damages += [Damage(file, "cut", offset) for offset in cuts]
        for _ in range(3):
            other = source.choice(files)
            start, length = source.randrange(size), source.choice([1, 64, 512, BLOCK_BYTES])
            damages.append(Damage(file, "paste", start, length, other=other, source=start))
            damages.append(Damage(file, "paste", start, length, other=other, source=source.randrange(size)))
        for other in source.sample(files, min(2, len(files))):
            if other != file:
                damages += [Damage(file, "replace", other=other), Damage(file, "swap", other=other)]
    return [one for one in damages if damaged(directory, one) != (directory / one.file).read_bytes()]


def changed_range(before: bytes, after: bytes) -> tuple[int, int]:
    """Where two contents differ; of different lengths, from the first difference to the end."""
    differ = [at for at, (old, new) in enumerate(zip(before, after, strict=False)) if old != new]
    first = differ[0] if differ else min(len(before), len(after))
    return first, differ[-1] + 1 if differ and len(before) == len(after) else max(len(before), len(after))


def at_filter_or_properties(directory: Path, damage: Damage) -> bool:
    """Whether only what a compaction does not read is damaged: filter and properties."""
    before = (directory / damage.file).read_bytes()
    first, end = changed_range(before, damaged(directory, damage))
    numbers = [int.from_bytes(before[-64:][at : at + 8], "little") for at in (0, 12, 24)]
    filter_at, index_at, properties_at = numbers
    return filter_at <= first < end <= index_at or properties_at <= first < end <= len(before) - 64


def check_tables(specimens: Specimens, damages: list[Damage]) -> None:
    for damage, outcome in zip(damages, outcomes(specimens.crashed, specimens.work, damages), strict=True):
        if outcome.verdict == "right":  # the table was compacted away before that of it was read
            assert at_filter_or_properties(specimens.crashed, damage), (damage, outcome)
            continue
        assert outcome.verdict == "found", (damage, outcome)
        expected = {damage.file, damage.other} if damage.kind == "swap" else {damage.file}
        for message in outcome.said:
            assert any(name in message for name in expected), (damage, outcome)
        if damage.kind in ("flip", "zero", "paste"):
            assert all("offset" in message for message in outcome.said), (damage, outcome)


class Record(NamedTuple):
    """Of a log: where it lies, and up to where it says that the log was durable."""

    start: int
    end: int
    synced: int
    is_entry: bool


def records(content: bytes) -> list[Record]:
    """Of a sound log; zeros are room that was reserved."""
    found, at = [], 48
    while any(content[at : at + 32]):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        end = (at + 32 + length + 7) // 8 * 8
        is_entry = content[at + 8 : at + 16] != bytes(8)
        found.append(Record(at, end, int.from_bytes(content[at + 24 : at + 32], "little"), is_entry))
        at = end
    return found


def entries_left(before: bytes, after: bytes) -> int | None:
    """How many entries of the last log can be read after the damage; None if it must be reported."""
    first, _ = changed_range(before, after)
    whole = [
        record
        for record in records(before)
        if after[record.start : record.end] == before[record.start : record.end]
    ]
    bad = (
        next((record.start for record in records(before) if record.end > first), first) if first >= 48 else 0
    )
    if first < 48 and whole and whole[0].start == 48:
        return None
    if any(record.start > bad and record.synced > bad for record in whole):
        return None
    return sum(record.is_entry for record in whole if record.start < bad)


def check_logs(specimens: Specimens, directory: Path, damages: list[Damage]) -> None:
    logs = names(directory, "wal")
    in_last = sum(record.is_entry for record in records((directory / logs[-1]).read_bytes()))
    for damage, outcome in zip(damages, outcomes(directory, specimens.work, damages), strict=True):
        before, after = (directory / damage.file).read_bytes(), damaged(directory, damage)
        swapped = {damage.file, damage.other} if damage.kind == "swap" else {damage.file}
        left = entries_left(before, after)
        end = records(before)[-1].end
        if before[:end] == after[:end] and not any(after[end:]):
            assert outcome == ("right", ENTRIES, []), (damage, outcome)
        elif swapped != {logs[-1]} or damage.kind == "replace" or left is None:
            assert outcome.verdict == "found", (damage, outcome)
            assert any(name in outcome.said[0] for name in logs), (damage, outcome)
            if damage.kind == "flip":
                assert damage.file in outcome.said[0], (damage, outcome)
                assert "offset" in outcome.said[0], (damage, outcome)
        else:
            assert outcome == ("right", ENTRIES - in_last + left, []), (damage, outcome)


def check_manifest(specimens: Specimens, damages: list[Damage]) -> Counter[str]:
    """The deaths are counted."""
    counted: Counter[str] = Counter()
    for damage, outcome in zip(damages, outcomes(specimens.closed, specimens.work, damages), strict=True):
        if outcome.verdict == "killed":
            assert set(outcome.said) <= DEATHS, (damage, outcome)
        elif outcome.verdict == "found":
            named = ("manifest", ".wal", ".sst")  # an emptied one is new to LMDB, and no log or table fits it
            assert any(name in message for name in named for message in outcome.said), (damage, outcome)
        else:
            assert outcome == ("right", ENTRIES, []), (damage, outcome)
        counted[outcome.verdict] += 1
    return counted


def test_the_specimens_have_files_of_every_kind(specimens: Specimens) -> None:
    for directory, work in ((specimens.crashed, specimens.work), (specimens.closed, specimens.work)):
        assert len(names(directory, "sst")) >= 3
        logs = names(directory, "wal")
        assert len(logs) >= 3
        held = [sum(record.is_entry for record in records((directory / log).read_bytes())) for log in logs]
        assert sum(held) >= ENTRIES - FLUSHED
        assert max(held) >= 5
        assert held[-1] >= 2
        assert outcomes(directory, work, [Damage(logs[0], "zero")]) == [("right", ENTRIES, [])]
    assert records((specimens.closed / logs[-1]).read_bytes())[-1].is_entry is False
    assert records((specimens.crashed / logs[-1]).read_bytes())[-1].is_entry is True


def test_damaged_tables_are_reported(specimens: Specimens) -> None:
    source = random.Random(41)
    files = names(specimens.crashed, "sst")
    check_tables(specimens, flips(source, specimens.crashed, files, 45))
    check_tables(specimens, source.sample(coarse(source, specimens.crashed, files), 25))


@pytest.mark.parametrize("kind", ["crashed", "closed"])
def test_damaged_logs_are_reported_or_lose_only_a_torn_tail(specimens: Specimens, kind: str) -> None:
    source = random.Random(kind)
    directory = specimens.crashed if kind == "crashed" else specimens.closed
    logs = names(directory, "wal")
    check_logs(specimens, directory, flips(source, directory, logs, 10))
    check_logs(specimens, directory, flips(source, directory, logs[-1:], 15))
    check_logs(specimens, directory, source.sample(coarse(source, directory, logs), 12))
    check_logs(specimens, directory, coarse(source, directory, logs[-1:]))


def test_a_damaged_manifest_is_refused_or_harmless(specimens: Specimens) -> None:
    source = random.Random(43)
    files = names(specimens.closed, "mdb")
    data = [file for file in files if file.endswith("data.mdb")]
    counted = check_manifest(specimens, flips(source, specimens.closed, data, 50))
    counted += check_manifest(specimens, coarse(source, specimens.closed, data))
    assert counted["right"]
    assert counted["found"]


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_thousands_of_damages(specimens: Specimens) -> None:
    seed = int(os.environ.get("RINGKV_FLIP_SEED", "1"))
    count = int(os.environ.get("RINGKV_FLIPS", "3000"))
    source = random.Random(f"damages {seed}")
    tables = names(specimens.crashed, "sst")
    check_tables(specimens, flips(source, specimens.crashed, tables, count // 3))
    check_tables(specimens, coarse(source, specimens.crashed, tables))
    for directory in (specimens.crashed, specimens.closed):
        logs = names(directory, "wal")
        for files in (logs, logs[-1:]):
            check_logs(specimens, directory, flips(source, directory, files, count // 12))
            check_logs(specimens, directory, coarse(source, directory, files))
    data = [file for file in names(specimens.closed, "mdb") if file.endswith("data.mdb")]
    counted = check_manifest(specimens, flips(source, specimens.closed, data, count // 3))
    counted += check_manifest(specimens, coarse(source, specimens.closed, data))
    print(f"seed {seed}: of a damaged manifest {dict(counted)}")
