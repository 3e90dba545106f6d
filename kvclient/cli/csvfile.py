"""CSV files: RFC 4180 with any delimiter, as bytes.

A field that begins with a double quote goes to the matching one and may hold delimiters and newlines; any
other quote is an ordinary byte. What the value is, is the user's choice: `rest` (the record without the key
column, byte for byte as in the file), `line` (the whole record) or the number of a column. With `rest` and
`line` an export gives back the imported lines byte for byte.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from kvclient.cli.records import Item, Mark, Reader, Reject, Writer, problem_with

# What stands between the opening quote of a field and the end of its closing one.
_CLOSE = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')
_QUOTED = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"')
_VALUE = re.compile(r"(rest|line)|(?:column[ :=]?)?([1-9]\d{0,5})")


# A quoted field with newlines may be this long. Bounds what is read ahead, and read again, when a stray quote
# opens a field.
JOINED_BYTES_MAX = 1 << 20


class Layout:
    """Which bytes of a record are key and value. Columns count from 1."""

    def __init__(
        self, delimiter: bytes = b",", key_column: int = 1, value: str = "rest", header: bool = False
    ) -> None:
        if delimiter in (b"\n", b"\r", b'"', b""):
            raise ValueError("the delimiter cannot be a newline, a quote or nothing")
        match = _VALUE.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is neither rest, line nor the number of a column")
        self.delimiter = delimiter
        self.key_index = key_column - 1
        self.mode = match[1] or "column"
        self.value_index = int(match[2]) - 1 if match[2] else 0
        self.header = header
        if self.mode == "column" and self.value_index == self.key_index:
            raise ValueError("key and value cannot be the same column")

    def fields(self, record: bytes) -> list[bytes]:
        """The raw fields, quotes and all."""
        if b'"' not in record:
            return record.split(self.delimiter)
        fields = []
        begin = 0
        while True:
            scan = begin
            if record.startswith(b'"', begin) and (close := _CLOSE.match(record, begin + 1)):
                scan = close.end()
            end = record.find(self.delimiter, scan)
            if end < 0:
                fields.append(record[begin:])
                return fields
            fields.append(record[begin:end])
            begin = end + len(self.delimiter)

    def is_open(self, line: bytes, inside: bool = False) -> bool:
        """Whether a quoted field is still open behind `line`, one being open before it or not."""
        if b'"' not in line:
            return inside
        position = 0
        if inside:
            close = _CLOSE.match(line)
            if close is None:
                return True
            position = self._field_end(line, close.end())
        while position < len(line):
            if line.startswith(b'"', position):
                close = _CLOSE.match(line, position + 1)
                if close is None:
                    return True
                position = close.end()
            position = self._field_end(line, position)
        return False

    def _field_end(self, line: bytes, position: int) -> int:
        """Where the next field begins, or the length of the line."""
        end = line.find(self.delimiter, position)
        return len(line) if end < 0 else end + len(self.delimiter)

    def quote(self, field: bytes) -> bytes:
        """A field as it is written."""
        if self.delimiter in field or b'"' in field or b"\n" in field or b"\r" in field:
            return b'"' + field.replace(b'"', b'""') + b'"'
        return field


def unquote(field: bytes) -> bytes:
    """A raw field's content."""
    if not field.startswith(b'"'):
        return field
    end = _QUOTED.match(field)
    return field if end is None else end[1].replace(b'""', b'"') + field[end.end() :]


