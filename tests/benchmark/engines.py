"""scripts/bench engines: what many engines of one process cost, in memory, descriptors, threads and time.

Opens 1,000 empty engines in one Shared, closes them and opens them again; then 200 with some data: each step
in a process of its own, so that its growth is its own. Bars: an empty engine costs <= 64 KiB of memory and
no descriptor, 1,000 of them open and close within 10 s each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import storenode.engine as engine_package
from storenode.engine import Engine, Shared
from tests.integration.localcluster import resident_bytes

EMPTY = 1000
LOADED = 200
ENTRIES = 2000
VALUE_BYTES = 100
BARS = {"empty_kib_each": 64, "empty_descriptors_each": 0, "open_s": 10, "reopen_s": 10, "close_s": 10}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_all(shared: Shared, count: int) -> tuple[list[Engine], float]:
    started = time.perf_counter()
    engines = [
        engine_package.open(os.path.join(shared.directory, f"e{number}"), shared=shared, engine_id=number)
        for number in range(count)
    ]
    return engines, time.perf_counter() - started


def close_all(engines: list[Engine]) -> float:
    started = time.perf_counter()
    for engine in engines:
        engine.close()
    return time.perf_counter() - started


def empty(directory: str) -> dict[str, Any]:
    shared = Shared(directory)
    close_all(open_all(shared, 1)[0])  # what the first one of all brings along
    memory, files = resident_bytes(os.getpid()), descriptors()
    engines, open_s = open_all(shared, EMPTY)
    result = {
        "empty_kib_each": (resident_bytes(os.getpid()) - memory) / EMPTY / 1024,
        "empty_descriptors_each": (descriptors() - files) / EMPTY,
        "threads": threading.active_count(),
        "open_s": open_s,
        "close_s": close_all(engines),
    }
    engines, result["reopen_s"] = open_all(shared, EMPTY)
    close_all(engines)
    shared.close()
    return result


def loaded(directory: str) -> dict[str, Any]:
    shared = Shared(directory)
    close_all(open_all(shared, 1)[0])
    memory, files = resident_bytes(os.getpid()), descriptors()
    engines, _ = open_all(shared, LOADED)
    for engine in engines:
        for number in range(ENTRIES):
            engine.put(b"%016d" % (number * 7919 % ENTRIES), os.urandom(VALUE_BYTES))
    in_memtables = resident_bytes(os.getpid()) - memory
    accounted = shared.stats()["memory"]["total"]
    for engine in engines:
        engine.flush()
    for engine in engines:
        engine.multi_get(b"%016d" % number for number in range(0, ENTRIES, 50))
    result = {
        "loaded_kib_each": in_memtables / LOADED / 1024,
        "loaded_accounted_kib_each": accounted / LOADED / 1024,
        "flushed_kib_each": (resident_bytes(os.getpid()) - memory) / LOADED / 1024,
        "flushed_accounted_kib_each": shared.stats()["memory"]["total"] / LOADED / 1024,
        "flushed_descriptors_each": (descriptors() - files) / LOADED,
        "close_loaded_s": close_all(engines),
    }
    engines, result["reopen_loaded_s"] = open_all(shared, LOADED)
    close_all(engines)
    shared.close()
    return result


def run(step: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        output = subprocess.run(
            [sys.executable, __file__, "--step", step, "--directory", directory],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=["empty", "loaded"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"empty": empty, "loaded": loaded}[options.step](options.directory)))
        return
    result = {name: round(value, 2) for step in ("empty", "loaded") for name, value in run(step).items()}
    for name, value in result.items():
        print(f"{name:>28} {value:>8}" + (f"   bar: <= {BARS[name]}" if name in BARS else ""))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
