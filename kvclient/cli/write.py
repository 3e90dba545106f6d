"""The commands that write: put, mput, del, incr, touch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from kvclient.cli.app import App, current, quit_with
from kvclient.cli.command import command
from kvclient.cli.read import CHUNK_KEYS, chunks, keys_of
from kvclient.cli.text import from_line, to_terminal
from kvclient.cli.units import DURATION
from kvclient.errors import Exit, KeyNotFound

# Lines about single keys that failed; the last line counts them all.
_FAILURES_SHOWN = 10


@command("put", free_arguments=True)
@click.argument("key")
@click.argument("value", metavar="VALUE|-|@FILE")
@click.option("--ttl", type=DURATION, help="Time to live, such as 30s; without it the key stays for ever.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@click.option("--if-present", is_flag=True, help="Only if there is such a key.")
@click.option("--if-version", type=click.IntRange(min=1), help="Only if the key has this version.")
@click.option("--if-value", metavar="VALUE|@FILE", help="Only if the key has exactly this value.")
def put(
    key: str,
    value: str,
    ttl: float | None,
    if_absent: bool,
    if_present: bool,
    if_version: int | None,
    if_value: str | None,
) -> None:
    """Set a key to a value: the argument, - for all of stdin, @FILE for a file's bytes, @@... for a value
    that begins with one @.

    Prints OK and the new version. Exit code 4 if a condition did not hold.
    """
    app = current()
    name = app.data(key)
    options: dict[str, Any] = _conditions(app, if_absent, if_present, if_version, if_value)
    data = app.value(value)
    version = app.client().put(name, data, ttl=ttl, **options)
    _print_version(app, name, version)


def _conditions(
    app: App, if_absent: bool, if_present: bool, if_version: int | None, if_value: str | None
) -> dict[str, Any]:
    """The one condition given, as the SDK takes it."""
    given: dict[str, Any] = {}
    if if_absent:
        given["if_absent"] = True
    if if_present:
        given["if_present"] = True
    if if_version is not None:
        given["if_version"] = if_version
    if if_value is not None:
        given["if_value"] = app.value(if_value)
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"{names} cannot be given together.")
    return given


def _print_version(app: App, key: bytes, version: int) -> None:
    if app.output.form in ("plain", "table"):
        app.output.line(f"OK v={version}")
    else:
        app.output.record({"key": key, "version": version}, ())


@command("mput", free_arguments=True)
@click.argument("pairs", nargs=-1, required=True, metavar="KEY VALUE [KEY VALUE]...|-")
@click.option("--ttl", type=DURATION, help="Time to live of all of them.")
def mput(pairs: tuple[str, ...], ttl: float | None) -> None:
    """Set many keys; - reads lines from stdin, KEY tab VALUE, as mget and scan write them when piped. Prints
    how many.

    Keys of different partitions are not set atomically together. Exit code 10 if only some were set.
    """
    app = current()
    items = _items_of_stdin() if pairs == ("-",) else _items(app, pairs)
    client = app.client()
    done = 0
    while chunk := list(islice(items, CHUNK_KEYS)):
        result = client.put_many(chunk, ttl=ttl)
        done += result.ok
        if result.errors:
            for index, cause in result.errors[:_FAILURES_SHOWN]:
                app.note(f"not set: {to_terminal(chunk[index][0])}: {cause.message}")
            if not done:
                raise result.errors[0][1]
            result.raise_for_errors()
    app.output.record({"count": done}, ("count",))


def _items(app: App, pairs: tuple[str, ...]) -> Iterator[tuple[bytes, bytes]]:
    if len(pairs) % 2:
        raise click.UsageError("every key needs a value.")
    return iter([(app.data(pairs[i]), app.data(pairs[i + 1], "value")) for i in range(0, len(pairs), 2)])


def _items_of_stdin() -> Iterator[tuple[bytes, bytes]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        key, tab, value = line.removesuffix(b"\n").partition(b"\t")
        if not tab:
            raise click.UsageError(f"stdin line {number}: no tab between key and value.")
        try:
            yield from_line(key), from_line(value)
        except ValueError as error:
            raise click.UsageError(f"stdin line {number} {error}.") from None


@command("del")
@click.argument("keys", nargs=-1, metavar="[KEY...|-]")
@click.option("--prefix", help="All keys that begin with this; asks first.")
@click.option("--if-version", type=click.IntRange(min=1), help="Only if the (one) key has this version.")
@click.option("--must-exist", is_flag=True, help="Exit code 3 if nothing was deleted.")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
def delete(
    keys: tuple[str, ...], prefix: str | None, if_version: int | None, must_exist: bool, dry_run: bool
) -> None:
    """Delete keys, or with --prefix all that begin so. Prints how many there were."""
    app = current()
    if bool(keys) == (prefix is not None):
        raise click.UsageError("give either keys or --prefix.")
    if if_version is not None and (len(keys) != 1 or keys == ("-",)):
        raise click.UsageError("--if-version goes with one key.")
    if prefix is not None:
        number = _delete_prefix(app, app.data(prefix, "prefix"), dry_run)
    elif dry_run:
        number = sum(len(app.client().get_many(chunk)) for chunk in chunks(keys_of(app, keys)))
    elif if_version is not None:
        number = int(app.client().delete(app.data(keys[0]), if_version=if_version))
    else:
        number = sum(app.client().delete_many(chunk) for chunk in chunks(keys_of(app, keys)))
    app.output.record({"deleted": number}, ("deleted",))
    if must_exist and number == 0:
        quit_with(Exit.NOT_FOUND)


def _delete_prefix(app: App, prefix: bytes, dry_run: bool) -> int:
    client = app.client()
    number = client.count(prefix)
    if dry_run or number == 0:
        return number
    what = f"that begin with {to_terminal(prefix)!r}" if prefix else "(all there are)"
    app.confirm(f"Delete {number:,} keys {what}?")
    keys = (entry.key for entry in client.scan(prefix, keys_only=True))
    return sum(client.delete_many(chunk) for chunk in chunks(keys))


@command("incr")
@click.argument("key")
@click.argument("delta", type=int, default=1)
def incr(key: str, delta: int) -> None:
    """Add DELTA (1 unless given, may be negative) to the integer a key holds, a missing key being 0. Prints
    the new number.

    Exit code 4 if the value is no 64-bit integer.
    """
    app = current()
    name = app.data(key)
    number = app.client().increment(name, delta)
    app.output.record({"key": name, "value": number}, ("value",))


@command("touch")
@click.argument("key")
@click.argument("ttl", type=DURATION, required=False)
@click.option("--persist", is_flag=True, help="Take the time to live off: the key stays for ever.")
def touch(key: str, ttl: float | None, persist: bool) -> None:
    """Let a key live for TTL from now on (such as 30s), or for ever with --persist. Exit code 3 if it is
    missing.
    """
    app = current()
    if persist == (ttl is not None):
        raise click.UsageError("give either a time to live or --persist.")
    name = app.data(key)
    if not app.client().touch(name, ttl):
        raise KeyNotFound(f"no such key: {to_terminal(name)}")
    if app.output.form in ("plain", "table"):
        app.output.line("OK")
    else:
        app.output.record({"key": name, "touched": True}, ())
