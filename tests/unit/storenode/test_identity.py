"""A data directory answers for one node of one cluster, and for one process at a time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from storenode.directory import (
    CLAIM,
    IDENTITY,
    LOCK,
    DataDirectory,
    DirectoryRefused,
    Identity,
    check,
    open_directory,
)

MINE = Identity("prod", "00c0ffee", 2, 16, "ab" * 16, True)


def other(*four: Any) -> Identity:
    return Identity(*four, "cd" * 16, True)


def opened(path: Path, identity: Identity = MINE) -> DataDirectory:
    """As a start does: whose data it is, and whether that is who was asked for."""
    directory = open_directory(path)
    try:
        found = directory.identity()
        if found is None:
            directory.settle(identity)
        else:
            check(path, found, identity)
    except BaseException:
        directory.close()
        raise
    return directory


def make(path: Path) -> None:
    opened(path).close()


def refusal(path: Path, identity: Identity = MINE) -> str:
    with pytest.raises(DirectoryRefused) as caught:
        opened(path, identity)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_the_first_start_makes_the_directory_and_later_ones_take_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    make(path)
    written = (path / IDENTITY).read_bytes()
    assert json.loads(written) == {
        "format": 2,
        "cluster_name": "prod",
        "cluster_id": "00c0ffee",
        "node_id": 2,
        "partition_count": 16,
        "incarnation": "ab" * 16,
        "founder": True,
    }
    make(path)
    assert (path / IDENTITY).read_bytes() == written
    assert sorted(entry.name for entry in path.iterdir()) == [LOCK, IDENTITY]


def test_the_way_to_a_new_directory_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last part was: a power cut could take the whole directory, with all that was acknowledged."""
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    make(tmp_path / "a" / "b" / "c")
    assert {str(tmp_path), *(str(tmp_path / part) for part in ("a", "a/b", "a/b/c"))} <= set(synced)


def test_a_lock_that_cannot_be_written_is_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: a store must start on it, to be read from."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    make(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    held = opened(tmp_path)
    assert "in use by process" in refusal(tmp_path)
    held.close()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    held = opened(tmp_path)
    text = refusal(tmp_path)
    assert f"in use by process {os.getpid()}: stop that store, or give this one its own data.dir" in text
    held.close()
    make(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        (
            other("test", "0badcafe", 3, 32),
            "belongs to cluster prod, .* describes test: correct the cluster section",
        ),
        (
            other("prod", "0badcafe", 2, 16),
            "another cluster named prod .*00c0ffee.*0badcafe.*cluster.nodes back",
        ),
        (other("prod", "00c0ffee", 3, 16), "belongs to node 2, .* node 3: set node.id to 2, or give"),
        (
            other("prod", "0badcafe", 2, 32),
            "made for 16 partitions, .* says 32: set cluster.partitions back to 16",
        ),
    ],
)
def test_a_foreign_directory_is_refused(tmp_path: Path, wanted: Identity, advice: str) -> None:
    make(tmp_path)
    before = (tmp_path / IDENTITY).read_bytes()
    assert re.search(advice, refusal(tmp_path, wanted))
    assert (tmp_path / IDENTITY).read_bytes() == before
    make(tmp_path)


def test_data_without_identity_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "partitions").mkdir()
    (tmp_path / IDENTITY).unlink()
    text = refusal(tmp_path)
    assert "holds partitions but no identity.json" in text
    assert "empty data.dir" in text
    assert not (tmp_path / IDENTITY).exists()


def test_a_crash_before_the_identity_was_in_place_leaves_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("123\n")
    (tmp_path / (IDENTITY + ".new")).write_text('{"form')
    (tmp_path / "lost+found").mkdir()
    make(tmp_path)
    assert json.loads((tmp_path / IDENTITY).read_bytes())["node_id"] == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"17",
        b'{"format": 1}',
        b'{"format": 1, "cluster_name": "x", "cluster_id": "x", "node_id": "a", "partition_count": 1}',
    ],
)
def test_a_damaged_identity_is_refused(tmp_path: Path, content: bytes) -> None:
    make(tmp_path)
    (tmp_path / IDENTITY).write_bytes(content)
    assert "is damaged: put it back from a backup" in refusal(tmp_path)


