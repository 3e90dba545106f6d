"""One engine in a process of its own, told over a pipe what to do next: a JSON line each way.

A process each, so that no engine's memory, allocator state or threads are in another's measurement; a
long-lived one, so that rounds of all engines can alternate over data that is prepared once. Only one of them
is told to work at a time, and before it answers its background work has ended or its store is closed.

    python -m tests.benchmark.engine_bench.worker ENGINE DIRECTORY ENTRIES
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmark.engine_bench import data
from tests.benchmark.engine_bench.stores import MIB, STORES, Store

BATCH = 100
SYNCED_PUTS_MAX = 1000
SYNCED_PUTS_TURN = 20
RECORD_BYTES = 168
"""Of a log record of ours with one put."""
SEEK_PAIRS = 10
STALL_GROUP = 64
"""Puts between two looks at the clock: what one look costs is lost among them, a stall is not."""
WRITER_BYTES_PER_S = 2 * MIB
"""Of the writer beside the reads, as in RocksDB's own benchmark.sh."""
BURST_SECONDS = 0.01
READER_BATCH = 100
SAMPLE_SECONDS = 0.05
CACHE_BYTES = 64 * MIB


def timed(count: int, work: Callable[[], object]) -> float:
    """Rate of `work`, which does `count` of something."""
    gc.collect()
    gc.freeze()  # what was prepared is not to be walked again and again while the engine makes its tuples
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    gc.unfreeze()
    return count / seconds


