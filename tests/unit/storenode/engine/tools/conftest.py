"""An engine's directory for the tests of the offline tools."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from storenode import engine
from tests.unit.storenode.engine.tools.bench import (
    OPTIONS,
    Bench,
    Content,
    content,
)


@pytest.fixture
def bench(capsysbinary: pytest.CaptureFixture[bytes]) -> Bench:
    return Bench(capsysbinary)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """An engine with tables in level 0 and in deeper ones, deletions, and entries that are only in logs."""
    directory = tmp_path_factory.mktemp("engine") / "original"
    chance = random.Random(7)
    with engine.open(str(directory), options=OPTIONS) as opened:
        for number in range(3000):
            opened.put(b"key%04d" % chance.randrange(900), chance.randbytes(20).hex().encode())
            if number % 11 == 0:
                opened.delete(b"key%04d" % chance.randrange(900))
        opened.flush()
        opened.compact()
        for number in range(900):
            opened.put(b"key%04d" % chance.randrange(450), chance.randbytes(20).hex().encode())
            if number % 5 == 0:
                opened.delete(b"key%04d" % chance.randrange(450))
        opened.flush()
        for number in range(60):
            opened.put(b"log%03d" % number, b"only in the log", sync=True)
        opened.delete(b"key0899")
    return directory, content(Path(shutil.copytree(directory, directory.parent / "read")))


@pytest.fixture
def copy(original: tuple[Path, Content], tmp_path: Path) -> Path:
    return Path(shutil.copytree(original[0], tmp_path / "copy"))


@pytest.fixture
def wanted(original: tuple[Path, Content]) -> Content:
    return original[1]
