"""`kvcli shell` and `kvcli completion`: lines, exit codes, completion, and what is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from kvclient.cli import shell
from kvclient.cli.app import Settings
from kvclient.cli.failure import Failure
from kvclient.cli.main import cli, run
from kvclient.errors import Exit

KVCLI = str(Path(sys.executable).with_name("kvcli"))


class Lines:
    """Somebody who types these lines; an exception is a key such as Ctrl-C."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def __call__(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line


def recorder(code: int = 0) -> tuple[list[list[str]], Callable[[list[str]], int]]:
    ran: list[list[str]] = []

    def run_line(arguments: list[str]) -> int:
        ran.append(arguments)
        return code

    return ran, run_line


def test_lines_are_run_until_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    ran, run_line = recorder(code=3)
    lines = Lines(
        "put a 'b c'", KeyboardInterrupt, "", "# nothing", "get 'open", "shell", "get a", "exit", "get b"
    )
    shell.interact(lines, run_line, len)
    assert ran == [["put", "a", "b c"], ["get", "a"]]
    told = capsys.readouterr().err
    assert "the line cannot be read: no closing quotation" in told
    assert "this is the shell" in told


def test_a_line_that_begins_with_a_blank_is_not_remembered() -> None:
    remembered: list[str] = []
    shell.interact(Lines("get a", " put secret x", "   ", "help put"), recorder()[1], remembered.append)
    assert remembered == ["get a", "help put"]


def test_a_script_ends_at_the_first_failure_unless_told_otherwise() -> None:
    ran, run_line = recorder(code=4)
    assert shell.script(["get a\n", "get b\n"], run_line, False) == 4
    assert ran == [["get", "a"]]
    ran, run_line = recorder(code=4)
    assert shell.script(["get a\n", "\n", "get b\n", "quit\n", "get c\n"], run_line, True) == 4
    assert ran == [["get", "a"], ["get", "b"]]


def test_global_options_of_the_shell_hold_for_every_line() -> None:
    settings = Settings(
        url="kv://h:1",
        keys="/keys",
        output="json",
        timeout=1.5,
        read="lease",
        quiet=True,
        encoding="hex",
        yes=True,
    )
    options = shell.options_of(settings)
    context = cli.make_context("kvcli", [*options, "ping"])
    told = context.obj.settings
    assert told == settings
    assert shell.options_of(Settings()) == []
    changed = {field.name for field in fields(Settings) if getattr(told, field.name) != field.default}
    assert changed | {"color", "verbosity"} == {field.name for field in fields(Settings)}, "one is forgotten"


def test_help_is_a_word_of_its_own() -> None:
    assert shell.split("help") == ["--help"]
    with pytest.raises(Failure):
        shell.split("shell")


def test_commands_and_options_are_completed() -> None:
    assert shell.completions([], "sta") == ["status"]
    assert set(shell.completions(["node"], "re")) == {"remove"}
    assert "--partitions" in shell.completions(["status"], "--")
    assert shell.completions(["check", "health", "--format"], "na") == ["nagios"]


def test_top_level_completion_imports_no_command() -> None:
    code = (
        "import sys\nfrom kvclient.cli.shell import completions\n"
        "assert 'get' in completions([], '')\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert loaded & {"zmq", "kvclient.cli.read", "kvclient.cli.dev", "readline"} == set()


@pytest.mark.parametrize(
    ("name", "part"), [("zsh", "#compdef kvcli"), ("fish", "complete --no-files --command kvcli")]
)
def test_scripts_are_printed(name: str, part: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", name]) == Exit.OK
    out, err = capfd.readouterr()
    assert part in out
    assert "_KVCLI_COMPLETE" in out
    assert f"kvcli completion {name} >" in err


def test_bash_completes_with_the_script() -> None:
    script = (
        f"source <({KVCLI} -q completion bash); COMP_WORDS=(kvcli reb); COMP_CWORD=1; "
        '_kvcli_completion kvcli; echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{Path(KVCLI).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout.strip() == "rebalance", done


def test_a_script_on_stdin_is_run_and_its_exit_code_kept() -> None:
    lines = "completion fish\nget\nversion\n"
    done = subprocess.run(
        [KVCLI, "-q", "shell"], input=lines, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == Exit.USAGE
    assert done.stdout.startswith("function _kvcli_completion")
    assert "Missing argument 'KEY'" in done.stderr


def test_history_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with shell._line_editing() as remember:
        remember("get a")
    assert shell.history_file() == tmp_path / "ringkv" / "history"
    assert shell.history_file().stat().st_mode & 0o777 == 0o600
    assert "get a" in shell.history_file().read_text()
