"""Runs faults one at a time, each in a build of its own, behind a control without any."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tests.faults.build import BROKEN, FAILED, HUNG, PASSED, Build, Verdict
from tests.faults.fault import Fault

CONTROL_SECONDS = 900.0
FAULT_SECONDS = 120.0
"""A fault's tests take some seconds."""

SECONDS_PER_SEED = 3.0
"""A seed takes a third of a second on an idle processor."""

CONTROL_SEEDS = 20
"""So few cannot show that the project is sound; they show that a simulation can pass here at all."""


class Result(NamedTuple):
    """What became of a fault: caught, or the reason why not."""

    fault: Fault
    verdict: Verdict
    caught: bool

    def told(self) -> str:
        """In one line."""
        if self.verdict.kind == FAILED:
            return self.verdict.test
        judge = "seed" if self.fault.seeds else "test"
        if self.verdict.kind == PASSED:
            return f"SURVIVED: no {judge} noticed it"
        if self.verdict.kind == BROKEN:
            return f"BROKEN: no {judge} could judge it"
        what = f"a {judge} that does not end"
        return what if self.caught else f"HANGS: {what}"


def run(root: Path, faults: Sequence[Fault], jobs: int, tell: Callable[[Result], None]) -> Verdict:
    """Judge faults, `jobs` at a time; `tell` hears of each as soon as it is judged. Returns how the control
    ended: if it did not pass, no fault was judged.

    All are judged on the project as it is now, whatever becomes of it meanwhile.
    """
    with _place() as place:
        build = Build(root, place / "control")
        verdict = control(build, faults)
        if verdict.kind == PASSED:
            with ThreadPoolExecutor(jobs) as pool:
                for done in as_completed([pool.submit(judge, build.tree, fault) for fault in faults]):
                    tell(done.result())
        return verdict


def control(build: Build, faults: Sequence[Fault]) -> Verdict:
    """All tests of these faults on a build that is changed nowhere, compiled as theirs are, and some seeds if
    any is judged by the simulation: they must pass.
    """
    said = build.compile(name for fault in faults for name in fault.extensions)
    if said:
        return Verdict(BROKEN, said=said)
    verdict = Verdict(PASSED)
    tests = sorted({test for fault in faults for test in fault.tests})
    if tests:
        verdict = build.test(tests, CONTROL_SECONDS)
    for simulation in sorted({fault.simulation for fault in faults if fault.seeds}):
        if verdict.kind == PASSED:
            verdict = build.simulate(simulation, CONTROL_SEEDS, CONTROL_SECONDS)
    return verdict


def judge(root: Path, fault: Fault, seconds: float | None = None) -> Result:
    """One fault, on a copy of the project at `root`."""
    if seconds is None:
        seconds = fault.seeds * SECONDS_PER_SEED or FAULT_SECONDS
    with _place() as place:
        build = Build(root, place / fault.name)
        try:
            fault.apply(build.tree)
            said = build.compile(fault.extensions)
        except ValueError as error:
            said = str(error)
        if said:
            verdict = Verdict(BROKEN, said=said)
        elif fault.seeds:
            verdict = build.simulate(fault.simulation, fault.seeds, seconds)
        else:
            verdict = build.test(fault.tests, seconds)
    caught = verdict.kind == FAILED or (verdict.kind == HUNG and fault.hangs)
    return Result(fault, verdict, caught)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A directory that goes with whatever tests left in it."""
    path = tempfile.mkdtemp(prefix="ringkv-fault-")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
