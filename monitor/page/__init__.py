"""The status page: what the monitor's HTTP server answers for `/` and for what the page needs.

`respond` is all that the server calls. `render` makes the HTML, with `tables`, `grid` and `charts` for its
parts; the files beside it are sent as they are. No other address is asked for anything, by header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple

from monitor.page.render import render

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_FILES: Final = {
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/uplot.css": ("uplot/uPlot.min.css", "text/css"),
    "/page/uplot.js": ("uplot/uPlot.iife.min.js", "text/javascript"),
}

PATHS: Final = ("/", *_FILES)
"""All that `respond` answers."""


class Answer(NamedTuple):
    """What is sent with status 200; Content-Length is the server's."""

    content_type: str
    body: bytes
    headers: Mapping[str, str]


def respond(path: str, status: Callable[[], dict[str, Any]]) -> Answer | None:
    """The answer for `path` (without query), None if it is no path of the page. `status` gives the document
    of `/api/v1/status` with its whole history; it is called for `/` only.
    """
    if path == "/":
        return Answer("text/html; charset=utf-8", render(status()).encode(), _HEADERS)
    if path not in _FILES:
        return None
    name, content_type = _FILES[path]
    return Answer(f"{content_type}; charset=utf-8", files(__name__).joinpath(name).read_bytes(), _HEADERS)
