"""What goes to stdout, in six formats: table, plain, json, jsonl, csv, raw.

Owns the bytes of stdout and nothing else goes there. A command hands over rows with named columns; cells are
bytes (keys and values), str, int, float, bool or None. json is always one document, an object that begins
with `"schema": 1`; jsonl is one object a line; plain is tab-separated without a header. Rows are written as
they come (a table in pages of `TABLE_PAGE_ROWS`), so memory stays bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from kvclient.cli.text import JSON_SCHEMA, encode_shown, to_json, to_line, to_terminal

Cell = bytes | str | int | float | bool | None

FORMATS = ("table", "plain", "json", "jsonl", "csv", "raw")

# One terminal screenful many times over, yet the first rows of an endless scan appear at once.
TABLE_PAGE_ROWS = 500


class StdoutClosed(Exception):
    """Whoever read our stdout has gone; exit code 141."""


class Stdout:
    """Binary stdout; a reader that has gone is told apart from every other broken pipe, and other errors say
    that it is stdout they speak of.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        with _named():
            self._stream.write(data)

    def flush(self) -> None:
        with _named():
            self._stream.flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise StdoutClosed from None
    except OSError as error:
        error.filename = "stdout"
        raise


def json_cell(cell: Cell) -> Any:
    """A cell as JSON data."""
    return to_json(cell) if isinstance(cell, bytes) else cell


def dump_json(data: Any) -> bytes:
    """Compact JSON, UTF-8 kept readable, no newline."""
    return json.dumps(data, ensure_ascii=False, separators=(", ", ": ")).encode()


def plain_cell(cell: Cell, encoding: str) -> bytes:
    """A cell of a tab-separated line."""
    if isinstance(cell, bytes):
        shown = encode_shown(cell, encoding)
        return to_line(cell) if shown is None else shown
    return to_line(_scalar(cell).encode())


def csv_cell(cell: Cell, encoding: str) -> bytes:
    """A cell of an RFC 4180 line, quoted when it must be."""
    if isinstance(cell, bytes):
        shown = encode_shown(cell, encoding)
        data = cell if shown is None else shown
    else:
        data = _scalar(cell).encode()
    if any(special in data for special in (b",", b'"', b"\n", b"\r")):
        return b'"' + data.replace(b'"', b'""') + b'"'
    return data


def table_cell(cell: Cell, encoding: str) -> str:
    """A cell as a person reads it."""
    if isinstance(cell, bytes):
        shown = encode_shown(cell, encoding)
        return to_terminal(cell) if shown is None else shown.decode()
    return to_terminal(_scalar(cell).encode())


def _scalar(cell: str | int | float | bool | None) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "1" if cell else "0"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


class Rows(Protocol):
    """A result of many rows, written as they come."""

    def add(self, *cells: Cell) -> None: ...

    def show(self) -> None:
        """Let whoever watches see the rows so far."""

    def close(self) -> None: ...


class PlainRows:
    """Tab-separated, no header."""

    def __init__(self, out: Stdout, encoding: str) -> None:
        self._out = out
        self._encoding = encoding

    def add(self, *cells: Cell) -> None:
        self._out.write(b"\t".join([plain_cell(cell, self._encoding) for cell in cells]) + b"\n")

    def show(self) -> None:
        self._out.flush()

    def close(self) -> None:
        pass


class CsvRows:
    """RFC 4180 with a header line and plain newlines."""

    def __init__(self, out: Stdout, encoding: str, columns: Sequence[str]) -> None:
        self._out = out
        self._encoding = encoding
        out.write(",".join(columns).encode() + b"\n")

    def add(self, *cells: Cell) -> None:
        self._out.write(b",".join([csv_cell(cell, self._encoding) for cell in cells]) + b"\n")

    def show(self) -> None:
        self._out.flush()

    def close(self) -> None:
        pass


class JsonLines:
    """One object a line."""

    def __init__(self, out: Stdout, columns: Sequence[str]) -> None:
        self._out = out
        self._columns = columns

    def add(self, *cells: Cell) -> None:
        record = dict(zip(self._columns, map(json_cell, cells), strict=True))
        self._out.write(dump_json(record) + b"\n")

    def show(self) -> None:
        self._out.flush()

    def close(self) -> None:
        pass


