"""All tools: which directories they take, a store with its partitions, and files with any bytes in them."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from shared.hashing import partition_of
from storenode import engine
from storenode.engine.tools import places
from storenode.engine.tools.__main__ import run
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    NOT_FOUND,
    OK,
    PARTIAL,
    UNAVAILABLE,
    USAGE,
    Bench,
    Content,
    content,
    flip,
    logs,
    tables,
    whats,
)


def test_an_empty_engine_is_sound_with_every_tool(tmp_path: Path, bench: Bench) -> None:
    engine.open(str(tmp_path)).close()
    assert bench("verify", tmp_path)["checked"][0]["tables"] == 0
    assert bench("stats", tmp_path)["levels"] == []
    assert [row["kind"] for row in bench("dump-manifest", tmp_path)["records"]] == ["format"]
    assert bench("find", "--key=k", tmp_path, code=NOT_FOUND)["versions"] == []
    assert bench("repair", "--yes", tmp_path)["plan"] == []


def test_partitions_are_those_of_the_routers() -> None:
    chance = random.Random(1)
    keys = [chance.randbytes(chance.randrange(1, 30)) for _ in range(500)]
    keys += [b"{a}b", b"x{tag}y", b"{}", b"{", b"}{", b"a{}{b}", b"{a}{b}"]
    for bits in (0, 1, 4, 12):
        assert [places.partition_of(key, bits) for key in keys] == [partition_of(key, bits) for key in keys]


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


def stored(root: Path) -> dict[int, Content]:
    made = engine.Shared(str(root))
    found: dict[int, Content] = {}
    for number in range(4):
        directory = str(root / "partitions" / f"{number:04}")
        with engine.open(directory, shared=made, engine_id=number) as opened:
            found[number] = dict(opened.scan())
    made.close()
    return found


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


def test_a_lost_partition_directory_is_told_as_lost(
    store: tuple[Path, dict[int, Content]], bench: Bench
) -> None:
    root, written = store
    shutil.rmtree(root / "partitions" / "0000")
    assert "which has no directory" in whats(bench("verify", root, code=DAMAGED))
    (lost,) = bench("repair", "--yes", root, code=PARTIAL)["lost"]
    assert (lost["partition"], lost["what"]) == (0, "all of partition 0: its directory is missing")
    assert stored(root) == {**written, 0: {}}


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
