"""Metrics off, for one side of `scripts/bench metrics`: Python imports this first in every process that has
this directory in its PYTHONPATH. There is no setting for it, as nobody would use it in earnest.

Stores never tell their figures after the first time; routers time no request and count no answer.
"""

import sys

if "storenode" in sys.orig_argv:
    from storenode import publishing

    publishing.EVERY_S = publishing.SLOWEST_S = 1e9  # type: ignore[misc]

if "router" in sys.orig_argv:
    from router.figures import Figures

    def _uncounted(self: Figures, seconds: float, counts: list[int]) -> None:
        counts[:] = 0, 0

    Figures.observe_served = _uncounted  # type: ignore[method-assign]
    Figures.observe = Figures.count_answer = lambda *_, **__: None  # type: ignore[method-assign,assignment]
