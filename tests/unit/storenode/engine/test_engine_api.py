"""The engine's face: results byte for byte, time, snapshots, budgets, sharing, misuse."""

from __future__ import annotations

import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import storenode.engine as engine_package
from kvclient import protocol
from kvclient.errors import InvalidRequest
from storenode.engine import Engine, EngineClosed, Options, Shared

SMALL = Options(
    memtable_bytes=1 << 14, table_bytes=1 << 14, base_bytes=1 << 15, level_ratio=2, level0_trigger=2
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path / "engine")) as opened:
        yield opened


def run(engine: Engine, *ops: bytes, now: int = 1000) -> list[list[Any]]:
    return protocol.decode_results(run_bytes(engine, *ops, now=now))


def run_bytes(engine: Engine, *ops: bytes, now: int = 1000) -> bytes:
    stream, first = b"".join(ops), engine.next_sequence
    return engine.apply(stream, first, now, engine.append([(first, now, stream)]))


def read(engine: Engine, *ops: bytes, now: int = 1000) -> list[list[Any]]:
    return protocol.decode_results(engine.read(b"".join(ops), now))


def test_the_worked_examples_of_the_protocol(engine: Engine) -> None:
    assert run_bytes(engine, bytes.fromhex("9302c40568656c6c6fc405776f726c64")) == bytes.fromhex("920001")
    assert engine.read(bytes.fromhex("9201c40568656c6c6f"), 0) == bytes.fromhex("9300c405776f726c6401")
    assert engine.read(protocol.encode_get(b"missing"), 0) == bytes.fromhex("9101")
    for _ in range(5):
        run(engine, protocol.encode_exists(b"hello"))
    run(engine, bytes.fromhex("9502c4016bc40176c09101"))
    assert run_bytes(engine, bytes.fromhex("9502c4016bc40176c09101")) == bytes.fromhex("920207")
    scanned = engine.read(bytes.fromhex("9507c400c00200"), 0)
    entries = bytes.fromhex("c40568656c6c6fc405776f726c6401c4016bc4017607")
    assert scanned == bytes.fromhex("930002c4") + bytes([len(entries)]) + entries


def test_numbers_are_written_in_their_shortest_form(engine: Engine) -> None:
    for number in (
        0,
        -1,
        -32,
        -33,
        -128,
        -129,
        -32769,
        -(2**31) - 1,
        -(2**63),
        127,
        128,
        255,
        256,
        65535,
        65536,
        2**32,
        2**63 - 1,
    ):
        sequence = engine.next_sequence
        assert run_bytes(engine, protocol.encode_increment(b"n%d" % sequence, number)) == msgpack.packb(
            [0, number, sequence]
        )
        assert engine.get(b"n%d" % sequence) == b"%d" % number


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 1 << 20, 8 << 20])
def test_values_of_every_length_come_back(engine: Engine, size: int) -> None:
    value = random.Random(size).randbytes(size)
    assert run(engine, protocol.encode_put(b"k" * 4096, value)) == [[0, 1]]
    for _ in range(2):
        assert read(engine, protocol.encode_get(b"k" * 4096)) == [[0, value, 1]]
        assert engine.scan() == engine.scan(reverse=True) == [(b"k" * 4096, value)]
        engine.flush()


def test_every_op_takes_a_sequence_and_failed_ones_change_nothing(engine: Engine) -> None:
    results = run(
        engine,
        protocol.encode_put(b"a", b"1"),
        protocol.encode_get(b"a"),
        protocol.encode_put(b"a", b"2", condition=protocol.absent()),
        protocol.encode_delete(b"b"),
        protocol.encode_delete(b"a", protocol.version_equals(9)),
        protocol.encode_delete(b"b", protocol.present()),
        protocol.encode_put(b"a", b"3", condition=protocol.value_equals(b"1")),
        protocol.encode_put(b"a", b"4", condition=protocol.version_equals(7)),
        protocol.encode_exists(b"a"),
    )
    assert results == [[0, 1], [0, b"1", 1], [2, 1], [1], [2, 1], [2, 0], [0, 7], [0, 8], [0, 8]]
    assert engine.next_sequence == 10


