"""Whether what clients were told is true, once the cluster is whole again.

Owns the comparison of promises and facts. Reads the cluster through a client of its own.
"""

from __future__ import annotations

from collections import Counter

import kvclient
from tests.integration.faults.workload import Workload, ledger_value
from tests.linearizability.checker import Verdict, check_by_key
from tests.linearizability.models import KeyValue


def judge(workload: Workload) -> Counter[str]:
    """AssertionError with what is wrong; otherwise how many operations ended how."""
    with workload.connect() as client:
        workload.read_everything(client)
        _judge_counters(workload, client)
        _judge_ledger(workload, client)
    assert not workload.surprises, workload.surprises[:10]
    history = workload.recorder.history()
    judgement = check_by_key(history, KeyValue())
    assert judgement.verdict is Verdict.LINEARIZABLE, str(judgement)
    return Counter(operation.outcome.value for operation in history) + Counter(
        f"ledger {outcome}" for outcome in workload.ledger.values()
    )


def _judge_counters(workload: Workload, client: kvclient.Client[bytes]) -> None:
    """Between what was acknowledged and what may have been applied; every sum was told once."""
    for key in workload.counters():
        total = int(client.get(key) or b"0")
        acknowledged = workload.increments[key, "ok"]
        possible = acknowledged + workload.increments[key, "unknown"]
        assert acknowledged <= total <= possible, (
            f"{key!r} is {total}; {acknowledged} increments were acknowledged, {possible} may have been made"
        )
    told = Counter(
        (operation.key, operation.result)
        for operation in workload.recorder.history()
        if operation.function == "increment" and operation.outcome.value == "ok"
    )
    twice = [sum_ for sum_, count in told.items() if count > 1]
    assert not twice, f"two increments were told the same sum: {twice[:10]}"


def _judge_ledger(workload: Workload, client: kvclient.Client[bytes]) -> None:
    there = client.get_many(workload.ledger)
    for key, outcome in workload.ledger.items():
        found = there.get(key)
        assert found in (None, ledger_value(key)), f"{key!r} has a value that nobody wrote"
        assert outcome != "ok" or found is not None, f"{key!r} was acknowledged and is missing"
        assert outcome != "fail" or found is None, f"{key!r} was refused and is there"
