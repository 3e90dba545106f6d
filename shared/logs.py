"""Structured logs: one event name per line with fields, as JSON or for a console, on standard error.

Owns the format; must not know what is logged. Keys and values of users never go into a log. Nothing here
passes through the `logging` module: a call below the level is an empty method, an enabled one renders and
writes at once. A line that cannot be written (a full disk, a reader that is gone) is lost: whoever logs has
something better to do than to fail for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, Protocol, TextIO, cast

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

_NUMBERS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Logger(Protocol):
    """What `get` returns. `event` is a constant name in snake_case; all that varies goes into fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any:
        """Like `error`, with the traceback of the exception being handled."""
        ...

    def bind(self, **fields: Any) -> Logger:
        """A logger that adds these fields to every line."""
        ...


def configure(level: Level, format: Format, *, stream: TextIO | None = None, **bound: object) -> None:
    """Set the level, the format and fields bound to every line of this process; call once, at the start.

    `stream` is standard error unless given. Loggers that `get` made earlier follow, unless they have logged
    already.
    """
    stream = sys.stderr if stream is None else stream

    def add_bound(_: object, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**bound, **fields}

    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    )
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_bound,
    ]
    if format == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_NUMBERS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(stream))),
    )
    for logger in _loggers:
        logger._follow()


@functools.cache
def get(name: str) -> Logger:
    """The logger of one part of the program, `component=name`. May be called before `configure`."""
    made = _Deferred(name)
    _loggers.append(made)
    return cast(Logger, made)


class _Deferred:
    """A logger that follows `configure`; structlog's own proxy would look all up again at every call."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        """Asked for what is not cached: the first use of a method after `configure`."""
        found = getattr(structlog.get_logger(component=self._name).bind(), method)
        if structlog.is_configured():
            self.__dict__[method] = found
        return found

    def _follow(self) -> None:
        self.__dict__ = {"_name": self._name}


class _Lossy:
    """A stream whose failures nobody hears of. A stream that was closed raises ValueError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


_loggers: list[_Deferred] = []  # as many as there are names in the source


def _to_json(fields: object, **_: Any) -> str:
    return json.dumps(fields, default=str, separators=(",", ":"))
