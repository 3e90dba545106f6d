"""A test build: a copy of the project in a directory of its own, changed, compiled where that is needed, and
tested or simulated. The project itself is only read.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.faults.fault import FIRST_SEED

LEFT_OUT = (
    ".*",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
)
"""Of a project's directory, at any depth: what is made, not written, apart from the compiled extensions."""

COMPILE = """
import sys
import setuptools
from distutils.core import run_setup

project = run_setup("setup.py", ["-q", "build_ext", "--inplace", "--force"], stop_after="commandline")
project.ext_modules = [one for one in project.ext_modules if one.name in sys.argv[1:]]
assert len(project.ext_modules) == len(sys.argv[1:]), "setup.py does not know all of these extensions"
for one in project.ext_modules:
    one.extra_compile_args = ["-O1"]  # compiled to be tested once
project.run_commands()
"""

OWN_MISTAKES = re.compile(
    r"\b(ImportError|ModuleNotFoundError|NameError|AttributeError|SyntaxError|IndentationError)\b"
)
"""What ends in one of these says that a changed source does not work at all."""

SEED_FAILED = re.compile(r"^seed (\d+) failed: (\w+): (.*)$", re.MULTILINE)
"""How the simulation tells of a seed: its number, the exception, what it says."""

VIOLATION = "Violation"
"""What the simulation raises when it has seen what must never happen. Any other exception says only that
the changed sources do not work: it is nothing that a user would have met.
"""

SAID_MAX = 3000
TOLD_MAX = 150

PASSED, FAILED, HUNG, BROKEN = "passed", "failed", "hung", "broken"


class Verdict(NamedTuple):
    """How a run ended. `failed`: by an assertion of `test`, or an exception in it; or by a violation in a
    seed of the simulation, which `test` names. `broken`: nothing was run, or something ended for another
    reason; `said` tells why.
    """

    kind: str
    test: str = ""
    said: str = ""
    seconds: float = 0.0


class Build:
    """A copy of the project `root` in `place`, which must not exist yet."""

    def __init__(self, root: Path, place: Path) -> None:
        self.tree = place / "tree"
        self._place = place
        shutil.copytree(root, self.tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        generated = root / "build" / "cython"
        if generated.is_dir():  # C of sources that are not changed
            shutil.copytree(generated, self.tree / "build" / "cython")

    def compile(self, extensions: Iterable[str]) -> str:
        """Compile some extensions; what went wrong, nothing if all is well."""
        names = sorted(set(extensions))
        if not names:
            return ""
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, *names],
            cwd=self.tree,
            capture_output=True,
            text=True,
            errors="replace",
        )
        return (done.stdout + done.stderr)[-SAID_MAX:] if done.returncode else ""

    def test(self, tests: Sequence[str], seconds: float) -> Verdict:
        """Run tests until one fails, `seconds` at most."""
        report, output = self._place / "report.xml", self._place / "output"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not long", "-p", "no:cacheprovider"]
        command += ["--timeout=0", f"--basetemp={self._place / 'tmp'}", f"--junitxml={report}", *tests]
        started = time.monotonic()
        code = self._run(command, output, seconds)
        verdict = _verdict(code, report, output.read_text(errors="replace")[-SAID_MAX:])
        return verdict._replace(seconds=time.monotonic() - started)

    def simulate(self, simulation: str, seeds: int, seconds: float) -> Verdict:
        """Run seeds of a simulation until one fails, `seconds` at most."""
        output = self._place / "story"
        started = time.monotonic()
        first = FIRST_SEED[simulation]
        command = [sys.executable, "-m", simulation, f"--seeds={first}:{first + seeds}"]
        code = self._run(command, output, seconds)
        verdict = _verdict_of_seeds(code, output.read_text(errors="replace"))
        return verdict._replace(seconds=time.monotonic() - started)

    def _run(self, command: Sequence[str], output: Path, seconds: float) -> int | None:
        """The exit code; None: it did not end."""
        with output.open("wb") as said:
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env={**os.environ, "PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:  # also what it started and left behind
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _verdict(code: int | None, report: Path, said: str) -> Verdict:
    if code is None:
        return Verdict(HUNG, said=said)
    if code == 0:
        return Verdict(PASSED)
    if code == 1 and report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            failure = case.find("failure")  # an <error> is one of collection, setup or teardown
            if failure is not None and not OWN_MISTAKES.match(failure.get("message", "")):
                return Verdict(FAILED, f"{case.get('classname')}::{case.get('name')}", failure.text or "")
    return Verdict(BROKEN, said=said)


def _verdict_of_seeds(code: int | None, said: str) -> Verdict:
    if code is None:
        return Verdict(HUNG, said=said[-SAID_MAX:])
    if code == 0:
        return Verdict(PASSED)
    failed = SEED_FAILED.search(said)
    if (
        failed is None or failed[2] != VIOLATION or OWN_MISTAKES.search(failed[3])
    ):  # which a replica ended with
        return Verdict(BROKEN, said=said[-SAID_MAX:])
    return Verdict(FAILED, f"seed {failed[1]}: {failed[3][:TOLD_MAX]}", said[-SAID_MAX:])