@pytest.mark.parametrize("version", [0, 3, "2", True, None])
def test_another_format_version_is_refused(tmp_path: Path, version: object) -> None:
    make(tmp_path)
    fields = json.loads((tmp_path / IDENTITY).read_bytes())
    (tmp_path / IDENTITY).write_text(json.dumps({**fields, "format": version}))
    assert f"has format version {version!r}, this software reads 1 and 2" in refusal(tmp_path)


def test_what_the_version_before_has_written_gets_an_incarnation(tmp_path: Path) -> None:
    old = {"format": 1, "cluster_name": "prod", "cluster_id": "00c0ffee", "node_id": 2, "partition_count": 16}
    (tmp_path / IDENTITY).write_text(json.dumps(old))
    (tmp_path / "partitions").mkdir()
    directory = open_directory(tmp_path)
    found = directory.identity()
    assert found == MINE._replace(incarnation="")
    settled = directory.settle(found)
    assert re.fullmatch("[0-9a-f]{32}", settled.incarnation)
    assert directory.identity() == settled
    directory.close()


def test_an_incarnation_is_drawn_once_and_survives_every_crash(tmp_path: Path) -> None:
    directory = open_directory(tmp_path)
    first = directory.claim()
    assert directory.claim() == first
    (tmp_path / (CLAIM + ".new")).write_text("{")
    (tmp_path / "map.bin").write_bytes(b"the map comes before the identity")
    assert directory.identity() is None
    assert directory.claim() == first
    settled = directory.settle(MINE._replace(incarnation=first, founder=False))
    assert not (tmp_path / CLAIM).exists()
    assert directory.identity() == settled
    directory.close()


def test_a_map_without_a_claim_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "map.bin").write_bytes(b"")
    assert "holds map.bin but no identity.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b'{"format": 1, "incarnation": "x"}'])
def test_a_damaged_claim_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLAIM).write_bytes(content)
    directory = open_directory(tmp_path)
    with pytest.raises(DirectoryRefused, match=rf"is damaged.*rm {re.escape(str(tmp_path / CLAIM))}"):
        directory.claim()
    (tmp_path / CLAIM).write_text('{"format": 2}')
    with pytest.raises(DirectoryRefused, match="has format version 2, this software reads 1"):
        directory.claim()
    directory.close()


def test_only_what_time_mends_is_not_final(tmp_path: Path) -> None:
    make(tmp_path)
    held = opened(tmp_path)
    with pytest.raises(DirectoryRefused) as in_use:
        open_directory(tmp_path)
    held.close()
    with pytest.raises(DirectoryRefused) as foreign:
        opened(tmp_path, other("test", "00c0ffee", 2, 16))
    assert (in_use.value.final, foreign.value.final) == (False, True)
    assert f"mv {tmp_path} {tmp_path}.aside" in str(foreign.value)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "a file is in its place: set another data.dir" in refusal(tmp_path / "file")
    assert "not a directory: set another data.dir" in refusal(tmp_path / "file" / "below")


def test_a_file_system_that_takes_no_directory_is_refused() -> None:
    text = refusal(Path("/proc/ringkv/data"))
    assert text.startswith("cannot use data directory /proc/ringkv/data: ")
    assert "data.dir" in text


def test_a_refused_directory_is_not_left_locked(tmp_path: Path) -> None:
    make(tmp_path)
    refusal(tmp_path, other("other", "00c0ffee", 2, 16))
    make(tmp_path)


def test_the_figures_know_the_free_bytes(tmp_path: Path) -> None:
    held = opened(tmp_path)
    assert held.free_bytes() > 0
    held.close()
