"""Decoders of tables, logs and op streams against changed files with right checksums (engine_mutation.py), in
a process of its own; the long form also under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.property.memory_directory import memory_directory

ROOT = Path(__file__).parents[2]
CASES = 1000
ENDLESS = 1 << 60

SANITIZERS = "-g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


def fuzz(
    directory: Path,
    seed: str,
    *,
    seconds: float,
    cases: int,
    tree: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> dict[str, int]:
    """How cases ended; fails with what the process said if one ended otherwise than it may."""
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.property.engine_mutation",
            str(directory),
            seed,
            str(seconds),
            str(cases),
        ],
        capture_output=True,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **(environment or {})},
    )
    if done.returncode:
        case = directory / "case"
        last = case.read_text() if case.exists() else "none"
        pytest.fail(f"exit code {done.returncode}, case {last}, files in {directory}\n{done.stderr[-8000:]}")
    outcomes: dict[str, int] = ast.literal_eval(done.stdout.splitlines()[-1])
    return outcomes


def test_changed_files_are_refused_or_read_and_nothing_worse() -> None:
    with memory_directory("engine-fuzz-") as directory:
        outcomes = fuzz(directory, "default", seconds=60, cases=CASES)
    assert outcomes.keys() >= {
        "table: read",
        "table: corruption",
        "log: read",
        "log: refused",
        "ops: refused",
    }


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_many_changed_files(tmp_path: Path) -> None:
    seed = os.environ.get("RINGKV_FUZZ_SEED", "long")
    print(
        fuzz(
            tmp_path / "files",
            seed,
            seconds=float(os.environ.get("RINGKV_FUZZ_SECONDS", "600")),
            cases=ENDLESS,
        )
    )


@pytest.fixture(scope="module")
def sanitized_tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the sources with the extensions built for the sanitizers, and the library to load first."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    library = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("gcc has no AddressSanitizer library")
    tree = tmp_path_factory.mktemp("sanitized")
    for name in ("kvclient", "shared", "storenode", "router"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    (tree / "tests" / "property").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "property" / "engine_mutation.py", tree / "tests" / "property")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    flags = f"{os.environ.get('CFLAGS', '')} {SANITIZERS}"
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "CFLAGS": flags, "LDFLAGS": SANITIZERS},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return tree, library


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_many_changed_files_under_sanitizers(sanitized_tree: tuple[Path, str], tmp_path: Path) -> None:
    tree, library = sanitized_tree
    environment = {
        "LD_PRELOAD": library,
        "PYTHONMALLOC": "malloc",
        # The interpreter does not free all it has at exit.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    loaded = subprocess.run(
        [sys.executable, "-c", "import storenode.engine.table as t; print(t.__file__)"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.startswith(str(tree))
    seed = os.environ.get("RINGKV_FUZZ_SEED", "sanitized")
    seconds = float(os.environ.get("RINGKV_FUZZ_SECONDS", "600"))
    print(fuzz(tmp_path / "files", seed, seconds=seconds, cases=ENDLESS, tree=tree, environment=environment))
