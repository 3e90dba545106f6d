"""Files of records: what all formats share, and the two simplest, jsonl and lines.

A reader yields `(key, value)` for a good record and `Reject` for a bad one; a bad record never hides the next
good one. `mark()` describes the position behind the last record yielded, so that another reader can go on
there. A writer turns entries into bytes and says which ones its format cannot hold. Memory is bounded by
`RECORD_BYTES_MAX`. Knows nothing of clusters.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from kvclient.cli.text import from_json, to_json
from kvclient.protocol import KEY_BYTES_MAX, VALUE_BYTES_MAX_CONFIGURABLE

# A value of the largest size that a cluster can be configured for, in base64 and with a key, still fits.
RECORD_BYTES_MAX = 16 << 20

# Enough of a bad record to recognise and mend it; the line number leads to the rest.
REJECT_BYTES_SHOWN = 64 << 10

Mark = dict[str, int]


class Reject(NamedTuple):
    """A record that could not be read (or written): where it was, why, and its beginning."""

    line: int
    reason: str
    record: bytes

    def to_line(self) -> bytes:
        """The record's line in a reject file."""
        fields: dict[str, Any] = {"line": self.line, "reason": self.reason}
        fields["record"] = to_json(self.record[:REJECT_BYTES_SHOWN])
        if len(self.record) > REJECT_BYTES_SHOWN:
            fields["truncated"] = True
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


Item = tuple[bytes, bytes] | Reject


class FormatError(Exception):
    """The file as a whole is not what it should be; nothing behind this point can be read."""


def problem_with(key: bytes, value: bytes) -> str | None:
    """Why no cluster would take this record; None if one may."""
    if not key:
        return "the key is empty"
    if len(key) > KEY_BYTES_MAX:
        return f"the key is {len(key)} bytes, the limit is {KEY_BYTES_MAX}"
    if len(value) > VALUE_BYTES_MAX_CONFIGURABLE:
        return f"the value is {len(value)} bytes, no cluster takes more than {VALUE_BYTES_MAX_CONFIGURABLE}"
    return None


class Reader(ABC):
    """Reads one file from `mark` on (an empty one: from its beginning). `offset` and `line` are those behind
    the last item.
    """

    def __init__(self, file: BinaryIO, mark: Mark) -> None:
        self.file = file
        self.offset = mark.get("offset", 0)
        self.line = mark.get("line", 0)

    @abstractmethod
    def __iter__(self) -> Iterator[Item]: ...

    def mark(self) -> Mark:
        """Where the next reader goes on."""
        return {"offset": self.offset, "line": self.line}

    def lines(self) -> Iterator[bytes | Reject]:
        """Physical lines with their newline; one that is too long becomes a Reject and is skipped."""
        readline = self.file.readline
        while line := readline(RECORD_BYTES_MAX):
            self.line += 1
            self.offset += len(line)
            if len(line) == RECORD_BYTES_MAX and not line.endswith(b"\n"):
                yield self._skip_line(line)
            else:
                yield line

    def _skip_line(self, begin: bytes) -> Reject:
        while part := self.file.readline(RECORD_BYTES_MAX):
            self.offset += len(part)
            if part.endswith(b"\n"):
                break
        return Reject(self.line, f"the line is longer than {RECORD_BYTES_MAX} bytes", begin)


class Writer(ABC):
    """Writes one file; `state()` and `restore()` carry over what a resumed export must know."""

    keys_only = False

    def head(self) -> bytes:
        """What the file begins with."""
        return b""

    @abstractmethod
    def page(self, entries: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, list[Reject]]:
        """The bytes of some entries, and those that the format cannot hold (line 0)."""

    def tail(self) -> bytes:
        """What the file ends with."""
        return b""

    def state(self) -> Mark:
        return {}

    def restore(self, state: Mark) -> None:  # noqa: B027 - most formats have nothing to restore
        """Go on where the writer with that state was."""


class LinesReader(Reader):
    """One key a line, as bytes; the value is empty."""

    def __iter__(self) -> Iterator[Item]:
        for line in self.lines():
            if isinstance(line, Reject):
                yield line
                continue
            key = line[:-1] if line.endswith(b"\n") else line
            reason = problem_with(key, b"")
            yield (key, b"") if reason is None else Reject(self.line, reason, key)


class LinesWriter(Writer):
    """One key a line; values are not written."""

    keys_only = True

    def page(self, entries: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, list[Reject]]:
        lines: list[bytes] = []
        rejects: list[Reject] = []
        for key, _ in entries:
            if b"\n" in key:
                rejects.append(Reject(0, "the key holds a newline: use jsonl or dump", key))
            else:
                lines.append(key)
        return b"".join([line + b"\n" for line in lines]), rejects


class JsonLinesReader(Reader):
    """One object a line with "key" and "value", each a string or {"b64": "..."}; other members are ignored,
    as are blank lines.
    """

    def __iter__(self) -> Iterator[Item]:
        for line in self.lines():
            if isinstance(line, Reject):
                yield line
            elif not line.isspace():
                yield self._parse(line)

    def _parse(self, line: bytes) -> Item:
        try:
            record = json.loads(line.decode())
            if type(record) is not dict:
                raise ValueError("not a JSON object")
            key = _member(record, "key")
            value = _member(record, "value")
        except UnicodeDecodeError as error:
            return self._reject(f"not UTF-8 at byte {error.start + 1}", line)
        except json.JSONDecodeError as error:
            return self._reject(f"not JSON: {error.msg} at character {error.pos + 1}", line)
        except (ValueError, RecursionError) as error:
            return self._reject(str(error) or "nested too deep", line)
        reason = problem_with(key, value)
        return (key, value) if reason is None else self._reject(reason, line)

    def _reject(self, reason: str, line: bytes) -> Reject:
        return Reject(self.line, reason, line.rstrip(b"\r\n"))


def _member(record: dict[str, Any], name: str) -> bytes:
    if name not in record:
        raise ValueError(f'no member "{name}"')
    form = record[name]
    if type(form) is str and form.isascii():
        return form.encode()
    try:
        return from_json(form)
    except ValueError as error:
        raise ValueError(f'"{name}" {error}') from None


class JsonLinesWriter(Writer):
    """`{"key": ..., "value": ...}` a line."""

    def page(self, entries: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, list[Reject]]:
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = [encode({"key": to_json(key), "value": to_json(value)}) + "\n" for key, value in entries]
        return "".join(lines).encode(), []
