"""Figures of other processes, read one by one: whatever they sent, what comes out has the type that is
promised, or is None. Owns the types; not what a figure means.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from shared.metrics import BUCKETS

TEXTS_MAX: Final = 8
"""Reasons of one kind that are told of one process: the first few say what is wrong."""

Figures = Mapping[str, Any]


def number(figures: Figures, *path: str) -> float | int | None:
    """The number at the end of the path of names."""
    value = _at(figures, path)
    if type(value) is int or (type(value) is float and isfinite(value)):
        return value
    return None


def whole(figures: Figures, *path: str) -> int | None:
    """The number, without what is behind the point."""
    found = number(figures, *path)
    return None if found is None else int(found)


def flag(figures: Figures, *path: str) -> bool:
    """Whether it says True there."""
    return _at(figures, path) is True


def text(figures: Figures, *path: str) -> str | None:
    """The text, cut to 200 characters, without what is not printable."""
    value = _at(figures, path)
    return clean(value) if type(value) is str else None


def clean(value: object) -> str:
    """Anything as a short printable text."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(value)[:200])


def counts(figures: Figures, *path: str) -> dict[str, int]:
    """A map of names to counts, of those that are some."""
    value = _at(figures, path)
    if type(value) is not dict:
        return {}
    return {clean(name): count for name, count in value.items() if type(count) is int}


def buckets(figures: Figures, *path: str) -> list[int] | None:
    """The buckets of a histogram (`shared.metrics`)."""
    value = _at(figures, (*path, "buckets"))
    if not isinstance(value, (list, tuple)) or len(value) != BUCKETS or set(map(type, value)) != {int}:
        return None
    return list(value)


def texts(figures: Figures, *path: str) -> list[str]:
    """A list of texts."""
    value = _at(figures, path)
    return [clean(one) for one in value[:TEXTS_MAX]] if isinstance(value, (list, tuple)) else []


def reasons(figures: Figures, *path: str) -> dict[str, str]:
    """A map of names to texts."""
    value = _at(figures, path)
    return {clean(name): clean(one) for name, one in value.items()} if type(value) is dict else {}


def _at(figures: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if type(figures) is not dict:
            return None
        figures = figures.get(name)
    return figures
