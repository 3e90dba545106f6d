"""The text of `kvcli txn`: what it means, and which line is wrong."""

from __future__ import annotations

import os

import click
import pytest

from kvclient import Compare, ops
from kvclient.cli.app import App
from kvclient.cli.txn import Script, parse


def plain(word: str, what: str) -> bytes:
    del what
    return os.fsencode(word)


def test_every_compare_and_op_there_is() -> None:
    text = """
        # who may rename
        if
          value   {ada}name "Ada Lovelace"   # quoted as in a shell
          version {ada}mail 12
          exists  {ada}mail
          absent  '{ada}new name'

        then
          put {ada}name Countess
          put {ada}session "" 90s
          get {ada}name
          del {ada}mail
          exists {ada}mail
          incr {ada}changes
          incr {ada}left -2
          touch {ada}a 5m
          touch {ada}b
        else
          get {ada}name
    """
    assert parse(text, plain) == Script(
        [
            Compare.value(b"{ada}name", b"Ada Lovelace"),
            Compare.version(b"{ada}mail", 12),
            Compare.present(b"{ada}mail"),
            Compare.absent(b"{ada}new name"),
        ],
        [
            ops.put(b"{ada}name", b"Countess"),
            ops.put(b"{ada}session", b"", ttl=90.0),
            ops.get(b"{ada}name"),
            ops.delete(b"{ada}mail"),
            ops.exists(b"{ada}mail"),
            ops.increment(b"{ada}changes", 1),
            ops.increment(b"{ada}left", -2),
            ops.touch(b"{ada}a", 300.0),
            ops.touch(b"{ada}b", None),
        ],
        [ops.get(b"{ada}name")],
    )


def test_sections_may_be_left_out_and_lines_end_as_they_like() -> None:
    assert parse("then\r\nput k v\r\n", plain) == Script([], [ops.put(b"k", b"v")], [])
    assert parse("if\nabsent k", plain) == Script([Compare.absent(b"k")], [], [])
    assert parse("else\ndel k", plain) == Script([], [], [ops.delete(b"k")])
    assert parse("", plain) == Script([], [], [])


def test_words_are_bytes_and_may_be_encoded() -> None:
    assert parse(os.fsdecode(b"then\nput k \xff\xc3\xa4\n"), plain).then == [ops.put(b"k", b"\xff\xc3\xa4")]
    app = App()
    app.settings.encoding = "hex"
    assert parse("then\nput 6b 0a00", app.data).then == [ops.put(b"k", b"\n\0")]
    with pytest.raises(click.UsageError, match="value 'zz' is not hex"):
        parse("then\nput 6b zz", app.data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("put k v", 'line 1: stands before the first "if" or "then"'),
        ("if\nthen\nif", 'line 3: "if" comes once, in the order if, then, else'),
        ("else\nthen", 'line 2: "then" comes once'),
        ("if\n\nput k v", "line 3: 'put' with 2 words is no compare"),
        ("if\nvalue k", "line 2: 'value' with 1 words is no compare"),
        ("then\nvalue k v", "line 2: 'value' with 2 words is no op"),
        ("then\nput k", "line 2: 'put' with 1 words is no op"),
        ("then\nif x", "line 2: 'if' with 1 words is no op"),
        ("then\nput k 'v", "line 2: No closing quotation"),
        ("then\nincr k x", "line 2: delta 'x' is not an integer"),
        ("then\nincr k 9223372036854775808", "line 2: delta '9223372036854775808' does not fit"),
        ("if\nversion k 1.5", "line 2: version '1.5' is not an integer"),
        ("then\nput k v soon", "line 2: TTL='soon' is no duration above zero"),
        ("then\ntouch k 0", "line 2: TTL='0' is no duration"),
    ],
)
def test_the_line_that_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(text, plain)
    assert message in caught.value.message
