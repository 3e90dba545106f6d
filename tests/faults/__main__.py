"""python -m tests.faults [NAME...] [--list] [--jobs N]: is each deliberate fault caught, by the test suite
or by the simulation?

Exit code 1 if one survives, or if the control without a fault does not pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.build import PASSED
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault
from tests.faults.runner import Result, run

ROOT = Path(__file__).resolve().parents[2]


def chosen(names: Sequence[str]) -> tuple[Fault, ...]:
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"error: no fault is called {', '.join(unknown)}. See: python -m tests.faults --list")
    return tuple(known[name] for name in names) or FAULTS


def report(root: Path, faults: Sequence[Fault], jobs: int) -> int:
    """Print a table; the exit code."""
    width = max(len(fault.name) for fault in faults)
    survived: list[str] = []

    def tell(result: Result) -> None:
        print(f"{result.fault.name:{width}}  {result.told()} ({result.verdict.seconds:.0f} s)", flush=True)
        if not result.caught:
            survived.append(result.fault.name)
            print(result.verdict.said, file=sys.stderr)

    control = run(root, faults, jobs, tell)
    if control.kind != PASSED:
        print(f"the control without a fault did not pass: {control.kind} {control.test}\n{control.said}")
        return 1
    print(f"{len(faults) - len(survived)} of {len(faults)} faults are caught, the control passed")
    return 1 if survived else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="tell which there are and what they would do")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    arguments = parser.parse_args()
    faults = chosen(arguments.names)
    if arguments.list:
        for fault in faults:
            print(f"{fault.name}: {fault.harm} ({fault.file})")
        return 0
    return report(ROOT, faults, max(arguments.jobs, 1))


if __name__ == "__main__":
    sys.exit(main())
