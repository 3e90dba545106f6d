"""A million keys are backed up while clients write, and restored into a cluster of another size: all of them
are there, what was written meanwhile is of one moment in each partition, and a flipped bit is found. Prints
what was measured: `pytest -m long -s` and this file.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kvclient.errors import Exit
from tests.integration.localcluster import KVCLI, Cluster

KEYS = int(os.environ.get("RINGKV_BACKUP_KEYS", "1000000"))
QUIET_S = 20.0  # of load without a backup, to compare with
PACE_S = 0.01  # of a writer, at most
WRITERS = 4
OWN_KEYS = 20
FLIPS = 3
DEADLINE_S = 1800


def name_of(number: int) -> bytes:
    return b"key:%08d" % number


def value_of(number: int) -> bytes:
    """A hundred bytes, of which a third does not compress."""
    return blake2b(name_of(number), digest_size=32).digest() + b"of a value that says %08d in it" % number * 2


class Writer:
    """Writes n to all of its keys, one after the other, then n + 1, over and over; reads others in between.

    Its keys share a tag, so a partition, and are spread over it: at any one moment some of them, the first
    ones, have n, and the others n - 1.
    """

    def __init__(self, number: int) -> None:
        gap = KEYS // OWN_KEYS
        self.keys = [name_of(gap * at) + b"{w%d}" % number for at in range(OWN_KEYS)]
        self.acknowledged = 0
        """All keys have at least this."""
        self.puts: list[tuple[float, float]] = []
        """When it began, and how long it took."""
        self.gets: list[tuple[float, float]] = []

    def run(self, cluster: Cluster, done: threading.Event) -> None:
        dice = random.Random(repr(self.keys))
        with cluster.connect(timeout=60) as db:
            for number in count(1):
                for key in self.keys:
                    began = time.monotonic()
                    db.put(key, b"%d" % number)
                    put = time.monotonic()
                    other = dice.randrange(KEYS)
                    assert db.get(name_of(other)) == value_of(other)
                    self.puts.append((began, put - began))
                    self.gets.append((put, time.monotonic() - put))
                    if done.wait(max(0.0, began + PACE_S - time.monotonic())):
                        return
                self.acknowledged = number

    def check(self, found: dict[bytes, bytes], before: int) -> None:
        """What was restored is one moment, after all that was acknowledged when the backup began."""
        values = [int(found.pop(key)) for key in self.keys]
        assert values == sorted(values, reverse=True), "two moments of one partition"
        assert values[0] - values[-1] in (0, 1), "two moments of one partition"
        assert before <= values[-1]
        assert values[0] <= self.acknowledged + 1


@contextmanager
def load(cluster: Cluster) -> Iterator[list[Writer]]:
    writers = [Writer(number) for number in range(WRITERS)]
    done = threading.Event()
    with ThreadPoolExecutor(WRITERS) as pool:
        working = [pool.submit(writer.run, cluster, done) for writer in writers]
        try:
            yield writers
        finally:
            done.set()
    for one in working:
        one.result()


class Ran:
    """What a kvcli did, how long it took, and its largest memory."""

    def __init__(self, cluster: Cluster, directory: Path, *arguments: str) -> None:
        self.began = time.monotonic()
        out, err = directory / "out", directory / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [KVCLI, *arguments],
                env=cluster.environment(),
                cwd=directory,
                stdout=stdout,
                stderr=stderr,
            )
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.ended = time.monotonic()
        self.seconds = self.ended - self.began
        self.memory = used.ru_maxrss << 10
        self.cpu = used.ru_utime + used.ru_stime
        self.out, self.err = out.read_text(), err.read_text()

    def line(self, what: str, size: int, content: int) -> str:
        return (
            f"{what}: {self.seconds:.1f} s, {content / self.seconds / 1e6:.1f} MB/s of keys and values, "
            f"{size / self.seconds / 1e6:.1f} MB/s of the files; kvcli: {self.cpu:.1f} s of CPU, "
            f"{self.memory >> 20} MiB at most"
        )


@pytest.mark.long
@pytest.mark.timeout(DEADLINE_S)
def test_a_million_keys_under_load(tmp_path: Path) -> None:
    source, target = Cluster(tmp_path / "source"), Cluster(tmp_path / "target")
    backup = tmp_path / "backup"
    told = [f"{KEYS:,} keys; load of the machine at first {os.getloadavg()[0]:.1f}"]
    try:
        source.up("--stores", "3", "--routers", "1", "--partitions", "16")
        told.append(filled(source))
        with load(source) as writers:
            time.sleep(QUIET_S)
            before = [writer.acknowledged for writer in writers]
            assert all(before), "nothing is written"
            create = Ran(source, tmp_path, "-o", "json", "backup", "create", str(backup))
        assert create.code == 0, create.err
        source.dev("down")

        size = sum(path.stat().st_size for path in backup.iterdir())
        content = sum(len(name_of(number)) + len(value_of(number)) for number in range(KEYS))
        told.append(f"backup: {size / 1e6:.1f} MB for {content / 1e6:.1f} MB of keys and values")
        told.append(create.line("create, under load", size, content))
        told += felt(writers, create)
        verify = Ran(source, tmp_path, "backup", "verify", str(backup))
        assert verify.code == 0, verify.err
        told.append(verify.line("verify", size, content))

        target.up("--stores", "2", "--routers", "1", "--partitions", "64")
        restore = Ran(target, tmp_path, "-o", "json", "backup", "restore", str(backup))
        assert restore.code == 0, restore.err
        told.append(restore.line("restore, from 3 stores and 16 partitions into 2 and 64", size, content))
        assert json.loads(restore.out)["restored"] == KEYS + WRITERS * OWN_KEYS
        compare(target, writers, before)
        told.append(f"all {KEYS:,} keys are as written, the writers' {WRITERS * OWN_KEYS} of one moment each")
        told += [flipped(source, tmp_path, backup, random.Random(number)) for number in range(FLIPS)]
        told.append(f"load of the machine at the end {os.getloadavg()[0]:.1f}")
    finally:
        print("\n" + "\n".join(told), flush=True)
        source.kvcli("dev", "down", "--dir", str(source.directory), check=False)
        target.kvcli("dev", "down", "--dir", str(target.directory), check=False)


def filled(cluster: Cluster) -> str:
    began = time.monotonic()
    with cluster.connect(timeout=120) as db:
        db.put_many((name_of(number), value_of(number)) for number in range(KEYS)).raise_for_errors()
    seconds = time.monotonic() - began
    return f"filled in {seconds:.1f} s, {KEYS / seconds:,.0f} keys/s"


def felt(writers: list[Writer], create: Ran) -> list[str]:
    """Latencies and rates with the backup beside them, and before it."""
    lines = []
    for what in ("puts", "gets"):
        timed: list[tuple[float, float]] = [one for writer in writers for one in getattr(writer, what)]
        for when, first, last in (
            ("without", create.began - QUIET_S, create.began),
            ("during", create.began, create.ended),
        ):
            took = sorted(seconds for began, seconds in timed if first <= began < last)
            median, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
            lines.append(
                f"{what} {when} the backup: {len(took) / (last - first):.0f}/s, "
                f"median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, longest {took[-1] * 1e3:.0f} ms"
            )
    return lines


def compare(cluster: Cluster, writers: list[Writer], before: list[int]) -> None:
    """Each key that was filled in has its value; and nothing else is there but the writers' keys."""
    own = {key for writer in writers for key in writer.keys}
    found = {}
    numbers = iter(range(KEYS))
    with cluster.connect(timeout=120) as db:
        for entry in db.scan():
            if entry.key in own:
                found[entry.key] = entry.value
                continue
            number = next(numbers)
            assert (entry.key, entry.value) == (name_of(number), value_of(number))
    assert next(numbers, None) is None, "keys are missing at the end"
    for writer, acknowledged in zip(writers, before, strict=True):
        writer.check(found, acknowledged)
    assert not found


def flipped(cluster: Cluster, directory: Path, backup: Path, dice: random.Random) -> str:
    """One bit anywhere in a file of a partition; it is put back."""
    path = dice.choice(sorted(backup.glob("partition-*")))
    at, bit = dice.randrange(path.stat().st_size), 1 << dice.randrange(8)
    flip(path, at, bit)
    verify = Ran(cluster, directory, "-o", "json", "backup", "verify", str(backup))
    flip(path, at, bit)
    assert verify.code == Exit.DEGRADED, verify.err
    (problem,) = problems(verify)
    assert problem["file"] == path.name
    return f"a bit flipped in {path.name} at {at:,}: {problem['problem']} at {problem['offset']}"


def problems(verify: Ran) -> list[dict[str, Any]]:
    told = json.loads(verify.out)
    return list(told["problems"] if isinstance(told, dict) else told)


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bit]))
