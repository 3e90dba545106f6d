"""python -m tests.simulation.elastic --seeds A:B [--minutes M] [--keep-going] [--verbose]

Exit code 1 if a seed fails, which is told with its story and how to replay it.
"""

from __future__ import annotations

import sys

from tests.simulation.elastic.running import FAULTS_S, FIRST, run
from tests.simulation.running import main

if __name__ == "__main__":
    sys.exit(main(__doc__, f"{FIRST}:{FIRST + 100}", FAULTS_S, run))
