"""What the results of one op stream may take: 64 MiB and one value (docs/protocol.md section 5)."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import storenode.engine as engine_package
from kvclient import errors, protocol
from kvclient.errors import RequestTooLarge, Status
from storenode.engine import Engine

VALUE = bytes(range(256)) * 4096  # 1 MiB
FIT = 64


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engine_package.open(str(tmp_path)) as opened:
        opened.put(b"k", VALUE)
        yield opened


def test_gets_beyond_64_mib_of_results_are_refused_one_by_one(engine: Engine) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 5000
    ops = protocol.encode_get(b"k") * count + protocol.encode_exists(b"k") + protocol.encode_get(b"missing")
    results = protocol.decode_results(engine.read(ops, 0))
    assert len(results) == count + 2
    assert all(result[:2] == [0, VALUE] for result in results[:FIT])
    assert all(result[0] == Status.REQUEST_TOO_LARGE for result in results[FIT:count])
    assert results[count] == [0, 1]
    assert results[count + 1][0] == Status.REQUEST_TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10, "KiB"


def test_writes_behind_the_bound_are_executed_and_replayed_alike(tmp_path: Path) -> None:
    get = protocol.encode_get(b"k")
    ops = (
        get * (FIT + 1) + protocol.encode_increment(b"n", 5) + get + protocol.encode_put(b"k", b"small") + get
    )
    with engine_package.open(str(tmp_path)) as engine:
        engine.put(b"k", VALUE)
        results = protocol.decode_results(engine.write(ops, sync=True))
        refused = [13, "the results before this one are over 64 MiB: ask for fewer keys at once"]
        first = 2 + FIT + 1
        assert results[FIT:] == [refused, [0, 5, first], refused, [0, first + 2], refused]
        before = engine.scan(), engine.next_sequence
    with engine_package.open(str(tmp_path)) as engine:
        assert (engine.scan(), engine.next_sequence) == before


def test_a_value_is_whole_however_little_room_is_left(engine: Engine) -> None:
    engine.put(b"s", b"small")
    ops = protocol.encode_get(b"k") * (FIT - 1) + protocol.encode_get(b"s") + protocol.encode_get(b"k") * 2
    results = protocol.decode_results(engine.read(ops, 0))
    assert [result[0] for result in results] == [0] * (FIT + 1) + [13]
    assert results[FIT][1] == VALUE


def test_the_sdk_names_a_refused_get_for_what_it_is(engine: Engine) -> None:
    results = protocol.decode_results(engine.read(protocol.encode_get(b"k") * (FIT + 1), 0))
    error = errors.from_result(results[-1])
    assert type(error) is RequestTooLarge
    assert "ask for fewer keys at once" in str(error)
    assert not error.retryable
