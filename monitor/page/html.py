"""HTML as text, escaped by construction.

Owns the difference between text and HTML: whatever is not `Html` is escaped, and cut to a bounded length,
when it becomes part of it. Must not know what the page shows.
"""

from __future__ import annotations

from html import escape
from typing import Final

TEXT_MAX: Final = 300
"""Characters of one text: room for every sentence of a verdict, none for what was made to flood."""
NAME_MAX: Final = 64
"""Characters of a name, an address or a version."""

_EMPTY: Final = frozenset({"link", "meta"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as HTML: unchanged if it is that already, else cut to `TEXT_MAX` characters and escaped."""
    return value if isinstance(value, Html) else _escaped(str(value), TEXT_MAX)


def name(value: object) -> Html:
    """As `text`, but cut to `NAME_MAX`."""
    return _escaped(str(value), NAME_MAX)


def joined(*parts: object) -> Html:
    """The parts one after the other."""
    return Html("".join(map(text, parts)))


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """`<tag attributes>children</tag>`. An attribute that is None or False is left out, True has no value;
    `class_` is `class`, and other underscores are hyphens.
    """
    opening = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        opening.append(attribute if value is True else f'{attribute}="{text(value)}"')
    if tag in _EMPTY:
        return Html(f"<{' '.join(opening)}>")
    return Html(f"<{' '.join(opening)}>{joined(*children)}</{tag}>")


def _escaped(plain: str, limit: int) -> Html:
    """What does not print, or turns the direction of writing, is U+FFFD."""
    if len(plain) > limit:
        plain = f"{plain[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
    if not plain.isprintable():
        plain = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in plain)
    return Html(escape(plain))
