"""Keys and values are bytes; this file says how they look in JSON, on a line, on a terminal and on the
command line.

The JSON form is a promise to scripts (docs/cli.md): UTF-8 is a string, anything else is `{"b64": "..."}`.
Every form but the terminal's can be read back to the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

JSON_SCHEMA = 1

_TSV_ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}
_TSV_RESTORE = {escaped: plain for plain, escaped in _TSV_ESCAPES.items()}
_TSV_SPECIAL = re.compile(rb"[\\\t\n\r]")
_TSV_ESCAPED = re.compile(rb"\\(.|$)", re.DOTALL)


def to_json(data: bytes) -> str | dict[str, str]:
    """The JSON form of a key or value."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


def from_json(form: Any) -> bytes:
    """The bytes of a JSON form; ValueError says what is wrong with it."""
    if isinstance(form, str):
        try:
            return form.encode()
        except UnicodeEncodeError:
            raise ValueError("holds an unpaired surrogate, which is no UTF-8") from None
    if isinstance(form, dict) and set(form) == {"b64"} and isinstance(form["b64"], str):
        try:
            return base64.b64decode(form["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("holds invalid base64") from None
    raise ValueError('must be a string or {"b64": "..."}')


def to_line(data: bytes) -> bytes:
    """Plain form: backslash, tab, newline and carriage return escaped, all other bytes as they are."""
    return _TSV_SPECIAL.sub(lambda match: _TSV_ESCAPES[match[0]], data)


def from_line(text: bytes) -> bytes:
    """Undo `to_line`; ValueError for an escape it never writes."""
    if b"\\" not in text:
        return text

    def restore(match: re.Match[bytes]) -> bytes:
        try:
            return _TSV_RESTORE[match[0]]
        except KeyError:
            raise ValueError(r"holds a backslash that begins none of \\ \t \n \r") from None

    return _TSV_ESCAPED.sub(restore, text)


def to_terminal(data: bytes) -> str:
    """Readable and harmless on a terminal: everything unprintable as \\xNN or \\uNNNN."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def decode_argument(text: bytes, encoding: str) -> bytes:
    """Bytes of a command-line key or value in `encoding` (utf8, hex, base64); ValueError if it is not."""
    if encoding == "utf8":
        return text
    try:
        if encoding == "hex":
            return bytes.fromhex(text.decode("ascii"))
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"{to_terminal(text)!r} is not {encoding}") from None


def encode_shown(data: bytes, encoding: str) -> bytes | None:
    """`data` in the encoding asked for by --hex or --base64; None when none was asked for."""
    if encoding == "hex":
        return data.hex().encode()
    if encoding == "base64":
        return base64.b64encode(data)
    return None
