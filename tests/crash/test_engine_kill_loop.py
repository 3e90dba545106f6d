"""kill -9 of a real process on real files, again and again in one directory: what it acknowledged is there,
and what is there is a whole number of its entries.

The process is killed while it opens, writes, flushes or compacts: nobody knows at which. Each round goes on
where the last one was killed. (Only the process dies: what the kernel has taken is not lost. Power failures
are played in other tests of this folder.)
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.engine_killed import ENTRY_KEY, Content, apply_to, opened

ROOT = Path(__file__).parents[2]
ROUNDS = 8
SECONDS_MAX = 60
"""For a process to start and to write what it is asked for."""


def write_and_kill(source: random.Random, directory: Path, memtable_bytes: int, workers: int) -> int | None:
    """The last entry that the process acknowledged before it was killed; None if it did none."""
    command = [sys.executable, "-m", "tests.crash.engine_killed"]
    command += [str(directory), str(memtable_bytes), str(workers)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    wanted = source.choice([0, 1, 30, 300])  # lines; 0: while it opens
    read = b""
    deadline = time.monotonic() + SECONDS_MAX
    try:
        while read.count(b"\n") < wanted:
            assert time.monotonic() < deadline, "the process writes too slowly"
            assert child.poll() is None, "the process ended by itself"
            if select.select([child.stdout], [], [], 1)[0]:
                read += os.read(child.stdout.fileno(), 1 << 16)
        # Not in step with its writing; and opening takes some tenths of a second.
        time.sleep(source.random() * (0.5 if wanted == 0 else 0.02))
    finally:
        child.kill()
        read += child.stdout.read()
        child.stdout.close()
        child.wait(SECONDS_MAX)
    lines = read.split(b"\n")[:-1]  # the last one may be half a number
    return int(lines[-1]) if len(lines) > 1 else None


def kill_again_and_again(directory: Path, rounds: int, seed: str) -> int:
    """The number of entries in the end."""
    source = random.Random(seed)
    content: Content = {}
    last = 0
    for number in range(rounds):
        memtable_bytes, workers = source.choice([1, 16 << 10, 64 << 10]), source.choice([1, 2, 3])
        acknowledged = write_and_kill(source, directory, memtable_bytes, workers)
        shared, engine = opened(str(directory), memtable_bytes, workers)
        found = dict(engine.scan())
        recovered = int(found.get(ENTRY_KEY, b"0"))
        assert recovered >= max(last, acknowledged or 0), f"round {number} of {seed}: entries are lost"
        for entry in range(last + 1, recovered + 1):
            apply_to(content, entry)
        assert found == content, f"round {number} of {seed}: not the content after entry {recovered}"
        assert engine.verify() == []
        engine.close()
        shared.close()
        last = recovered
    return last


def test_killed_again_and_again_it_loses_nothing(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path, ROUNDS, "default 1") > 300


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_killed_hundreds_of_times_it_loses_nothing(tmp_path: Path) -> None:
    rounds = int(os.environ.get("RINGKV_KILL_ROUNDS", "300"))
    kill_again_and_again(tmp_path, rounds, os.environ.get("RINGKV_KILL_SEED", "long"))
