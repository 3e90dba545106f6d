"""The catalogue of deliberate faults fits the sources, and the runner tells a fault that was caught from one
that was not, and from a build that merely does not work."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.__main__ import report
from tests.faults.build import BROKEN, FAILED, HUNG, PASSED, SEED_FAILED, VIOLATION
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault
from tests.faults.runner import judge
from tests.simulation.running import Failure
from tests.simulation.world import Violation

ROOT = Path(__file__).resolve().parents[2]
CHEAP = "oldest-version-wins"
"""Of the catalogue: no native code, and caught by a test without files."""

CHEAP_SIMULATED = "acknowledged-before-durable"
"""One of replication that the first seed finds."""

# The catalogue


def test_names_are_unique_and_can_be_told_apart_on_a_command_line() -> None:
    names = Counter(fault.name for fault in FAULTS)
    assert [name for name, count in names.items() if count > 1] == []
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []
    assert len(names) >= 40
    assert sum(1 for fault in FAULTS if fault.seeds) >= 12


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_fits_its_file_once_and_names_tests_that_exist(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.text) == 1
    assert fault.text != fault.replacement
    assert fault.harm
    assert "\n" not in fault.harm
    native = Path(fault.file).suffix in (".h", ".pyx")
    assert bool(fault.extensions) == native
    for name in fault.extensions:
        assert (ROOT / (name.replace(".", "/") + ".pyx")).exists()
    assert bool(fault.tests) != bool(fault.seeds)
    assert 0 <= fault.seeds <= 1000
    for test in fault.tests:
        path, _, function = test.partition("::")
        assert not function or f"def {function.partition('[')[0]}(" in (ROOT / path).read_text()
        assert (ROOT / path).exists()


def test_one_fault_of_the_catalogue_is_caught() -> None:
    (fault,) = (one for one in FAULTS if one.name == CHEAP)
    result = judge(ROOT, fault)
    assert (result.verdict.kind, result.caught) == (FAILED, True), result.verdict
    assert "test_engine_compaction::test_level_0_is_newest_first" in result.told()


def test_one_fault_of_replication_is_found_by_the_simulation() -> None:
    (fault,) = (one for one in FAULTS if one.name == CHEAP_SIMULATED)
    result = judge(ROOT, fault)
    assert (result.verdict.kind, result.caught) == (FAILED, True), result.verdict
    assert re.match(r"seed \d+: .*s\d p\d acknowledges \d+, \d+ is durable", result.told())


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_every_fault_is_caught() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--jobs=2"], cwd=ROOT, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


# The runner

SIMULATION = """
import sys
from thing import double

class Violation(AssertionError):
    pass

