"""How a command fails: one line on stderr, `error: what. what now (CODE_NAME)`, and an exit code of
`kvclient.errors.Exit`.

Owns the wording around errors. A traceback is shown only with -vv.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from kvclient.cli.output import StdoutClosed
from kvclient.errors import BatchError, ConnectError, Exit, KVError, Status


class Failure(Exception):
    """A failure of the command itself: `message` says what, where and what now; `name` is the code shown in
    parentheses.
    """

    def __init__(self, exit_code: Exit, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.name = name or exit_code.name


class Quit(Exception):
    """End with this exit code; everything there was to say has been said."""

    def __init__(self, exit_code: Exit) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def report(error: BaseException, verbosity: int, color: bool = False) -> Exit:
    """Tell the user and give the exit code; `color` holds for terminals without NO_COLOR. Never raises."""
    if isinstance(error, (StdoutClosed, BrokenPipeError)):
        return Exit.BROKEN_PIPE
    if isinstance(error, Quit):
        return error.exit_code
    exit_code, text = describe(error)
    if verbosity >= 2 and not isinstance(error, (Failure, click.ClickException)):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if color and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = text.replace("error:", click.style("error:", fg="red", bold=True), 1)
    say(text)
    return exit_code


def describe(error: BaseException) -> tuple[Exit, str]:
    """Exit code and the line for stderr."""
    if isinstance(error, Failure):
        return error.exit_code, f"error: {error.message} ({error.name})"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Exit.INTERRUPTED, "interrupted"
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "kvcli"
        return Exit.USAGE, f"error: {_sentence(error.format_message())} see: {path} --help (USAGE)"
    if isinstance(error, click.ClickException):
        return Exit.ERROR, f"error: {_sentence(error.format_message())} (ERROR)"
    if isinstance(error, KVError):
        return error.exit_code, f"error: {_remote(error)} ({code_name(error)})"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        name = errno.errorcode.get(error.errno or 0, "ERROR")
        return (
            Exit.ERROR,
            f"error: {where}{_sentence(os.strerror(error.errno) if error.errno else str(error))} ({name})",
        )
    what = f"{type(error).__name__}: {error}"
    return Exit.ERROR, f"error: {_sentence(what)} This is a defect; -vv shows the traceback. (INTERNAL)"


def code_name(error: KVError) -> str:
    """The name shown in parentheses: the wire status, or CONNECT where there was no wire."""
    if isinstance(error, ConnectError):
        return "CONNECT"
    return "PARTIAL" if isinstance(error, BatchError) else Status(error.status).name


_WHAT_NOW: dict[Status, str] = {
    Status.CONDITION_FAILED: "Read it again, then retry.",
    Status.TIMEOUT: "Nothing was applied: run it again, or give it more time with --timeout.",
    Status.OUTCOME_UNKNOWN: "Read before you write again.",
    Status.BUSY: "The cluster is overloaded: run it again in a moment.",
    Status.UNAVAILABLE: "See which node is missing: kvcli status",
    Status.KEY_TOO_LONG: "Hash or shorten it.",
    Status.VALUE_TOO_LARGE: "Split it, or store it elsewhere and put a reference.",
    Status.VERSION_MISMATCH: "Upgrade the older side; kvcli version shows both.",
    Status.CORRUPTION: "The damaged bytes are not served; restore that node's data from a good copy.",
}


def _remote(error: KVError) -> str:
    return f"{_sentence(error.message)} {what_now(error)}".rstrip()


def what_now(error: KVError) -> str:
    """The sentence that says what to do; empty if there is nothing to say."""
    now = error.hint or ("" if isinstance(error, ConnectError) else _WHAT_NOW.get(Status(error.status), ""))
    return now[:1].upper() + now[1:]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def say(text: str) -> None:
    """A line on stderr; a closed stderr is nobody's problem."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
