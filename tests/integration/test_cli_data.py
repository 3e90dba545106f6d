"""kvcli against a real cluster: data commands, formats, exit codes, import and export.

One cluster for the file, started by `kvcli dev up`; every test has its own key prefix.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvclient.cli.records import JsonLinesWriter
from kvclient.errors import Exit

KVCLI = Path(sys.executable).with_name("kvcli")
UNICODE_DATA = Path("/usr/share/unicode/UnicodeData.txt")

# Some seconds of importing: enough to interrupt it in the middle.
RECORDS = 100_000

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cluster")
    command = [KVCLI, "dev", "up", "--dir", path, "--port-base", "0", "--detach", "--routers", "1"]
    subprocess.run(command, check=True, timeout=90, capture_output=True)
    yield path
    subprocess.run([KVCLI, "dev", "down", "--dir", path, "--purge", "--yes"], check=True, timeout=60)


@pytest.fixture(scope="module")
def environment(directory: Path) -> dict[str, str]:
    base = json.loads((directory / "cluster.json").read_text())["port_base"]
    return os.environ | {"RINGKV_URL": f"kv://127.0.0.1:{base}"}


@pytest.fixture
def kv(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run kvcli in a fresh directory and check its exit code."""

    def run(
        *arguments: str | Path, code: int = 0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [KVCLI, *arguments],
            input=stdin,
            capture_output=True,
            env=environment,
            cwd=tmp_path,
            timeout=90,
            check=False,
        )
        assert done.returncode == code, done
        return done

    return run


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


def test_put_get_and_what_is_missing(kv: Run, prefix: str) -> None:
    key = prefix + "k"
    assert kv("get", key, code=Exit.NOT_FOUND).stdout == b""
    assert kv("get", key, "--default", "d").stdout == b"d\n"
    assert kv("put", key, "world").stdout.startswith(b"OK v=")
    assert kv("get", key).stdout == b"world\n"
    assert kv("get", key, "-o", "raw").stdout == b"world"
    assert kv("exists", key, prefix + "no", code=Exit.NOT_FOUND).stdout == b"1\n0\n"
    assert kv("del", key, prefix + "no").stdout == b"1\n"
    assert kv("del", key, "--must-exist", code=Exit.NOT_FOUND).stdout == b"0\n"


@pytest.mark.parametrize("value", ["-5", "-v", "--ttl-like", "-", "@here", "", "two\nlines", "ä"])
def test_any_value_can_be_put(kv: Run, prefix: str, value: str) -> None:
    given, stdin = value, None
    if value in ("-", "-v"):
        given, stdin = "-", value.encode()
    elif value.startswith("@"):
        given = "@" + value
    kv("put", prefix, given, stdin=stdin)
    assert kv("get", prefix, "-o", "raw").stdout == value.encode()


def test_bytes_travel_unharmed(kv: Run, prefix: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "data").write_bytes(data)
    kv("put", prefix, f"@{tmp_path / 'data'}")
    assert kv("get", prefix, "-o", "raw").stdout == data
    key = b"\x00\xff" + prefix.encode()
    kv("put", "--hex", key.hex(), "00ff")
    assert kv("get", "--hex", key.hex()).stdout == b"00ff\n"
    document = json.loads(kv("get", "--hex", key.hex(), "-o", "json").stdout)
    assert document["value"] == {"b64": "AP8="}
    assert set(document["key"]) == {"b64"}
    kv("del", "--hex", key.hex())


def test_transactions(kv: Run, prefix: str, tmp_path: Path) -> None:
    key = f"{{{prefix}}}"
    script = f"if\nabsent {key}a\nthen\nput {key}a 'two words'\nincr {key}n 5\nelse\nget {key}a\nget {key}b\n"
    (tmp_path / "script").write_text(script)
    version = kv("txn", "script", "-o", "plain").stdout
    assert version.splitlines()[1] == f"incr\t{key}n\t5".encode()
    assert version.splitlines()[0].startswith(f"put\t{key}a\t".encode())
    failed = kv("txn", "-o", "json", stdin=script.encode(), code=Exit.CONFLICT)
    assert json.loads(failed.stdout) == {
        "schema": 1,
        "succeeded": False,
        "results": [
            {"op": "get", "key": key + "a", "result": "two words"},
            {"op": "get", "key": key + "b", "result": None},
        ],
    }
    assert failed.stderr == b"a compare failed: else was executed\n"
    wrong = kv("txn", stdin=f"then\nincr {key}a\n".encode(), code=Exit.CONFLICT)
    assert wrong.stderr.endswith(b"(NOT_AN_INTEGER)\n")
    assert kv("txn", stdin=b"then\nput a b\nget c", code=Exit.USAGE).stderr.endswith(b"(INVALID_REQUEST)\n")
    assert b"line 2: " in kv("txn", stdin=b"then\nput", code=Exit.USAGE).stderr
    kv("txn", "no such file", code=Exit.USAGE)


