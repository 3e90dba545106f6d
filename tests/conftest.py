"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Files run side by side, on machines that do other things as well: times say nothing about the code.
settings.register_profile("ringkv", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ringkv")
