#!/opt/ringkv/bin/python
"""Whether the process in this container lives: `healthcheck tcp://HOST:PORT` or `http://HOST:PORT/PATH`.

tcp: the port must greet as ZeroMQ does (ZMTP 3: ten bytes, 0xff first and 0x7f last), as every socket of ours
does before it asks who is there: no key is needed, and a process that is stopped does not greet, though
the kernel takes the connection. http: GET must be answered with 200. Exit code 0 or 1, the reason on standard
output. Nothing but the standard library, so that it starts in 30 ms.
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit

TIMEOUT_S = 2.0
GREETING_BYTES = 10
STATUS_LINE_BYTES_MAX = 4096  # an answer whose first line is longer is none of the monitor's


def problem(url: str) -> str | None:
    """What is wrong with who listens at `url`; None if nothing is."""
    parts = urlsplit(url)
    if parts.scheme not in ("tcp", "http") or not parts.hostname or not parts.port:
        return f"{url!r} is no tcp://HOST:PORT or http://HOST:PORT/PATH"
    try:
        with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
            if parts.scheme == "tcp":
                return _greets(connection)
            return _answers(connection, parts.path or "/")
    except OSError as error:
        return f"{url}: {error}"


def _greets(connection: socket.socket) -> str | None:
    greeting = b""
    while len(greeting) < GREETING_BYTES:
        received = connection.recv(GREETING_BYTES - len(greeting))
        if not received:
            return "the connection was closed before the greeting"
        greeting += received
    return None if greeting[0] == 0xFF and greeting[9] == 0x7F else f"greets with {greeting!r}"


def _answers(connection: socket.socket, path: str) -> str | None:
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    head = b""
    while b"\r\n" not in head and len(head) < STATUS_LINE_BYTES_MAX:
        received = connection.recv(STATUS_LINE_BYTES_MAX)
        if not received:
            break
        head += received
    status = head.split(b"\r\n", 1)[0]
    return None if status.split(b" ")[1:2] == [b"200"] else f"answers {status!r}"


if __name__ == "__main__":
    found = "usage: healthcheck URL" if len(sys.argv) != 2 else problem(sys.argv[1])
    if found:
        print(found)
        sys.exit(1)
