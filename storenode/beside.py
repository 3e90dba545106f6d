"""Work that waits for the disk, done beside the loop.

Owns its threads: one for each piece of work, which are few and long. Must not know what is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

Beside = Callable[[Callable[[], object], Callable[[Any], None]], None]
"""(work, done): `work` runs on another thread, then, on the loop, `done(its result or the exception)`."""


def beside(notify: Callable[[Callable[[], object]], object]) -> Beside:
    """`notify` brings a call to the loop, from any thread."""

    def start(work: Callable[[], object], done: Callable[[Any], None]) -> None:
        def run() -> None:
            try:
                result: object = work()
            except Exception as error:  # noqa: BLE001 - the loop decides what it means
                result = error
            notify(partial(done, result))

        threading.Thread(target=run, name="beside", daemon=True).start()

    return start
