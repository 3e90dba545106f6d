"""Parsing, help, errors and exit codes of kvcli: everything that needs no cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from kvclient import errors
from kvclient.cli import app as app_module
from kvclient.cli import failure
from kvclient.cli.app import App, Settings
from kvclient.cli.command import KvCommand
from kvclient.cli.dev import dev
from kvclient.cli.failure import Failure, describe
from kvclient.cli.main import COMMANDS, cli, run
from kvclient.errors import Exit, Status


def settings_of(*arguments: str, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[Settings, list[str]]:
    """Parse a command line with a command that takes KEY and VALUE and does nothing."""
    seen: list[str] = []

    @click.argument("key")
    @click.argument("value")
    @click.option("--ttl")
    @click.option("--if-absent", is_flag=True)
    def fake(key: str, value: str, ttl: str | None, if_absent: bool) -> None:
        seen.extend([key, value, str(ttl), str(if_absent)])

    probe = click.command("put", cls=KvCommand, free_arguments=True)(fake)
    app = App()
    get_command = cli.get_command
    cli.get_command = lambda ctx, name: probe  # type: ignore[method-assign]
    try:
        with cli.make_context("kvcli", list(arguments), obj=app) as ctx:
            cli.invoke(ctx)
    finally:
        cli.get_command = get_command  # type: ignore[method-assign]
    return app.settings, seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["k", "-5"], ["k", "-5", "None", "False"]),
        (["-7", "-5.25"], ["-7", "-5.25", "None", "False"]),
        (["k", "-qrs"], ["k", "-qrs", "None", "False"]),
        (["k", "-----BEGIN KEY-----"], ["k", "-----BEGIN KEY-----", "None", "False"]),
        (["k", "--what=1", "--ttl", "5s"], ["k", "--what=1", "5s", "False"]),
        (["--ttl=5s", "k", "v", "--if-absent"], ["k", "v", "5s", "True"]),
        (["k", "--", "--ttl"], ["k", "--ttl", "None", "False"]),
        (["--", "-k", "-v"], ["-k", "-v", "None", "False"]),
        (["k", "-"], ["k", "-", "None", "False"]),
        (["k", ""], ["k", "", "None", "False"]),
    ],
)
def test_values_may_begin_with_a_dash(arguments: list[str], expected: list[str]) -> None:
    assert settings_of("put", *arguments)[1] == expected


@pytest.mark.parametrize(
    "arguments", [["--if-abesnt", "k", "v"], ["k", "v", "--if-abesnt"], ["--ttll", "k"], ["k", "-q"]]
)
def test_mistyped_options_are_not_taken_for_data(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        settings_of("put", *arguments)


def test_global_options_work_on_both_sides_and_the_inner_one_wins() -> None:
    settings, _ = settings_of(
        "-u", "kv://a", "--timeout", "250ms", "put", "k", "v", "-u", "kv://b", "-o", "json", "-v"
    )
    assert settings.url == "kv://b"
    assert settings.output == "json"
    assert settings.timeout == 0.25
    assert settings.verbosity == 1


def test_the_environment_is_weaker_than_any_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGKV_URL", "kv://env")
    monkeypatch.setenv("RINGKV_OUTPUT", "csv")
    monkeypatch.setenv("RINGKV_TIMEOUT", "3s")
    settings, _ = settings_of("--output", "plain", "put", "k", "v")
    assert (settings.url, settings.output, settings.timeout) == ("kv://env", "plain", 3.0)


@pytest.mark.parametrize(
    ("given", "expected"), [("lease", "lease"), ("stale", "stale:5s"), ("stale:250ms", "stale:250ms")]
)
def test_read_modes(given: str, expected: str) -> None:
    assert settings_of("put", "k", "v", "--read", given)[0].read == expected


@pytest.mark.parametrize(
    "arguments",
    [["--read", "dirty"], ["--read", "stale:soon"], ["--timeout", "fast"], ["--timeout", "0"], ["-o", "xml"]],
)
def test_senseless_global_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(click.UsageError):
        settings_of("put", "k", "v", *arguments)


def test_every_command_in_the_list_is_there() -> None:
    context = click.Context(cli)
    for name, lazy in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help is not None
        assert command.help.split()[0] == lazy.help.split()[0]


def test_every_option_of_every_command_is_explained() -> None:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in COMMANDS] + list(dev.commands.values())
    for command in commands:
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, (command.name, param.name)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ["putt"],
            Exit.USAGE,
            "error: No such command 'putt'. Did you mean 'put'? see: kvcli --help (USAGE)",
        ),
        (["get"], Exit.USAGE, "error: Missing argument 'KEY'. see: kvcli get --help (USAGE)"),
        (["get", "k", "--mta"], Exit.USAGE, "error: No such option '--mta'"),
        (["put", "k", "v", "-o", "raw"], Exit.USAGE, "error: -o raw writes one value"),
        (["--hex", "get", "xyz"], Exit.USAGE, "error: key 'xyz' is not hex."),
        (
            ["put", "k", "v", "--if-absent", "--if-version", "3"],
            Exit.USAGE,
            "--if-absent and --if-version cannot",
        ),
        (["mput", "a", "1", "b"], Exit.USAGE, "every key needs a value"),
        (["del"], Exit.USAGE, "give either keys or --prefix"),
        (["del", "a", "--prefix", "b"], Exit.USAGE, "give either keys or --prefix"),
        (["touch", "a"], Exit.USAGE, "give either a time to live or --persist"),
        (["bench", "--mix", "x"], Exit.USAGE, "write it as GET/PUT"),
        (["import", "/nonexistent/file.csv"], Exit.USAGE, "does not exist"),
        (["export", "-f", "name"], Exit.USAGE, "the format cannot be told from the name 'name'"),
        (["export", "--resume", "s"], Exit.USAGE, "cannot be continued"),
        (["export", "--format", "csv", "--value", "middle"], Exit.USAGE, "neither rest, line nor"),
        (["-u", "http://x", "get", "k"], Exit.USAGE, "is no kv:// address"),
        (["dev", "up", "--partitions", "12"], Exit.USAGE, "power of two"),
    ],
)
def test_usage_errors(
    arguments: list[str], code: Exit, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_nobody_there_exits_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-u", "kv://127.0.0.1:1", "--timeout", "2s", "get", "k"]) == Exit.CONNECT
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "127.0.0.1:1" in err
    assert "kvcli dev up" in err
    assert err.endswith("(CONNECT)\n")


def test_wait_gives_up_with_5_when_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-u", "kv://127.0.0.1:1", "wait", "--timeout", "300ms"]) == Exit.CONNECT
    assert "not ready after 300ms" in capsys.readouterr().err


@pytest.mark.parametrize("status", [status for status in Status if status in errors.BY_STATUS])
def test_every_status_has_a_line_and_its_exit_code(status: Status) -> None:
    error = errors.BY_STATUS[status]("what happened")
    code, text = describe(error)
    assert code == error.exit_code
    assert text.startswith("error: what happened.")
    assert text.endswith(f"({status.name})")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BatchError("x"), Exit.PARTIAL),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (click.Abort(), Exit.INTERRUPTED),
        (FileNotFoundError(2, "x", "name"), Exit.ERROR),
        (RuntimeError("x"), Exit.ERROR),
        (Failure(Exit.DEGRADED, "x"), Exit.DEGRADED),
    ],
)
def test_other_failures(error: BaseException, code: Exit) -> None:
    assert describe(error)[0] == code


def test_a_traceback_only_with_vv(capsys: pytest.CaptureFixture[str]) -> None:
    for verbosity in (0, 1, 2):
        assert failure.report(_raised(), verbosity) == Exit.ERROR
        assert ("Traceback" in capsys.readouterr().err) is (verbosity == 2)


def _raised() -> RuntimeError:
    """An exception with a traceback."""
    try:
        raise RuntimeError("boom")
    except RuntimeError as error:
        return error


def test_destruction_needs_yes_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    with open("/dev/null") as nowhere:
        monkeypatch.setattr(sys, "stdin", nowhere)
        with pytest.raises(Failure, match="add --yes") as caught:
            app.confirm("Delete everything?")
    assert caught.value.exit_code == Exit.USAGE
    app.settings.yes = True
    app.confirm("Delete everything?")


def test_value_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v").write_bytes(b"\x00file\n")
    app = App()
    assert app.value(f"@{tmp_path}/v") == b"\x00file\n"
    assert app.value("@@x") == b"@x"
    assert app.value("plain \udcff") == b"plain \xff"
    with (tmp_path / "v").open() as file:
        monkeypatch.setattr(app_module.sys, "stdin", file)
        assert app.value("-") == b"\x00file\n"


HEAVY = {
    "asyncio",
    "attr",
    "attrs",
    "cattrs",
    "concurrent.futures",
    "email",
    "http",
    "importlib.metadata",
    "lmdb",
    "multiprocessing",
    "prometheus_client",
    "prompt_toolkit",
    "readline",
    "rich",
    "structlog",
    "tarfile",
    "termios",
    "urllib.request",
    "yaml",
    "kvclient.aio",
    "kvclient.cli.check",
    "kvclient.cli.dev",
    "kvclient.cli.importer",
    "kvclient.cli.shell",
    "kvclient.cli.support",
    "kvclient.cli.top",
    "kvclient.cli.write",
    "router",
    "shared",
}


def loaded_after(arguments: list[str]) -> set[str]:
    """The modules in memory after a command line, in a fresh interpreter."""
    code = f"import sys\nfrom kvclient.cli.main import run\nrun({arguments!r})\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_nothing_heavy_is_loaded_for_get() -> None:
    """The start of `kvcli get` is a promise (250 ms); what must not be loaded is asserted, not the time."""
    loaded = loaded_after(["-u", "kv://127.0.0.1:1", "--timeout", "200ms", "get", "k"])
    assert "kvclient.cli.read" in loaded
    assert "kvclient.client" in loaded
    assert loaded & HEAVY == set()


def test_help_loads_no_command_and_no_sdk() -> None:
    loaded = loaded_after(["--help"])
    assert "kvclient.cli.main" in loaded
    assert loaded & {*HEAVY, "zmq", "kvclient.client", "kvclient.cli.read"} == set()


def test_a_closed_stdout_exits_141() -> None:
    command = Path(sys.executable).with_name("kvcli")
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        [command, "--help"], stdout=reader.stdin, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert reader.stdin is not None
    reader.stdin.close()
    assert done.returncode == Exit.BROKEN_PIPE
    assert done.stderr == b""


@pytest.mark.parametrize(("redirection", "arguments"), [(">&-", "--version"), ("<&-", "put k -")])
def test_a_closed_stream_is_an_error_and_no_defect(redirection: str, arguments: str) -> None:
    command = f'"$0" {arguments} {redirection}'
    kvcli = Path(sys.executable).with_name("kvcli")
    done = subprocess.run(["sh", "-c", command, kvcli], stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == Exit.ERROR
    assert b"Bad file descriptor" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_endless_value_does_not_fill_the_memory() -> None:
    with pytest.raises(errors.ValueTooLarge, match="/dev/zero holds more than 8388608 bytes"):
        App().value("@/dev/zero")


@pytest.mark.parametrize("name", ["nofile", "/", ""])
def test_a_value_file_that_cannot_be_read_is_a_usage_error(name: str) -> None:
    with pytest.raises(click.UsageError, match=f"value '@{name}': "):
        App().value(f"@{name}")


def test_version_does_not_forgive_a_wrong_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-u", "http://x", "version"]) == Exit.USAGE
    assert "is no kv:// address" in capsys.readouterr().err


def test_a_remedy_begins_like_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-u", "foo", "get", "k"]) == Exit.USAGE
    assert "address. Write it like kv://" in capsys.readouterr().err
