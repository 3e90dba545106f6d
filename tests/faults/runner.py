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


class Result(NamedTuple):
    """What became of a fault: caught, or the reason why not."""

    fault: Fault
    verdict: Verdict
    caught: bool

    def told(self) -> str:
        """In one line."""
        if self.verdict.kind == FAILED:
            return self.verdict.test
        if self.verdict.kind == PASSED:
            return "SURVIVED: no test noticed it"
        what = "a test that does not end" if self.verdict.kind == HUNG else "BROKEN: no test could judge it"
        return what if self.caught or self.verdict.kind == BROKEN else f"HANGS: {what}"


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
    """All tests of these faults on a build that is changed nowhere, compiled as theirs are: they must
    pass."""
    said = build.compile(name for fault in faults for name in fault.extensions)
    if said:
        return Verdict(BROKEN, said=said)
    return build.test(sorted({test for fault in faults for test in fault.tests}), CONTROL_SECONDS)


def judge(root: Path, fault: Fault, seconds: float = FAULT_SECONDS) -> Result:
    """One fault, on a copy of the project at `root`."""
    with _place() as place:
        build = Build(root, place / fault.name)
        try:
            fault.apply(build.tree)
            said = build.compile(fault.extensions)
        except ValueError as error:
            said = str(error)
        verdict = Verdict(BROKEN, said=said) if said else build.test(fault.tests, seconds)
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
