"""The monitor's HTTP server: GET and HEAD of a few fixed paths, one answer a connection.

Owns the bounds: CONNECTIONS_MAX at once (more are closed unread), HEAD_BYTES_MAX of request within HEAD_S,
SEND_S for an answer. Must not know what the answers say: handlers do. A handler runs on the connection's own
thread; what it raises is a 500 that says no more than that, and a log line.

Invariant: nothing that comes in is ever more than a path, a few query fields, and the one of two methods.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from shared import logs

CONNECTIONS_MAX: Final = 32
"""People and scrapers, not traffic; each is a thread."""
HEAD_BYTES_MAX: Final = 8 << 10
HEAD_S: Final = 5.0
SEND_S: Final = 10.0
QUERY_FIELDS_MAX: Final = 8

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

_SAFE: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}

_log = logs.get("web")


class Answer(NamedTuple):
    """What a path answers. `headers` are added to those that every answer has, or take their place."""

    code: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Query = Mapping[str, str]
Handler = Callable[[Query], Answer]
"""Gets the fields of the query; the last of several of the same name."""


class Server(ThreadingHTTPServer):
    """Listens on return; OSError. `routes` are whole paths. Serves on threads of its own from `start` on."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, host: str, port: int, routes: Mapping[str, Handler]) -> None:
        self.routes = routes
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._counted: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__(("0.0.0.0" if host == "*" else host, port), _Connection)

    def server_bind(self) -> None:
        """As the base class does, without asking a name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where it is found."""
        host = str(self.server_name)
        return f"http://[{host}]:{self.server_port}" if ":" in host else f"http://{host}:{self.server_port}"

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self.serve_forever, args=(0.2,), name="http", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()

    def requests(self) -> dict[tuple[str, int], int]:
        """How often each (path, code) was answered; paths that are none are `other`."""
        with self._lock:
            return dict(self._counted)

    def count(self, path: str, code: int) -> None:
        """One more."""
        with self._lock:
            self._counted[path if path in self.routes else "other", code] += 1

    def process_request(self, request: Any, client_address: Any) -> None:
        """On a thread of its own, if there is one to spare."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The whole life of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news."""
        _log.debug("connection_failed", client=str(client_address), exc_info=True)


class _Connection(BaseHTTPRequestHandler):
    server: Server
    server_version = "kv-monitor"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """One request: its head is read whole, within its bounds, before any of it is looked at."""
        head = _read_head(self.connection)
        if head is None:
            return
        self.close_connection = True
        self.rfile.close()
        self.rfile = io.BytesIO(head)
        self.connection.settimeout(SEND_S)
        self.handle_one_request()

    def do_GET(self) -> None:
        """Any path."""
        self._respond(*self._answer())

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """There is nothing to write."""
        self._respond("", Answer(405, TEXT, b"only GET and HEAD\n", (("Allow", "GET, HEAD"),)))

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST

    def _answer(self) -> tuple[str, Answer]:
        try:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, max_num_fields=QUERY_FIELDS_MAX))
        except ValueError:
            return "", Answer(400, TEXT, b"not a path with at most a few query fields\n")
        handler = self.server.routes.get(parts.path)
        if handler is None:
            known = ", ".join(sorted(self.server.routes))
            return parts.path, Answer(404, TEXT, f"there are: {known}\n".encode())
        try:
            return parts.path, handler(query)
        except Exception:  # noqa: BLE001 - a defect of one answer; the others are served
            _log.exception("handler_failed", path=parts.path)
            return parts.path, Answer(500, TEXT, b"a defect; the monitor's log says more\n")

    def _respond(self, path: str, answer: Answer) -> None:
        self.server.count(path, answer.code)
        self.send_response(answer.code)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Connection", "close")
        for name, value in {**_SAFE, **dict(answer.headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Who asks is not logged: a page that is open asks every two seconds."""


def _read_head(connection: socket.socket) -> bytes | None:
    """All up to the empty line; None if that does not come in time, or is too long."""
    head, deadline = b"", time.monotonic() + HEAD_S
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0 or len(head) > HEAD_BYTES_MAX:
            return None
        connection.settimeout(left)
        try:
            received = connection.recv(HEAD_BYTES_MAX)
        except OSError:
            return None
        if not received:
            return None
        head += received
    return head
