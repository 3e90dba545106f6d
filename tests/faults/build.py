"""A test build: a copy of the project in a directory of its own, changed, compiled where that is needed, and
tested. The project itself is only read.
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
    r"(ImportError|ModuleNotFoundError|NameError|AttributeError|SyntaxError|IndentationError)\b"
)
"""A test that ends in one of these says that a changed source does not work at all."""

SAID_MAX = 3000

PASSED, FAILED, HUNG, BROKEN = "passed", "failed", "hung", "broken"


class Verdict(NamedTuple):
    """How a test run ended. `failed`: by an assertion of `test`, or an exception in it. `broken`: no test was
    run, or one ended for another reason than the test's; `said` tells why."""

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
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # also what the tests started and left behind
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        verdict = _verdict(code, report, output.read_text(errors="replace")[-SAID_MAX:])
        return verdict._replace(seconds=time.monotonic() - started)


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
