"""CSV: the layouts, quoting, stray quotes, and byte-for-byte exports."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.cli import csvfile
from kvclient.cli.csvfile import CsvReader, CsvWriter, Layout
from kvclient.cli.records import Item, Reject

UNICODE_DATA = (
    b"0000;<control>;Cc;0;BN;;;;;N;NULL;;;;\n"
    b"0041;LATIN CAPITAL LETTER A;Lu;0;L;;;;;N;;;;0061;\n"
    b"10FFFD;<Plane 16 Private Use, Last>;Co;0;L;;;;;N;;;;;\n"
)


def read(data: bytes, layout: Layout) -> list[Item]:
    return list(CsvReader(io.BytesIO(data), {}, layout))


def good(items: list[Item]) -> list[tuple[bytes, bytes]]:
    return [item for item in items if not isinstance(item, Reject)]


def test_unicode_data_comes_back_byte_for_byte() -> None:
    layout = Layout(b";", 1, "rest")
    items = good(read(UNICODE_DATA, layout))
    assert items[1] == (b"0041", b"LATIN CAPITAL LETTER A;Lu;0;L;;;;;N;;;;0061;")
    assert CsvWriter(layout).page(items) == (UNICODE_DATA, [])


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout(b";", 2, "rest"), (b"LATIN CAPITAL LETTER A", b"0041;Lu;0;L;;;;;N;;;;0061;")),
        (Layout(b";", 1, "line"), (b"0041", b"0041;LATIN CAPITAL LETTER A;Lu;0;L;;;;;N;;;;0061;")),
        (Layout(b";", 1, "3"), (b"0041", b"Lu")),
        (Layout(b";", 3, "column 2"), (b"Lu", b"LATIN CAPITAL LETTER A")),
    ],
)
def test_layouts(layout: Layout, expected: tuple[bytes, bytes]) -> None:
    assert read(UNICODE_DATA, layout)[1] == expected


@pytest.mark.parametrize(
    "layout", [Layout(b",", 1), Layout(b",", 2), Layout(b",", 1, "line"), Layout(b";;", 3)]
)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.text("ab\u00e4 '", min_size=1, max_size=4), min_size=3, max_size=4), max_size=8)
)
def test_rest_and_line_come_back_byte_for_byte(layout: Layout, rows: list[list[str]]) -> None:
    data = b"".join(layout.delimiter.join(field.encode() for field in row) + b"\n" for row in rows)
    assert CsvWriter(layout).page(good(read(data, layout)))[0] == data


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.text('a;"\n\r ', min_size=1, max_size=5), st.text('b;"\n\r ', max_size=5)), max_size=8
    )
)
def test_columns_hold_anything(entries: list[tuple[str, str]]) -> None:
    layout = Layout(b";", 1, "2")
    pairs = [(key.encode(), value.encode()) for key, value in entries]
    data, rejects = CsvWriter(layout).page(pairs)
    assert rejects == []
    assert read(data, layout) == pairs


def test_quoted_fields_may_hold_newlines_and_delimiters() -> None:
    data = b'"x;y";"several\nlines, ""quoted""";z\nnext;1\n'
    layout = Layout(b";")
    assert read(data, layout) == [(b"x;y", b'"several\nlines, ""quoted""";z'), (b"next", b"1")]
    assert read(data, Layout(b";", 1, "2"))[0] == (b"x;y", b'several\nlines, "quoted"')
    assert CsvWriter(layout).page(good(read(data, layout)))[0] == data


def test_a_stray_quote_costs_its_own_line_only() -> None:
    data = b'a;1\nb;"no end;2\n' + b"".join(b"k%d;v\n" % number for number in range(1000)) + b"last;3\n"
    reader = CsvReader(io.BytesIO(data), {}, Layout(b";"))
    items = list(reader)
    bad = [item for item in items if isinstance(item, Reject)]
    assert [(item.line, item.reason) for item in bad] == [(2, "a quoted field has no end")]
    assert len(good(items)) == 1002
    assert (reader.offset, reader.line) == (len(data), 1003)


def test_the_mark_behind_a_stray_quote_leads_to_the_next_line() -> None:
    data = b'a;1\nb;"no end;2\nc;3\nd;4\n'
    reader = CsvReader(io.BytesIO(data), {}, Layout(b";"))
    iterator = iter(reader)
    next(iterator)
    assert isinstance(next(iterator), Reject)
    mark = reader.mark()
    assert data[mark["offset"] :] == b"c;3\nd;4\n"
    assert mark["line"] == 2


def test_reading_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "JOINED_BYTES_MAX", 50)
    data = b'b;"opens\n' + b"x;y\n" * 100 + b'c";9\n'
    items = read(data, Layout(b";"))
    assert isinstance(items[0], Reject)
    assert good(items)[:100] == [(b"x", b"y")] * 100


@pytest.mark.parametrize(
    ("data", "layout", "reason"),
    [
        (b"alone\n", Layout(b";"), "only 1 column"),
        (b"a;b\n", Layout(b";", 3), "only 2 columns"),
        (b"a;b\n", Layout(b";", 1, "3"), "only 2 columns"),
        (b";b\n", Layout(b";"), "the key is empty"),
        (b"x" * 5000 + b";b\n", Layout(b";"), "5000 bytes"),
    ],
)
def test_bad_lines_are_named(data: bytes, layout: Layout, reason: str) -> None:
    items = read(b"\n" + data + b"\r\n", layout)
    assert len(items) == 1
    assert isinstance(items[0], Reject)
    assert reason in items[0].reason
    assert items[0].line == 2


def test_a_header_is_skipped_once() -> None:
    layout = Layout(b",", header=True)
    reader = CsvReader(io.BytesIO(b"key,value\na,1\nb,2\n"), {}, layout)
    assert next(iter(reader)) == (b"a", b"1")
    rest = io.BytesIO(b"b,2\n")
    assert list(CsvReader(rest, reader.mark(), layout)) == [(b"b", b"2")]
    assert CsvWriter(layout).head() == b"key,value\n"


def test_carriage_returns_belong_to_the_line_end_of_columns_and_to_the_rest() -> None:
    assert read(b"a,b\r\n", Layout(b",", 1, "2")) == [(b"a", b"b")]
    assert read(b"a,b\r\n", Layout(b",")) == [(b"a", b"b\r")]


def test_values_that_are_no_part_of_a_line_are_refused() -> None:
    body, rejects = CsvWriter(Layout(b";")).page([(b"a", b"x\ny"), (b"b", b'"open'), (b"c", b"fine")])
    assert body == b"c;fine\n"
    assert [reject.record for reject in rejects] == [b"a", b"b"]


@pytest.mark.parametrize(
    "arguments", [(b"\n",), (b"",), (b'"',), (b",", 1, "middle"), (b",", 1, "0"), (b",", 2, "2")]
)
def test_senseless_layouts_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        Layout(*arguments)  # type: ignore[arg-type]
