"""`kvcli check`: its judgement of hand-made answers, and its four formats."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvclient.cli import check
from kvclient.cli.app import App
from kvclient.cli.checkdata import data_of
from kvclient.cli.failure import Quit
from kvclient.cli.main import cli
from kvclient.cli.output import Output
from kvclient.cli.probe import PREFIX, Plan, measure
from kvclient.cli.report import FORMATS, Figure, Finding, Level, Report, show
from kvclient.errors import ConnectError, Exit, InvalidRequest, KVError, OutcomeUnknown
from tests.unit.kvcli.test_kvcli_status import degraded, healthy, row


def disks(**fields: Any) -> dict[str, Any]:
    answer = healthy()
    for node in answer["nodes"]:
        node |= {"disk_free_bytes": 50 << 30, "disk_size_bytes": 100 << 30, "data_dir": "/data"}
        node |= {"pressure": 0, "stall_ms": 0, "compaction_debt_bytes": 0, "failing_jobs": []}
    answer["nodes"][1] |= fields
    return answer


class Cluster:
    """A client whose cluster answers `status` with this, or raises it."""

    def __init__(self, answer: dict[str, Any] | KVError) -> None:
        self.answer = answer

    def admin(self, command: str) -> dict[str, Any]:
        assert command == "status"
        if isinstance(self.answer, KVError):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


def run(answer: dict[str, Any] | KVError, *arguments: str, form: str = "plain") -> tuple[str, int]:
    """stdout and the exit code."""
    app, stream = App(), io.BytesIO()
    app._output = Output(stream, form, "utf8", False)
    app.client = lambda: Cluster(answer)  # type: ignore[assignment, method-assign, return-value]
    code = 0
    try:
        with cli.make_context("kvcli", ["check", *arguments], obj=app) as context:
            cli.invoke(context)
    except Quit as quit_:
        code = quit_.exit_code
    return stream.getvalue().decode(), code


def test_a_healthy_cluster_is_ok_in_every_format() -> None:
    text, code = run(healthy(), "health")
    assert (text, code) == ("health: OK: 3 of 3 nodes up, 4 of 4 partitions led\n", 0)
    line, code = run(healthy(), "health", "--format", "nagios")
    assert code == 0
    assert line.startswith(
        "RINGKV HEALTH OK - 3 of 3 nodes up, 4 of 4 partitions led | 'nodes'=3 'nodes_up'=3 "
    )
    document = json.loads(run(healthy(), "health", form="json")[0])
    assert (document["schema"], document["level"], document["findings"]) == (1, "ok", [])
    text, code = run(healthy(), "health", "--format", "prometheus")
    assert code == 0
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["ringkv_check_status", "health"] == 0
    assert values["ringkv_check_health_nodes_up",] == 3
    assert values["ringkv_check_time_seconds", "health"] > 1_700_000_000


def test_what_status_and_group_ls_know_is_found() -> None:
    text, code = run(degraded(), "health")
    assert code == Exit.DEGRADED
    assert "warning: store3 is down" in text
    assert "critical: partition 3 has no leader" in text
    one_voter_gone = healthy()
    one_voter_gone["groups"][2]["voters"] = [1, 2]
    assert run(one_voter_gone, "health") == (
        "health: WARNING: 3 of 3 nodes up, 4 of 4 partitions led\n"
        "warning: partition 2: 2 of 3 voters. See: kvcli group ls --problems\n",
        Exit.DEGRADED,
    )
    paused = healthy() | {"paused": True, "moves": [], "controller": 1}
    line, code = run(paused, "health", "--format", "nagios")
    assert code == Level.WARNING
    assert "WARNING - moves are paused" in line


@pytest.mark.parametrize("form", FORMATS)
def test_a_cluster_that_cannot_be_asked_is_critical(form: str) -> None:
    gone = ConnectError("cannot reach any router (tried kv://h:1: refused)")
    text, code = run(gone, "health", "--format", form)
    assert "cannot reach any router" in text or form == "prometheus"
    assert code == {"nagios": 2, "prometheus": 0}.get(form, Exit.DEGRADED)
    if form == "prometheus":
        assert 'ringkv_check_status{check="health"} 2\n' in text


def test_a_wrong_address_is_wrong_usage_and_no_outcome() -> None:
    with pytest.raises(InvalidRequest):
        run(InvalidRequest("no kv:// address"), "health")


def test_disks_are_judged_by_what_is_free_and_what_waits() -> None:
    assert run(disks(), "disk") == ("disk: OK: 3 disks, at least 50.0 GiB free\n", 0)
    text, code = run(disks(disk_free_bytes=10 << 30), "disk")
    assert (code, "warning: store2: 10.0 GiB of 100.0 GiB free (10.0 %) at /data" in text) == (
        Exit.DEGRADED,
        True,
    )
    text, code = run(disks(disk_free_bytes=4 << 30), "disk")
    assert (code, "critical: store2: 4.0 GiB" in text) == (Exit.DEGRADED, True)
    assert run(disks(disk_free_bytes=4 << 30), "disk", "--critical", "2", "--warning", "3")[1] == 0
    assert "warning: store2: writes are slowed down" in run(disks(pressure=1), "disk")[0]
    assert "critical: store2: writes have stopped" in run(disks(pressure=2), "disk")[0]
    assert (
        "critical: store2 cannot flush or compact: flush: full"
        in run(disks(failing_jobs=["flush: full"]), "disk")[0]
    )
    assert (
        "warning: store2 owes compactions of 5.0 GiB" in run(disks(compaction_debt_bytes=5 << 30), "disk")[0]
    )


def test_a_store_that_is_down_leaves_its_disk_unknown() -> None:
    answer = disks()
    answer["nodes"][2] = {"id": 3, "name": "store3", "state": "down", "partitions": 4, "rpc": "tcp://h:1"}
    line, code = run(answer, "disk", "--format", "nagios")
    assert code == Level.UNKNOWN
    assert line.startswith(
        "RINGKV DISK UNKNOWN - store3 is down and says nothing of its disk. See: kvcli status |"
    )
    free, warning = 50 << 30, (100 << 30) * 15 // 100
    assert f"'free_bytes_store1'={free}B;{warning}:;" in line


def test_stores_that_do_not_tell_the_size_of_their_disk_are_not_judged_by_it() -> None:
    answer = disks(disk_free_bytes=1)
    del answer["nodes"][1]["disk_size_bytes"]
    assert run(answer, "disk")[1] == 0


def test_a_bar_in_a_finding_does_not_begin_the_figures() -> None:
    stream = io.BytesIO()
    report = Report("disk", "", [Finding(Level.CRITICAL, "a | b\nc")] * 5, [Figure("x", 0.25, "")])
    assert show(Output(stream, "plain", "utf8", False), "nagios", report) == Exit(2)
    assert stream.getvalue() == b"RINGKV DISK CRITICAL - a / b c; a / b c; a / b c; and 2 more | 'x'=0.25\n"


def test_latencies_are_judged_by_their_99th_percentile() -> None:
    steady = [0.001] * 98
    report = check.perf_of({"put": [*steady, 0.2, 3.0], "get": steady}, 0.1, 1.0)
    assert [finding.text for finding in report.findings] == ["put: p99 is 200.00 ms, over 100.00 ms"]
    assert report.level == Level.WARNING
    assert check.perf_of({"put": [2.0], "get": [0.1]}, 0.1, 1.0).level == Level.CRITICAL
    assert check.perf_of({"put": [0.1], "get": []}, 0.1, 1.0).level == Level.UNKNOWN
    quantiles = {
        dict(one.labels)["quantile"]: one.value for one in report.figures if one.name == "put_seconds"
    }
    assert quantiles == {"0.5": 0.001, "0.99": 0.2, "1": 3.0}


class Keys:
    """A client with an empty key space, of which one put may fail."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.held: dict[bytes, bytes] = {}
        self.puts: list[tuple[bytes, float]] = []
        self.fails_at = fails_at

    def put(self, key: bytes, value: bytes, ttl: float) -> None:
        self.held[key] = value
        self.puts.append((key, ttl))
        if len(self.puts) == self.fails_at:
            raise OutcomeUnknown("lost sight of it")

    def get(self, key: bytes) -> bytes:
        return self.held[key]

    def delete_many(self, keys: list[bytes]) -> int:
        return len([self.held.pop(key) for key in list(keys)])


