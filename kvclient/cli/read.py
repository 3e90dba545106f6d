"""The commands that only read: get, mget, exists, scan, count."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.output import Cell
from kvclient.cli.text import encode_shown, from_line, to_terminal
from kvclient.errors import Exit, KeyNotFound

# Keys per request of mget, so that a list of any length on stdin takes bounded memory.
CHUNK_KEYS = 1000


@command("get", raw_output=True)
@click.argument("key")
@click.option("--meta", is_flag=True, help="Also version, time to live and size.")
@click.option("--default", metavar="VALUE", help="Print this if the key is missing, and exit with 0.")
def get(key: str, meta: bool, default: str | None) -> None:
    """Print the value of a key. Exit code 3 if it is missing. -o raw writes exactly its bytes."""
    app = current()
    name = app.data(key)
    try:
        entry = app.client().entry(name)
    except KeyNotFound:
        if default is None:
            raise KeyNotFound(f"no such key: {to_terminal(name)}") from None
        fields: dict[str, Cell] = {"key": name, "value": app.data(default, "default"), "version": None}
    else:
        fields = {"key": name, "value": entry.value, "version": entry.version}
        if meta or entry.ttl is not None:
            fields["ttl_ms"] = None if entry.ttl is None else round(entry.ttl * 1000)
    value = fields["value"]
    assert isinstance(value, bytes)
    if meta:
        fields["size"] = len(value)
    output = app.output
    if output.form == "raw":
        output.stdout.write(value)
    elif meta:
        output.record(fields, list(fields), header=True)
    elif output.form in ("plain", "table"):
        output.stdout.write(_shown(app, value) + b"\n")
    else:
        output.record(fields, ("value",))


def _shown(app: App, value: bytes) -> bytes:
    """The value alone: exact bytes when piped, lines kept but nothing unprintable on a terminal."""
    encoded = encode_shown(value, app.settings.encoding)
    if encoded is not None:
        return encoded
    if app.output.form == "plain":
        return value
    return b"\n".join(to_terminal(line).encode() for line in value.split(b"\n"))


def keys_of(app: App, arguments: Iterable[str]) -> Iterator[bytes]:
    """The keys of a KEY... argument; `-` stands for those on stdin, one a line as the plain format writes
    them.
    """
    for argument in arguments:
        if argument != "-":
            yield app.data(argument)
            continue
        for line in sys.stdin.buffer:
            text = line.removesuffix(b"\n")
            if app.settings.encoding != "utf8":
                yield app.data(os.fsdecode(text))
                continue
            try:
                yield from_line(text)
            except ValueError as error:
                raise click.UsageError(f"stdin: a key {error}") from None


def chunks(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lists of up to `CHUNK_KEYS`."""
    while chunk := list(islice(keys, CHUNK_KEYS)):
        yield chunk


@command("mget")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...|-")
def mget(keys: tuple[str, ...]) -> None:
    """Print many keys with their values, in the order given; - reads keys from stdin, one a line. Exit code 3
    if one is missing.
    """
    app = current()
    client = app.client()
    missing = 0
    with app.output.rows("entries", ("key", "value")) as rows:
        for chunk in chunks(keys_of(app, keys)):
            found = client.get_many(chunk)
            for key in chunk:
                if key in found:
                    rows.add(key, found[key])
                else:
                    missing += 1
                    app.note(f"no such key: {to_terminal(key)}")
    if missing:
        quit_with(Exit.NOT_FOUND)


@command("exists")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...|-")
def exists(keys: tuple[str, ...]) -> None:
    """Print 1 or 0 for each key. Exit code 3 if one is missing."""
    app = current()
    client = app.client()
    missing = False
    shown = app.output.form in ("plain", "table")
    with app.output.rows("entries", ("exists",) if shown else ("key", "exists")) as rows:
        for chunk in chunks(keys_of(app, keys)):
            with client.pipeline() as pipeline:
                answers = [pipeline.exists(key) for key in chunk]
            for key, answer in zip(chunk, answers, strict=True):
                there = answer.result()
                missing |= not there
                rows.add(*((there,) if shown else (key, there)))
    if missing:
        quit_with(Exit.NOT_FOUND)


@command("scan")
@click.argument("prefix", default="")
@click.option("--start", help="First key; in front of it nothing is printed.")
@click.option("--stop", help="Print keys below this one only.")
@click.option("--reverse", is_flag=True, help="Last key first.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many keys.")
@click.option("--keys-only", is_flag=True, help="Keys without values.")
def scan(
    prefix: str, start: str | None, stop: str | None, reverse: bool, limit: int | None, keys_only: bool
) -> None:
    """Print keys and values in key order: all, or those that begin with PREFIX. Streams, whatever their
    number.
    """
    app = current()
    entries = app.client().scan(
        app.data(prefix, "prefix"),
        start=None if start is None else app.data(start, "--start"),
        stop=None if stop is None else app.data(stop, "--stop"),
        reverse=reverse,
        # One more tells whether there are more, and where they begin.
        limit=None if limit is None else limit + 1,
        keys_only=keys_only,
    )
    shown = app.output.form in ("plain", "table")
    columns = ("key",) if keys_only else ("key", "value")
    with app.output.rows("entries", columns if shown else (*columns, "version")) as rows:
        for number, entry in enumerate(entries):
            if number == limit:
                _tell_more(app, entry.key, reverse)
                break
            cells: tuple[Cell, ...] = (entry.key,) if keys_only else (entry.key, entry.value)
            rows.add(*(cells if shown else (*cells, entry.version)))


def _tell_more(app: App, following: bytes, reverse: bool) -> None:
    """For a person at a terminal: the limit was reached."""
    if not app.output.terminal:
        return
    shown = to_terminal(following)
    # What cannot be typed as it is shown is not offered for typing.
    if reverse or shown.encode() != following or app.settings.encoding != "utf8":
        app.note("there are more; give a higher --limit to see them")
    else:
        app.note(f"there are more; go on with  --start {shlex.quote(shown)}")


@command("count")
@click.argument("prefix", default="")
def count(prefix: str) -> None:
    """Count the keys: all, or those that begin with PREFIX. The servers walk over every one."""
    app = current()
    number = app.client().count(app.data(prefix, "prefix"))
    app.output.record({"count": number}, ("count",))
