"""State files, and the export engine that continues from them."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvclient.cli import exporter, formats, resume
from kvclient.cli.csvfile import Layout
from kvclient.cli.exporter import Exported, Exporter, open_partial, publish
from kvclient.cli.failure import Failure
from kvclient.cli.records import Reject
from kvclient.cli.resume import StateFile
from kvclient.cli.retrying import Patience
from kvclient.errors import Exit, KVError, ReadOnly, Unavailable


def test_a_state_is_found_again_by_the_same_job(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "s", {"file": "a", "format": "csv"})
    assert state.load() is None
    state.save({"n": 1}, now=True)
    assert StateFile(tmp_path / "s", {"file": "a", "format": "csv"}).load() == {"n": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    state.remove()
    assert state.load() is None


def test_saving_is_not_done_for_every_batch(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "s", {})
    state.save({"n": 1})
    state.save({"n": 2})
    assert state.load() == {"n": 1}
    state.save({"n": 3}, now=True)
    assert state.load() == {"n": 3}


def test_another_job_is_refused_by_name(tmp_path: Path) -> None:
    StateFile(tmp_path / "s", {"file": "a", "format": "csv"}).save({}, now=True)
    with pytest.raises(Failure, match="format was 'csv', is 'jsonl'") as caught:
        StateFile(tmp_path / "s", {"file": "a", "format": "jsonl"}).load()
    assert caught.value.exit_code == Exit.USAGE


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"kvcli_state": 1, "job": {}}'])
def test_what_is_no_state_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text)
    with pytest.raises(Failure, match="no state file"):
        StateFile(tmp_path / "s", {}).load()


def test_two_jobs_never_have_one_state_file(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path / "s", {}), StateFile(tmp_path / "s", {})
    first.claim()
    assert first.load() is None
    for _ in range(2):
        first.save({"n": 1}, now=True)
        with pytest.raises(Failure, match="another kvcli"):
            second.claim()
    first.remove()
    second.claim()
    assert second.load() is None
    # Two that begin at the same moment.
    first.claim()
    first.save({"n": 1}, now=True)
    with pytest.raises(Failure, match="another kvcli"):
        second.save({"n": 2}, now=True)
    assert first.load() == {"n": 1}
    first.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_old_state_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFile(tmp_path / "s", {})
    state.claim()
    state.save({"n": 1}, now=True)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(resume.os, "fsync", full)
        with pytest.raises(OSError, match="full") as caught:
            state.save({"n": 2}, now=True)
    assert caught.value.filename == str(tmp_path / "s")
    assert state.load() == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    state.save({"n": 3}, now=True)
    assert state.load() == {"n": 3}
    state.remove()


def test_a_newer_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text(json.dumps({"kvcli_state": 2, "job": {}, "done": {}}))
    with pytest.raises(Failure, match="another version") as caught:
        StateFile(tmp_path / "s", {}).load()
    assert caught.value.exit_code == Exit.VERSION


class Entry(NamedTuple):
    key: bytes
    value: bytes | None


ENTRIES = [Entry(b"k%04d" % number, b"v%d" % number) for number in range(95)]


class Store:
    """Scans ENTRIES; meets the given errors, one after every 25 entries."""

    def __init__(self, *errors: KVError) -> None:
        self.errors = list(errors)
        self.starts: list[bytes] = []

    def scan(self, start: bytes) -> Iterator[Entry]:
        self.starts.append(start)
        for number, entry in enumerate(entry for entry in ENTRIES if entry.key >= start):
            if number == 25 and self.errors:
                raise self.errors.pop(0)
            yield entry


def export(store: Store, out: io.BytesIO, done: Exported, form: str = "dump") -> list[Reject]:
    rejects: list[Reject] = []
    writer = formats.writer(form, Layout())
    Exporter(
        store.scan, writer, Patience(5, lambda error: None), done, lambda done: None, rejects.append
    ).run(out)
    return rejects


def read(form: str, data: bytes) -> list[tuple[bytes, bytes] | Reject]:
    return list(formats.reader(form, io.BytesIO(data), {}, Layout()))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PAGE_KEYS", 10)


@pytest.mark.parametrize("form", ["dump", "jsonl", "csv"])
def test_an_export_survives_errors_on_the_way(form: str) -> None:
    out = io.BytesIO()
    done = Exported()
    store = Store(Unavailable("away"), Unavailable("again"))
    export(store, out, done, form)
    assert read(form, out.getvalue()) == ENTRIES
    assert store.starts == [b"", b"k0019\0", b"k0039\0"]
    assert (done.keys, done.size) == (95, len(out.getvalue()))


@pytest.mark.parametrize("form", ["dump", "jsonl"])
def test_an_export_is_continued_at_what_is_known_to_be_good(tmp_path: Path, form: str) -> None:
    partial = tmp_path / "x.partial"
    done = Exported()
    with open_partial(partial, 0) as file, pytest.raises(ReadOnly):
        export(Store(ReadOnly("no")), file, done, form)  # type: ignore[arg-type]
    assert done.keys == 20
    with partial.open("ab") as file:
        file.write(b"half a page that no state knows of")
    done = Exported(json.loads(json.dumps(done.state())))
    with open_partial(partial, done.size) as file:
        export(Store(), file, done, form)  # type: ignore[arg-type]
    publish(partial, tmp_path / "x")
    assert read(form, (tmp_path / "x").read_bytes()) == ENTRIES
    assert not partial.exists()


def test_an_export_that_met_an_error_at_once_is_continued() -> None:
    class Down(Store):
        def scan(self, start: bytes) -> Iterator[Entry]:
            raise ReadOnly("no")

    out = io.BytesIO()
    done = Exported()
    with pytest.raises(ReadOnly):
        export(Down(), out, done)
    export(Store(), out, Exported(json.loads(json.dumps(done.state()))))
    assert read("dump", out.getvalue()) == ENTRIES


def test_a_shorter_partial_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12")
    with pytest.raises(ValueError, match="2 bytes, the state file knows of 3"):
        open_partial(tmp_path / "x", 3)


def test_what_the_format_cannot_hold_is_told() -> None:
    class Bad(Store):
        def scan(self, start: bytes) -> Iterable[Entry]:  # type: ignore[override]
            return [Entry(b"a\nb", b""), Entry(b"c", b"")]

    out = io.BytesIO()
    done = Exported()
    rejects = export(Bad(), out, done, "lines")
    assert out.getvalue() == b"c\n"
    assert (done.keys, done.skipped) == (1, 1)
    assert [reject.record for reject in rejects] == [b"a\nb"]


def test_pages_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PAGE_BYTES", 100)
    sizes = [len(page) for page in exporter.pages([Entry(b"k", b"x" * 60)] * 5)]
    assert sizes == [2, 2, 1]