def test_the_probe_has_keys_of_its_own_and_leaves_none() -> None:
    client = Keys()
    taken = measure(client, Plan(20, 100, 10.0))  # type: ignore[arg-type]
    assert {kind: len(seconds) for kind, seconds in taken.items()} == {"put": 20, "get": 20}
    assert client.held == {}
    assert all(key.startswith(PREFIX) and ttl <= 60 for key, ttl in client.puts)


def test_the_probe_deletes_its_keys_also_when_it_fails() -> None:
    client = Keys(fails_at=3)
    with pytest.raises(OutcomeUnknown):
        measure(client, Plan(20, 100, 10.0))  # type: ignore[arg-type]
    assert client.held == {}


def test_the_probe_ends_in_time_with_at_least_one_of_each() -> None:
    taken = measure(Keys(), Plan(10_000, 0, 0.0))  # type: ignore[arg-type]
    assert {kind: len(seconds) for kind, seconds in taken.items()} == {"put": 1, "get": 1}


def test_rows_without_voters_are_no_shortage() -> None:
    answer = healthy()
    answer["groups"][0] = row(0, leader=0) | {"voters": []}
    assert check._short_of_voters(answer) == []


def told(partition: int, *sums: str | None) -> dict[str, Any]:
    """An answer of `group checksum`; None: the member has none."""
    members: list[dict[str, Any]] = [
        {"id": number, "error": "it did not answer in time"}
        if digest is None
        else {"id": number, "entries": 10, "bytes": 1 << 20, "digest": digest}
        for number, digest in enumerate(sums, 1)
    ]
    return {"partition": partition, "leader": 1, "index": 1234, "members": members}


