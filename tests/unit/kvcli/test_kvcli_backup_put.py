"""How a backup is put back: acknowledged prefixes, repetition, time to live, damage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvclient.cli import backupset, retrying
from kvclient.cli.backupfile import BadBackup
from kvclient.cli.backupput import Done, Restorer
from kvclient.cli.backupset import Backup, file_name
from kvclient.cli.retrying import Patience
from kvclient.errors import BatchError, KVError, OutcomeUnknown, Unavailable, ValueTooLarge
from kvclient.protocol import TTL_MS_MAX
from tests.unit.kvcli.smallbackup import make


class Cluster:
    """Takes puts of pipelines; `trouble` is called at the end of each, and may raise."""

    def __init__(self, trouble: Callable[[dict[bytes, Any]], None] = lambda puts: None) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.ttls: dict[bytes, float | None] = {}
        self.pipelines = 0
        self._trouble = trouble
        self._lock = threading.Lock()

    @contextmanager
    def pipeline(self) -> Iterator[Cluster.Pipeline]:
        made = Cluster.Pipeline()
        yield made
        with self._lock:
            self.pipelines += 1
            self._trouble(made.puts)
            self.keys |= {key: value for key, (value, _) in made.puts.items()}
            self.ttls |= {key: ttl for key, (_, ttl) in made.puts.items()}

    class Pipeline:
        def __init__(self) -> None:
            self.puts: dict[bytes, tuple[bytes, float | None]] = {}

        def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
            self.puts[key] = value, ttl


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_BACKOFF_SECONDS_FIRST", 0.0)


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    """120 keys in four partitions, blocks of 20."""
    make(tmp_path / "b")
    return backupset.read(tmp_path / "b")


def restore(cluster: Cluster, backup: Backup, done: Done | None = None, seconds: float = 1.0) -> list[Done]:
    """Runs it; what was recorded after each step."""
    steps: list[Done] = []
    patience = Patience(seconds, lambda error: None)
    Restorer(
        cluster.pipeline,  # type: ignore[arg-type]  # of a pipeline's methods one is needed
        patience,
        done or Done(),
        lambda done: steps.append(Done(done.state())),
    ).run(backup)
    return steps


def everything() -> dict[bytes, bytes]:
    return {b"%d-%03d" % (number, at): b"value" * at for number in (0, 1, 3) for at in range(40)}


def test_everything_is_put_and_recorded_in_order(backup: Backup) -> None:
    cluster = Cluster()
    steps = restore(cluster, backup)
    assert cluster.keys == everything()
    assert set(cluster.ttls.values()) == {None}
    marks = [(step.partition, step.offset) for step in steps]
    assert marks == sorted(marks)
    assert [step.restored for step in steps] == [20, 40, 60, 80, 100, 120]


def test_it_goes_on_behind_what_is_recorded_wherever_that_is(backup: Backup) -> None:
    steps = restore(Cluster(), backup)
    for step in steps:
        cluster = Cluster()
        done = Done(step.state())
        restore(cluster, backup, done)
        expected = dict(sorted(everything().items())[step.restored :])
        assert cluster.keys == expected
        assert done.restored == 120


def test_what_fails_for_a_while_is_put_again(backup: Backup) -> None:
    failures: list[KVError] = [
        Unavailable("no leader"),
        BatchError("some", errors=[(0, OutcomeUnknown("who knows")), (1, Unavailable("no leader"))]),
    ]

    def trouble(puts: dict[bytes, Any]) -> None:
        if failures:
            raise failures.pop()

    cluster = Cluster(trouble)
    restore(cluster, backup)
    assert cluster.keys == everything()
    assert cluster.pipelines == 6 + 2


def test_what_another_try_does_not_mend_ends_it_with_what_is_done_recorded(backup: Backup) -> None:
    def trouble(puts: dict[bytes, Any]) -> None:
        if b"1-025" in puts:
            errors: list[tuple[int, KVError]] = [
                (0, Unavailable("no leader")),
                (3, ValueTooLarge("value of 5 bytes", limit=4)),
            ]
            raise BatchError("two", errors=errors)

    cluster = Cluster(trouble)
    done = Done()
    with pytest.raises(ValueTooLarge):
        restore(cluster, backup, done)
    assert (done.partition, done.restored) == (1, 60), "the blocks before it"
    cluster = Cluster()
    restore(cluster, backup, done)
    assert set(everything()) - set(cluster.keys) == {*sorted(everything())[:60]}


def test_a_cluster_that_stays_away_ends_it(backup: Backup) -> None:
    def trouble(puts: dict[bytes, Any]) -> None:
        raise Unavailable("no leader")

    done = Done()
    with pytest.raises(Unavailable):
        restore(Cluster(trouble), backup, done, seconds=0.05)
    assert done.state() == Done().state()


def test_damage_ends_it_behind_what_was_sound(backup: Backup) -> None:
    path = backup.directory / file_name(1)
    data = bytearray(path.read_bytes())
    data[-60] ^= 1
    path.write_bytes(data)
    cluster = Cluster()
    with pytest.raises(BadBackup) as found:
        restore(cluster, backup)
    assert found.value.path == path
    assert {key for key in everything() if key < b"1-020"} <= set(cluster.keys)
    assert not {key for key in cluster.keys if key >= b"1-020"}


def test_keys_get_the_time_that_they_have_left_and_expired_ones_stay_away() -> None:
    from kvclient.cli.backupfile import Record

    now = 1_000_000
    cluster = Cluster()
    restorer = Restorer(
        cluster.pipeline,  # type: ignore[arg-type]  # as above
        Patience(1.0, lambda error: None),
        Done(),
        lambda done: None,
        wall_ms=lambda: now,
    )
    records = [
        Record(b"lasting", b"", 1, 0),
        Record(b"a minute", b"", 1, now + 60_000),
        Record(b"a moment", b"", 1, now + 1),
        Record(b"now", b"", 1, now),
        Record(b"long ago", b"", 1, 1),
        Record(b"clocks differ", b"", 1, now + TTL_MS_MAX + 5000),
    ]
    assert restorer._put(records) == 2
    assert cluster.ttls == {
        b"lasting": None,
        b"a minute": 60.0,
        b"a moment": 0.001,
        b"clocks differ": TTL_MS_MAX / 1000,
    }
