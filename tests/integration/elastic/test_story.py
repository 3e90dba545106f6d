"""The story of `python -m tests.integration.elastic`: short in each run; `-m long`: whole,
RINGKV_ELASTIC_RUNS times (1).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.integration.elastic.story import Story

RUNS = int(os.environ.get("RINGKV_ELASTIC_RUNS", "1"))


def test_a_store_joins_and_another_one_leaves(tmp_path: Path) -> None:
    story = Story(tmp_path / "cluster", random.getrandbits(32), print)
    try:
        story.short()
        story.judge()
    finally:
        story.end()


@pytest.mark.long
@pytest.mark.parametrize("run", range(RUNS))
def test_the_whole_story(tmp_path: Path, run: int) -> None:
    story = Story(tmp_path / "cluster", random.getrandbits(32), print)
    try:
        story.whole()
        story.judge()
    finally:
        story.end()
