"""One frozen configuration per process: YAML file, then environment, then command line; checked whole.

Owns the way from text to a tree of frozen attrs classes and back. Must not know any process: what keys
exist is said by the classes (`router.config`, `storenode.config`), with types, defaults, a validator per
field (`between`, ...), and a method `problems()` for what only several fields together can get wrong.

Names: `section.key` in errors and overrides; `RINGKV_SECTION__KEY` in the environment, `RINGKV__KEY` for a
key outside any section. Variables without a double underscore (`RINGKV_URL`) are not configuration. Every
problem found is reported at once; types are strict, because YAML turns `on`, `007` and `12:30` into
something else than was written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import attrs
import yaml
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from shared.fields import Loader, Text, converter, shown
from shared.logs import Format, Level
from shared.units import Duration, Size, format_duration, format_size

# A configuration is written by hand; a file beyond this is the wrong file.
FILE_BYTES_MAX = 1 << 20

_ENVIRONMENT_PREFIX = "RINGKV_"
_COMMAND_LINE = "command line"

C = TypeVar("C", bound=attrs.AttrsInstance)


class Problem(NamedTuple):
    """One thing that is wrong, where it was set, and what may have been meant.

    `path` is `section.key`, "" for the file as a whole.
    """

    source: str
    path: str
    text: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        return ": ".join(part for part in (self.source, self.path, self.text) if part) + hint


class ConfigError(Exception):
    """The configuration cannot be used; `errors` has every problem, str() one line for each."""

    def __init__(self, errors: Iterable[Problem]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(map(str, self.errors)))


@attrs.frozen
class LogSection:
    """How to log; the same for every process."""

    level: Level = "info"
    format: Format = "json"


def load(
    cls: type[C],
    path: str | Path | None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> C:
    """Build a `cls` from a YAML file (None: no file), `RINGKV_*` variables and `section.key` overrides.

    The later wins. ConfigError lists everything that is wrong, each with where it came from.
    """
    source = "configuration" if path is None else str(path)
    tree = {} if path is None else _read(Path(path))
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for key, name, text in _settings(environ or {}, overrides or {}):
        blocked_by = _put(tree, key.split("."), Text(text))
        if blocked_by:
            problems.append(Problem(name, key, f"unknown key: {blocked_by} is no section"))
        else:
            origins[key] = name
    try:
        config: C = converter.structure(tree, cls)
    except (ClassValidationError, ValueError) as error:
        problems += (_blame(origins, source, *problem) for problem in _explain(error, "", cls))
    else:
        problems += (_blame(origins, source, path, text) for path, text in _cross_checks(config, ""))
        if not problems:
            return config
    raise ConfigError(problems)


def dump(config: attrs.AttrsInstance) -> str:
    """The configuration as YAML that loads back to the same one; for `--print-config`."""
    return yaml.safe_dump(_plain(config, type(config)), sort_keys=False)


# -- sources


def _read(path: Path) -> dict[Any, Any]:
    def refuse(text: str) -> ConfigError:
        return ConfigError([Problem(str(path), "", text)])

    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise refuse(f"over {format_size(FILE_BYTES_MAX)}: this is no configuration file")
    try:
        tree = yaml.load(content, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise refuse(f"not valid YAML: {place}{error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refuse(f"not valid YAML: {str(error).splitlines()[0]}") from None
    if tree is None:
        return {}
    if type(tree) is not dict:
        raise refuse(f"expected sections with keys at the top, got {shown(tree)}")
    return tree


def _settings(environ: Mapping[str, str], overrides: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(section.key, where it was set, text), later ones win."""
    for name in sorted(environ):
        parts = name.split("__")
        if name.startswith(_ENVIRONMENT_PREFIX) and len(parts) > 1:
            section = parts[0].removeprefix(_ENVIRONMENT_PREFIX.rstrip("_")).removeprefix("_")
            yield ".".join([section, *parts[1:]] if section else parts[1:]).lower(), name, environ[name]
    for key, text in overrides.items():
        yield key, _COMMAND_LINE, text


