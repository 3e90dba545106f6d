"""A store's figures, said once a second to whoever listens (docs/monitor.md section 1). Owns when, and how
much of the loop that may take; not what the figures are, nor how they travel. Loop thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from shared import figuresmessage, logs

EVERY_S: Final = 1.0

SLOWEST_S: Final = 3.0
"""Who is silent for 5 s is taken to be gone."""

SHARE: Final = 50
"""After a round that cost much, a pause of so many times that: 2 % of the loop."""

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
        began = time.thread_time()  # not the time that others had the processor for
        try:
            self._say(figuresmessage.encode(self._cluster, self._node, self._figures()))
        except Exception:  # noqa: BLE001 - whatever one figure met, this store serves, and tries again
            _log.exception("figures_failed")
        finally:
            cost = time.thread_time() - began
            self._call_later(min(max(EVERY_S, SHARE * cost), SLOWEST_S), self._publish)
