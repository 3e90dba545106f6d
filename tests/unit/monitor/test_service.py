"""monitor/service.py: what each path answers, of a monitor that has found nobody yet."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from monitor import service as service_module
from monitor.config import HttpSection, MonitorConfig
from monitor.service import Service
from shared import sockets
from shared.reactor import Reactor
from shared.units import Endpoint

DEADLINE_S = 20.0


@pytest.fixture
def service() -> Iterator[Service]:
    """On a loop that turns in a thread of its own, beside a store that is not there."""
    config = MonitorConfig((Endpoint("tcp://127.0.0.1:9"),), http=HttpSection(Endpoint("tcp://127.0.0.1:0")))
    made: list[Service] = []
    ready, reactor = threading.Event(), Reactor()

    def live() -> None:
        context = sockets.context()
        made.append(Service(config, context, reactor))
        ready.set()
        reactor.run()
        made[0].close()
        context.destroy(0)

    thread = threading.Thread(target=live)
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield made[0]
    reactor.stop()
    thread.join(DEADLINE_S)
    reactor.close()


def get(service: Service, path: str) -> tuple[int, str, bytes]:
    connection = HTTPConnection("127.0.0.1", service.server.server_port, timeout=DEADLINE_S)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.headers["Content-Type"], answer.read()
    connection.close()
    return found


def test_it_lives_but_is_not_ready(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(service, "/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
    code, _, why = get(service, "/readyz")
    assert (code, why) == (503, b"there is no cluster map yet: none of tcp://127.0.0.1:9 has answered\n")
    monkeypatch.setattr(service_module, "STUCK_S", -1.0)
    code, _, why = get(service, "/healthz")
    assert (code, why.startswith(b"the loop has not turned for")) == (503, True)


def test_the_document_comes_with_as_much_history_as_is_asked_for(service: Service) -> None:
    code, content_type, body = get(service, "/api/v1/status?history=0")
    assert (code, content_type) == (200, "application/json")
    assert json.loads(body)["history"]["at_s"] == []
    assert get(service, "/api/v1/status")[0] == 200
    for wrong in ("-1", "1e3", "x", "9" * 11, "%D9%A1"):
        assert get(service, f"/api/v1/status?history={wrong}")[0] == 400


def test_prometheus_and_people_get_what_they_read(service: Service) -> None:
    code, content_type, body = get(service, "/metrics")
    assert (code, content_type.split(";")[0]) == (200, "text/plain")
    assert b"ringkv_cluster_verdict 1.0" in body
    code, content_type, body = get(service, "/")
    assert (code, content_type.split(";")[0]) == (200, "text/html")
    assert b"there is no cluster map yet" in body
    assert get(service, "/page/page.css")[0] == 200
    assert get(service, "/page/../service.py")[0] == 404