def anonymous_bytes() -> int:
    """Resident memory without mapped files: those are the kernel's page cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon")


class Worker:
    """The commands; each returns what is sent back."""

    def __init__(self, engine: str, directory: str, entries: int) -> None:
        self._make = STORES[engine]
        self._directory = Path(directory)
        self._base = self._directory / "base"
        self._entries = entries
        self._store: Store | None = None

    def about(self) -> str:
        return self._make.about()

    # Writes, each into a directory of its own

    def fill(self, workload: str, round: int) -> float:
        """Puts per second."""
        order: list[int] | range = range(self._entries)
        if workload != "fillseq":
            order = data.shuffled(f"{workload} {round}", self._entries)
        keys, values = data.keys(list(order)), [data.value(number) for number in order]
        with self._fresh(sync=False) as store:
            batch = BATCH if workload == "fillbatch100" else 1
            return timed(len(keys), lambda: put_all(store, keys, values, batch))

    def fillsync(self, round: int) -> dict[str, float]:
        """Durable puts per second, and bare appends with fdatasync: by turns, a few of each, because what a
        sync takes changes from one second to the next."""
        order = data.shuffled(f"fillsync {round}", min(SYNCED_PUTS_MAX, self._entries // 20))
        keys, values = data.keys(order), [data.value(number) for number in order]
        ours = bare = 0.0
        with self._fresh(sync=True) as store, BareLog(self._directory / "bare") as log:
            for at in range(0, len(keys), SYNCED_PUTS_TURN):
                some = slice(at, at + SYNCED_PUTS_TURN)
                started = time.perf_counter()
                put_all(store, keys[some], values[some], 1)
                between = time.perf_counter()
                for _ in keys[some]:
                    log.append()
                ours += between - started
                bare += time.perf_counter() - between
        return {"rate": len(keys) / ours, "bare": len(keys) / bare}

    def overwrite(self, round: int) -> float:
        """Puts per second over data that is there."""
        numbers = data.numbers(f"overwrite {round}", self._entries, self._entries)
        keys, values = data.keys(numbers), [data.value(number, round + 1) for number in numbers]
        with self._copy() as store:
            return timed(len(keys), lambda: put_all(store, keys, values, 1))

    def readwhilewriting(self, round: int, seconds: float) -> dict[str, float]:
        """Gets per second beside a writer at a fixed rate, and what part of that rate it reached."""
        numbers = data.numbers(f"readwhilewriting {round}", self._entries, self._entries)
        keys = data.keys(numbers)
        with self._copy() as store:
            for key in keys[: self._entries // 4]:
                store.get(key)
            return read_beside_writer(store, keys, seconds)

    # Reads, of the data that `load` made

    def load(self) -> None:
        """Every key once, in random order, then compacted."""
        if self._base.exists():
            return
        self._load(self._base, self._entries)

    def open(self, cache_bytes: int) -> None:
        """For the reads that follow; checks that what was written is there, and fills the cache."""
        self._store = store = self._open(self._base, cache_bytes)
        assert sum(1 for page in store.pages(False) for _ in page) == self._entries
        for number in data.numbers(
            "warm", min(self._entries, 2 * cache_bytes // data.ENTRY_BYTES), self._entries
        ):
            assert store.get(data.key(number)) == data.value(number)
        assert store.get(data.missing_key(0)) is None

    def read(self, workload: str, round: int, count: int) -> dict[str, float | None]:
        """Operations per second; for multiget100 also those of the engine's own call for many keys."""
        store = self._store
        assert store is not None
        if workload in ("readseq", "readreverse"):
            reverse = workload == "readreverse"
            return {"rate": timed(self._entries, lambda: deque_all(store, reverse))}
        make = data.missing_key if workload == "readmissing" else data.key
        keys = data.keys(data.numbers(f"{workload} {round}", count, self._entries), make)
        if workload == "seekrandom10":
            return {"rate": timed(count, lambda: store.seek(keys, SEEK_PAIRS))}
        if workload == "multiget100":
            batches = [keys[at : at + BATCH] for at in range(0, count, BATCH)]
            many = store.multi_get
            return {
                "rate": timed(count, lambda: get_all(store, keys)),
                "batched": timed(count, lambda: deque(map(many, batches), maxlen=0)) if many else None,
            }
        return {"rate": timed(count, lambda: get_all(store, keys))}

    def shut(self) -> None:
        assert self._store is not None
        self._store.close()
        self._store = None

    # Figures

    def figures(self, seconds: float) -> dict[str, Any]:
        """An overwrite of as many entries as there are, or for so many seconds: the longest stall, what was
        written for it, the space it needs when all is settled, memory, and how long opening takes then."""
        numbers = data.numbers("figures", self._entries, self._entries)
        keys, values = data.keys(numbers), [data.value(number, 5) for number in numbers]
        directory = self._copy_base()
        gc.collect()
        before = anonymous_bytes()
        store = self._open(directory, CACHE_BYTES, counts=True)
        written, stall, peak = overwrite_watched(store, keys, values, seconds)
        for at in range(0, len(keys), 1000):
            for key in keys[at : at + 1000]:
                store.get(key)
            peak = max(peak, anonymous_bytes())
        store.settle()
        table_bytes = store.bytes_written()
        space = store.data_bytes(directory)
        store.close()
        shutil.rmtree(directory)
        user_bytes = written * data.ENTRY_BYTES
        return {
            "longest_stall_s": round(stall, 4),
            "write_amplification": None if table_bytes is None else round(table_bytes / user_bytes, 2),
            "space_amplification": round(space / (self._entries * data.ENTRY_BYTES), 3),
            "memory_bytes": peak - before,
            "overwritten": written,
        }

    def unsettled(self, entries: int) -> None:
        """Leave a store behind that was filled in random order and closed in the middle of its work."""
        self._load(self._directory / "reopen", entries, compact=False)

    def reopen(self) -> float:
        """Seconds from open to the first answer."""
        directory = self._directory / "reopen"
        os.sync()
        started = time.perf_counter()
        store = self._open(directory, CACHE_BYTES)
        found = store.get(data.key(0))
        seconds = time.perf_counter() - started
        assert found == data.value(0)
        store.close()
        shutil.rmtree(directory)
        return seconds

    # Inside

    def _open(self, directory: Path, cache_bytes: int, *, sync: bool = False, counts: bool = False) -> Store:
        directory.mkdir(parents=True, exist_ok=True)
        return self._make(directory, cache_bytes, sync=sync, counts=counts)

    def _load(self, directory: Path, entries: int, *, compact: bool = True) -> None:
        store = self._open(directory, CACHE_BYTES)
        order = data.shuffled("load", entries)
        for at in range(0, entries, 10_000):
            some = order[at : at + 10_000]
            put_all(store, data.keys(some), [data.value(number) for number in some], 1000)
        if compact:
            store.compact()
        store.close()

    def _copy_base(self) -> Path:
        target = self._directory / "work"
        subprocess.run(["cp", "-r", self._base, target], check=True)  # it leaves the holes of LMDB's file out
        return target

    def _fresh(self, sync: bool) -> Scratch:
        return Scratch(self, self._directory / "work", sync)

    def _copy(self) -> Scratch:
        return Scratch(self, self._copy_base(), False)

    def scratch(self, directory: Path, sync: bool) -> Store:
        os.sync()  # nobody pays for what another left to be written back
        return self._open(directory, CACHE_BYTES, sync=sync)


