"""Runs faults one at a time, each in a build of its own, behind a control without any."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


def control(root: Path, faults: Sequence[Fault], seconds: float = CONTROL_SECONDS) -> Verdict:
    """All tests of these faults on a build that is changed nowhere, compiled as theirs are: they must pass."""
    with _place() as place:
        build = Build(root, place / "control")
        said = build.compile(name for fault in faults for name in fault.extensions)
        if said:
            return Verdict(BROKEN, said=said)
        return build.test(sorted({test for fault in faults for test in fault.tests}), seconds)


def judge(root: Path, fault: Fault, seconds: float = FAULT_SECONDS) -> Result:
    """One fault."""
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


def judge_all(root: Path, faults: Sequence[Fault], jobs: int, tell: Callable[[Result], None]) -> list[Result]:
    """Some at a time; `tell` hears of each as soon as it is judged."""

    def one(fault: Fault) -> Result:
        result = judge(root, fault)
        tell(result)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, faults))


class _place:
    """A directory that goes with whatever tests left in it."""

    def __enter__(self) -> Path:
        self._path = tempfile.mkdtemp(prefix="ringkv-fault-")
        return Path(self._path)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
