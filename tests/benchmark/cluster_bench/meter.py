"""What work costs: CPU time of each process, bytes written, syncs; the difference of two readings around it.

The load generator's CPU time is this process's and that of the children it has waited for meanwhile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from tests.benchmark.cluster_bench.points import Point, Sample, System
from tests.benchmark.cluster_bench.processes import cpu_seconds, written_bytes

LOAD = "load"


@dataclass
class Cost:
    """Sums over the runs of one system at one point."""

    ops: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    written: int = 0
    syncs: int | None = 0

    def per_op(self, point: Point) -> dict[str, Any]:
        """Microseconds of CPU by process; bytes written for each byte of a put's key and value; syncs."""
        ops = max(self.ops, 1)
        result: dict[str, Any] = {
            "cpu_us_per_op": {name: round(spent * 1e6 / ops, 2) for name, spent in self.cpu_s.items()}
        }
        if point.user_bytes:
            result["written_per_user_byte"] = round(self.written / (ops * point.user_bytes), 2)
        if self.syncs is not None:
            result["syncs_per_op"] = round(self.syncs / ops, 4)
        return result


def measured(system: System, point: Point, seconds: float, cost: Cost) -> Sample:
    """A run, with what it cost added to `cost`."""
    cpu, written, syncs = _cpu(system), _written(system), system.syncs()
    result = system.run(point, seconds)
    for name, spent in _cpu(system).items():
        cost.cpu_s[name] = cost.cpu_s.get(name, 0.0) + spent - cpu[name]
    cost.written += _written(system) - written
    syncs_now = system.syncs()
    if cost.syncs is None or syncs is None or syncs_now is None:
        cost.syncs = None
    else:
        cost.syncs += syncs_now - syncs
    cost.ops += result.ops
    return result


def _cpu(system: System) -> dict[str, float]:
    own = os.times()
    spent = {name: cpu_seconds(process_id) for name, process_id in system.servers().items()}
    return spent | {LOAD: own.user + own.system + own.children_user + own.children_system}


def _written(system: System) -> int:
    return sum(written_bytes(process_id) for process_id in system.servers().values())
