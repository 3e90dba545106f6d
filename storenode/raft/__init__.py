"""Raft for one group, as a pure state machine (docs/raft.md)."""
