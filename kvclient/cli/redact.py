"""Text that may leave the house: without secrets, and without what users store.

Owns the patterns. Servers write no keys and values into their logs and figures; this is the second wall, for
tracebacks and for texts of other origin. It rather takes too much.
"""

from __future__ import annotations

import re
from typing import Any, Final

REDACTED: Final = "[redacted]"

# Names in any notation: `secret_key: x`, "password": "x", TOKEN=x. Repetitions in front of what is looked for
# are bounded, so that no line takes time that grows with its square.
_SECRET = re.compile(
    r"""(?ix)
    ( (?<![\w.-]) [\w.-]{0,40} (?:secret|passw|passph|token|private|credential) [\w.-]{0,40} ["']? \s*
    [:=] \s* )
    (?: "(?:[^"\\]|\\.)*" | '[^']*' | [^\s,}\]]+ )"""
)

# Bytes as Python shows them: keys and values, if anything of them ever gets into an exception.
_BYTES = re.compile(r"""\bb(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\\"(?:(?!\\").)*\\")""")

# A CURVE key in Z85: forty characters without a blank, not all of which are letters, digits and slashes.
_CURVE = re.compile(
    r"""(?<![^\s"':=]) (?=[^\s"']{0,39}[.:+=^!*?&<>()\[\]{}@%$#])
    [0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40} (?![^\s"',])""",
    re.VERBOSE,
)


def text(given: str) -> str:
    """What may be given away of it."""
    given = _SECRET.sub(rf"\g<1>{REDACTED}", given)
    given = _BYTES.sub(REDACTED, given)
    return _CURVE.sub(REDACTED, given)


def data(given: Any) -> Any:
    """The same of JSON data: its texts, and everything under a name that is one of a secret. Bytes go."""
    if isinstance(given, dict):
        return {
            str(name): REDACTED if _SECRET.match(f"{name}: x") else data(value)
            for name, value in given.items()
        }
    if isinstance(given, (list, tuple)):
        return [data(value) for value in given]
    if isinstance(given, bytes):
        return REDACTED
    return text(given) if isinstance(given, str) else given
