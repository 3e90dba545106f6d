"""`kvcli config validate`: what servers say of configuration files, through their own processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvclient.cli.main import run
from kvclient.errors import Exit

ROUTER = "router: {name: r1}\nstores: [tcp://127.0.0.1:7200]\n"
WRONG = "router: {nmae: r1}\nstores: [127.0.0.1:7200]\nlog: {level: loud}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "router.yaml"


def test_a_good_file_is_valid(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(ROUTER)
    assert run(["config", "validate", "router", str(file)]) == Exit.OK
    assert "a router would start with it" in capfd.readouterr().err
    assert run(["config", "validate", "router", str(file), "-o", "json"]) == Exit.OK
    assert json.loads(capfd.readouterr().out)["valid"]


def test_all_problems_are_told_at_once_with_source_path_and_suggestion(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(WRONG)
    assert run(["config", "validate", "router", str(file), "-o", "json"]) == Exit.USAGE
    out, err = capfd.readouterr()
    found = {problem["path"]: problem for problem in json.loads(out)["problems"]}
    assert {problem["source"] for problem in found.values()} == {str(file)}
    assert found["router.nmae"]["suggestion"] == "router.name"
    assert "expected an endpoint" in found["stores[0]"]["text"]
    assert "expected one of debug" in found["log.level"]["text"]
    assert f"error: {file}: {len(found)} problems. A router would not start with it (INVALID_CONFIG)" in err


def test_overrides_and_the_environment_are_judged_with_the_file(
    file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(ROUTER)
    monkeypatch.setenv("RINGKV_LIMITS__IN_FLIGHT", "many")
    arguments = ["config", "validate", "router", str(file), "--set", "router.name=-"]
    assert run(["-o", "plain", *arguments]) == Exit.USAGE
    sources = [line.split("\t")[:2] for line in capfd.readouterr().out.splitlines()]
    assert sorted(sources) == [
        ["RINGKV_LIMITS__IN_FLIGHT", "limits.in_flight"],
        ["command line", "router.name"],
    ]


def test_a_file_of_another_role_or_that_is_not_there_is_refused(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "validate", "store", str(file), "-o", "plain"]) == Exit.USAGE
    assert capfd.readouterr().out == f"{file}\t\tno such file\t-\n"
    file.write_text(ROUTER)
    assert run(["config", "validate", "store", str(file), "-o", "plain"]) == Exit.USAGE
    assert "\tunknown key\t" in capfd.readouterr().out


def test_what_a_server_cannot_take_on_its_command_line_is_told(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(ROUTER)
    assert run(["config", "validate", "router", str(file), "--set", "nonsense"]) == Exit.USAGE
    assert "write section.key=value, not 'nonsense'" in capfd.readouterr().err