def test_conditions_and_versions(kv: Run, prefix: str) -> None:
    version = json.loads(kv("put", prefix, "1", "-o", "json").stdout)["version"]
    failed = kv("put", prefix, "2", "--if-absent", code=Exit.CONFLICT)
    assert f"version {version}".encode() in failed.stderr
    assert failed.stderr.endswith(b"(CONDITION_FAILED)\n")
    kv("put", prefix, "2", "--if-version", str(version + 1), code=Exit.CONFLICT)
    kv("put", prefix, "2", "--if-version", str(version))
    kv("put", prefix, "3", "--if-value", "1", code=Exit.CONFLICT)
    kv("put", prefix, "3", "--if-value", "2")
    kv("put", prefix + "no", "3", "--if-present", code=Exit.CONFLICT)
    kv("del", prefix, "--if-version", "1", code=Exit.CONFLICT)


def test_time_to_live(kv: Run, prefix: str) -> None:
    kv("put", prefix, "v", "--ttl", "1h")
    assert 3_500_000 < json.loads(kv("get", prefix, "-o", "json").stdout)["ttl_ms"] <= 3_600_000
    kv("touch", prefix, "--persist")
    assert json.loads(kv("get", prefix, "--meta", "-o", "json").stdout)["ttl_ms"] is None
    kv("touch", prefix, "10m")
    assert kv("get", prefix, "--meta").stdout.split(b"\t")[3] > b"59"
    kv("touch", prefix + "no", "1s", code=Exit.NOT_FOUND)
    kv("put", prefix, "v", "--ttl", "11y", code=Exit.USAGE)


def test_counters(kv: Run, prefix: str) -> None:
    assert kv("incr", prefix).stdout == b"1\n"
    assert kv("incr", prefix, "-5").stdout == b"-4\n"
    assert json.loads(kv("incr", prefix, "14", "-o", "json").stdout)["value"] == 10
    kv("put", prefix, "word")
    kv("incr", prefix, code=Exit.CONFLICT)


def test_many_at_once_and_pipes(kv: Run, prefix: str) -> None:
    pairs = [f"{prefix}{number}" for number in range(20)]
    assert kv("mput", *[item for key in pairs for item in (key, f"v\t{key}")]).stdout == b"20\n"
    lines = kv("mget", *reversed(pairs)).stdout
    assert lines.splitlines()[0] == f"{pairs[-1]}\tv\\t{pairs[-1]}".encode()
    kv("del", *pairs)
    missing = kv("mget", *pairs, code=Exit.NOT_FOUND)
    assert missing.stdout == b""
    assert kv("mput", "-", stdin=lines).stdout == b"20\n"
    keys = kv("scan", prefix, "--keys-only").stdout
    assert sorted(kv("mget", "-", stdin=keys).stdout.splitlines()) == sorted(lines.splitlines())


def test_scan_and_count(kv: Run, prefix: str) -> None:
    keys = sorted(f"{prefix}{number:03}" for number in range(50))
    kv("mput", *[item for key in keys for item in (key, "v")])
    assert kv("scan", prefix, "--keys-only").stdout.decode().split() == keys
    assert kv("scan", prefix, "--keys-only", "--reverse").stdout.decode().split() == keys[::-1]
    assert kv("scan", prefix, "--keys-only", "--limit", "7").stdout.decode().split() == keys[:7]
    between = kv("scan", prefix, "--keys-only", "--start", keys[10], "--stop", keys[13]).stdout
    assert between.decode().split() == keys[10:13]
    document = json.loads(kv("scan", prefix, "-o", "json", "--limit", "2").stdout)
    assert [sorted(entry) for entry in document["entries"]] == [["key", "value", "version"]] * 2
    assert kv("count", prefix).stdout == b"50\n"
    assert json.loads(kv("count", prefix, "-o", "json").stdout) == {"schema": 1, "count": 50}


