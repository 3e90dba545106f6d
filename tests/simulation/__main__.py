"""python -m tests.simulation --seeds A:B [--minutes M] [--keep-going] [--verbose]

Exit code 1 if a seed fails, which is told with its story and how to replay it.
"""

from __future__ import annotations

import sys

from tests.simulation.cluster import FAULTS_S
from tests.simulation.running import main, run

if __name__ == "__main__":
    sys.exit(main(__doc__, "0:100", FAULTS_S, run))
