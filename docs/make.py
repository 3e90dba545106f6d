"""Writes the reference pages: `python docs/make.py` after a change of kvcli or of kvclient's docstrings; a
test compares.

`cli-reference.md` is what Click knows of kvcli, `sdk-reference.md` what signatures and docstrings say of the
public names of kvclient. Explanations and examples are in cli.md and api.md, which people write.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

import kvclient
from kvclient import errors, ops, pipeline, scan
from kvclient.cli.command import Lazy
from kvclient.cli.main import COMMANDS, EXIT_CODES, cli

HERE = Path(__file__).resolve().parent
_WIDTH = 100

# -- kvcli


def cli_reference() -> str:
    """The page on kvcli: the options of all commands, then each command."""
    lines = [
        "# kvcli: every command and option",
        "",
        "Written by `python docs/make.py` from the commands themselves. What they do together, exit codes",
        "and output formats: [cli.md](cli.md).",
        "",
        "## Options for all commands",
        "",
        "Before or after the command; after it wins.",
        "",
        *_table(cli.params),
        "",
        *_help(EXIT_CODES),
    ]
    for section in dict.fromkeys(lazy.section for lazy in COMMANDS.values()):
        lines += ["", f"## {section}"]
        for name, lazy in COMMANDS.items():
            if lazy.section == section:
                lines += _command(name, _loaded(name, lazy), "kvcli", 3)
    return "\n".join(lines) + "\n"


def _loaded(name: str, lazy: Lazy) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, lazy.target
    return command


def _command(name: str, command: click.Command, parent: str, depth: int) -> Iterator[str]:
    path = f"{parent} {name}"
    own = [param for param in command.params if not getattr(param, "hidden", False)]
    options = [param for param in own if isinstance(param, click.Option)]
    arguments = [_argument(param) for param in own if isinstance(param, click.Argument)]
    yield from ("", f"{'#' * depth} {path}", "")
    if isinstance(command, click.Group):
        yield from _help(command.help)
        for each in command.list_commands(click.Context(command)):
            yield from _command(each, command.commands[each], path, depth + 1)
        return
    usage = " ".join([path, *(["[OPTIONS]"] if options else []), *arguments])
    yield from ("```synopsis", usage, "```", "")
    yield from _help(command.help)
    if options:
        yield from ("", *_table(options))
    if command.epilog and not command.epilog.startswith("Options for all commands"):
        yield from ("", *_help(command.epilog))


def _help(text: str | None) -> Iterator[str]:
    """A help text; what Click is told not to wrap (`\\b`) is a block."""
    for number, paragraph in enumerate(inspect.cleandoc(text or "").split("\n\n")):
        lines = paragraph.strip().splitlines()
        yield from [""] if number else []
        if lines[:1] == ["\b"]:
            yield from ("```text", *lines[1:], "```")
        else:
            yield from lines


def _table(params: Sequence[click.Parameter]) -> Iterator[str]:
    """Options with what Click prints beside them."""
    options = [param for param in params if isinstance(param, click.Option)]
    variables = any(option.show_envvar for option in options)
    yield "| option |" + (" environment |" if variables else "") + " |"
    yield "|---|" + ("---|" if variables else "") + "---|"
    for option in options:
        cells = [", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])]
        if value := _value(option):
            cells[0] += f" `{value}`"
        if variables:
            cells.append(f"`{option.envvar}`" if option.show_envvar and option.envvar else "")
        said = option.help or ""
        if option.show_default and "[default" not in said:
            default = option.show_default if isinstance(option.show_default, str) else option.default
            said = f"{said} [default: {default}]".strip()
        if option.required:
            said += " [required]"
        if option.multiple:
            said += " [may be given several times]"
        cells.append(said)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(param: click.Parameter) -> str:
    """What stands for the value of an option or argument; nothing for a flag."""
    if isinstance(param, click.Option) and (param.is_flag or param.count):
        return ""
    if param.metavar:
        return param.metavar
    if isinstance(param.type, click.Choice):
        return "|".join(map(str, param.type.choices))
    return param.type.name.upper().removesuffix(" RANGE")


def _argument(param: click.Argument) -> str:
    if param.metavar:
        return param.metavar
    name = _value(param) if isinstance(param.type, click.Choice) else str(param.name).upper()
    return name + ("..." if param.nargs == -1 else "") if param.required else f"[{name}]"


# -- kvclient


def sdk_reference() -> str:
    """The page on kvclient: functions and classes by what they are for, then the errors."""
    lines = [
        "# The Python SDK, name by name",
        "",
        "Written by `python docs/make.py` from signatures and docstrings. Explanations and examples:",
        "[api.md](api.md).",
    ]
    for title, things in _CHAPTERS.items():
        lines += ["", f"## {title}"]
        for thing in things:
            lines += _class(thing) if inspect.isclass(thing) else _function(thing, thing.__name__, 3)
        if title == "Transactions":
            for name, function in vars(ops).items():
                if inspect.isfunction(function) and function.__module__ == ops.__name__:
                    lines += _function(function, f"ops.{name}", 3)
    lines += [
        "",
        "## Errors",
        "",
        "All are in `kvclient.errors`, and those that callers mostly meet in `kvclient`. Retryable: the same",
        "call may succeed later. The exit code is kvcli's.",
        "",
        "| error | is also a | retryable | exit code | |",
        "|---|---|---|---|---|",
        *_errors(),
        *_class(errors.KVError),
    ]
    return "\n".join(lines) + "\n"


_CHAPTERS: dict[str, list[Any]] = {
    "Opening a client": [kvclient.connect, kvclient.aconnect],
    "The client": [kvclient.Client],
    "The asyncio client": [kvclient.AsyncClient],
    "What calls return": [kvclient.Entry, kvclient.BatchResult, kvclient.Pong],
    "Scans": [scan.Scan, scan.AsyncScan],
    "Pipelines": [pipeline.Pipeline, pipeline.Handle, pipeline.AsyncPipeline, pipeline.AsyncHandle],
    "Transactions": [kvclient.Compare, kvclient.TxnResult],
    "Maps": [kvclient.KVMap],
    "Codecs": [kvclient.Codec],
}
_TWINS = {
    kvclient.AsyncClient: kvclient.Client,
    scan.AsyncScan: scan.Scan,
    pipeline.AsyncPipeline: pipeline.Pipeline,
    pipeline.AsyncHandle: pipeline.Handle,
}


def _class(cls: type[Any]) -> Iterator[str]:
    yield from ("", f"### {cls.__name__}", "", *inspect.getdoc(cls).splitlines())  # type: ignore[union-attr]
    if fields := getattr(cls, "_fields", ()):
        kinds = inspect.get_annotations(cls)
        yield from (
            "",
            "Fields: " + ", ".join(f"`{name}: {kinds[name].__forward_arg__}`" for name in fields) + ".",
        )
    twin = _TWINS.get(cls)
    same: dict[bool, list[str]] = {True: [], False: []}
    for name, member in _members(cls):
        known = getattr(twin, name, None)
        if known is None or inspect.getdoc(known) != inspect.getdoc(member):
            yield from _function(member, f"{cls.__name__}.{name}", 4)
        else:
            same[inspect.iscoroutinefunction(member)].append(f"`{name}`")
    for awaited, names in same.items():
        if names:
            how = "are awaited" if awaited else "are not awaited"
            yield from ("", f"As in {twin.__name__}, and {how}: {', '.join(names)}.")  # type: ignore[union-attr]


def _members(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, also those of private bases, in the order of the code."""
    found: dict[str, Any] = {}
    for base in (cls, *(base for base in cls.__bases__ if base.__name__.startswith("_"))):
        for name, member in vars(base).items():
            member = getattr(member, "__func__", member)
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                found.setdefault(name, member)
    yield from found.items()


