"""What every command shares: the global options as given, the connection, stdout and stderr.

One `App` per invocation, stored at the root context. The SDK is imported when a command first needs it, so
that `kvcli --help` and `kvcli dev` never load pyzmq.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import click

from kvclient.cli import failure
from kvclient.cli.output import Output
from kvclient.cli.text import decode_argument
from kvclient.errors import Exit, ValueTooLarge

if TYPE_CHECKING:
    from kvclient.client import Client


@dataclass
class Settings:
    """The global options; filled while the command line is parsed, read-only afterwards. None: what the URL
    says, or the default.
    """

    url: str | None = None
    keys: str | None = None
    output: str | None = None
    timeout: float | None = None
    read: str | None = None
    quiet: bool = False
    verbosity: int = 0
    color: bool = True
    encoding: str = "utf8"
    yes: bool = False


class App:
    """One invocation of kvcli."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = tuple(arguments)
        self.settings = Settings()
        self._client: Client[bytes] | None = None
        self._output: Output | None = None

    @property
    def output(self) -> Output:
        """stdout in the format asked for: table on a terminal, plain otherwise."""
        if self._output is None:
            terminal = sys.stdout.isatty()
            form = self.settings.output or ("table" if terminal else "plain")
            self._output = Output(_buffered_stdout(), form, self.settings.encoding, terminal)
        return self._output

    def client(self) -> Client[bytes]:
        """The connection, opened on first use; ConnectError when nobody answers."""
        if self._client is None:
            from kvclient import connect

            settings = self.settings
            # Keys and values are bytes here, whatever the URL says for programs.
            self._client = connect(
                settings.url,
                codec="bytes",
                timeout=settings.timeout,
                read=settings.read,
                keys=settings.keys,
            )
        return self._client

    def close(self) -> None:
        """Close what was opened."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def finish(self) -> None:
        """Push out what is buffered for stdout; StdoutClosed when nobody reads it."""
        if self._output is not None:
            self._output.stdout.flush()

    def note(self, text: str) -> None:
        """A message for people on stderr; -q silences it."""
        if not self.settings.quiet:
            failure.say(text)

    def data(self, argument: str, what: str = "key") -> bytes:
        """Bytes of a key or value argument, decoded when --hex or --base64 was given."""
        try:
            return decode_argument(os.fsencode(argument), self.settings.encoding)
        except ValueError as error:
            raise click.UsageError(f"{what} {error}") from None

    def value(self, argument: str) -> bytes:
        """Bytes of a VALUE argument: `-` is all of stdin, `@FILE` a file's bytes, `@@...` a value that begins
        with one @.
        """
        if argument == "-":
            return _read_value(sys.stdin.buffer, "stdin")
        if argument.startswith("@@"):
            return self.data(argument[1:], "value")
        if argument.startswith("@"):
            try:
                with open(argument[1:], "rb") as file:
                    return _read_value(file, argument[1:])
            except OSError as error:
                raise click.UsageError(f"value {argument!r}: {error.strerror}.") from None
        return self.data(argument, "value")

    def confirm(self, question: str) -> None:
        """Go on only after a yes: --yes, or typed on a terminal. Otherwise nothing was done."""
        if self.settings.yes:
            return
        if not sys.stdin.isatty():
            raise failure.Failure(
                Exit.USAGE, f"{question} Not asked, as stdin is no terminal: add --yes", "USAGE"
            )
        if not click.confirm(question, err=True, default=False):
            raise failure.Failure(Exit.ERROR, "nothing was done.", "DECLINED")


def _read_value(file: BinaryIO, name: str) -> bytes:
    """All of a file, but no more than any cluster takes: /dev/zero must not fill the memory."""
    from kvclient.protocol import VALUE_BYTES_MAX_CONFIGURABLE

    value = file.read(VALUE_BYTES_MAX_CONFIGURABLE + 1)
    if len(value) > VALUE_BYTES_MAX_CONFIGURABLE:
        raise ValueTooLarge(
            f"{name} holds more than {VALUE_BYTES_MAX_CONFIGURABLE} bytes, the most that any cluster takes",
            limit=VALUE_BYTES_MAX_CONFIGURABLE,
        )
    return value


def _buffered_stdout() -> BinaryIO:
    """stdout with a buffer, even where PYTHONUNBUFFERED took it away: a raw file may write a part only."""
    stream = sys.stdout.buffer
    if isinstance(stream, io.RawIOBase):
        return io.BufferedWriter(io.FileIO(stream.fileno(), "wb", closefd=False))
    return stream


def current() -> App:
    """The App of the running invocation."""
    app = click.get_current_context().find_root().obj
    assert isinstance(app, App)
    return app


def quit_with(exit_code: Exit) -> NoReturn:
    """End with this exit code without another word."""
    raise failure.Quit(exit_code)
