"""A name that stands for several routers: all of its addresses are tried, not the first alone.

libzmq connects to the first address of a name and to no other, though it looks the name up again for each
attempt. So a client has a socket for the name itself, which finds the routers that come later, and one for
each further address that the name has when the client is opened. Names are looked up on threads of their
own: a resolver that hangs must not keep a client from the routers whose addresses it knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvclient.url import ENDPOINTS_MAX, Endpoint

# What a resolver nearby needs many times over; after that the client does with the names alone.
LOOKUP_SECONDS = 0.25


def spread(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """The endpoints, then the further addresses of those that are names. Takes LOOKUP_SECONDS at most."""
    names = [endpoint for endpoint in endpoints if not _is_address(endpoint.host)]
    further = _further(names) if names else []
    return list(dict.fromkeys([*endpoints, *further]))[:ENDPOINTS_MAX]


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _further(names: Sequence[Endpoint]) -> list[Endpoint]:
    import threading

    found: dict[Endpoint, list[Endpoint]] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: _look_up(name)}), daemon=True)
        for name in names
    ]
    until = time.monotonic() + LOOKUP_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [address for name in names for address in found.get(name, ())[1:]]


def _look_up(name: Endpoint) -> list[Endpoint]:
    """All addresses, in the order in which libzmq would see them: IPv4, as it connects to names by that."""
    import socket

    try:
        known = socket.getaddrinfo(name.host, name.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return [Endpoint(str(address[0]), name.port) for *_, address in known]
