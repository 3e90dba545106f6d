"""Deterministic simulation of a whole cluster: one seed is one run, with the same trace each time.

python -m tests.simulation --seeds 0:1000
"""

from tests.simulation.running import Failure, run

__all__ = ["Failure", "run"]
