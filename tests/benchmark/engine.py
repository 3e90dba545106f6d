"""scripts/bench engine: the engine next to LevelDB, RocksDB and LMDB, all from Python, in the same run.

16-byte keys, 100-byte values that compress to a half, 1 million entries (200,000 with --quick). What each
engine is set to: engine_bench/stores.py. Rounds alternate between the engines, medians are reported; a ratio
is the median of the rounds' ratios to the better of LevelDB and RocksDB. Reads are of data that was loaded in
random order and compacted by each engine's own means; "/4x" is with a cache of a quarter of the data's size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmark.engine_bench.data import ENTRY_BYTES

ROOT = Path(__file__).resolve().parents[2]
CACHE_BYTES = 64 << 20
DEFAULT_PEERS = "leveldb,rocksdb,lmdb"
LSM = ("leveldb", "rocksdb", "leveldb-plain", "rocksdb-plain")
PEERS = (*LSM, "lmdb")
FILLS = {"fillseq": 2.0, "fillrandom": 2.0, "fillbatch100": 2.0}
FSYNC_BAR = 0.9
"""Of fillsync: its rate to that of the bare fdatasync."""
READS = {
    "readrandom": 2.0,
    "readmissing": 2.0,
    "multiget100": 4.0,
    "readseq": 2.0,
    "readreverse": 2.0,
    "seekrandom10": 1.5,
}
FIGURES = {
    "write_amplification": 12.0,
    "space_amplification": 1.3,
    "longest_stall_s": 1.0,
    "memory_of_budget": 1.2,
}
MEMORY_BUDGET_BYTES = CACHE_BYTES + 4 * (16 << 20)
"""Block cache and write buffers."""
WORKLOADS = (
    *FILLS,
    "fillsync",
    "overwrite",
    *READS,
    *(f"{name}/4x" for name in READS),
    "readwhilewriting",
    "figures",
    "reopen",
)


class EngineProcess:
    """A worker.py for one engine."""

    def __init__(self, stack: ExitStack, engine: str, directory: Path, entries: int) -> None:
        module = "tests.benchmark.engine_bench.worker"
        self._command = [sys.executable, "-m", module, engine, str(directory / engine), str(entries)]
        self._start()
        stack.callback(self._stop)

    def restart(self) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def _stop(self) -> None:
        with self._process:
            self._process.kill()

    def __call__(self, do: str, **arguments: object) -> Any:
        """What the worker's command returns; RuntimeError with what it raised."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # the answer tells what became of it
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
        line = stdout.readline()
        answer = json.loads(line) if line else {"error": f"exit code {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


class Bench:
    """All engines of a run, and the rows that it comes to."""

    def __init__(self, engines: dict[str, EngineProcess], options: argparse.Namespace) -> None:
        self._engines = engines
        self._options = options
        self._entries: int = options.entries
        self.rows: list[dict[str, Any]] = []

    def fill(self, workload: str) -> None:
        def once(name: str, number: int) -> float:
            return float(self._engines[name]("fill", workload=workload, round=number))

        self._add(workload, FILLS[workload], self._rounds(once))

    def fillsync(self) -> None:
        """Also next to the bare rate: a record of the same size appended to a file, and synced."""
        ratios: dict[str, list[float]] = {}
        bare: list[float] = []

        def once(name: str, number: int) -> float:
            result = self._engines[name]("fillsync", round=number)
            ratios.setdefault(name, []).append(result["rate"] / result["bare"])
            bare.append(result["bare"])
            return float(result["rate"])

        rates = self._rounds(once)
        ratio = round(statistics.median(ratios["ours"]), 3)
        self._add(
            "fillsync",
            None,
            rates,
            ratio_to_fdatasync=ratio,
            bar_to_fdatasync=FSYNC_BAR,
            bare_fdatasync=round(statistics.median(bare)),
            met=ratio >= FSYNC_BAR,
        )

    def overwrite(self) -> None:
        def once(name: str, number: int) -> float:
            return float(self._engines[name]("overwrite", round=number))

        self._load()
        self._add("overwrite", 1.5, self._rounds(once))

    def reads(self, wanted: list[str], cache_bytes: int, suffix: str) -> None:
        """Some of READS, over stores that stay open meanwhile."""
        if not wanted:
            return
        self._load()
        self._each("open", cache_bytes=cache_bytes)
        for workload in wanted:
            count = self._entries // 4
            if workload == "seekrandom10":
                count //= 5
            self._read(workload, count, suffix)
        self._each("shut")

    def readwhilewriting(self) -> None:
        """`writer_kept_up`: what part of its rate the writer reached; below 1 the reads were spared
        something."""
        seconds = min(self._entries / 100_000, 5.0)
        kept_up: dict[str, list[float]] = {}

        def once(name: str, number: int) -> float:
            result = self._engines[name]("readwhilewriting", round=number, seconds=seconds)
            kept_up.setdefault(name, []).append(result["writer_kept_up"])
            return float(result["rate"])

        self._load()
        rates = self._rounds(once)
        figures = {name: round(statistics.median(found), 2) for name, found in kept_up.items()}
        self._add("readwhilewriting", 1.5, rates, writer_kept_up=figures)
        slow = [f"{name} {part:.0%}" for name, part in figures.items() if part < 0.9]
        if slow:
            print(f"  not all writers reached their rate, which spares the reads: {', '.join(slow)}")

    def figures(self) -> None:
        """Amplifications, stalls, memory; with --stall-minutes, stalls of so long an overwrite."""
        self._load()
        self._renew()  # memory that earlier work has left to the allocator would hide what this needs
        results = self._each("figures", seconds=60 * self._options.stall_minutes)
        for result in results.values():
            result["memory_of_budget"] = round(result["memory_bytes"] / MEMORY_BUDGET_BYTES, 2)
        for figure, bar in FIGURES.items():
            self._add_figure(figure, bar, {name: result[figure] for name, result in results.items()})

    def reopen(self, entries: int) -> None:
        self._each("unsettled", entries=entries)
        self._renew()
        self._add_figure(f"reopen_s at {entries:,}", None, self._each("reopen"))

    def _read(self, workload: str, count: int, suffix: str) -> None:
        """One of READS. multiget100 is ours against single gets; the peers' own calls for many keys are told
        beside that."""
        batched: dict[str, list[float]] = {}

        def once(name: str, number: int) -> float:
            rates = self._engines[name]("read", workload=workload, round=number, count=count)
            if rates.get("batched"):
                batched.setdefault(name, []).append(rates["batched"])
            return float(rates["batched"] if name == "ours" and workload == "multiget100" else rates["rate"])

        rates = self._rounds(once)
        extra = {"peers_batched": medians(without_ours(batched))} if batched else {}
        self._add(workload + suffix, READS[workload], rates, **extra)

    def _load(self) -> None:
        self._each("load")

    def _renew(self) -> None:
        """A new process for each engine."""
        for engine in self._engines.values():
            engine.restart()

    def _each(self, do: str, **arguments: object) -> dict[str, Any]:
        results = {}
        for name in list(self._engines):
            try:
                results[name] = self._engines[name](do, **arguments)
            except RuntimeError as error:
                self._lost(name, error)
        return results

    def _rounds(self, once: Callable[[str, int], float]) -> dict[str, list[float]]:
        """Rates by engine; who begins changes from round to round."""
        rates: dict[str, list[float]] = {name: [] for name in self._engines}
        for number in range(self._options.rounds):
            names = list(self._engines)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                try:
                    rates[name].append(once(name, number))
                except RuntimeError as error:
                    self._lost(name, error)
        return {name: found for name, found in rates.items() if name in self._engines}

    def _lost(self, name: str, error: RuntimeError) -> None:
        if name == "ours":
            raise error
        print(f"  {name} is left out from here on: {error}")
        del self._engines[name]

    def _add(self, workload: str, bar: float | None, rates: dict[str, list[float]], **extra: object) -> None:
        peers = medians(without_ours(rates))
        lsm = {name: rate for name, rate in peers.items() if name in LSM}
        ratio = None
        if lsm:
            best = rates[max(lsm, key=lambda name: lsm[name])]
            ratio = round(
                statistics.median(ours / its for ours, its in zip(rates["ours"], best, strict=True)), 3
            )
        row = {
            "workload": workload,
            "ours": round(statistics.median(rates["ours"])),
            "peers": peers,
            "ratio_to_best_lsm": ratio,
            "bar": bar,
            "met": None if ratio is None or bar is None else ratio >= bar,
            **extra,
        }
        self.rows.append(row)
        print_row(row)

    def _add_figure(self, name: str, bar: float | None, values: dict[str, float | None]) -> None:
        ours = values.pop("ours")
        assert ours is not None
        row = {
            "workload": name,
            "ours": ours,
            "peers": values,
            "ratio_to_best_lsm": None,
            "bar": bar,
            "met": None if bar is None else ours <= bar,
        }
        self.rows.append(row)
        print_row(row)


def without_ours(rates: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in rates.items() if name != "ours"}


def medians(rates: dict[str, list[float]]) -> dict[str, int]:
    return {name: round(statistics.median(found)) for name, found in rates.items()}


def print_row(row: dict[str, Any]) -> None:
    def figure(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}" if isinstance(value, int) else f"{value:,.3f}"

    ratio, bar = row["ratio_to_best_lsm"], row["bar"]
    if "ratio_to_fdatasync" in row:
        ratio, bar = row["ratio_to_fdatasync"], row["bar_to_fdatasync"]
    peers = "  ".join(f"{name} {figure(value):>9}" for name, value in row["peers"].items())
    verdict = {True: "met", False: "NOT MET", None: ""}[row["met"]]
    print(
        f"{row['workload']:<20} {figure(row['ours']):>10}  {peers}  "
        f"{'' if ratio is None else f'{ratio:.2f}':>6}  {'' if bar is None else f'{bar:g}':>4}  {verdict}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="200,000 entries instead of 1,000,000")
    parser.add_argument(
        "--only", metavar="WORKLOAD[,..]", default=",".join(WORKLOADS), help=", ".join(WORKLOADS)
    )
    parser.add_argument(
        "--peers", metavar="LIST", default=DEFAULT_PEERS, help=f"of {', '.join(PEERS)}; -plain: uncompressed"
    )
    parser.add_argument("--long", action="store_true", help="10 minutes of overwriting; reopen at 10 million")
    parser.add_argument("--stall-minutes", type=float)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--directory", type=Path, help="where the stores are made; default: the temporary one"
    )
    parser.add_argument("--entries", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.entries = options.entries or (200_000 if options.quick else 1_000_000)
    if options.stall_minutes is None:
        options.stall_minutes = 10.0 if options.long else 0.0
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")

    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        engines = {}
        for name in ("ours", *peers):
            engine = EngineProcess(stack, name, directory, options.entries)
            try:
                print(f"{name}: {engine('about')}")
                engines[name] = engine
            except RuntimeError as error:
                if name == "ours":
                    raise
                print(f"{name}: not installed, the run goes on without it ({error})")
        busy = os.getloadavg()[0]
        print(
            f"{options.entries:,} entries, median of {options.rounds} rounds, ops/s; load average {busy:.1f}"
        )
        if busy > 0.5:
            print(
                "other work is running on this machine: expect every figure to be low, and ratios to wander"
            )
        columns = "".join(f"  {'':>{len(name)}} {'':>9}" for name in engines if name != "ours")
        print(f"{'workload':<20} {'ours':>10}{columns}  {'ratio':>6}  {'bar':>4}")
        bench = Bench(engines, options)
        for workload in wanted:
            if workload in FILLS:
                bench.fill(workload)
        if "fillsync" in wanted:
            bench.fillsync()
        if "overwrite" in wanted:
            bench.overwrite()
        bench.reads([name for name in READS if name in wanted], CACHE_BYTES, "")
        quarter = options.entries * ENTRY_BYTES // 4
        bench.reads([name for name in READS if f"{name}/4x" in wanted], quarter, "/4x")
        if "readwhilewriting" in wanted:
            bench.readwhilewriting()
        if "figures" in wanted:
            bench.figures()
        if "reopen" in wanted:
            bench.reopen(options.entries)
            if options.long:
                bench.reopen(10_000_000)
        if options.json:
            options.json.write_text(json.dumps(bench.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
