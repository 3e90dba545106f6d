"""The monitor: one view of the whole cluster for people and for Prometheus (docs/monitor.md)."""
