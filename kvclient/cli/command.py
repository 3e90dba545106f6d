"""The shape of kvcli's command line: lazily imported groups, global options on either side of the subcommand,
values that begin with `-`.

Knows click; knows no command. A command file is imported only when that command runs (the time budget of
`kvcli get` is 250 ms cold); `kvcli --help` prints the short texts of the table.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kvclient.cli.app import App
from kvclient.cli.output import FORMATS
from kvclient.cli.units import DURATION
from kvclient.url import TIMEOUT_DEFAULT, URL_DEFAULT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_READ = re.compile(r"linearizable|lease|stale:.+")
_NUMBER = re.compile(r"-\d+(\.\d+)?")


class Lazy(NamedTuple):
    """Where a command is and what `--help` says of it."""

    section: str
    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def __init__(self, *args: Any, table: Mapping[str, Lazy], **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name].target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            import difflib  # costs as much as parsing the command line

            near = difflib.get_close_matches(name, self.table, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [name for name in self.table if name.startswith(incomplete)]
        found = [CompletionItem(name, help=self.table[name].help) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, lazy in self.table.items():
            sections.setdefault(lazy.section, []).append((name, lazy.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that writes a global option into the settings, unless it only has its default."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is None or value is False or ctx.resilient_parsing:
            return
        settings = ctx.ensure_object(App).settings
        if name in ("hex", "base64"):
            settings.encoding = name
        elif name == "no_color":
            settings.color = False
        elif name == "verbosity":
            settings.verbosity = max(settings.verbosity, value)
        else:
            setattr(settings, name, value)

    return callback


def _read_mode(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if value == "stale":
        value = "stale:5s"
    if not _READ.fullmatch(value):
        raise click.BadParameter("write linearizable, lease or stale:5s", ctx, param)
    if value.startswith("stale:"):
        DURATION.convert(value.removeprefix("stale:"), param, ctx)
    ctx.ensure_object(App).settings.read = value


def global_options(hidden: bool) -> list[click.Option]:
    """Fresh option objects; environment variables are read at the root only, so that a flag before the
    subcommand wins over them.
    """

    def option(*names: str, variable: str | None = None, callback: Any = None, **rest: Any) -> click.Option:
        return click.Option(
            names,
            expose_value=False,
            hidden=hidden,
            callback=callback or _store(names[-1].lstrip("-").replace("-", "_")),
            envvar=None if hidden else variable,
            show_envvar=variable is not None,
            **rest,
        )

    return [
        option(
            "-u",
            "--url",
            variable="RINGKV_URL",
            help=f"Routers, kv://host:port,host2:port. [default: {URL_DEFAULT}]",
        ),
        option(
            "--keys",
            "key_directory",  # `keys` are the arguments of some commands
            variable="RINGKV_KEYS",
            callback=_store("keys"),
            metavar="DIR",
            help="A key directory, or the file of a private key in it. [default: no keys]",
        ),
        option(
            "-o",
            "--output",
            variable="RINGKV_OUTPUT",
            type=click.Choice(FORMATS),
            help="Format of stdout. [default: table on a terminal, plain otherwise]",
        ),
        option(
            "--timeout",
            variable="RINGKV_TIMEOUT",
            type=DURATION,
            help=f"Deadline of a call with all its retries. [default: {TIMEOUT_DEFAULT:g}s]",
        ),
        option(
            "--read", callback=_read_mode, metavar="MODE", help="linearizable (default), lease, or stale:5s."
        ),
        option("--hex", is_flag=True, help="Keys and values are given and shown in hexadecimal."),
        option("--base64", is_flag=True, help="Keys and values are given and shown in base64."),
        option("-y", "--yes", is_flag=True, help="Do not ask before something is destroyed."),
        option("-q", "--quiet", is_flag=True, help="No messages but errors on stderr."),
        option(
            "-v",
            "--verbose",
            callback=_store("verbosity"),
            count=True,
            help="Tell of second tries on stderr; -vv shows tracebacks.",
        ),
        option("--no-color", is_flag=True, help="No colours, as with NO_COLOR."),
    ]


class KvCommand(click.Command):
    """A command that takes the global options too (its own of the same name win), and numbers below zero as
    arguments.

    `free_arguments`: from the second argument on, whatever is no option of the command is an argument even if
    it begins with `-` (the VALUE of put). `raw_output`: the command knows what `-o raw` means.
    """

    def __init__(
        self, *args: Any, free_arguments: bool = False, raw_output: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.free_arguments = free_arguments
        self.raw_output = raw_output
        own = {name for param in self.params for name in param.opts}
        self.params += [option for option in global_options(hidden=True) if own.isdisjoint(option.opts)]
        if not self.epilog:
            self.epilog = "Options for all commands: kvcli --help"

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.ensure_object(App).settings.output == "raw" and not self.raw_output:
            raise click.UsageError("-o raw writes one value and nothing else: it is for get", ctx=ctx)
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._arguments_last(ctx, args))

    def _arguments_last(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move arguments behind `--`, so that click takes no dash of a number or a value for options."""
        takes_value: dict[str, bool] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                for name in (*param.opts, *param.secondary_opts):
                    takes_value[name] = not (param.is_flag or param.count)
        options: list[str] = []
        arguments: list[str] = []
        rest = iter(args)
        for token in rest:
            if token == "--":
                arguments.extend(rest)
            elif takes_value.get(token):
                options.append(token)
                options.extend(value for value in [next(rest, None)] if value is not None)
            elif token in takes_value or not token.startswith("-") or token == "-":
                (options if token in takes_value else arguments).append(token)
            elif _NUMBER.fullmatch(token) or (
                self.free_arguments and arguments and not _is_known(token, takes_value)
            ):
                arguments.append(token)
            else:
                options.append(token)
        return [*options, "--", *arguments]


def _is_known(token: str, takes_value: Mapping[str, bool]) -> bool:
    """`--option=value` of an option there is."""
    return token.startswith("--") and token.split("=", 1)[0] in takes_value


def command(name: str, **options: Any) -> Callable[[Callable[..., Any]], KvCommand]:
    """`@command("get")`: a `KvCommand` whose help is the function's docstring."""
    return click.command(name, cls=KvCommand, **options)
