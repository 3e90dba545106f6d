"""One monitor, put together: the loop with the collector, and the HTTP server beside it. Owns which path
answers what, and when the monitor is healthy and ready.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST

from monitor import page, status
from monitor.collector import Collector
from monitor.config import MonitorConfig
from monitor.exporter import Exporter
from monitor.history import EVERY_S, POINTS
from monitor.model import Model
from monitor.web import JSON, TEXT, Answer, Handler, Query, Server
from shared import logs, sockets
from shared.clock import SystemClock
from shared.memory import Trimmer, settle
from shared.reactor import Reactor
from shared.security import open_guard
from shared.units import split_endpoint

STUCK_S: Final = 5.0
"""Without a round for so long, the loop does not turn."""

_log = logs.get("monitor")


class Service:
    """Listens on return; OSError, ConfigError. Made, run and closed by one thread."""

    def __init__(self, config: MonitorConfig, context: sockets.Context, reactor: Reactor) -> None:
        self._model = Model(config.monitor.name, config.stores, SystemClock())
        self.server = Server(*split_endpoint(config.http.listen), self._routes())
        self._exporter = Exporter(lambda: self._model.picture, self.server.requests)
        self._collector = Collector(reactor, context, self._model, config.stores)
        self.server.start()

    def close(self) -> None:
        """Give everything back."""
        self.server.stop()
        self._collector.close()

    def document(self, seconds: float) -> dict[str, Any]:
        """The status document with so much of the history. Any thread."""
        return status.document(self._model.picture, self._model.history, seconds)

    def _routes(self) -> Mapping[str, Handler]:
        return {
            "/metrics": lambda query: Answer(200, CONTENT_TYPE_LATEST, self._exporter.scrape()),
            "/healthz": lambda query: self._healthy(),
            "/readyz": lambda query: self._ready(),
            "/api/v1/status": self._status,
            **{path: partial(self._page, path) for path in page.PATHS},
        }

    def _page(self, path: str, _: Query) -> Answer:
        found = page.respond(path, partial(self.document, POINTS * EVERY_S))
        assert found is not None, "the page knows its own paths"
        return Answer(200, found.content_type, found.body, tuple(found.headers.items()))

    def _healthy(self) -> Answer:
        silent = time.monotonic() - self._collector.ticked_at
        if silent > STUCK_S:
            return Answer(503, TEXT, f"the loop has not turned for {silent:.0f} s\n".encode())
        return Answer(200, TEXT, b"ok\n")

    def _ready(self) -> Answer:
        picture = self._model.picture
        if picture.map is None:
            return Answer(503, TEXT, f"{picture.problems[0].text}\n".encode())
        if not any(store.figures for store in picture.stores):
            return Answer(503, TEXT, b"no store is heard\n")
        return Answer(200, TEXT, b"ok\n")

    def _status(self, query: Query) -> Answer:
        given = query.get("history", str(int(POINTS * EVERY_S)))
        if not (given.isascii() and given.isdecimal() and len(given) < 10):
            return Answer(400, TEXT, b"history is a number of seconds\n")
        body = json.dumps(self.document(int(given)), separators=(",", ":"), allow_nan=False)
        return Answer(200, JSON, body.encode() + b"\n")


def run(config: MonitorConfig) -> None:
    """Run a monitor until SIGTERM or SIGINT. ConfigError or OSError when it cannot start."""
    logs.configure(config.log.level, config.log.format, monitor=config.monitor.name)
    guard = open_guard(config.security, config.monitor.name, "monitor")
    context = sockets.context()
    reactor = Reactor()
    try:
        if guard is not None:
            sockets.secure(context, guard).watch(reactor)
        service = Service(config, context, reactor)
        for number in (signal.SIGTERM, signal.SIGINT):
            reactor.on_signal(number, reactor.stop)
        _log.info("monitor_started", url=service.server.url, stores=list(config.stores))
        Trimmer(reactor.call_later)
        settle()
        reactor.run()
        service.close()
        _log.info("monitor_stopped")
    finally:
        reactor.close()
        context.destroy(0)
