"""What a command line tool pays for: nothing heavy is imported on the way to a synchronous get."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "asyncio",
    "click",
    "uuid",
    "logging",
    "urllib.request",
    "ssl",
    "http",
    "attrs",
    "attr",
    "yaml",
    "structlog",
    "lmdb",
    "prometheus_client",
}
OURS = {"shared", "router", "storenode", "monitor"}


def modules_after(code):
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("forbidden", [{"zmq", "msgpack", "kvclient.errors", "importlib.metadata"}])
def test_importing_the_package_costs_nothing(forbidden):
    loaded = modules_after("import kvclient")
    assert "kvclient" in loaded
    assert not loaded & (HEAVY | OURS | forbidden)


def test_the_synchronous_path_imports_nothing_heavy():
    loaded = modules_after("import kvclient\nkvclient.Client\nimport kvclient.client")
    assert {"zmq", "msgpack", "kvclient.session", "kvclient.connection"} <= loaded
    assert not loaded & (
        HEAVY | OURS | {"kvclient.aio", "kvclient.aioconnection", "kvclient.views", "zmq.asyncio"}
    )


def test_the_wire_and_the_errors_need_no_sockets():
    loaded = modules_after("import kvclient.protocol, kvclient.errors")
    assert not loaded & (HEAVY | OURS | {"zmq", "kvclient.client"})