def test_replicas_that_hold_the_same_are_ok() -> None:
    report = data_of(healthy(), [told(0, "aa", "aa", "aa"), told(1, "bb", "bb", "bb")])
    assert (report.level, report.findings) == (Level.OK, [])
    assert report.summary == "2 of 2 partitions compared, 20 entries, 6.0 MiB read"


def test_a_replica_that_differs_is_named_with_partition_and_store() -> None:
    report = data_of(healthy(), [told(0, "aa", "aa", "aa"), told(7, "bb", "bb", "xx")])
    (finding,) = report.findings
    assert finding.level == Level.CRITICAL
    assert finding.text.startswith(
        "partition 7: the replica on store3 differs from the others at entry 1,234. "
    )
    assert {one.name: one.value for one in report.figures}["replicas_differing"] == 1


def test_without_a_majority_nobody_is_blamed() -> None:
    report = data_of(healthy(), [told(7, "aa", "xx")])
    assert "partition 7: the replicas on store1, store2 all differ" in report.findings[0].text
    assert report.level == Level.CRITICAL


def test_a_replica_that_was_not_compared_is_unknown_and_no_difference() -> None:
    report = data_of(healthy(), [told(7, "aa", "aa", None), {"partition": 8, "error": "nobody leads it"}])
    assert report.level == Level.UNKNOWN
    assert [finding.text for finding in report.findings] == [
        "partition 7: the replica on store3 was not compared: it did not answer in time",
        "partition 8 was not compared: nobody leads it",
    ]
    assert data_of(healthy(), [told(7, "aa", "xx", None)]).level == Level.CRITICAL
