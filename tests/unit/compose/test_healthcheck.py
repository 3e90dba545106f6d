"""The health check of the containers tells who serves from who does not, with real sockets."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

SCRIPT = Path(__file__).resolve().parents[3] / "compose" / "healthcheck.py"

Speaker = Callable[[bytes | None], int]


def healthcheck(url: str) -> int:
    done = subprocess.run([sys.executable, str(SCRIPT), url], capture_output=True, timeout=30, check=False)
    return done.returncode


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    """`speaker(answer)` gives the port of a server that says this to whoever comes first, and nothing at all
    if it is None, as the kernel does for a process that is stopped.
    """
    with contextlib.ExitStack() as stack:

        def start(answer: bytes | None) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(30)
            if answer is not None:
                thread = threading.Thread(target=say, args=(listener, answer))
                thread.start()
                stack.callback(thread.join)
            return int(listener.getsockname()[1])

        yield start


def say(listener: socket.socket, answer: bytes) -> None:
    with listener.accept()[0] as connection:
        connection.sendall(answer)


@pytest.mark.parametrize(
    ("scheme", "answer", "code"),
    [
        ("tcp", b"\xff" + bytes(8) + b"\x7f\x03", 0),
        ("tcp", b"SSH-2.0-x\r\n", 1),
        ("tcp", b"\xff\x00", 1),
        ("tcp", None, 1),
        ("http", b"HTTP/1.0 200 OK\r\n\r\n", 0),
        ("http", b"HTTP/1.0 503 Service Unavailable\r\n\r\n", 1),
        ("http", b"", 1),
        ("http", None, 1),
        ("ftp", None, 1),
    ],
)
def test_a_process_is_well_if_it_answers_as_it_should(
    speaker: Speaker, scheme: str, answer: bytes | None, code: int
) -> None:
    assert healthcheck(f"{scheme}://127.0.0.1:{speaker(answer)}/healthz") == code


def test_a_socket_of_zeromq_is_well_and_a_closed_port_is_not() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        port = bound.bind_to_random_port("tcp://127.0.0.1")
        assert healthcheck(f"tcp://127.0.0.1:{port}") == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    assert healthcheck(f"tcp://127.0.0.1:{free}") == 1
