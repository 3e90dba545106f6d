"""A deliberate fault: a small change of the sources that the test suite, or the simulation, must not let
pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FIXED = "tests.simulation"
ELASTIC = "tests.simulation.elastic"
FIRST_SEED = {FIXED: 0, ELASTIC: 100_000}
"""Simulations, and the seed that each is run from on."""


class Fault(NamedTuple):
    """`text` occurs once in `file` (a path below the project's directory), and `replacement` takes its
    place."""

    name: str
    harm: str
    """What it would do to a user, in one line."""
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...] = ()
    """Which must catch it: files of the default suite, or tests in them (`file::test`)."""
    extensions: tuple[str, ...] = ()
    """Modules that are compiled anew so that the tests see a change of native code."""
    hangs: bool = False
    """Whether a test that does not end is how it is caught."""
    seeds: int = 0
    """Instead of tests: so many seeds of the simulation, of which one must find a violation."""
    simulation: str = FIXED
    """Which one: its module."""

    def apply(self, root: Path) -> None:
        """Change the sources below `root`. ValueError if the text is not there exactly once, or if what comes
        out is no Python."""
        path = root / self.file
        before = path.read_text()
        found = before.count(self.text)
        if found != 1:
            raise ValueError(f"fault {self.name}: its text occurs {found} times in {self.file}, not once")
        after = before.replace(self.text, self.replacement)
        if path.suffix == ".py":
            try:
                compile(after, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"fault {self.name}: {self.file} is no Python any more: {error}") from error
        path.write_text(after)