@pytest.mark.parametrize(
    ("value", "delta", "fits"),
    [
        (b"5", -7, True),
        (b"-0", 1, False),
        (b"00", 1, False),
        (b"+1", 1, False),
        (b" 1", 1, False),
        (b"1.0", 1, False),
        (b"", 1, False),
        (b"-", 1, False),
        (b"9223372036854775807", 0, True),
        (b"9223372036854775807", 1, False),
        (b"9223372036854775808", 0, False),
        (b"-9223372036854775808", 0, True),
        (b"-9223372036854775808", -1, False),
        (b"-9223372036854775809", 0, False),
        (b"1" * 30, 0, False),
    ],
)
def test_increment_knows_what_a_number_is(engine: Engine, value: bytes, delta: int, fits: bool) -> None:
    _, result = run(engine, protocol.encode_put(b"n", value), protocol.encode_increment(b"n", delta))
    if fits:
        assert result == [0, int(value) + delta, 2]
    else:
        assert result[0] == 3
        assert isinstance(result[1], str)
        assert engine.get(b"n") == value


def test_a_time_to_live_counts_from_the_entrys_time_and_ends_exactly(engine: Engine) -> None:
    run(engine, protocol.encode_put(b"k", b"v", ttl_ms=500), now=1000)
    for flushed in (False, True):
        assert read(engine, protocol.encode_get(b"k"), now=1100) == [[0, b"v", 1, 400]]
        assert read(engine, protocol.encode_get(b"k"), now=1499) == [[0, b"v", 1, 1]]
        assert read(engine, protocol.encode_get(b"k"), protocol.encode_exists(b"k"), now=1500) == [[1], [1]]
        if not flushed:
            engine.flush()
    assert run(engine, protocol.encode_touch(b"k", None), protocol.encode_get(b"k"), now=1499) == [
        [0, 2],
        [0, b"v", 2],
    ]
    run(engine, protocol.encode_touch(b"k", 10), now=1500)
    assert run(engine, protocol.encode_increment(b"k", 1), now=1509)[0][0] == 3
    assert run(engine, protocol.encode_put(b"k", b"w", condition=protocol.present()), now=1510) == [[2, 0]]
    assert run(engine, protocol.encode_increment(b"k", 1), protocol.encode_get(b"k"), now=1510) == [
        [0, 1, 7],
        [0, b"1", 7],
    ]


def test_the_engines_clock_does_not_go_back(engine: Engine) -> None:
    run(engine, protocol.encode_put(b"k", b"v", ttl_ms=10), now=1000)
    run(engine, now=2000)
    assert read(engine, protocol.encode_get(b"k"), now=1000) == [[1]]
    run(engine, protocol.encode_put(b"k", b"v", ttl_ms=10), now=1000)
    assert read(engine, protocol.encode_get(b"k"), now=1000) == [[0, b"v", 2, 10]]


def test_the_clock_and_the_sequence_outlive_flush_compaction_and_reopening(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path)) as engine:
        run(engine, protocol.encode_put(b"k", b"v", ttl_ms=10), protocol.encode_put(b"l", b""), now=5000)
        run(engine, protocol.encode_delete(b"absent"), now=6000)
        engine.compact()
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.next_sequence == 4
        assert read(engine, protocol.encode_get(b"k"), now=5000) == [[1]]
        assert engine.stats()["table_entries"] == 1, "the expired key was dropped"
        run(engine, protocol.encode_put(b"m", b"v", ttl_ms=10), now=5000)
        assert read(engine, protocol.encode_get(b"m"), now=5500) == [[0, b"v", 4, 10]]