class JsonDocument:
    """One object: schema, then the rows under `name`."""

    def __init__(self, out: Stdout, name: str, columns: Sequence[str]) -> None:
        self._out = out
        self._columns = columns
        self._separator = b"\n  "
        out.write(f'{{"schema": {JSON_SCHEMA}, "{name}": ['.encode())

    def add(self, *cells: Cell) -> None:
        record = dict(zip(self._columns, map(json_cell, cells), strict=True))
        self._out.write(self._separator + dump_json(record))
        self._separator = b",\n  "

    def show(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self._out.write(b"]}\n" if self._separator == b"\n  " else b"\n]}\n")


class TableRows:
    """Aligned columns with a header; numbers to the right. Widths are those of a page."""

    def __init__(self, out: Stdout, encoding: str, columns: Sequence[str]) -> None:
        self._out = out
        self._encoding = encoding
        self._columns = [column.upper().replace("_", " ") for column in columns]
        self._page: list[tuple[Cell, ...]] = []
        self._header = True

    def add(self, *cells: Cell) -> None:
        self._page.append(cells)
        if len(self._page) >= TABLE_PAGE_ROWS:
            self._flush_page()

    def show(self) -> None:
        self.close()
        self._out.flush()

    def close(self) -> None:
        if self._page:
            self._flush_page()

    def _flush_page(self) -> None:
        lines = [[table_cell(cell, self._encoding) for cell in cells] for cells in self._page]
        right = [isinstance(cell, (int, float)) for cell in self._page[0]]
        if self._header:
            lines.insert(0, self._columns)
            self._header = False
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = [
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(line, widths, right, strict=True)
            ]
            self._out.write("  ".join(padded).rstrip().encode() + b"\n")
        self._page.clear()


class Output:
    """The stdout of one command in the format asked for. `terminal`: stdout is one."""

    def __init__(self, stream: BinaryIO, form: str, encoding: str, terminal: bool) -> None:
        self.stdout = Stdout(stream)
        self.form = form
        self.encoding = encoding
        self.terminal = terminal

    def rows(self, name: str, columns: Sequence[str]) -> RowsBlock:
        """Begin a result of many rows; use as a context manager. The raw format has no rows: `KvCommand`
        refuses it before.
        """
        assert self.form != "raw"
        return RowsBlock(self, name, columns)

    def record(self, fields: dict[str, Cell], shown: Sequence[str], header: bool = False) -> None:
        """One result. json, jsonl and csv have all `fields`; plain and table only those `shown`."""
        if self.form == "json":
            document = {"schema": JSON_SCHEMA} | {name: json_cell(cell) for name, cell in fields.items()}
            self.stdout.write(dump_json(document) + b"\n")
            return
        names = shown if self.form in ("plain", "table") else list(fields)
        cells = [fields[name] for name in names]
        if self.form == "table" and not header:
            self.stdout.write("  ".join(table_cell(cell, self.encoding) for cell in cells).encode() + b"\n")
            return
        with self.rows("", names) as rows:
            rows.add(*cells)

    def document(self, fields: dict[str, Any]) -> None:
        """One JSON document of any shape (status); for the json and jsonl formats."""
        document = {"schema": JSON_SCHEMA} | fields if self.form == "json" else fields
        self.stdout.write(dump_json(document) + b"\n")

    def line(self, text: str) -> None:
        """A line for people."""
        self.stdout.write(text.encode() + b"\n")


class RowsBlock:
    """`with output.rows(...) as rows: rows.add(...)`: what was begun is ended also when the command fails."""

    def __init__(self, output: Output, name: str, columns: Sequence[str]) -> None:
        self._output = output
        self._name = name
        self._columns = columns
        self._rows: Rows | None = None

    def __enter__(self) -> Rows:
        out, encoding = self._output.stdout, self._output.encoding
        if self._output.form == "json":
            self._rows = JsonDocument(out, self._name, self._columns)
        elif self._output.form == "jsonl":
            self._rows = JsonLines(out, self._columns)
        elif self._output.form == "csv":
            self._rows = CsvRows(out, encoding, self._columns)
        elif self._output.form == "table":
            self._rows = TableRows(out, encoding, self._columns)
        else:
            self._rows = PlainRows(out, encoding)
        return self._rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._rows is not None
        if kind is not None and issubclass(kind, StdoutClosed):
            return
        self._rows.close()
