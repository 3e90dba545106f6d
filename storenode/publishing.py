"""A store's figures, said once a second to whoever listens (docs/monitor.md section 1). Owns when, and how
much of the loop that may take; not what the figures are, nor how they travel. Loop thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from shared import figuresmessage, logs

EVERY_S: Final = 1.0

SHARE: Final = 50
"""After a round that took long, a pause of so many times that: at most 2 % of the loop."""

_log = logs.get("publishing")


class Publishing:
    """Of one node. `cluster` is XXH64 of the cluster id; begins at once."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], object]], object],
        cluster: int,
        node: int,
        figures: Callable[[], dict[str, Any]],
        say: Callable[[bytes], object],
    ) -> None:
        self._call_later = call_later
        self._cluster = cluster
        self._node = node
        self._figures = figures
        self._say = say
        self._publish()

    def _publish(self) -> None:
        began = time.perf_counter()
        try:
            self._say(figuresmessage.encode(self._cluster, self._node, self._figures()))
        except Exception:  # noqa: BLE001 - whatever one figure met, this store serves, and tries again
            _log.exception("figures_failed")
        finally:
            took = time.perf_counter() - began
            self._call_later(max(EVERY_S, SHARE * took), self._publish)