def test_malformed_streams_are_refused_whole_and_change_nothing(engine: Engine) -> None:
    run(engine, protocol.encode_put(b"k", b"v"))
    source = random.Random(6)
    good = [
        protocol.encode_put(b"key", b"value" * 30, 5000, protocol.value_equals(b"x" * 300)),
        protocol.encode_delete(b"key", protocol.version_equals(2**40)),
        protocol.encode_increment(b"key", -(2**40)),
        protocol.encode_touch(b"key", 70_000),
        protocol.encode_get(b"k"),
    ]
    refused = 0
    before = engine.scan()
    for _ in range(20_000):
        stream = bytearray(b"".join(source.sample(good, 3)))
        choice = source.randrange(3)
        if choice == 0:
            del stream[source.randrange(len(stream)) :]
        else:
            for _ in range(choice):
                stream[source.randrange(len(stream))] = source.randrange(256)
        try:
            engine.read(bytes(stream), 0)
        except InvalidRequest:
            refused += 1
    assert refused > 15_000, "the rest is well formed by chance"
    for bad in (
        b"\x92\x01",
        b"\xc0",
        protocol.encode_put(b"a", b"b") + b"\x00",
        b"\x92\x01\xa1k",
        b"\x92\x01\xc4\x00",
    ):
        sequence = engine.next_sequence
        with pytest.raises(InvalidRequest):
            engine.apply(
                protocol.encode_put(b"new", b"value") + bad, sequence, 0, engine.append([(sequence, 0, b"")])
            )
    assert engine.scan() == before


def test_a_malformed_stream_in_the_log_does_nothing_at_recovery_either(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path)) as engine:
        run(engine, protocol.encode_put(b"a", b"1"))
        with pytest.raises(InvalidRequest):
            run(engine, protocol.encode_put(b"b", b"2"), b"\xff")
        run(engine, protocol.encode_put(b"c", b"3"))
        expected = [(b"a", b"1"), (b"c", b"3")]
        assert engine.scan() == expected
    with engine_package.open(str(tmp_path)) as engine:
        assert engine.scan() == expected
        assert engine.next_sequence == 3


def test_reads_do_not_write_and_scans_are_not_applied(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="can be read"):
        engine.read(protocol.encode_put(b"a", b"b"), 0)
    with pytest.raises(InvalidRequest, match="cannot be applied"):
        run(engine, protocol.encode_scan(b"", None, 1))


def test_multi_get_answers_in_order_with_none_for_what_is_absent(engine: Engine) -> None:
    for key in (b"a", b"b", b"c"):
        engine.put(key, key * 3)
    engine.delete(b"b")
    engine.flush()
    engine.put(b"d", b"")
    assert engine.multi_get([b"d", b"b", b"a", b"nothing", b"a"]) == [b"", None, b"aaa", None, b"aaa"]
    assert engine.multi_get([]) == []
    with pytest.raises(TypeError):
        engine.multi_get([b"a", "b"])  # type: ignore[list-item]


def test_logs_go_when_their_entries_are_in_tables(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=Options(memtable_bytes=1)) as engine:
        for number in range(20):
            engine.put(b"%d" % number, b"")
        engine.flush()
    assert len(list(tmp_path.glob("*.wal"))) <= 1
    with engine_package.open(str(tmp_path)) as engine:
        assert len(engine.scan()) == 20


def test_engines_share_a_manifest_and_do_not_mix(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path))
    engines = [
        engine_package.open(str(tmp_path / f"p{number}"), shared=shared, engine_id=number, options=SMALL)
        for number in range(5)
    ]
    for round_number in range(300):
        for number, engine in enumerate(engines):
            engine.put(b"%04d" % round_number, b"%d" % number * 50)
    for engine in engines[::2]:
        engine.compact()
    for engine in engines:
        engine.close()
    shared.close()
    shared = Shared(str(tmp_path))
    for number in range(5):
        with engine_package.open(str(tmp_path / f"p{number}"), shared=shared, engine_id=number) as engine:
            assert engine.scan() == [
                (b"%04d" % round_number, b"%d" % number * 50) for round_number in range(300)
            ]
    shared.close()


def test_memtables_of_all_engines_keep_to_one_budget(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path), memtable_bytes=1 << 20)
    engines = [
        engine_package.open(str(tmp_path / f"p{number}"), shared=shared, engine_id=number)
        for number in range(4)
    ]
    for number in range(200):
        engine = engines[min(number % 8, 3)]
        run(
            engine,
            *(
                protocol.encode_put(b"%06d" % key, bytes(1000))
                for key in range(number * 20, number * 20 + 20)
            ),
        )
        if shared.memtable_bytes() > 3 << 20:
            shared.wait_for(lambda: shared.memtable_bytes() <= 3 << 20)
    assert sum(engine.stats()["flushes"] for engine in engines) > 0
    for engine in engines:
        engine.flush()
        assert engine.verify() == []
        engine.close()
    shared.close()


