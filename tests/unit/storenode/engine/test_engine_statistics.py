"""What `stats` says is what happened, and memory is where it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import protocol
from storenode.engine import Options, Shared
from storenode.engine.options import LEVELS
from storenode.engine.stalls import FINE, SLOW, STOP, Stalls

QUIET = Options(level0_trigger=100, level0_slow=100, level0_stop=100, compression="none")
KEYS = [b"%05d" % number for number in range(2000)]


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def test_stalls_are_counted_by_degree_and_reason_with_what_still_goes_on() -> None:
    clock = Clock()
    stalls = Stalls(clock)
    for seconds, degree, reason in (
        (1.0, SLOW, "level0"),
        (2.0, SLOW, "level0"),
        (3.0, STOP, "level0"),
        (4.0, STOP, "memtables"),
        (5.0, FINE, None),
        (6.0, SLOW, "level0"),
    ):
        clock.now += seconds
        stalls.note(degree, reason)  # type: ignore[arg-type]
    clock.now += 0.5
    found = stalls.stats()
    assert found["slow"]["level0"] == {"times": 2, "seconds": 5.5}
    assert found["stop"]["level0"] == {"times": 1, "seconds": 4.0}
    assert found["stop"]["memtables"] == {"times": 1, "seconds": 5.0}
    assert found["slow"]["memory"] == found["stop"]["memory"] == {"times": 0, "seconds": 0.0}
    clock.now += 1
    assert stalls.stats()["slow"]["level0"]["seconds"] == 6.5


def test_pressure_is_noted_with_its_reason_and_its_end(tmp_path: Path) -> None:
    options = Options(level0_trigger=2, level0_slow=2, level0_stop=3)
    with engine_package.open(str(tmp_path), options=options) as engine:
        with engine.shared._condition:
            engine.background.running.add("compaction")
        for degree in (FINE, SLOW, STOP):
            engine.put(b"k", b"v")
            engine.flush()
            assert engine.pressure() == degree
        with engine.shared._condition:
            engine.background.running.discard("compaction")
        engine.compact()
        assert engine.stalls._now == (FINE, None), "the worker noted it"
        backlog = engine.stats()["backlog"]
        assert backlog["slow"]["level0"]["times"] == backlog["stop"]["level0"]["times"] == 1
        assert backlog["stop"]["level0"]["seconds"] > 0
        assert backlog["slow"]["memtables"]["times"] == 0


def test_reads_count_tables_blocks_and_what_filters_did(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        for part in (KEYS[::2], KEYS[1::2]):
            for key in part:
                engine.put(key, b"v" * 50)
            engine.flush()
        assert engine.stats()["reads"]["lookups"] == 0
        for key in KEYS:
            assert engine.get(key) is not None
        single = engine.stats()["reads"]
        assert single["lookups"] == len(KEYS)
        newest_asked_in_vain = single["filters_useful"] + single["filters_misled"]
        assert newest_asked_in_vain == len(KEYS) // 2 - 1, (
            "the first key lies before it, the other half in it"
        )
        assert 0.95 < single["filters_useful"] / newest_asked_in_vain < 1
        assert single["tables_per_lookup"] == pytest.approx(1.5, abs=1e-3)
        assert 1 <= single["blocks_per_lookup"] < 1.05
        assert single["filter_false_positive_rate"] == pytest.approx(
            single["filters_misled"] / newest_asked_in_vain, abs=1e-3
        )
        engine.multi_get(KEYS)
        together = engine.stats()["reads"]
        assert together["lookups"] == 2 * single["lookups"]
        for name in ("filters_useful", "filters_misled"):
            assert together[name] == 2 * single[name], "in groups it is counted in the same way"
        assert together["blocks_per_lookup"] == single["blocks_per_lookup"]
        engine.read(protocol.encode_get(KEYS[0]) + protocol.encode_exists(b"absent"), 1)
        assert engine.stats()["reads"]["lookups"] == together["lookups"] + 2
        engine.put(b"k", b"v")
        before = engine.stats()["reads"]
        engine.get(b"k")
        after = engine.stats()["reads"]
        assert after["lookups"] == before["lookups"] + 1
        assert after["filters_useful"] == before["filters_useful"], "a memtable had it"


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_search_in_vain_is_counted_once_whatever_leads_to_the_block(
    tmp_path: Path, cache_bytes: int
) -> None:
    shared = Shared(str(tmp_path), cache_bytes=cache_bytes)
    options = Options(bits_per_key=1)  # lets nearly everything through
    with engine_package.open(str(tmp_path / "e"), options=options, shared=shared) as engine:
        for key in KEYS[::2]:
            engine.put(key, b"v")
        engine.flush()
        absent = KEYS[1:-1:2]
        for times, ask in (
            (1, lambda: [engine.get(key) for key in absent]),
            (2, lambda: engine.multi_get(absent)),
        ):
            assert ask() == [None] * len(absent)
            reads = engine.stats()["reads"]
            assert reads["filters_useful"] + reads["filters_misled"] == times * len(absent)
    shared.close()


def test_levels_say_what_was_written_into_them(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=QUIET) as engine:
        for _ in range(3):
            for key in KEYS:
                engine.put(key, b"v" * 50)
            engine.flush()
        flushed = engine.stats()
        level0 = flushed["levels"][0]
        assert level0["entries"] == 3 * len(KEYS)
        assert level0["bytes"] == level0["bytes_written"] == flushed["flush_bytes"]
        engine.compact()
        stats = engine.stats()
        last = stats["levels"][LEVELS - 1]
        assert last["entries"] == len(KEYS)
        assert last["bytes"] == last["bytes_written"] == stats["compaction_bytes_written"]
        assert last["bytes_read"] == last["bytes_from_above"] == level0["bytes"]
        assert last["write_amplification"] == pytest.approx(1 / 3, abs=0.02)
        engine.put(KEYS[0], b"again")
        engine.compact()
        again = engine.stats()["levels"][LEVELS - 1]
        assert again["bytes_from_above"] - last["bytes_from_above"] < 2000
        assert again["bytes_read"] - last["bytes_read"] > last["bytes"]
        stats = engine.stats()
        written = sum(level["bytes_written"] for level in stats["levels"])
        assert written == stats["flush_bytes"] + stats["compaction_bytes_written"]
        assert stats["write_amplification"] == round(written / stats["log_bytes_written"], 3)


def test_memory_of_all_engines_is_summed_by_class(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), cache_bytes=4 << 20)
    first, second = (
        engine_package.open(str(tmp_path / str(number)), options=QUIET, shared=shared, engine_id=number)
        for number in range(2)
    )
    for engine in (first, second):
        for key in KEYS:
            engine.put(key, b"v" * 50)
    first.flush()
    first.multi_get(KEYS)
    stats = shared.stats()
    memory = stats["memory"]
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    assert memory["memtables"] == first.memtable_bytes + second.memtable_bytes > 200_000
    assert memory["cache"] == stats["cache"]["bytes"] >= stats["cache"]["pinned_bytes"] > 0
    assert memory["tables"] == first.stats()["memory"]["tables"] > 0 == second.stats()["memory"]["tables"]
    assert memory["log_window"] > 0
    assert stats["engines"] == 2
    first.close()
    second.close()
    assert shared.stats()["memory"]["memtables"] == 0
    shared.close()


LOAD = """
import gc, json, os, sys
import storenode.engine as engine_package
from storenode.engine import Options, Shared

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

