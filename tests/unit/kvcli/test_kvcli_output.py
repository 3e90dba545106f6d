"""Golden stdout of every format. What changes here breaks somebody's script."""

from __future__ import annotations

import io
import json

import pytest

from kvclient.cli.output import FORMATS, TABLE_PAGE_ROWS, Output, StdoutClosed

ROWS = [(b"user:1", b"Ada", 7), (b"bin\xff", b'a\tb\n"c",\\', 12)]


def written(form: str, encoding: str = "utf8") -> bytes:
    stream = io.BytesIO()
    output = Output(stream, form, encoding, terminal=False)
    with output.rows("entries", ("key", "value", "version")) as rows:
        for row in ROWS:
            rows.add(*row)
    return stream.getvalue()


GOLDEN_ROWS = {
    "plain": b'user:1\tAda\t7\nbin\xff\ta\\tb\\n"c",\\\\\t12\n',
    "json": b'{"schema": 1, "entries": [\n'
    b'  {"key": "user:1", "value": "Ada", "version": 7},\n'
    b'  {"key": {"b64": "Ymlu/w=="}, "value": "a\\tb\\n\\"c\\",\\\\", "version": 12}\n]}\n',
    "jsonl": b'{"key": "user:1", "value": "Ada", "version": 7}\n'
    b'{"key": {"b64": "Ymlu/w=="}, "value": "a\\tb\\n\\"c\\",\\\\", "version": 12}\n',
    "csv": b'key,value,version\nuser:1,Ada,7\nbin\xff,"a\tb\n""c"",\\",12\n',
    "table": b"KEY      VALUE        VERSION\n"
    b"user:1   Ada                7\n"
    b'bin\\xff  a\\tb\\n"c",\\       12\n',
}


@pytest.mark.parametrize("form", sorted(GOLDEN_ROWS))
def test_rows(form: str) -> None:
    assert written(form) == GOLDEN_ROWS[form]


def test_every_format_but_raw_has_a_golden() -> None:
    assert {*GOLDEN_ROWS, "raw"} == set(FORMATS)


def test_hex_and_base64_show_data_only() -> None:
    assert written("plain", "hex").splitlines()[0] == b"757365723a31\t416461\t7"
    assert written("csv", "base64").splitlines()[1] == b"dXNlcjox,QWRh,7"
    assert written("jsonl", "hex") == GOLDEN_ROWS["jsonl"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("json", b'{"schema": 1, "key": "k", "version": 3, "ttl_ms": null}\n'),
        ("jsonl", b'{"key": "k", "version": 3, "ttl_ms": null}\n'),
        ("csv", b"key,version,ttl_ms\nk,3,-\n"),
        ("plain", b"3\n"),
        ("table", b"3\n"),
    ],
)
def test_record(form: str, expected: bytes) -> None:
    stream = io.BytesIO()
    Output(stream, form, "utf8", terminal=False).record(
        {"key": b"k", "version": 3, "ttl_ms": None}, ("version",)
    )
    assert stream.getvalue() == expected


def test_an_empty_result_is_a_whole_document() -> None:
    stream = io.BytesIO()
    with Output(stream, "json", "utf8", terminal=False).rows("entries", ("key",)):
        pass
    assert json.loads(stream.getvalue()) == {"schema": 1, "entries": []}


def test_a_document_is_closed_when_the_command_fails() -> None:
    stream = io.BytesIO()

    def fail() -> None:
        with Output(stream, "json", "utf8", terminal=False).rows("entries", ("key",)) as rows:
            rows.add(b"a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads(stream.getvalue())["entries"] == [{"key": "a"}]


def test_a_table_has_one_header_and_bounded_pages() -> None:
    stream = io.BytesIO()
    with Output(stream, "table", "utf8", terminal=True).rows("entries", ("key",)) as rows:
        for number in range(TABLE_PAGE_ROWS):
            rows.add(b"%d" % number)
        assert stream.getvalue().count(b"\n") == TABLE_PAGE_ROWS + 1
        rows.add(b"last")
    lines = stream.getvalue().splitlines()
    assert lines[0] == b"KEY"
    assert lines.count(b"KEY") == 1
    assert lines[-1] == b"last"


def test_a_reader_that_has_gone_is_told_apart() -> None:
    class Gone(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    with (
        pytest.raises(StdoutClosed),
        Output(Gone(), "plain", "utf8", terminal=False).rows("", ("key",)) as rows,
    ):
        rows.add(b"a")