first, stop = sys.argv[1].removeprefix("--seeds=").split(":")
for seed in range(int(first), int(stop)):
    try:
        if double(seed) != seed + seed:
            raise Violation(f"{double(seed)} is not twice {seed}")
    except Exception as error:
        print(f"seed {seed} failed: {type(error).__name__}: {error}\\nthe end of the story:")
        sys.exit(1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small one, with a test that passes, and one that is not judged by."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "thing.py").write_text("def double(number):\n    return 2 * number\n")
    (root / "test_thing.py").write_text(
        "import pytest\nfrom thing import double\n\n"
        "def test_double():\n    assert double(4) == 8\n\n"
        "@pytest.fixture\ndef doubled():\n    return double(4) + double(4)\n\n"
        "def test_from_fixture(doubled):\n    assert doubled == 16\n"
    )
    (root / "tests" / "simulation").mkdir(parents=True)
    # A package, or an installed project's own tests.simulation would come first, wherever it lies.
    (root / "tests" / "simulation" / "__init__.py").write_text("")
    (root / "tests" / "simulation" / "__main__.py").write_text(SIMULATION)
    (root / "setup.cfg").write_text("[tool:pytest]\ntimeout = 60\nmarkers =\n    long: takes long\n")
    return root


def fault(replacement: str, test: str = "test_double", *, hangs: bool = False) -> Fault:
    tests = (f"test_thing.py::{test}",)
    return Fault("name", "harm", "thing.py", "    return 2 * number\n", replacement, tests, hangs=hangs)


@pytest.mark.parametrize(
    ("change", "kind", "caught", "told"),
    [
        (fault("    return 3 * number\n"), FAILED, True, "test_thing::test_double"),
        (fault("    return number * 2\n"), PASSED, False, "SURVIVED"),
        (fault("    return 2 * numbr\n"), BROKEN, False, "BROKEN"),
        (fault("    return 2 *\n"), BROKEN, False, "BROKEN"),
        (fault("    raise ValueError(number)\n", "test_from_fixture"), BROKEN, False, "BROKEN"),
        (fault("    return 3 * number\n", "test_that_is_not_there"), BROKEN, False, "BROKEN"),
        (fault("    import os\n    os.abort()\n"), BROKEN, False, "BROKEN"),
        (fault("    while True: pass\n"), HUNG, False, "HANGS"),
        (fault("    while True: pass\n", hangs=True), HUNG, True, "does not end"),
    ],
)
def test_how_a_fault_ends_is_told(project: Path, change: Fault, kind: str, caught: bool, told: str) -> None:
    before = (project / "thing.py").read_text()
    result = judge(project, change, seconds=1 if kind == HUNG else 60)
    assert (result.verdict.kind, result.caught) == (kind, caught), result.verdict
    assert told in result.told()
    assert (project / "thing.py").read_text() == before


@pytest.mark.parametrize(
    ("replacement", "kind", "told"),
    [
        ("    return 3 * number\n", FAILED, "seed 1: 3 is not twice 1"),
        ("    return number * 2\n", PASSED, "SURVIVED: no seed"),
        ("    return 2 * number if number < 9 else 0\n", PASSED, "SURVIVED: no seed"),
        ("    return 2 * numbr\n", BROKEN, "BROKEN: no seed"),
        ("    assert number < 3\n    return 2 * number\n", BROKEN, "BROKEN: no seed"),
        ("    raise ValueError(number)\n", BROKEN, "BROKEN: no seed"),
        ("    import os\n    os.abort()\n", BROKEN, "BROKEN: no seed"),
        ("    while True: pass\n", HUNG, "HANGS: a seed"),
    ],
)
def test_only_a_violation_in_a_seed_is_how_the_simulation_catches_a_fault(
    project: Path, replacement: str, kind: str, told: str
) -> None:
    change = fault(replacement)._replace(tests=(), seeds=9)
    result = judge(project, change, seconds=1 if kind == HUNG else 60)
    assert (result.verdict.kind, result.caught) == (kind, kind == FAILED), result.verdict
    assert told in result.told()


def test_what_the_real_simulation_tells_of_a_failed_seed_is_understood() -> None:
    failure = Failure(17, Violation("a write is gone"), ("   0.1 s1 starts",))
    found = SEED_FAILED.search(f"something before\n{failure}\n18 seeds, 1 failed, 3.0 s\n")
    assert found is not None
    assert found.groups() == ("17", VIOLATION, "a write is gone")


def test_a_replica_that_ended_with_a_mistake_of_the_changed_source_is_no_violation(project: Path) -> None:
    raising = SIMULATION.replace("except Exception as error:", "except NameError as error:").replace(
        "{type(error).__name__}: {error}", "Violation: partition 0 is out of service: NameError: {error}"
    )
    (project / "tests" / "simulation" / "__main__.py").write_text(raising)
    result = judge(project, fault("    return 2 * numbr\n")._replace(tests=(), seeds=9))
    assert (result.verdict.kind, result.caught) == (BROKEN, False), result.verdict


def test_the_control_of_simulated_faults_is_a_simulation_and_no_test(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "test_thing.py").write_text("def test_double():\n    assert False\n")
    change = fault("    return 3 * number\n")._replace(tests=(), seeds=9)
    assert report(project, [change], jobs=1) == 0
    assert "1 of 1 faults are caught, the control passed" in capsys.readouterr().out
    (project / "thing.py").write_text("def double(number):\n    return 2 * number + (number == 5)\n")
    assert report(project, [change._replace(text="2 * number", replacement="0")], jobs=1) == 1
    said = capsys.readouterr().out
    assert "the control without a fault did not pass: failed seed 5: 11 is not twice 5" in said


def test_a_text_that_is_not_there_exactly_once_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match=r"fault name: its text occurs 2 times in thing\.py, not once"):
        fault("")._replace(text="number").apply(project)
    assert judge(project, fault("")._replace(text="nowhere")).told().startswith("BROKEN")


def test_the_table_and_the_exit_code_say_what_survived(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caught, survives = (
        fault("    return 3 * number\n"),
        fault("    return number * 2\n")._replace(name="other"),
    )
    assert report(project, [caught, survives], jobs=2) == 1
    said = capsys.readouterr().out
    assert "name   test_thing::test_double" in said
    assert "other  SURVIVED" in said
    assert "1 of 2 faults are caught, the control passed" in said
    (project / "test_thing.py").write_text("def test_double():\n    assert False\n")
    assert report(project, [caught], jobs=1) == 1
    assert "the control without a fault did not pass" in capsys.readouterr().out
