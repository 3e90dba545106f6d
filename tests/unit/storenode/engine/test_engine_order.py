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
from storenode.engine.wal import ENDED_MAX, LogWriter

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


def test_a_put_that_begins_a_log_waits_for_no_sync(tmp_path: Path) -> None:
    """Overwrites stood still for as long as the disk's slowest sync took, up to 1.7 s."""
    recorder = Recorder()
    shared = Shared(str(tmp_path), vfs=recorder)
    engine = engine_package.open(str(tmp_path / "engine"), shared=shared)
    engine.background.stop()  # workers may sync, but on their own time
    mark = len(recorder.events)
    for number in range(ENDED_MAX):
        engine.retire_memtable()
        engine.put(b"key", b"%d" % number)
        assert engine._log.number == number + 1
        assert engine.synced == 0
    assert {what for what, _ in recorder.events[mark:]} == {"create", "write"}
    engine.close()
    shared.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[LogWriter, Recorder, Callable[[bool], list[Event]]]]:
    """A log without an engine, what happens to it, and a way to add an entry, with or without sync, that
    begins a log; it tells the events with the names of files."""
    recorder = Recorder()
    numbers, sync_directory = itertools.count(1), partial(recorder.sync_directory, str(tmp_path))
    log = LogWriter(recorder, str(tmp_path), 0, 1 << 20, numbers.__next__, (0, 0), Core(), sync_directory)

    def begin(sync: bool) -> list[Event]:
        mark = len(recorder.events)
        log.want_new_file()
        log.append([(1, 0, b"")], sync=sync)
        return names(recorder, mark)

    yield log, recorder, begin
    log.close()


def names(recorder: Recorder, mark: int) -> list[Event]:
    return [
        (what, Path(path).stem if path.endswith(".wal") else "")
        for what, path in recorder.events[mark:]
        if what != "write"
    ]


BEGINS = Callable[[bool], list[Event]]


def test_logs_become_durable_in_their_order_and_their_names_last(
    log: tuple[LogWriter, Recorder, BEGINS],
) -> None:
    writer, recorder, begin = log
    for number in range(1, 4):
        assert begin(False) == [("create", f"00000{number}")]
    mark = len(recorder.events)
    writer.sync()
    first = [("sync", f"00000{number}") for number in range(1, 4)]
    assert names(recorder, mark) == [*first, ("sync directory", "")]
    mark = len(recorder.events)
    writer.append([(2, 0, b"")], sync=True)
    writer.sync()
    assert names(recorder, mark) == [("sync", "000003")]


def test_what_is_written_with_sync_stands_behind_nothing_that_need_not_be_durable(
    log: tuple[LogWriter, Recorder, BEGINS],
) -> None:
    """Else damage in front of it could be taken for a hole of a crash."""
    writer, recorder, begin = log
    begin(False)
    create = [("create", "000002"), ("sync", "000002"), ("sync directory", "")]
    assert begin(True) == [("sync", "000001"), ("sync directory", ""), *create]
    begin(False)
    assert writer._core.synced == 0
    writer.append([(2, 0, b"")], sync=False)
    begin(False)
    mark = len(recorder.events)
    writer.append([(3, 0, b"")], sync=True)
    last = [("sync", "000003"), ("sync", "000004"), ("sync directory", ""), ("sync", "000004")]
    assert names(recorder, mark) == last


def test_a_log_waits_for_those_before_it_when_they_are_too_many(
    log: tuple[LogWriter, Recorder, BEGINS],
) -> None:
    _, _, begin = log
    for number in range(1, ENDED_MAX + 2):
        assert begin(False) == [("create", f"00000{number}")]
    *syncs, directory, create = begin(False)
    assert syncs == [("sync", f"00000{number}") for number in range(1, ENDED_MAX + 2)]
    assert (directory, create) == (("sync directory", ""), ("create", f"00000{ENDED_MAX + 2}"))
    assert len(begin(False)) == 1


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
