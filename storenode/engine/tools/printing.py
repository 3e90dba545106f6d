"""How results look on stdout: table, plain, json, jsonl; the forms of docs/cli.md section 3.

A tool gives sections of rows with named columns. Rows are written as they come. In json a section is a
member of the one document; in jsonl each row is an object with its section's name. `kvclient.cli` has the
same forms for the cluster's commands; the engine may not import it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

Cell = bytes | str | int | bool | None

FORMATS = ("table", "plain", "json", "jsonl")
ENCODINGS = ("utf8", "hex", "base64")
SCHEMA = 1
PAGE_ROWS = 500
"""A table's columns are as wide as what is in a page of so many rows."""

_ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}
_SPECIAL = re.compile(rb"[\\\t\n\r]")


class Printer:
    """Writes one result: sections, one after the other. In plain each row begins with its section's name."""

    def __init__(self, out: BinaryIO, form: str, encoding: str) -> None:
        self._out = out
        self._form = form
        self._encoding = encoding
        self._section = ""
        self._columns: Sequence[str] = ()
        self._page: list[tuple[Cell, ...]] = []
        self._begun = False
        self._rows = 0

    def section(self, name: str, columns: Sequence[str]) -> None:
        """Begin a section; the one before it is ended."""
        self._end_section()
        self._section, self._columns, self._rows = name, columns, 0
        if self._form == "json":
            opening = ", " if self._begun else f'{{"schema": {SCHEMA}, '
            self._write(f'{opening}"{name}": ['.encode())
        elif self._form == "table":
            self._write(f"{chr(10) if self._begun else ''}{name}\n".encode())
        self._begun = True

    def row(self, *cells: Cell) -> None:
        if self._form == "table":
            self._page.append(cells)
            if len(self._page) >= PAGE_ROWS:
                self._flush_page()
        elif self._form == "plain":
            shown = [self._plain(cell) for cell in cells]
            self._write(b"\t".join([self._section.encode(), *shown]) + b"\n")
        else:
            fields = dict(zip(self._columns, map(json_cell, cells), strict=True))
            if self._form == "json":
                self._write((b",\n  " if self._rows else b"\n  ") + _json(fields))
            else:
                self._write(_json({"section": self._section} | fields) + b"\n")
        self._rows += 1

    def close(self) -> None:
        """End the document, if it was begun; without it a json document is not whole."""
        self._end_section()
        if self._form == "json" and self._begun:
            self._write(b"}\n")
        self._out.flush()

    def _end_section(self) -> None:
        if not self._begun:
            return
        if self._form == "json":
            self._write(b"\n]" if self._rows else b"]")
        elif self._form == "table":
            self._flush_page()

    def _flush_page(self) -> None:
        if not self._page:
            return
        first = self._rows <= len(self._page)
        lines = [[self._shown(cell) for cell in cells] for cells in self._page]
        right = [isinstance(cell, int) and not isinstance(cell, bool) for cell in self._page[0]]
        if first:
            lines.insert(0, [column.upper().replace("_", " ") for column in self._columns])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = [
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(line, widths, right, strict=True)
            ]
            self._write("  ".join(padded).rstrip().encode() + b"\n")
        self._page.clear()

    def _plain(self, cell: Cell) -> bytes:
        if isinstance(cell, bytes):
            encoded = self._encoded(cell)
            return plain_escape(cell) if encoded is None else encoded.encode()
        return plain_escape(_scalar(cell).encode(errors="surrogateescape"))

    def _shown(self, cell: Cell) -> str:
        if isinstance(cell, bytes):
            encoded = self._encoded(cell)
            return printable(cell) if encoded is None else encoded
        return printable(_scalar(cell).encode(errors="surrogateescape"))

    def _encoded(self, data: bytes) -> str | None:
        if self._encoding == "hex":
            return data.hex()
        return base64.b64encode(data).decode() if self._encoding == "base64" else None

    def _write(self, data: bytes) -> None:
        self._out.write(data)


def json_cell(cell: Cell) -> Any:
    """Bytes are a string if they are UTF-8, otherwise {"b64": ...}; so are file names that are none."""
    if isinstance(cell, str):
        cell = cell.encode(errors="surrogateescape")
    if not isinstance(cell, bytes):
        return cell
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(cell).decode()}


def plain_escape(data: bytes) -> bytes:
    """Backslash, tab, newline and carriage return escaped, all other bytes as they are."""
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], data)


def printable(data: bytes) -> str:
    """Harmless on a terminal: what is not printable as \\xNN or \\uNNNN."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(data: bytes) -> str:
    """A key inside a sentence: printable, in quotes, no longer than a line."""
    text = printable(data[:64])
    return f"'{text}{'...' if len(data) > 64 else ''}'"


def _scalar(cell: str | int | bool | None) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "1" if cell else "0"
    return str(cell)


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(", ", ": ")).encode()
