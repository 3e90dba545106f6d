"""The command txn: a transaction as lines of text (docs/cli.md section 8), read from a file or stdin.

Owns the text form. What a transaction may hold is checked by the SDK and the cluster; here are only words.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.output import Cell, json_cell
from kvclient.errors import Exit, InvalidRequest
from kvclient.protocol import REQUEST_BYTES_MAX
from kvclient.url import parse_duration

if TYPE_CHECKING:
    from kvclient.ops import Compare, Op

_SECTIONS = ("if", "then", "else")
_INT64 = range(-(1 << 63), 1 << 63)

Data = Callable[[str, str], bytes]


class Script(NamedTuple):
    """A transaction as it was written."""

    compare: list[Compare]
    then: list[Op]
    else_: list[Op]


@command("txn")
@click.argument("file", default="-", metavar="[FILE|-]")
def txn(file: str) -> None:
    """Execute a transaction, read from FILE or stdin: the lines "if", "then" and "else", each with its
    compares or ops below it.

    \b
    if
      value {ada}name Ada          (also: version KEY N, exists KEY, absent KEY)
    then
      put {ada}name Countess 60s   (also: get, del, exists, incr, touch)
      incr {ada}changes
    else
      get {ada}name

    All or nothing, for keys with one hash tag. Prints the result of each op of the branch that was executed.
    Exit code 4 if a compare failed, and "else" was executed.
    """
    app = current()
    script = parse(_read(file), app.data)
    done = app.client().txn(compare=script.compare, then=script.then, else_=script.else_)
    branch = script.then if done.succeeded else script.else_
    _print(app, done.succeeded, branch, done.results)
    if not done.succeeded:
        app.note(
            "a compare failed: else was executed" if branch else "a compare failed: nothing was executed"
        )
        quit_with(Exit.CONFLICT)


def _read(file: str) -> str:
    if file == "-":
        return _text_of(sys.stdin.buffer, "stdin")
    try:
        with open(file, "rb") as opened:
            return _text_of(opened, file)
    except OSError as error:
        raise click.UsageError(f"file {file!r}: {error.strerror}.") from None


def _text_of(stream: BinaryIO, name: str) -> str:
    text = stream.read(REQUEST_BYTES_MAX + 1)
    if len(text) > REQUEST_BYTES_MAX:
        raise click.UsageError(
            f"{name} holds more than the {REQUEST_BYTES_MAX} bytes of the largest request."
        )
    return os.fsdecode(text)


def parse(text: str, data: Data) -> Script:
    """The transaction; `data` gives the bytes of a word. UsageError names the line."""
    script = Script([], [], [])
    section = -1
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = shlex.split(line, comments=True)
            if len(words) == 1 and words[0] in _SECTIONS:
                section = _next_section(section, words[0])
            elif words and section < 0:
                raise ValueError('stands before the first "if" or "then"')
            elif words and section == 0:
                script.compare.append(_compare(words, data))
            elif words:
                (script.then if section == 1 else script.else_).append(_op(words, data))
        except (ValueError, InvalidRequest) as error:
            raise click.UsageError(f"line {number}: {error}.") from None
    return script


def _next_section(section: int, name: str) -> int:
    following = _SECTIONS.index(name)
    if following <= section:
        raise ValueError(f'"{name}" comes once, in the order if, then, else')
    return following


def _compare(words: list[str], data: Data) -> Compare:
    from kvclient.ops import Compare

    match words:
        case ["value", key, value]:
            return Compare.value(data(key, "key"), data(value, "value"))
        case ["version", key, version]:
            return Compare.version(data(key, "key"), _integer(version, "version"))
        case ["exists", key]:
            return Compare.present(data(key, "key"))
        case ["absent", key]:
            return Compare.absent(data(key, "key"))
    raise ValueError(
        f"{' '.join(words[:1])!r} with {len(words) - 1} words is no compare: value KEY VALUE, version KEY N, "
        "exists KEY, absent KEY"
    )


def _op(words: list[str], data: Data) -> Op:
    from kvclient import ops

    match words:
        case ["get", key]:
            return ops.get(data(key, "key"))
        case ["put", key, value]:
            return ops.put(data(key, "key"), data(value, "value"))
        case ["put", key, value, ttl]:
            return ops.put(data(key, "key"), data(value, "value"), ttl=parse_duration(ttl, "TTL"))
        case ["del", key]:
            return ops.delete(data(key, "key"))
        case ["exists", key]:
            return ops.exists(data(key, "key"))
        case ["incr", key]:
            return ops.increment(data(key, "key"))
        case ["incr", key, delta]:
            return ops.increment(data(key, "key"), _integer(delta, "delta"))
        case ["touch", key]:
            return ops.touch(data(key, "key"), None)
        case ["touch", key, ttl]:
            return ops.touch(data(key, "key"), parse_duration(ttl, "TTL"))
    raise ValueError(
        f"{' '.join(words[:1])!r} with {len(words) - 1} words is no op: get KEY, put KEY VALUE [TTL], "
        "del KEY, exists KEY, incr KEY [DELTA], touch KEY [TTL]"
    )


def _integer(text: str, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{what} {text!r} is not an integer") from None
    if number not in _INT64:
        raise ValueError(f"{what} {text!r} does not fit into 64 bits")
    return number


def _print(app: App, succeeded: bool, branch: list[Op], results: list[Any]) -> None:
    """A row an op, named as in the text."""
    names = {"delete": "del", "increment": "incr"}
    rows: list[tuple[Cell, ...]] = [
        (names.get(op.name, op.name), op.arguments[0], result)
        for op, result in zip(branch, results, strict=True)
    ]
    columns = ("op", "key", "result")
    if app.output.form in ("json", "jsonl"):
        shown = [dict(zip(columns, map(json_cell, row), strict=True)) for row in rows]
        app.output.document({"succeeded": succeeded, "results": shown})
        return
    with app.output.rows("results", columns) as lines:
        for row in rows:
            lines.add(*row)
