"""monitor/web.py on real sockets: what is asked for is answered, and nobody who misbehaves is in the way."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from monitor import web
from monitor.web import CONNECTIONS_MAX, HEAD_BYTES_MAX, JSON, TEXT, Answer, Query, Server

DEADLINE_S = 20.0


def echo(query: Query) -> Answer:
    return Answer(200, JSON, repr(sorted(query.items())).encode())


def broken(query: Query) -> Answer:
    raise ZeroDivisionError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "HEAD_S", 1.0)
    made = Server(
        "127.0.0.1",
        0,
        {"/echo": echo, "/broken": broken, "/large": lambda _: Answer(200, TEXT, bytes(1 << 20))},
    )
    made.start()
    yield made
    made.stop()


def ask(server: Server, method: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=DEADLINE_S)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def raw(server: Server, request: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.server_port), DEADLINE_S) as one:
        one.sendall(request)
        found = b""
        try:
            while received := one.recv(65536):
                found += received
        except ConnectionResetError:
            pass
        return found


def test_a_path_is_answered_with_its_query(server: Server) -> None:
    response, body = ask(server, "GET", "/echo?b=2&a=1&a=3")
    assert (response.status, body) == (200, b"[('a', '3'), ('b', '2')]")
    assert response.headers["Content-Type"] == JSON
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_head_is_get_without_the_body(server: Server) -> None:
    response, body = ask(server, "HEAD", "/large")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", str(1 << 20))
    assert len(ask(server, "GET", "/large")[1]) == 1 << 20


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_there_is_nothing_to_write(server: Server, method: str) -> None:
    response, _ = ask(server, method, "/echo")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_a_path_that_is_none_and_a_handler_that_fails(server: Server) -> None:
    response, body = ask(server, "GET", "/../etc/passwd")
    assert (response.status, b"/echo" in body) == (404, True)
    response, body = ask(server, "GET", "/broken")
    assert (response.status, b"ZeroDivision" in body) == (500, False)
    assert ask(server, "GET", "/echo")[0].status == 200
    assert server.requests()["/broken", 500] == 1
    assert server.requests()["other", 404] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET /echo HTTP/9.9\r\n\r\n", b"\x00\xff" * 100 + b"\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\n\r\n", b"GET /echo?" + b"a=1&" * 100 + b" HTTP/1.1\r\n\r\n",
        b"BREW /pot HTCPCP/1.0\r\n\r\n", bytes(range(256)) + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_nonsense_gets_no_200_and_harms_nobody(server: Server, request_bytes: bytes) -> None:
    assert b" 200 " not in raw(server, request_bytes).split(b"\r\n")[0]
    assert ask(server, "GET", "/echo")[0].status == 200


def test_a_head_that_is_too_long_is_not_read_to_its_end(server: Server) -> None:
    assert raw(server, b"GET /echo HTTP/1.1\r\n" + b"x: y\r\n" * HEAD_BYTES_MAX) == b""
    assert ask(server, "GET", "/echo")[0].status == 200


def test_who_says_nothing_is_let_go_and_more_than_there_is_room_for_are_closed(server: Server) -> None:
    address = ("127.0.0.1", server.server_port)
    silent = [socket.create_connection(address, DEADLINE_S) for _ in range(CONNECTIONS_MAX + 5)]
    for one in silent:  # each of them ends, the surplus at once and the others after HEAD_S
        assert one.recv(1) == b""
        one.close()
    assert ask(server, "GET", "/echo")[0].status == 200


@pytest.mark.parametrize(("host", "url"), [("*", "http://0.0.0.0:"), ("::1", "http://[::1]:"), ("lo", "")])
def test_where_it_listens_is_told_as_a_browser_wants_it(host: str, url: str) -> None:
    if not url:
        with pytest.raises(OSError, match=r"."):
            Server(host, 0, {})
        return
    server = Server(host, 0, {})
    server.server_close()
    assert server.url.startswith(url)
