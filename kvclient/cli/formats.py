"""The file formats of import and export by name, and the guess from a file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from kvclient.cli.csvfile import CsvReader, CsvWriter, Layout
from kvclient.cli.dumpfile import DumpReader, DumpWriter
from kvclient.cli.records import (
    JsonLinesReader,
    JsonLinesWriter,
    LinesReader,
    LinesWriter,
    Mark,
    Reader,
    Writer,
)

NAMES = ("jsonl", "csv", "lines", "dump")

_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "lines",
    ".dump": "dump",
}


def guess(path: str) -> str | None:
    """The format that a file name speaks of; None if it speaks of none."""
    return _BY_SUFFIX.get(Path(path).suffix.lower())


def delimiter_of(path: str, given: str | None) -> bytes:
    """The delimiter asked for (`\\t` and `tab` mean a tab), or the one of the file name."""
    if given is None:
        return b"\t" if path.lower().endswith(".tsv") else b","
    return b"\t" if given in ("\\t", "tab") else given.encode("utf-8", "surrogateescape")


def reader(name: str, file: BinaryIO, mark: Mark, layout: Layout) -> Reader:
    """A reader that goes on at `mark`; `file` stands at its offset."""
    if name == "csv":
        return CsvReader(file, mark, layout)
    plain: dict[str, Callable[[BinaryIO, Mark], Reader]]
    plain = {"jsonl": JsonLinesReader, "lines": LinesReader, "dump": DumpReader}
    return plain[name](file, mark)


def writer(name: str, layout: Layout) -> Writer:
    """A writer of the format."""
    if name == "csv":
        return CsvWriter(layout)
    plain: dict[str, Callable[[], Writer]]
    plain = {"jsonl": JsonLinesWriter, "lines": LinesWriter, "dump": DumpWriter}
    return plain[name]()
