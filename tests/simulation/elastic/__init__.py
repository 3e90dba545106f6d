"""Deterministic simulation of whole clusters whose members change: stores join, leave, fail for good and are
replaced while clients work and the controller moves their data (docs/control.md).

python -m tests.simulation.elastic --seeds 100000:100100
"""
