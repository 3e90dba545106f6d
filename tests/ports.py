"""Ports for servers of tests and benchmarks that start in a moment: each is given once, whoever asks.

A port that was only found free may be found by the next test as well, before anybody listens on it; and one
that the kernel gave out may be given to any connection.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from kvclient.cli.devcluster import is_free

_PORTS = range(10_000, 20_000)
"""Below those of `kvcli dev` with `--port-base 0`, and of outgoing connections."""

_NEXT = Path(tempfile.gettempdir()) / f"ringkv-test-ports-{os.getuid()}"
"""The offset of the next one, for all processes of this user."""


def free_ports(count: int) -> range:
    """Ports one after another, on all of which a server could listen now; a store that is told the first of
    three has its bus and its events on the others.
    """
    with _NEXT.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        offset = int(file.read() or 0)
        for _ in _PORTS:
            if offset + count > len(_PORTS):
                offset = 0
            ports = _PORTS[offset : offset + count]
            offset += count
            if all(map(is_free, ports)):
                file.truncate(0)
                file.write(str(offset))
                return ports
    raise RuntimeError(f"no {count} ports in a row are free from {_PORTS.start} to {_PORTS.stop}")