class BareLog:
    """The yardstick of fillsync: nothing but a growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._end = 0

    def append(self) -> None:
        os.pwrite(self._file, bytes(RECORD_BYTES), self._end)
        os.fdatasync(self._file)
        self._end += RECORD_BYTES

    def __enter__(self) -> BareLog:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._path.unlink()


class Scratch:
    """A store that is closed and removed afterwards."""

    def __init__(self, worker: Worker, directory: Path, sync: bool) -> None:
        self._directory = directory
        self._store = worker.scratch(directory, sync)

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()
        shutil.rmtree(self._directory)


def put_all(store: Store, keys: list[bytes], values: list[bytes], batch: int) -> None:
    if batch == 1:
        put = store.put
        for key, value in zip(keys, values, strict=True):
            put(key, value)
        return
    write = store.write
    for at in range(0, len(keys), batch):
        write(keys[at : at + batch], values[at : at + batch])


def get_all(store: Store, keys: list[bytes]) -> None:
    get = store.get
    for key in keys:
        get(key)


def deque_all(store: Store, reverse: bool) -> None:
    """Consumes all pairs without a step of the interpreter for each."""
    for page in store.pages(reverse):
        deque(page, maxlen=0)


def overwrite_watched(
    store: Store, keys: list[bytes], values: list[bytes], seconds: float
) -> tuple[int, float, int]:
    """(puts, longest time for STALL_GROUP of them, peak of memory); once over the keys, or for `seconds`."""
    put, clock = store.put, time.perf_counter
    longest, peak, done, at = 0.0, anonymous_bytes(), 0, 0
    begin = last = sampled = clock()
    while (last < begin + seconds) if seconds else (done < len(keys)):
        for key, value in zip(keys[at : at + STALL_GROUP], values[at : at + STALL_GROUP], strict=True):
            put(key, value)
        now = clock()
        longest = max(longest, now - last)
        done += min(STALL_GROUP, len(keys) - at)
        at = at + STALL_GROUP if at + STALL_GROUP < len(keys) else 0
        if now - sampled > SAMPLE_SECONDS:
            peak = max(peak, anonymous_bytes())
            sampled = now = clock()
        last = now
    return done, longest, peak


def read_beside_writer(store: Store, keys: list[bytes], seconds: float) -> dict[str, float]:
    """See Worker.readwhilewriting. The writer puts in bursts and sleeps between them; the reader never
    does."""
    stop = threading.Event()
    rate = WRITER_BYTES_PER_S / data.ENTRY_BYTES
    written = 0

    def write() -> None:
        nonlocal written
        begin, put = time.perf_counter(), store.put
        while not stop.is_set():
            due = int((time.perf_counter() - begin) * rate)
            for at in range(written, due):
                key = keys[-1 - at % len(keys)]
                put(key, data.POOL[at % len(data.POOL)])
            written = max(written, due)
            store.publish()
            stop.wait(BURST_SECONDS)

    store.publish()
    writer = threading.Thread(target=write)
    writer.start()
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        get = store.reader()
        at = done % (len(keys) - READER_BATCH)
        for key in keys[at : at + READER_BATCH]:
            get(key)
        done += READER_BATCH
    stop.set()
    writer.join()
    return {"rate": done / (now - begin), "writer_kept_up": written / (now - begin) / rate}


def main() -> None:
    engine, directory, entries = sys.argv[1:]
    worker = Worker(engine, directory, int(entries))
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        do = getattr(worker, command.pop("do"))
        try:
            answer = {"result": do(**command)}
        except Exception as error:  # noqa: BLE001 - told to the parent, which decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
