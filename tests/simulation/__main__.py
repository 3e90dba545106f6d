"""python -m tests.simulation --seeds A:B [--minutes M] [--keep-going] [--verbose]

Exit code 1 if a seed fails, which is told with its story and how to replay it.
"""

from __future__ import annotations

import argparse
import sys
import time

from shared import logs
from tests.simulation.cluster import FAULTS_S
from tests.simulation.running import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument(
        "--seeds", default="0:100", metavar="A:B", help="from A on, before B (default: 0:100)"
    )
    parser.add_argument("--minutes", type=float, default=FAULTS_S / 60, help="simulated minutes with faults")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--verbose", action="store_true", help="print the story while it happens")
    arguments = parser.parse_args()
    first, _, stop = arguments.seeds.partition(":")
    logs.configure("error", "console")
    tell = print if arguments.verbose else None
    begin, failed, done = time.monotonic(), 0, 0

    def on_done(seed: int, digest: str, summary: str) -> None:
        if arguments.verbose:
            print(f"seed {seed}: {digest} {summary}")

    for seed in range(int(first), int(stop)):
        failure = run([seed], arguments.minutes * 60, tell, on_done)
        done += 1
        if failure is not None:
            failed += 1
            print(failure if not arguments.keep_going else str(failure).splitlines()[0], flush=True)
            if not arguments.keep_going:
                break
    print(f"{done} seeds, {failed} failed, {time.monotonic() - begin:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
