"""What the controller knows beside its state: the picture that commands answer from.

Owns the shape only. Must not know how it came about; everything in it follows from reports, and a controller
that has just begun knows little of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from storenode.control.reports import GroupReport, Report

SUSPECT_MS: Final = 3_000
"""Silence that means something: three reports were missed."""

DOWN_MS: Final = 10_000
"""Silence that people should know of: Raft has elected other leaders long ago."""


@attrs.frozen
class MoveView:
    """How far a queued move has got (docs/control.md section 6). `stage`: waiting, learner, swap, settle or
    leave. `bytes`: what there is to copy, 0: unknown or nothing. `done`: 0 to 1, None: unknown. `waits`: why
    nothing happens, for people, "" if something does.
    """

    stage: str
    bytes: int
    done: float | None
    waits: str

    @property
    def begun(self) -> bool:
        return self.stage != "waiting"


@attrs.frozen
class View:
    """`reports`: the newest of each node that was heard since this controller began. `heard_ms`: how long
    ago, for those. `states`: of every node of the map, as of now (the map's own may be a step behind).
    `foreign`: nodes whose store is another one than the state knows, by incarnation. `leaders`: of each
    partition, the control partition among them, where a leader is known. `moves`: by id. `waits`: what the
    controller does not do though it should, and why, for people. `silence_ms`: for how long each node of the
    map is known to be silent, heard or not. `lost`: nodes that were down for so long that they are being
    replaced.
    """

    controller: int
    reports: Mapping[int, Report]
    heard_ms: Mapping[int, int]
    states: Mapping[int, str]
    foreign: frozenset[int]
    leaders: Mapping[int, int]
    moves: Mapping[int, MoveView]
    waits: tuple[str, ...]
    silence_ms: Mapping[int, int]
    lost: frozenset[int] = frozenset()

    def silent(self, node: int) -> bool:
        return self.silence_ms[node] >= SUSPECT_MS

    def group(self, partition: int) -> GroupReport | None:
        """What the partition's leader says of it."""
        report = self.reports.get(self.leaders.get(partition, 0))
        if report is None:
            return None
        return next((group for group in report.groups if group.partition == partition), None)
