"""The same operations under many options: every history must be the same, and that of a sorted dict.

Options say where data lies, how it is cut and who carries it, never what it is. A difference is reported
with the first step that shows it and the operation file, which can be run again by its seed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.property.engine_operations import Expected, Step, dump, generate, load
from tests.property.engine_variants import STANDARD, Subject, Variant, random_variant
from tests.property.memory_directory import memory_directory

STEPS = 250
"""In one file: at 60 % writes enough for several levels in the small variants."""

VARIANTS_A_FILE = 6
"""Of the long run: drawn anew for each file."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with memory_directory("engine-metamorphic-") as made:
        yield made


def differences(directory: Path, steps: list[Step], history: list[Any], variant: Variant) -> str | None:
    """What a variant does otherwise than the history says, at its first step; None if nothing."""
    subject = Subject(directory, variant)
    for number, (step, expected) in enumerate(zip(steps, history, strict=True)):
        found = subject.run(step)
        if found != expected:
            return f"step {number} {step!r:.600}\nfound    {found!r:.1500}\nexpected {expected!r:.1500}"
    problems = subject.close()
    return "\n".join(problems) or None


def check(directory: Path, reports: Path, seed: int, steps: list[Step], variants: list[Variant]) -> None:
    model = Expected()
    history = [model.run(step) for step in steps]
    for number, variant in enumerate(variants):
        place = directory / f"{seed}-{number}"
        difference = differences(place, steps, history, variant)
        shutil.rmtree(place)
        if difference:
            file = reports / f"{seed}.operations"
            dump(steps, file)
            pytest.fail(
                f"{variant}\n{difference}\noperations: {file}; again: RINGKV_METAMORPHIC_SEED={seed} "
                "RINGKV_METAMORPHIC_FILES=1 pytest -m long tests/property/test_engine_metamorphic.py"
            )


@pytest.mark.parametrize("seed", [1, 2])
def test_the_options_do_not_show(directory: Path, tmp_path: Path, seed: int) -> None:
    assert len(STANDARD) >= 20
    assert len({variant.name for variant in STANDARD}) == len(STANDARD)
    check(directory, tmp_path, seed, generate(seed, STEPS), STANDARD)


def test_an_operation_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    steps = generate(5, 400)
    assert {step[0] for step in steps} >= {
        "entries",
        "malformed",
        "reopen",
        "compact",
        "snapshot_read",
        "scan",
    }
    dump(steps, tmp_path / "5.operations")
    assert load(tmp_path / "5.operations") == steps
    assert generate(5, 400) == steps


def test_a_difference_is_reported_with_its_step(tmp_path: Path) -> None:
    steps = generate(4, 60)
    model = Expected()
    history = [model.run(step) for step in steps]
    at = next(number for number, step in enumerate(steps) if step[0] == "multi_get")
    history[at] = ["something else"]
    found = differences(tmp_path / "engine", steps, history, STANDARD[0])
    assert found is not None
    assert found.startswith(f"step {at} ('multi_get'")


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_random_options_do_not_show(directory: Path, tmp_path: Path) -> None:
    first = int(os.environ.get("RINGKV_METAMORPHIC_SEED", "1000"))
    for seed in range(first, first + int(os.environ.get("RINGKV_METAMORPHIC_FILES", "200"))):
        source = random.Random(f"options of {seed}")
        variants = [random_variant(source) for _ in range(VARIANTS_A_FILE)]
        steps = generate(seed, source.choice([50, STEPS, 4 * STEPS]))
        check(directory, tmp_path, seed, steps, variants)
