"""All faults there are. Each part of the system has a list of its own."""

from __future__ import annotations

from tests.faults import control, engine, engine_native, raft

FAULTS = (*engine.FAULTS, *engine_native.FAULTS, *raft.FAULTS, *control.FAULTS)
