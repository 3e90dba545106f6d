"""jsonl and lines: good records come through, bad ones are named, a mark continues."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.cli import formats, records
from kvclient.cli.csvfile import Layout
from kvclient.cli.records import Item, JsonLinesReader, JsonLinesWriter, LinesReader, LinesWriter, Reject

ENTRIES = st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=30)), max_size=40)


def read_all(name: str, data: bytes, layout: Layout | None = None) -> list[Item]:
    return list(formats.reader(name, io.BytesIO(data), {}, layout or Layout()))


def read_in_pieces(name: str, data: bytes, step: int, layout: Layout) -> list[Item]:
    """Read `step` items, take the mark, go on with a new reader."""
    found: list[Item] = []
    mark: records.Mark = {}
    while True:
        file = io.BytesIO(data)
        file.seek(mark.get("offset", 0))
        reader = formats.reader(name, file, mark, layout)
        piece = [item for item, _ in zip(reader, range(step), strict=False)]
        found += piece
        if len(piece) < step:
            return found
        # zip took one item too many from the iterator when it stopped at the range; a mark belongs to what
        # was yielded.
        file.seek(mark.get("offset", 0))
        reader = formats.reader(name, file, mark, layout)
        iterator = iter(reader)
        for _ in range(step):
            next(iterator)
        mark = reader.mark()


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(1, 7), st.sampled_from(["jsonl", "dump", "column"]))
def test_what_is_written_is_read_back_also_in_pieces(
    entries: list[tuple[bytes, bytes]], step: int, name: str
) -> None:
    layout = Layout(b";", 2, "1") if name == "column" else Layout()
    name = "csv" if name == "column" else name
    writer = formats.writer(name, layout)
    body, rejects = writer.page(entries)
    data = writer.head() + body + writer.tail()
    assert rejects == []
    assert read_all(name, data, layout) == entries
    assert read_in_pieces(name, data, step, layout) == entries


JSON_BAD = [
    (b"{", "not JSON"),
    (b"[1]", "not a JSON object"),
    (b'{"value": "x"}', 'no member "key"'),
    (b'{"key": "x"}', 'no member "value"'),
    (b'{"key": "", "value": ""}', "the key is empty"),
    (b'{"key": "' + b"x" * 4097 + b'", "value": ""}', "4097 bytes, the limit is 4096"),
    (b'{"key": "x", "value": 7}', '"value" must be a string'),
    (b'{"key": {"b64": "?"}, "value": ""}', '"key" holds invalid base64'),
    (b'{"key": "\xff", "value": ""}', "not UTF-8 at byte 10"),
    (b'{"key": "\\ud800", "value": ""}', "surrogate"),
    (b'{"key": "x", "value": ' + b"[" * 100_000, "deep|recursion|not JSON"),
    (b'{"key": "x", "value": ' + b"9" * 5000 + b"}", "value|digits"),
]


@pytest.mark.parametrize(("line", "reason"), JSON_BAD, ids=[reason[:20] for _, reason in JSON_BAD])
def test_bad_json_lines_are_named_and_hide_nothing(line: bytes, reason: str) -> None:
    good = b'{"key": "a", "value": "1", "version": 3}\n'
    items = read_all("jsonl", good + line + b"\n\n" + good)
    assert [items[0], items[2]] == [(b"a", b"1")] * 2
    bad = items[1]
    assert isinstance(bad, Reject)
    assert bad.line == 2
    assert bad.record == line
    assert any(word in bad.reason.lower() for word in reason.lower().split("|"))


def test_a_last_line_without_newline_counts() -> None:
    assert read_all("jsonl", b'{"key": "a", "value": "1"}') == [(b"a", b"1")]
    assert read_all("lines", b"a\nb") == [(b"a", b""), (b"b", b"")]


def test_jsonl_golden() -> None:
    body, _ = JsonLinesWriter().page([("ä'".encode(), b"x"), (b"\xff", b"")])
    assert body == '{"key": "ä\'", "value": "x"}\n{"key": {"b64": "/w=="}, "value": ""}\n'.encode()


def test_lines_are_bytes() -> None:
    data = b"abbe\xcc\x81's\n\xff\xfe\r\n  spaces \n"
    items = list(LinesReader(io.BytesIO(data), {}))
    assert items == [(b"abbe\xcc\x81's", b""), (b"\xff\xfe\r", b""), (b"  spaces ", b"")]
    assert LinesWriter().page([item for item in items if not isinstance(item, Reject)])[0] == data


def test_lines_empty_and_long_are_rejected() -> None:
    items = list(LinesReader(io.BytesIO(b"\n" + b"x" * 5000 + b"\nok\n"), {}))
    assert [item.line for item in items if isinstance(item, Reject)] == [1, 2]
    assert items[-1] == (b"ok", b"")


def test_lines_cannot_hold_a_newline() -> None:
    body, rejects = LinesWriter().page([(b"a\nb", b""), (b"c", b"")])
    assert body == b"c\n"
    assert [reject.record for reject in rejects] == [b"a\nb"]


def test_a_line_beyond_the_bound_is_skipped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORD_BYTES_MAX", 100)
    data = b"a\n" + b"x" * 1234 + b"\nb\n"
    reader = LinesReader(io.BytesIO(data), {})
    items = list(reader)
    assert items[0] == (b"a", b"")
    assert isinstance(items[1], Reject)
    assert "longer than 100" in items[1].reason
    assert items[2] == (b"b", b"")
    assert (reader.offset, reader.line) == (len(data), 3)


def test_reject_line_golden() -> None:
    assert json.loads(Reject(7, "why", b"\xff").to_line()) == {
        "line": 7,
        "reason": "why",
        "record": {"b64": "/w=="},
    }
    long = json.loads(Reject(7, "why", b"x" * (records.REJECT_BYTES_SHOWN + 1)).to_line())
    assert long["truncated"] is True
    assert len(long["record"]) == records.REJECT_BYTES_SHOWN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "jsonl"),
        ("A.CSV", "csv"),
        ("x.tsv", "csv"),
        ("w.txt", "lines"),
        ("b.dump", "dump"),
        ("words", None),
    ],
)
def test_format_from_the_name(name: str, expected: str | None) -> None:
    assert formats.guess(name) == expected


def test_delimiters() -> None:
    assert formats.delimiter_of("a.csv", None) == b","
    assert formats.delimiter_of("a.tsv", None) == b"\t"
    assert formats.delimiter_of("a.csv", "\\t") == b"\t"
    assert formats.delimiter_of("a.csv", ";") == b";"


def test_json_reader_is_the_reader_of_jsonl() -> None:
    assert isinstance(formats.reader("jsonl", io.BytesIO(), {}, Layout()), JsonLinesReader)
