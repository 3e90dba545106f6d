"""The status page in a real browser: it draws, keeps itself fresh, says so when the monitor is silent, and
breaks no rule of its Content-Security-Policy.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from monitor.page import respond
from tests.unit.monitor import samples

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


class Monitor(ThreadingHTTPServer):
    """Answers as the monitor does, `answers` times; then it is silent. Each answer is a second younger."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = 1_000_000
        self.asked: list[str] = []

    def status(self) -> dict[str, Any]:
        status = samples.healthy()
        pages = self.asked.count("/")
        status["at_ms"] += 1000 * pages
        status["events"].insert(0, samples.event(0, "ok", f"page {pages}"))
        return status


class Handler(BaseHTTPRequestHandler):
    server: Monitor

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.asked.count("/") > self.server.answers:
            self.send_error(503)
            return
        answer = respond(self.path, self.server.status)
        if answer is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def seen(monitor: Monitor, profile: Path, *options: str, virtual_ms: int = 9000) -> tuple[str, list[str]]:
    """The document after so much time of the browser's own, and what the browser logged."""
    done = subprocess.run(
        [
            CHROMIUM or "", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--enable-logging=stderr", f"--virtual-time-budget={virtual_ms}", "--dump-dom", *options,
            f"http://127.0.0.1:{monitor.server_port}/",
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_it_draws_and_keeps_itself_fresh_without_a_complaint(monitor: Monitor, tmp_path: Path) -> None:
    document, said = seen(monitor, tmp_path)
    assert not said
    pages = monitor.asked.count("/")
    assert pages > 2
    assert f"page {pages}<" in document or f"page {pages - 1}<" in document
    assert document.count("<canvas") == 2
    assert set(monitor.asked) <= {"/", "/page/page.css", "/page/page.js", "/page/uplot.js", "/page/uplot.css",
                                  "/page/icon.svg"}  # fmt: skip
    assert 'id="silent" role="alert" hidden' in document


def test_it_says_when_the_monitor_is_silent(monitor: Monitor, tmp_path: Path) -> None:
    monitor.answers = 1
    document, _ = seen(monitor, tmp_path)
    assert "The monitor does not answer" in document
    assert "from 14:42:08 UTC" in document
    assert '<body class="silent">' in document


def test_the_largest_cluster_is_drawn(
    monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "status", lambda: samples.healthy(stores=50, partitions=4096))
    document, said = seen(monitor, tmp_path, virtual_ms=3000)
    assert not said
    assert "<b>4095</b>" in document
