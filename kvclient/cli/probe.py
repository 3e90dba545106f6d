"""A short measurement of puts and gets, for `kvcli check perf`.

Owns its keys: they begin with a prefix of their own and a random number, live for a minute at most, and are
deleted at the end, also after Ctrl-C. One op at a time: what a client waits for, not what a cluster can do.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from kvclient.errors import KVError

if TYPE_CHECKING:
    from kvclient.client import Client

PREFIX: Final = b"ringkv-check/"

TTL_SECONDS: Final = 60.0
"""What becomes of the keys if nobody deletes them."""


class Plan(NamedTuple):
    """How many puts, and gets of what they wrote; bytes of a value; seconds after which it ends at most."""

    ops: int
    value_bytes: int
    seconds: float


def measure(client: Client[bytes], plan: Plan) -> dict[str, list[float]]:
    """Seconds that each put and each get took, by kind; fewer than planned if the time is over. KVError: of
    the first op that fails.
    """
    run = PREFIX + secrets.token_hex(8).encode() + b"/"
    keys = [run + b"%d" % number for number in range(plan.ops)]
    value = b"\0" * plan.value_bytes
    deadline = time.monotonic() + plan.seconds
    written: list[bytes] = []

    def put(key: bytes) -> None:
        written.append(key)
        client.put(key, value, ttl=TTL_SECONDS)

    try:
        # Puts may take half of the time, so that there are gets in any case.
        puts = _timed(put, keys, deadline - plan.seconds / 2)
        gets = _timed(client.get, written, deadline)
        return {"put": puts, "get": gets}
    finally:
        with contextlib.suppress(KVError):  # they expire, and what went wrong has been told
            client.delete_many(written)


def _timed(call: Callable[[bytes], object], keys: list[bytes], deadline: float) -> list[float]:
    taken: list[float] = []
    for key in keys:
        began = time.perf_counter()
        if taken and time.monotonic() >= deadline:
            break
        call(key)
        taken.append(time.perf_counter() - began)
    return taken