def test_deleting_a_prefix_needs_a_yes(kv: Run, prefix: str) -> None:
    kv("mput", *[item for number in range(30) for item in (f"{prefix}{number}", "v")])
    assert b"--yes" in kv("del", "--prefix", prefix, code=Exit.USAGE, stdin=b"").stderr
    assert kv("del", "--prefix", prefix, "--dry-run").stdout == b"30\n"
    assert kv("count", prefix).stdout == b"30\n"
    assert kv("del", "--prefix", prefix, "--yes").stdout == b"30\n"
    assert kv("count", prefix).stdout == b"0\n"


def test_limits_are_named(kv: Run, prefix: str) -> None:
    assert b"4096" in kv("put", "k" * 4097, "v", code=Exit.USAGE).stderr
    done = kv("put", prefix, "-", code=Exit.USAGE, stdin=bytes((1 << 20) + 1))
    assert done.stderr.endswith(b"(VALUE_TOO_LARGE)\n")
    assert b"1048576" in done.stderr


def test_a_reader_that_goes_away_means_141(kv: Run, prefix: str, environment: dict[str, str]) -> None:
    value = "x" * 1000
    kv("mput", "-", stdin="".join(f"{prefix}{number}\t{value}\n" for number in range(500)).encode())
    with subprocess.Popen(
        [KVCLI, "scan", prefix], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        scan.stdout.read(100)
        scan.stdout.close()
        assert scan.wait(30) == Exit.BROKEN_PIPE
        assert scan.stderr.read() == b""


def test_a_terminal_gets_a_table_and_harmless_text(kv: Run, prefix: str, environment: dict[str, str]) -> None:
    kv("put", "--hex", (prefix.encode() + b"\xff").hex(), b"\x1b[2J".hex())
    assert on_a_terminal(["scan", prefix], environment) == (
        0,
        ["KEY" + " " * (len(prefix) + 3) + "VALUE", f"{prefix}\\xff  \\x1b[2J"],
    )
    code, lines = on_a_terminal(["get", prefix], environment)
    assert code == Exit.NOT_FOUND
    assert lines[0].startswith("\x1b[31m\x1b[1merror:\x1b[0m no such key")
    assert on_a_terminal(["get", prefix], environment | {"NO_COLOR": "1"})[1][0].startswith("error: ")
    assert on_a_terminal(["get", prefix, "--no-color"], environment)[1][0].startswith("error: ")


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run kvcli with a terminal as stdin, stdout and stderr; its exit code and the lines on the screen."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [KVCLI, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as process:
            os.close(theirs)
            screen = b""
            with contextlib.suppress(OSError):  # EIO: the other side was closed
                while data := os.read(ours, 4096):
                    screen += data
            return process.wait(30), screen.decode().splitlines()
    finally:
        os.close(ours)


def test_ctrl_c_means_130(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [KVCLI, "ping", "-c", "100000", "-i", "10ms", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begin = b""
        while b"rtt_ms" not in begin:
            begin += process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert process.returncode == Exit.INTERRUPTED
    assert said == b"interrupted\n"
    assert isinstance(json.loads(begin + rest)["pings"], list)


def test_about_the_cluster(kv: Run) -> None:
    status = json.loads(kv("status", "-o", "json").stdout)
    assert status["healthy"] is True
    assert status["schema"] == 1
    assert [node["name"] for node in status["cluster"]["nodes"]] == ["store1", "store2", "store3"]
    assert len(kv("status").stdout.splitlines()) == 3
    assert b"healthy" in kv("status", "-o", "table").stdout.splitlines()[0]
    route = json.loads(kv("route", "a{tag}b", "-o", "json").stdout)
    assert route["hashed_part"] == "tag"
    assert route["state"] == "up"
    assert kv("route", "{tag}x").stdout.split(b"\t")[1] == str(route["partition"]).encode()
    pings = json.loads(kv("ping", "-c", "3", "-i", "1ms", "-o", "json").stdout)["pings"]
    assert [ping["router"] for ping in pings] == ["router1"] * 3
    kv("wait", "--ready", "--timeout", "10s")
    assert json.loads(kv("version", "-o", "json").stdout)["router"] == "router1"


def test_bench(kv: Run, prefix: str) -> None:
    options = ["--prefix", prefix, "--keys", "200", "--ops", "3000", "--in-flight", "8", "--pipeline", "10"]
    found = json.loads(kv("bench", *options, "-o", "json").stdout)
    assert found["ops"] == 3000
    assert found["requests"] == 300
    assert found["errors"] == {}
    assert list(found["latency_us"]) == ["p50", "p95", "p99", "p99.9", "max"]
    assert b"p99.9" in kv("bench", *options, "--mix", "0/100", "--keep").stdout
    assert kv("count", prefix).stdout == b"200\n"
    assert b"Overwrite" in kv("bench", *options, code=Exit.USAGE, stdin=b"").stderr


def sorted_lines(data: bytes) -> list[bytes]:
    return sorted(data.splitlines(keepends=True))


def test_csv_comes_back_byte_for_byte(kv: Run, prefix: str, tmp_path: Path) -> None:
    lines = UNICODE_DATA.read_bytes().splitlines(keepends=True) if UNICODE_DATA.exists() else []
    sample = lines[:3000] or [b"%04X;NAME %d;Lu;0;L;;;;;N;;;;%04X;\n" % (n, n, n + 32) for n in range(3000)]
    data = b"".join(prefix.encode() + line for line in sample)
    (tmp_path / "in.csv").write_bytes(data)
    done = kv("import", "in.csv", "--delimiter", ";")
    assert b"imported 3,000 keys" in done.stderr
    assert done.stdout == b""
    kv("export", prefix, "-f", "out.csv", "--delimiter", ";")
    assert sorted_lines((tmp_path / "out.csv").read_bytes()) == sorted_lines(data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_lines_come_back_byte_for_byte(kv: Run, prefix: str, tmp_path: Path) -> None:
    start = prefix.encode()
    data = b"".join(start + word + b"\n" for word in (b"\xc3\xa9tude's", b"\xff\xfe", b" blank ", b"zebra"))
    (tmp_path / "words").write_bytes(data)
    kv("import", "words", code=Exit.USAGE)
    kv("import", "words", "--format", "lines")
    assert sorted_lines(kv("export", prefix, "--format", "lines").stdout) == sorted_lines(data)


@pytest.mark.parametrize("name", ["x.dump", "x.jsonl"])
def test_any_bytes_survive_dump_and_jsonl(kv: Run, prefix: str, tmp_path: Path, name: str) -> None:
    generator = random.Random(1)
    items = {
        prefix.encode() + generator.randbytes(9): generator.randbytes(generator.randrange(300))
        for _ in range(500)
    }
    source = tmp_path / "source.jsonl"
    source.write_bytes(JsonLinesWriter().page(items.items())[0])
    kv("import", source)
    kv("export", prefix, "-f", name)
    before = kv("scan", prefix, "-o", "jsonl").stdout
    kv("del", "--prefix", prefix, "--yes")
    assert b"imported 500 keys" in kv("import", name).stderr
    after = kv("scan", prefix, "-o", "jsonl").stdout
    strip = [{"key": entry["key"], "value": entry["value"]} for entry in map(json.loads, before.splitlines())]
    assert [
        {"key": entry["key"], "value": entry["value"]} for entry in map(json.loads, after.splitlines())
    ] == strip
    assert len(strip) == 500


def test_bad_records_do_not_hide_good_ones(kv: Run, prefix: str, tmp_path: Path) -> None:
    good = [json.dumps({"key": f"{prefix}{number}", "value": "v"}) for number in range(10)]
    bad = [
        "{",
        '{"key": "x"}',
        json.dumps({"key": "", "value": "v"}),
        json.dumps({"key": "k" * 5000, "value": "v"}),
    ]
    big = json.dumps({"key": f"{prefix}big", "value": "x" * ((1 << 20) + 1)})
    (tmp_path / "mixed.jsonl").write_text("\n".join([*good[:5], *bad, big, *good[5:]]) + "\n")
    done = kv("import", "mixed.jsonl", "-o", "json", code=Exit.PARTIAL)
    summary = json.loads(done.stdout)
    assert (summary["imported"], summary["rejected"]) == (10, 5)
    rejects = [json.loads(line) for line in Path(summary["rejects"]).read_bytes().splitlines()]
    assert [reject["line"] for reject in rejects] == [6, 7, 8, 9, 10]
    assert "1048576" in rejects[-1]["reason"]
    assert kv("count", prefix).stdout == b"10\n"
    assert b"5 rejected" in done.stderr


def test_a_cut_dump_loads_what_is_whole_and_says_so(kv: Run, prefix: str, tmp_path: Path) -> None:
    kv("mput", "-", stdin="".join(f"{prefix}{number}\tv\n" for number in range(100)).encode())
    kv("export", prefix, "-f", "whole.dump")
    whole = (tmp_path / "whole.dump").read_bytes()
    (tmp_path / "cut.dump").write_bytes(whole[:-5])
    (tmp_path / "none.dump").write_bytes(b"something else")
    kv("del", "--prefix", prefix, "--yes")
    done = kv("import", "cut.dump", code=Exit.PARTIAL)
    assert b"cut off" in done.stderr
    assert b"The 100 records before that are loaded" in done.stderr
    assert kv("count", prefix).stdout == b"100\n"
    assert b"no dump file" in kv("import", "none.dump", code=Exit.ERROR).stderr


def test_an_unreadable_end_leaves_no_state_file(kv: Run, tmp_path: Path) -> None:
    (tmp_path / "none.dump").write_bytes(b"something else")
    kv("import", "none.dump", code=Exit.ERROR)
    assert [path.name for path in tmp_path.iterdir()] == ["none.dump"]


def test_two_imports_at_once_do_not_write_the_same_files(
    kv: Run, prefix: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [KVCLI, "import", "-", "--format", "lines"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as first:
        wait_until_there(tmp_path / "stdin.import-state")
        said = kv(*command[1:], code=Exit.ERROR, stdin=b"x\n").stderr
        assert b"another kvcli is at work" in said
        kv(*command[1:], "--resume", "other", stdin=f"{prefix}2\n".encode())
        first.communicate(f"{prefix}1\n".encode(), timeout=60)
    assert first.returncode == 0
    assert kv("count", prefix).stdout == b"2\n"


def wait_until_there(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_export_that_met_a_full_disk_is_continued(
    kv: Run, prefix: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    kv("mput", "-", stdin="".join(f"{prefix}{n:05}\t{'v' * 100}\n" for n in range(5000)).encode())

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [KVCLI, "export", prefix, "-f", "out.jsonl"],
        env=environment,
        cwd=tmp_path,
        preexec_fn=limit_file_size,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.ERROR
    assert b"out.jsonl.partial: File too large" in done.stderr
    again = shlex.split(done.stderr.decode().partition("continue:")[2].splitlines()[0])
    assert json.loads((tmp_path / "out.jsonl.export-state").read_text())["done"]["keys"] >= 1000
    assert b"exported 5,000 keys" in kv(*again[1:]).stderr
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [record["key"] for record in records] == [f"{prefix}{n:05}" for n in range(5000)]


def test_an_export_that_finds_nobody_leaves_nothing(kv: Run, tmp_path: Path) -> None:
    kv("-u", "kv://127.0.0.1:1", "export", "-f", "out.jsonl", code=Exit.CONNECT)
    assert list(tmp_path.iterdir()) == []
    said = kv("export", "-f", "no/where.jsonl", code=Exit.ERROR).stderr
    assert b"No such file or directory" in said
    assert b"--resume" not in said


def test_import_reads_a_pipe(kv: Run, prefix: str) -> None:
    data = "".join(f"{prefix}{number}\n" for number in range(5000)).encode()
    kv("import", "-", "--format", "lines", stdin=data)
    assert sorted_lines(kv("export", prefix, "--format", "lines").stdout) == sorted_lines(data)


def wait_for_progress(process: subprocess.Popen[bytes], state: Path) -> dict[str, int]:
    """Until the state file shows acknowledged records; the import must still be running."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if state.exists() and (done := json.loads(state.read_text())["done"])["imported"]:
            assert process.poll() is None
            return done  # type: ignore[no-any-return]
        time.sleep(0.005)
    raise AssertionError("no progress was recorded")


def big_file(path: Path, prefix: str, count: int = RECORDS) -> bytes:
    data = "".join(f"{prefix}{number:06};{'x' * 50}\n" for number in range(count)).encode()
    path.write_bytes(data)
    return data


def test_an_interrupted_import_is_continued_by_the_command_it_prints(
    kv: Run, prefix: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    data = big_file(tmp_path / "big.csv", prefix)
    state = tmp_path / "big.csv.import-state"
    command = [KVCLI, "import", "big.csv", "--delimiter", ";"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=tmp_path) as process:
        wait_for_progress(process, state)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == Exit.INTERRUPTED
        assert process.stderr is not None
        said = process.stderr.read().decode()
    done = json.loads(state.read_text())["done"]
    assert 0 < done["mark"]["line"] < RECORDS
    again = shlex.split(said.partition("continue:")[2].splitlines()[0])
    assert again[0] == "kvcli"
    first = data.split(b";", 1)[0].decode()
    last = data.splitlines()[done["mark"]["line"] - 1].split(b";")[0].decode()
    kv("del", first, last)
    assert f"imported {RECORDS:,} keys".encode() in kv(*again[1:]).stderr
    # Nothing that was acknowledged is sent again, and nothing else is missing.
    exported = kv("export", prefix, "--format", "csv", "--delimiter", ";").stdout
    assert sorted_lines(exported) == [
        line for line in sorted_lines(data) if line.split(b";")[0].decode() not in (first, last)
    ]
    assert b"is complete" in kv(*again[1:]).stderr
    assert b"another job" in kv(*again[1:], "--key-column", "2", code=Exit.USAGE).stderr


def test_stores_killed_during_an_import_lose_nothing(
    kv: Run, prefix: str, tmp_path: Path, environment: dict[str, str], directory: Path
) -> None:
    data = big_file(tmp_path / "big.csv", prefix)
    state = tmp_path / "state"
    command = [KVCLI, "import", "big.csv", "--delimiter", ";", "--resume", "state", "--retry-for", "60s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=tmp_path) as process:
        wait_for_progress(process, state)
        kv("dev", "kill", "stores", "--dir", directory)
        kv("dev", "start", "stores", "--dir", directory)
        _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    exported = kv("export", prefix, "--format", "csv", "--delimiter", ";").stdout
    assert sorted_lines(exported) == sorted_lines(data)


def test_a_lost_cluster_ends_an_import_that_can_be_continued(
    kv: Run, prefix: str, tmp_path: Path, environment: dict[str, str], directory: Path
) -> None:
    data = big_file(tmp_path / "big.csv", prefix)
    command = [KVCLI, "import", "big.csv", "--delimiter", ";", "--retry-for", "300ms", "--timeout", "1s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=tmp_path) as process:
        before = wait_for_progress(process, tmp_path / "big.csv.import-state")
        kv("dev", "kill", "all", "--dir", directory)
        _, said = process.communicate(timeout=60)
    try:
        assert process.returncode in (Exit.CONNECT, Exit.TIMEOUT, Exit.OUTCOME_UNKNOWN, Exit.UNAVAILABLE), (
            said
        )
        assert kv("get", "k", code=Exit.CONNECT).stdout == b""
    finally:
        kv("dev", "start", "all", "--dir", directory)
    done = json.loads((tmp_path / "big.csv.import-state").read_text())["done"]
    assert before["imported"] <= done["imported"] < RECORDS
    # What the state file calls acknowledged has survived the kill.
    lines = data.splitlines(keepends=True)
    exported = set(
        kv("export", prefix, "--format", "csv", "--delimiter", ";").stdout.splitlines(keepends=True)
    )
    assert set(lines[: done["mark"]["line"]]) <= exported
    again = shlex.split(said.decode().partition("continue:")[2].splitlines()[0])
    kv(*again[1:])
    exported_all = kv("export", prefix, "--format", "csv", "--delimiter", ";").stdout
    assert sorted_lines(exported_all) == sorted_lines(data)


def test_an_export_waits_for_the_cluster_and_appears_whole(
    kv: Run, prefix: str, tmp_path: Path, directory: Path
) -> None:
    kv("mput", "-", stdin="".join(f"{prefix}{number}\tv\n" for number in range(2000)).encode())
    kv("dev", "kill", "stores", "--dir", directory)
    options = ["export", prefix, "-f", "out.dump", "--resume", "state", "--timeout", "500ms"]
    try:
        failed = kv(*options, "--retry-for", "100ms", code=Exit.UNAVAILABLE)
        assert b"continue:" in failed.stderr
        assert not (tmp_path / "out.dump").exists()
    finally:
        kv("dev", "start", "stores", "--dir", directory)
    kv(*options)
    kv("del", "--prefix", prefix, "--yes")
    assert b"imported 2,000 keys" in kv("import", "out.dump").stderr
    assert b"is complete" in kv(*options).stderr