def test_an_idle_engine_costs_kilobytes(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path))

    def open_some(first: int, count: int) -> list[Engine]:
        return [
            engine_package.open(str(tmp_path / f"p{number}"), shared=shared, engine_id=number)
            for number in range(first, first + count)
        ]

    engines = open_some(0, 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engines += open_some(20, 100)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 64
    for engine in engines:
        engine.close()
    shared.close()


def test_pressure_tells_how_far_behind_the_workers_are(tmp_path: Path) -> None:
    shared = Shared(str(tmp_path))
    engine = engine_package.open(str(tmp_path), shared=shared)
    assert engine.pressure() == 0
    engine.background.stop()  # no flush will come
    seen = []
    for number in range(5):
        run(engine, protocol.encode_put(b"%d" % number, b""))
        engine.retire_memtable()
        seen.append(engine.pressure())
    assert seen == [0, 1, 1, 2, 2]
    assert engine.stats()["pressure"] == 2
    engine.close()
    shared.close()


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine_id"):
        engine_package.open(str(tmp_path / "x"), engine_id=65535)
    shared = Shared(str(tmp_path))
    engine = engine_package.open(str(tmp_path / "p"), shared=shared)
    with pytest.raises(ValueError, match="is open already"):
        engine_package.open(str(tmp_path / "q"), shared=shared)
    with pytest.raises(BlockingIOError):
        Shared(str(tmp_path))
    with pytest.raises(ValueError, match="append never returned it"):
        engine.apply(b"", 1, 0, 5)
    run(engine, protocol.encode_put(b"a", b""))
    with pytest.raises(ValueError, match="the next one is 2"):
        engine.apply(protocol.encode_put(b"a", b""), 1, 0, 1)
    with pytest.raises(RuntimeError, match="close the engines"):
        shared.close()
    engine.close()
    engine.close()
    for call in (
        lambda: engine.get(b"a"),
        lambda: engine.read(b"", 0),
        lambda: engine.append([]),
        engine.flush,
        engine.snapshot,
    ):
        with pytest.raises(EngineClosed):
            call()
    shared.close()
    shared.close()


def test_one_thread_logs_while_another_applies_and_reads(tmp_path: Path) -> None:
    """The store's way: entries are logged on one thread and applied on another, in order, with flushes and
    compactions beneath."""
    with engine_package.open(str(tmp_path), options=SMALL) as engine:
        batches = [
            [
                (1 + 10 * at + i, 1, protocol.encode_put(b"%05d" % (7 * (10 * at + i) % 3000), b"%d" % at))
                for i in range(10)
            ]
            for at in range(300)
        ]
        logged: list[int] = []
        ready = threading.Condition()

        def log() -> None:
            for batch in batches:
                number = engine.append(batch)
                with ready:
                    logged.append(number)
                    ready.notify()

        thread = threading.Thread(target=log)
        thread.start()
        model = {}
        for at, batch in enumerate(batches):
            with ready:
                assert ready.wait_for(lambda at=at: len(logged) > at, timeout=60)  # type: ignore[misc]
            for sequence, now, ops in batch:
                engine.apply(ops, sequence, now, logged[at])
                model[b"%05d" % (7 * (sequence - 1) % 3000)] = b"%d" % at
            if at % 50 == 0:
                assert engine.scan() == sorted(model.items())
        thread.join()
        assert engine.scan() == sorted(model.items())
        engine.flush()
        assert engine.stats()["flushes"] > 3
    with engine_package.open(str(tmp_path), options=SMALL) as engine:
        assert engine.scan() == sorted(model.items())


def test_statistics_name_what_happened(tmp_path: Path) -> None:
    with engine_package.open(str(tmp_path), options=SMALL) as engine:
        for number in range(3000):
            engine.put(b"%05d" % (number * 7 % 3000), bytes(20))
        engine.compact()
        stats = engine.stats()
        assert stats["next_sequence"] == 3001
        assert stats["flushed_sequence"] == 3000
        assert stats["table_entries"] == 3000
        assert stats["flushes"] >= 3
        assert stats["compactions"] >= 1
        assert stats["write_amplification"] > 0
        assert stats["levels"][-1]["bytes"] == stats["table_bytes"]
        assert stats["broken"] is stats["damage"] is None
    assert stats["table_bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.sst"))
