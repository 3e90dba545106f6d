"""Checks of the shapes that documents of the cluster are made of: arrays, integers, texts.

ValueError names what is wrong and what it should be. Knows no document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# A name or an endpoint: what a person types, and fits a log line.
TEXT_MAX = 255


def array(value: Any, length: int | None, what: str) -> tuple[Any, ...]:
    """`value` if it is a tuple of `length` (None: any), as frames.decode makes them."""
    if type(value) is not tuple:
        raise ValueError(f"{what} must be an array")
    if length is not None and len(value) != length:
        raise ValueError(f"{what} must be an array of {length}, not {len(value)}")
    return value


def integer(value: object, least: int, most: int, what: str) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} must be an integer {least}..{most}, not {value!r:.40}")


def text(value: object, required: bool, what: str) -> None:
    """Printable, so that it can stand in a log line."""
    if type(value) is not str or len(value) > TEXT_MAX or not (value.isprintable()):
        raise ValueError(f"{what} must be printable text of at most {TEXT_MAX} characters")
    if required and not value:
        raise ValueError(f"{what} must not be empty")


def first_twice(values: Iterable[Any]) -> Any:
    """The first value that was there before; None if each is there once."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