shared = Shared(sys.argv[1], cache_bytes=16 << 20, memtable_bytes=256 << 20)
options = Options(memtable_bytes=64 << 20, table_bytes=16 << 10, compression="none")
with engine_package.open(sys.argv[1] + "/e", options=options, shared=shared) as engine:
    engine.put(b"first", b"")
    gc.collect()
    before, accounted = resident(), shared.stats()["memory"]["total"]
    for number in range(60_000):
        engine.put(b"%016d" % number, b"%0400d" % number)
    engine.compact()
    engine.multi_get(b"%016d" % number for number in range(0, 60_000, 2))
    for number in range(50_000):
        engine.put(b"%016d" % (number * 7919 % 60_000), b"%0400d" % number)
    gc.collect()
    grown = resident() - before
    memory = shared.stats()["memory"]
    memory["accounted"] = memory["total"] - accounted
    print(json.dumps(memory | {"grown": grown}))
shared.close()
"""


def test_the_sum_is_what_the_process_grew_by(tmp_path: Path) -> None:
    """Within a fifth, and 8 MiB for what jobs and malloc keep for a while."""
    output = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], check=True, stdout=subprocess.PIPE, timeout=100
    ).stdout
    found = json.loads(output)
    assert found["memtables"] > 20 << 20
    assert found["cache"] > 12 << 20
    assert found["tables"] > 2 << 20
    assert abs(found["grown"] - found["accounted"]) < 0.2 * found["accounted"] + (8 << 20), found