class CsvReader(Reader):
    """Records of a CSV file; blank lines are skipped, a header line when the layout has one."""

    def __init__(self, file: BinaryIO, mark: Mark, layout: Layout) -> None:
        super().__init__(file, mark)
        self.layout = layout
        self._header_due = layout.header and not mark
        self._fresh = self.lines()
        # Lines that were read ahead for a quoted field that turned out to have no end, with what each
        # advances the offset.
        self._returned: deque[tuple[bytes | Reject, int]] = deque()

    def __iter__(self) -> Iterator[Item]:
        layout = self.layout
        simple = layout.key_index == 0 and layout.mode == "rest"
        while (line := self._next_line()) is not None:
            if isinstance(line, Reject):
                yield line
                continue
            record: bytes | Reject = line.removesuffix(b"\n")
            if b'"' in line and layout.is_open(line):
                record = self._join(line)
            if self._header_due:
                self._header_due = False
            elif isinstance(record, Reject):
                yield record
            elif record in (b"", b"\r"):
                continue
            elif simple and b'"' not in record:
                key, delimiter, value = record.partition(layout.delimiter)
                reason = problem_with(key, value) if delimiter else "only 1 column"
                yield (key, value) if reason is None else Reject(self.line, reason, record)
            else:
                yield self._parse(record)

    def _next_line(self) -> bytes | Reject | None:
        """The next line, those given back coming first; None at the end."""
        if not self._returned:
            return next(self._fresh, None)
        item, size = self._returned.popleft()
        self.offset += size
        self.line += 1
        return item

    def _join(self, first: bytes) -> bytes | Reject:
        """The record whose quoted field goes on behind `first`; if it has no end, only `first` is bad and the
        rest is given back.
        """
        parts: list[bytes | Reject] = []
        sizes: list[int] = []
        before = self.offset
        while (start := self.offset) < before + JOINED_BYTES_MAX:
            line = self._next_line()
            if line is None:
                break
            parts.append(line)
            sizes.append(self.offset - start)
            if isinstance(line, Reject):
                break
            if not self.layout.is_open(line, inside=True):
                return b"".join([first, *(part for part in parts if isinstance(part, bytes))]).removesuffix(
                    b"\n"
                )
        self._returned.extendleft(reversed(list(zip(parts, sizes, strict=True))))
        self.offset = before
        self.line -= len(parts)
        return Reject(self.line, "a quoted field has no end", first.rstrip(b"\r\n"))

    def _parse(self, record: bytes) -> Item:
        layout = self.layout
        fields = layout.fields(record)
        if len(fields) <= max(layout.key_index, layout.value_index):
            return Reject(self.line, f"only {len(fields)} column{'s' * (len(fields) != 1)}", record)
        if layout.mode == "line":
            value = record
        elif layout.mode == "column":
            value = unquote(fields[layout.value_index].removesuffix(b"\r"))
        elif len(fields) == 1:
            return Reject(self.line, "only 1 column", record)
        else:
            value = layout.delimiter.join(fields[: layout.key_index] + fields[layout.key_index + 1 :])
        key = unquote(fields[layout.key_index].removesuffix(b"\r"))
        reason = problem_with(key, value)
        return (key, value) if reason is None else Reject(self.line, reason, record)


class CsvWriter(Writer):
    """The mirror of `CsvReader` with the same layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def head(self) -> bytes:
        return self._row(b"key", b"value") + b"\n" if self.layout.header else b""

    def page(self, entries: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, list[Reject]]:
        rows: list[bytes] = []
        rejects: list[Reject] = []
        for key, value in entries:
            row = self._row(key, value)
            if self.layout.mode != "column" and self._is_torn(row):
                rejects.append(
                    Reject(0, "the value is no part of a CSV line: use --value 2, jsonl or dump", key)
                )
            else:
                rows.append(row)
        return b"".join([row + b"\n" for row in rows]), rejects

    def _row(self, key: bytes, value: bytes) -> bytes:
        layout = self.layout
        if layout.mode == "line":
            return value
        if layout.mode == "rest":
            if layout.key_index == 0:
                return layout.quote(key) + layout.delimiter + value
            fields = layout.fields(value)
            fields.insert(layout.key_index, layout.quote(key))
            return layout.delimiter.join(fields)
        fields = [b""] * (max(layout.key_index, layout.value_index) + 1)
        fields[layout.key_index] = layout.quote(key)
        fields[layout.value_index] = layout.quote(value)
        return layout.delimiter.join(fields)

    def _is_torn(self, row: bytes) -> bool:
        """Whether the row would be read back as something else: a newline outside quotes, or a quote without
        end.
        """
        if b"\n" not in row and b'"' not in row:
            return not row
        if self.layout.is_open(row):
            return True
        return any(b"\n" in field and not _is_quoted(field) for field in self.layout.fields(row))


def _is_quoted(field: bytes) -> bool:
    return _QUOTED.fullmatch(field.removesuffix(b"\r")) is not None