def _function(member: Any, name: str, depth: int) -> Iterator[str]:
    yield from ("", f"{'#' * depth} {name}", "")
    if not isinstance(member, property):
        yield from ("```python signature", *_signature(member, name), "```", "")
    doc = inspect.getdoc(member)
    assert doc, f"{name} has no docstring"
    yield from doc.splitlines()


def _signature(function: Any, name: str) -> list[str]:
    parts: list[str] = []
    parameters = inspect.signature(function).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    for number, parameter in enumerate(parameters.values()):
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.kind not in kinds[:number]:
            parts += ["*"] if parameter.VAR_POSITIONAL not in kinds else []
        if parameter.name != "self":
            parts.append(_parameter(parameter))
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.kind not in kinds[number + 1 :]:
            parts.append("/")
    returned = inspect.signature(function).return_annotation
    asynchronous = "async " if inspect.iscoroutinefunction(function) else ""
    lines = [f"{asynchronous}{name}("]
    for part in [*(f"{part}, " for part in parts[:-1]), *parts[-1:], f") -> {returned}"]:
        if len(lines[-1]) + len(part) > _WIDTH:
            lines.append("    ")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    return f"{text} = ..." if type(parameter.default) is object else f"{text} = {parameter.default!r}"


def _errors() -> Iterator[str]:
    for name, cls in vars(errors).items():
        if not inspect.isclass(cls) or not issubclass(cls, errors.KVError):
            continue
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__ if base is not errors.KVError)
        public = f"`{name}`, `kvclient.{name}`" if name in kvclient.__all__ else f"`{name}`"
        said = " ".join(inspect.getdoc(cls).splitlines()) if cls is not errors.KVError else "see below"  # type: ignore[union-attr]
        retryable = "yes" if cls.retryable else ""
        yield f"| {public} | {bases} | {retryable} | {cls.exit_code.value} | {said} |"


PAGES = {HERE / "cli-reference.md": cli_reference, HERE / "sdk-reference.md": sdk_reference}

if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text())
