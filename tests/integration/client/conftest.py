"""A scripted router, and a client of it."""

from __future__ import annotations

import pytest

import kvclient
from tests.integration.client.scriptedrouter import ScriptedRouter


@pytest.fixture
def router():
    peer = ScriptedRouter()
    yield peer
    peer.stop()


@pytest.fixture
def db(router):
    with kvclient.connect(router.url) as client:
        yield client
