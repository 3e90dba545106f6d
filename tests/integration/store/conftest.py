"""Stores of a test, which end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.store.storeprocess import Start, Store, configuration


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Store] = []

    def make(*arguments: str, connect: bool = True, **sections: Any) -> Store:
        store = Store(tmp_path, configuration(tmp_path, **sections), *arguments)
        started.append(store)
        if connect:
            store.connect()
        return store

    yield make
    for store in started:
        store.close()
