"""Store node."""
