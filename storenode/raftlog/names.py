"""Names of the log's files (docs/raft.md section 4)."""

from __future__ import annotations

import os
import re
from typing import Final

_SEGMENT: Final = re.compile(r"([0-9a-f]{8})\.log")
_SPARE: Final = re.compile(r"[0-9a-f]{8}\.spare")


def segment_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:08x}.log")


def spare_path(directory: str, number: int) -> str:
    """For what was segment `number` and waits to become another."""
    return os.path.join(directory, f"{number:08x}.spare")


def segment_number(name: str) -> int | None:
    match = _SEGMENT.fullmatch(name)
    return int(match[1], 16) if match else None


def is_spare(name: str) -> bool:
    return _SPARE.fullmatch(name) is not None
