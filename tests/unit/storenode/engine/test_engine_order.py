"""The order in which things become durable: what a crash at any point relies on (docs/formats.md)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import storenode.engine as engine_package
from storenode.engine import Engine, Options, Shared
from storenode.engine.core import Core
from storenode.engine.vfs import File, Vfs
from storenode.engine.wal import LogWriter

Event = tuple[str, str]


class Recorder(Vfs):
    """The real file system; writes down what is created, synced and removed."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def create(self, path: str) -> File:
        self.events.append(("create", path))
        return RecordedFile(self, path, super().create(path).fd)

    def unlink(self, path: str) -> None:
        self.events.append(("unlink", path))
        super().unlink(path)

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.events.append(("sync directory", path))


class RecordedFile(File):
    """A file whose writes through Python, and whose syncs, are written down."""

    def __init__(self, recorder: Recorder, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self.recorder = recorder

    def write_at(self, offset: int, data: bytes) -> None:
        self.recorder.events.append(("write", self.path))
        super().write_at(offset, data)

    def sync(self) -> None:
        super().sync()
        self.recorder.events.append(("sync", self.path))


class Recorded:
    """An engine on a Recorder; its manifest commits are events too."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vfs = Recorder()
        self.shared = Shared(str(directory), vfs=self.vfs)
        commit: Callable[..., Any] = self.shared.manifest.commit

        def recorded_commit(*arguments: Any) -> None:
            commit(*arguments)
            self.vfs.events.append(("commit", str(directory)))

        self.shared.manifest.commit = recorded_commit  # type: ignore[method-assign]
        self.engine: Engine = engine_package.open(
            str(directory), options=Options(memtable_bytes=1), shared=self.shared
        )

    def since(self, mark: int, kind: str) -> list[tuple[str, str]]:
        """Events of files of one kind, and of the directory, with their names."""
        names = []
        for what, path in self.vfs.events[mark:]:
            name = Path(path).name if path.endswith(kind) else ""
            if name or path == str(self.directory):
                names.append((what, name))
        return names

    def close(self) -> None:
        self.engine.close()
        self.shared.close()


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    opened = Recorded(tmp_path)
    yield opened
    opened.close()


def test_a_log_is_durable_with_its_name_before_append_returns(recorded: Recorded) -> None:
    engine = recorded.engine
    mark = len(recorded.vfs.events)
    assert engine.append([(1, 0, b"")]) == 1
    expected = [
        ("create", "000001.wal"),
        ("write", "000001.wal"),
        ("sync", "000001.wal"),
        ("sync directory", ""),
    ]
    assert recorded.since(mark, ".wal") == expected


def test_entries_of_one_append_are_one_write_and_one_sync(tmp_path: Path) -> None:
    recorder = Recorder()
    shared = Shared(str(tmp_path), vfs=recorder)
    engine = engine_package.open(str(tmp_path), shared=shared)
    engine.append([(1, 0, b"")])
    engine.append([(1, 0, b"")])
    mark = len(recorder.events)
    engine.append([(1, 0, b"") for _ in range(100)])
    assert recorder.events[mark:] == [
        ("write", str(tmp_path / "000001.wal")),
        ("sync", str(tmp_path / "000001.wal")),
    ]
    engine.close()
    shared.close()


def test_a_log_is_complete_on_the_disk_before_the_next_one_is_begun(tmp_path: Path) -> None:
    recorder = Recorder()
    numbers, sync_directory = itertools.count(1), partial(recorder.sync_directory, str(tmp_path))
    log = LogWriter(recorder, str(tmp_path), 0, 1 << 20, numbers.__next__, (0, 0), Core(), sync_directory)
    log.append([(1, 0, b"")], sync=True)
    log.append([(2, 0, b"")], sync=False)
    log.want_new_file()
    mark = len(recorder.events)
    assert log.append([(3, 0, b"")], sync=False) == 2
    log.close()
    first, second = str(tmp_path / "000001.wal"), str(tmp_path / "000002.wal")
    assert recorder.events[mark : mark + 2] == [("sync", first), ("create", second)]


def test_a_table_is_durable_before_the_manifest_names_it_and_inputs_go_last(recorded: Recorded) -> None:
    engine = recorded.engine
    for round_number in range(2):
        mark = len(recorded.vfs.events)
        engine.put(b"key", b"%d" % round_number)
        engine.flush()
        events = [event for event in recorded.since(mark, ".sst") if event[0] != "write"]
        created = next(name for what, name in events if what == "create")
        order = [
            events.index(("create", created)),
            events.index(("sync", created)),
            len(events) - 1 - events[::-1].index(("sync directory", "")),
            events.index(("commit", "")),
        ]
        assert order == sorted(order)
    inputs = sorted(path.name for path in recorded.directory.glob("*.sst"))
    mark = len(recorded.vfs.events)
    engine.compact()
    recorded.close()
    events = recorded.since(mark, ".sst")
    created = next(name for what, name in events if what == "create")
    order = [events.index(event) for event in (("sync", created), ("sync directory", ""), ("commit", ""))]
    assert order == sorted(order)
    assert all(events.index(("unlink", name)) > order[-1] for name in inputs)


def test_a_log_is_removed_only_after_its_entries_are_in_the_manifest(recorded: Recorded) -> None:
    engine = recorded.engine
    engine.put(b"a", b"1")
    mark = len(recorded.vfs.events)
    engine.put(b"b", b"2")  # begins the second log and retires the first one's memtable
    engine.flush()
    recorded.close()
    events = recorded.since(mark, ".wal")
    assert events.index(("unlink", "000001.wal")) > events.index(("commit", ""))


def test_a_sync_reaches_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of crashes take for granted."""
    synced: list[tuple[str, str]] = []

    def recorded(name: str) -> None:
        really = getattr(os, name)

        def call(fd: int) -> None:
            really(fd)
            synced.append((name, os.readlink(f"/proc/self/fd/{fd}")))

        monkeypatch.setattr(os, name, call)

    recorded("fdatasync")
    recorded("fsync")
    vfs = Vfs()
    path = tmp_path / "file"
    file = vfs.create(str(path))
    file.write_at(0, b"content")
    file.sync()
    file.close()
    vfs.sync_directory(str(tmp_path))
    assert synced == [("fdatasync", str(path)), ("fsync", str(tmp_path))]