def _environment_name(key: str) -> str:
    section, _, rest = key.upper().partition(".")
    return f"RINGKV_{section}__{rest.replace('.', '__')}" if rest else f"RINGKV__{section}"


def _put(tree: dict[Any, Any], keys: list[str], value: Text) -> str | None:
    """Set a value in nested dicts. Not when something else than a section is in the way: returns its path."""
    for depth, key in enumerate(keys[:-1]):
        section = tree.get(key)
        if section is not None and type(section) is not dict:
            return ".".join(keys[: depth + 1])
        tree[key] = tree = dict(section or {})  # a copy: YAML aliases put one dict in several places
    tree[keys[-1]] = value
    return None


# -- problems


def _blame(
    origins: Mapping[str, str], file: str, path: str, text: str, suggestion: str | None = None
) -> Problem:
    """Name the setting that is at, around or below the path; what nobody set came from the file."""
    for key, name in origins.items():
        below = key.removeprefix(path) if key.startswith(f"{path}.") else ""
        if below or path == key or path.startswith((f"{key}.", f"{key}[")):
            meant = f"{suggestion}{below}" if suggestion else None
            return Problem(name, path + below, text, _as_set(meant, name))
    return Problem(file, path, text, suggestion)


def _as_set(suggestion: str | None, name: str) -> str | None:
    """A suggested key as whoever set `name` would write it."""
    return suggestion if suggestion is None or name == _COMMAND_LINE else _environment_name(suggestion)


def _explain(error: Exception, path: str, root: type[Any]) -> Iterator[tuple[str, str, str | None]]:
    """Flatten cattrs' tree of errors into (path, text, suggestion)."""
    if isinstance(error, ClassValidationError):
        noted, others = error.group_exceptions()
        for inner, note in noted:
            yield from _explain(inner, f"{path}.{note.name}" if path else note.name, root)
        for inner in others:
            yield from _explain(inner, path, root)
    elif isinstance(error, IterableValidationError):
        for inner, index in error.group_exceptions()[0]:
            yield from _explain(inner, f"{path}[{index.index}]", root)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(map(str, error.extra_fields)):
            yield f"{path}.{key}" if path else key, "unknown key", _suggest(key, path, error.cl, root)
    elif isinstance(error, KeyError):
        yield path, "is required", None
    else:
        yield path, str(error), None


def _suggest(key: str, path: str, cls: type[Any], root: type[Any]) -> str | None:
    """A sibling with a similar name, otherwise a key of that name in another section."""
    near = difflib.get_close_matches(key.lower(), [field.name for field in attrs.fields(cls)], n=1)
    if near:
        return f"{path}.{near[0]}" if path else near[0]
    return next((name for name in _keys(root, "") if name.rpartition(".")[2] == key.lower()), None)


def _keys(cls: type[Any], prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(cls).items():
        yield prefix + name
        if attrs.has(kind):
            yield from _keys(kind, f"{prefix}{name}.")


def _cross_checks(config: Any, path: str) -> Iterator[tuple[str, str]]:
    """What the classes' own `problems()` say, from the leaves up, with full paths."""
    for field in attrs.fields(type(config)):
        value = getattr(config, field.name)
        for index, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if attrs.has(type(item)):
                here = field.name if index is None else f"{field.name}[{index}]"
                yield from _cross_checks(item, f"{path}{here}.")
    if hasattr(config, "problems"):
        for key, text in config.problems():
            yield path + key, text


_FORMATTERS: dict[object, Callable[[Any], str]] = {Size: format_size, Duration: format_duration}


def _plain(value: Any, kind: object) -> Any:
    if attrs.has(type(value)):
        hints = get_type_hints(type(value))
        return {name: _plain(getattr(value, name), hint) for name, hint in hints.items()}
    if isinstance(value, tuple):
        return [_plain(item, get_args(kind)[0]) for item in value]
    return _FORMATTERS[kind](value) if kind in _FORMATTERS else value
