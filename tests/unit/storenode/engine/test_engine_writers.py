"""Several threads that write to one engine: they wait for each other, and nothing is logged twice or lost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine
from storenode.engine import Options, WriteBatch

THREADS = 4
WRITES = 1500


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Threads change as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_interpreter")
@pytest.mark.parametrize("way", ["put", "write", "mixed"])
def test_writers_in_several_threads_lose_nothing_and_use_no_sequence_twice(tmp_path: Path, way: str) -> None:
    """Our own: two took the same sequence, and the log did not open any more."""
    options = Options(memtable_bytes=64 << 10)
    errors: list[BaseException] = []
    with storenode.engine.open(str(tmp_path), options=options) as engine:

        def write(thread: int) -> None:
            try:
                for number in range(WRITES):
                    key = b"%d-%05d" % (thread, number)
                    if way == "put" or (way == "mixed" and number % 3 == 0):
                        engine.put(key, key)
                    elif way == "mixed" and number % 3 == 1:
                        engine.put(key, b"gone soon")
                        engine.delete(key)
                        engine.put(key, key)
                    else:
                        batch = WriteBatch()
                        batch.put(key, key)
                        engine.write(batch)
                    if number % 500 == 0:
                        engine.flush(wait=False)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=write, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert errors == []
    expected = [(b"%d-%05d" % (t, n), b"%d-%05d" % (t, n)) for t in range(THREADS) for n in range(WRITES)]
    with storenode.engine.open(str(tmp_path), options=options) as engine:
        assert engine.scan() == expected
        per_write = 1 if way != "mixed" else 5 / 3
        assert engine.next_sequence - 1 == THREADS * WRITES * per_write
