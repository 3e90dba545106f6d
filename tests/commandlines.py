"""kvcli's command lines in texts, held to kvcli itself; nothing is executed.

`lines_of` finds those of a shell script, `parse` takes one apart as kvcli would. `unknown` looks at how
people write of commands (`kvcli dev status | logs [NAME...]`, `kvcli node remove NAME`): each command and
option that is named has to exist.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from kvclient.cli.app import App
from kvclient.cli.main import cli

_END = re.compile(r"[|&;()]+")
_SERVICE = ["run", "--rm", "cli"]  # of the Compose file: its command is kvcli
_NAME = re.compile(r"[a-z][a-z|-]*")
_VARIABLE = re.compile(r"\$\w+")


def lines_of(script: str) -> Iterator[list[str]]:
    """The arguments of each kvcli in a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(_VARIABLE.sub("1", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if not _END.fullmatch(token):
                command.append(token)
                continue
            while ">" in command:
                at = command.index(">")
                del command[at : at + 2]
            for at, word in enumerate(command, 1):
                if word == "kvcli" or command[at - len(_SERVICE) : at] == _SERVICE:
                    yield command[at:]
                    break
            command = []


def parse(arguments: list[str]) -> None:
    """Take a command line apart, with the types of all its options and arguments; click.UsageError says what
    is wrong with it. Files that it names need not be there.
    """
    group: click.Command = cli
    context = click.Context(group, info_name="kvcli", obj=App(arguments))
    rest = arguments
    while isinstance(group, click.Group):
        rest = group.make_parser(context).parse_args(list(rest))[1]
        if not rest:
            raise click.UsageError("a command is missing")
        name, found, rest = group.resolve_command(context, rest)
        assert found is not None
        group, context = found, click.Context(found, info_name=name, parent=context)
    try:
        group.parse_args(context, list(rest))
    except click.BadParameter as error:
        if not error.message.endswith("does not exist."):
            raise


def unknown(text: str) -> list[str]:
    """What a text says of kvcli that kvcli does not have."""
    return [problem for part in re.split(r"\bkvcli\b", text)[1:] for problem in _unknown(part)]


def _unknown(part: str) -> Iterator[str]:
    words = re.sub(r"\s#.*|\.\.\.|[\[\]]", " ", part).split()
    group: click.Group = cli
    command: click.Command = cli
    at_name = True  # is the next word to be the name of a command?
    at_value = False  # or the value of an option?
    for word in words:
        word = word.rstrip(",;.:)")
        if at_value:
            at_value = False
        elif word == "|":
            at_name = True
        elif word.startswith("-") and word.strip("-"):
            at_name = at_name and command is group
            name, _, value = word.partition("=")
            takes_value = _options(command).get(name)
            if takes_value is None:
                yield f"{command.name} has no {name}"
            at_value = bool(takes_value) and not value
        elif at_name and _NAME.fullmatch(word):
            at_name = False
            for name in word.split("|"):
                found = group.get_command(click.Context(group), name)
                if found is None:
                    yield f"{group.name} has no {name}"
                    return
                command = found
            if isinstance(command, click.Group):
                group, at_name = command, True
        elif command is not group:
            at_name = False
        else:
            return


def _options(command: click.Command) -> dict[str, bool]:
    """By name: does it take a value?"""
    known = {"--help": False, "-h": False}
    for option in command.params:
        if isinstance(option, click.Option):
            takes_value = not (option.is_flag or option.count)
            known |= dict.fromkeys((*option.opts, *option.secondary_opts), takes_value)
    return known
