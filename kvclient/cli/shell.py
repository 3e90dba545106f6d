"""`kvcli shell`: the same commands line by line, with history and completion; and `kvcli completion`: scripts
that give a shell of the system the same completion.

Owns the reading of lines. A line is split as a shell does it and run as a command line of its own, with the
global options that the shell was given. Line editing is the standard library's readline.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from kvclient.cli.app import Settings, current
from kvclient.cli.command import command
from kvclient.cli.failure import Failure, describe, say
from kvclient.errors import Exit

_COMPLETE_VARIABLE: Final = "_KVCLI_COMPLETE"
_SHELLS: Final = ("bash", "zsh", "fish")

# Weeks of work, and read at once at the start.
_HISTORY_LINES_MAX: Final = 2000

_WHERE: Final = {
    "bash": "kvcli completion bash > ~/.local/share/bash-completion/completions/kvcli",
    "zsh": 'kvcli completion zsh > "${fpath[1]}/_kvcli"',
    "fish": "kvcli completion fish > ~/.config/fish/completions/kvcli.fish",
}

Run = Callable[[list[str]], int]


@command("shell")
@click.option("--keep-going", is_flag=True, help="Of a script on stdin: go on after a command that fails.")
def shell(keep_going: bool) -> None:
    """Read command lines and run them, without `kvcli` in front. exit, quit or Ctrl-D ends it.

    Global options given here hold for every line: kvcli -u URL shell. On a terminal there are history and
    completion by Tab; a line that begins with a blank is not remembered. Without a terminal stdin is a
    script: it ends at the first command that fails, with its exit code.
    """
    from kvclient.cli.main import run

    options = options_of(current().settings)

    def run_line(arguments: list[str]) -> int:
        return run([*options, *arguments])

    if sys.stdin.isatty():
        with _line_editing() as remember:
            interact(input, run_line, remember)
        return
    code = script(sys.stdin, run_line, keep_going)
    if code:
        raise click.exceptions.Exit(code)


def options_of(settings: Settings) -> list[str]:
    """The command line that gives these settings."""
    found: list[str] = []
    for name, value in (
        ("-u", settings.url),
        ("--keys", settings.keys),
        ("-o", settings.output),
        ("--read", settings.read),
    ):
        found += [] if value is None else [name, value]
    if settings.timeout is not None:
        found += ["--timeout", f"{settings.timeout * 1000:.0f}ms"]
    if settings.encoding != "utf8":
        found.append(f"--{settings.encoding}")
    flags = (("-q", settings.quiet), ("-y", settings.yes), ("--no-color", not settings.color))
    return [*found, *(flag for flag, given in flags if given), *["-v"] * settings.verbosity]


def interact(ask: Callable[[str], str], run_line: Run, remember: Callable[[str], object]) -> None:
    """Until the end is asked for; what a line does wrong has been said, and the next one is read."""
    while True:
        try:
            line = ask("kvcli> ")
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        if line.strip() and not line.startswith(" "):
            remember(line)
        try:
            arguments = split(line)
        except Failure as wrong:
            say(describe(wrong)[1])
            continue
        if arguments[:1] in (["exit"], ["quit"]):
            return
        if arguments:
            run_line(arguments)


def script(source: Iterable[str], run_line: Run, keep_going: bool) -> int:
    """The exit code of the first command that failed; 0 if none did. Without `keep_going` it was the last."""
    first = 0
    for line in source:
        arguments = split(line)
        if arguments[:1] in (["exit"], ["quit"]):
            break
        code = run_line(arguments) if arguments else 0
        first = first or code
        if code and not keep_going:
            break
    return first


def split(line: str) -> list[str]:
    """The arguments on a line; none on a comment. Failure if a quote is open, and for a shell in a shell."""
    try:
        arguments = shlex.split(line, comments=True)
    except ValueError as error:
        text = f"the line cannot be read: {str(error).lower()}. Quote as in a shell"
        raise Failure(Exit.USAGE, text, "USAGE") from None
    if arguments[:1] == ["shell"]:
        raise Failure(Exit.USAGE, "this is the shell", "USAGE")
    return ["--help", *arguments[1:]] if arguments[:1] == ["help"] else arguments


def completions(arguments: list[str], incomplete: str) -> list[str]:
    """What the last word may become, after these words."""
    from click.shell_completion import ShellComplete

    from kvclient.cli.main import cli

    found = ShellComplete(cli, {}, "kvcli", _COMPLETE_VARIABLE).get_completions(arguments, incomplete)
    return [item.value for item in found if item.type == "plain"]


@contextlib.contextmanager
def _line_editing() -> Iterator[Callable[[str], object]]:
    """History and completion, as far as this Python has readline. Yields what remembers a line."""
    try:
        import readline
    except ImportError:
        yield len  # nothing remembers it
        return
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        nonlocal found
        if state == 0:
            try:
                found = completions(split(readline.get_line_buffer()[: readline.get_begidx()]), text)
            except Exception:  # noqa: BLE001 - whatever goes wrong, a key was pressed and nothing else
                found = []
        return f"{found[state]} " if state < len(found) else None

    history = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES_MAX)
    readline.set_auto_history(False)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield readline.add_history
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):  # a shell without a past is a shell
            history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(history, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(history)


def history_file() -> Path:
    """Where lines are remembered; nobody else may read it."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "ringkv" / "history"


@command("completion")
@click.argument("shell_name", metavar="SHELL", type=click.Choice(_SHELLS))
def completion(shell_name: str) -> None:
    """Print the script that gives bash, zsh or fish the completion of kvcli."""
    from click.shell_completion import get_completion_class

    from kvclient.cli.main import cli

    app = current()
    kind = get_completion_class(shell_name)
    assert kind is not None, "click knows these three"
    app.output.line(kind(cli, {}, "kvcli", _COMPLETE_VARIABLE).source().strip())
    app.note(f"for every new shell:  {_WHERE[shell_name]}")
