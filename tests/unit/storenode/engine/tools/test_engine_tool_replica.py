"""The offline tools and a replica's engine: tables under other numbers than their ids say, and a state that
belongs to all of them or to none."""

from __future__ import annotations

from pathlib import Path

import pytest

from storenode import engine
from storenode.engine.tools.records import read_manifest
from storenode.engine.vfs import Vfs
from tests.unit.storenode.engine.replica_counter import Counter, count_of
from tests.unit.storenode.engine.tools.bench import DAMAGED, PARTIAL, Bench, flip

CONTENT = [(b"key%03d" % number, b"value") for number in range(100)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An installed checkpoint, and a table of its own."""
    with engine.open_replica(str(tmp_path / "leader")) as leader:
        replica = Counter(leader)
        for number in range(4):
            replica.put(b"key%03d" % number, b"value")
            leader.flush()
        leader.checkpoint(str(tmp_path / "sent"))
    with engine.open_replica(str(tmp_path / "follower")) as follower:
        follower.install(str(tmp_path / "sent"))
        replica = Counter(follower)
        for key, value in CONTENT[4:]:
            replica.put(key, value)
        follower.flush()
        assert any(table.file_id != table.number for table in follower.tree.version.tables())
    return tmp_path / "follower"


def state_in(directory: Path) -> bytes | None:
    records = read_manifest(Vfs(), str(directory / "manifest")).of(0)
    assert records.state is not None
    return records.state.state.replica


def test_verify_and_dump_find_nothing_wrong(directory: Path, bench: Bench) -> None:
    assert bench("verify", directory)["problems"] == []
    kinds = [row["kind"] for row in bench("dump-manifest", directory)["records"]]
    assert kinds.count("replica") == 1
    assert count_of(state_in(directory) or b"") == 100
    assert bench("repair", directory)["plan"] == []


def test_a_table_that_no_manifest_names_proves_nothing(directory: Path, bench: Bench, tmp_path: Path) -> None:
    """It may be of a flush that came not to its commit: the replica's log has what it holds."""
    with engine.open_replica(str(tmp_path / "ahead")) as ahead:
        replica = Counter(ahead)
        for _ in range(300):
            replica.put(b"k", b"v")
        ahead.flush()
    (table,) = (tmp_path / "ahead").glob("*.sst")
    table.rename(directory / "000900.sst")
    document = bench("verify", directory)
    assert document["problems"] == []
    assert "left by a crash" in document["notes"][0]["what"]
    assert bench("repair", directory)["plan"] == []
    with engine.open_replica(str(directory)) as opened:
        assert opened.scan() == CONTENT
    assert not (directory / "000900.sst").exists()


def test_a_repair_that_loses_something_leaves_no_replica(directory: Path, bench: Bench) -> None:
    """What is left can be read, but is no prefix of the log any more."""
    flip(sorted(directory.glob("*.sst"))[-1], 20)
    assert bench("verify", directory, code=DAMAGED)["problems"]
    bench("repair", directory, "--yes", code=PARTIAL)
    assert state_in(directory) is None
    with pytest.raises(ValueError, match="not a replica's"):
        engine.open_replica(str(directory))
    with engine.open(str(directory)) as opened:
        assert 0 < len(opened.scan()) < 100
