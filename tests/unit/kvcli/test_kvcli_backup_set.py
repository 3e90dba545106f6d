"""A backup's directory without a cluster: manifest, `kvcli backup verify` and `ls`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvclient.cli import backupset
from kvclient.cli.backupfile import BadBackup, Cut, PartitionWriter
from kvclient.cli.backupset import MANIFEST, UNFINISHED, Row, encode_manifest, file_name
from kvclient.cli.failure import Failure
from kvclient.cli.main import run
from kvclient.errors import Exit
from tests.unit.kvcli.smallbackup import CLUSTER, make


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make(tmp_path / "monday")
    return tmp_path / "monday"


def kvcli(capsysbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, bytes]:
    code = run([*arguments])
    out, err = capsysbinary.readouterr()
    return code, out, err


Capture = pytest.CaptureFixture[bytes]


def test_a_sound_backup_is_read_and_said_to_be_sound(directory: Path, capsysbinary: Capture) -> None:
    found = backupset.read(directory)
    assert (found.records, len(found.partitions)) == (120, 4)
    code, out, err = kvcli(capsysbinary, "backup", "verify", str(directory))
    assert (code, out) == (Exit.OK, b"")
    assert b"is sound: 120 keys of 4 partitions" in err


def test_every_flipped_bit_of_the_manifest_is_found(directory: Path) -> None:
    path = directory / MANIFEST
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(BadBackup, match="checksum"):
            backupset.read(directory)
    for left in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(BadBackup, match="checksum"):
            backupset.read(directory)
    path.write_bytes(whole + b"\n")
    with pytest.raises(BadBackup, match="checksum"):
        backupset.read(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"cluster": None},
        {"cluster": CLUSTER | {"partitions": 8}},
        {"partitions": []},
        {"partitions": [{}] * 4},
        {"software": 1},
        {"began_ms": True},
    ],
)
def test_a_manifest_of_another_shape_is_refused(directory: Path, change: Row) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes()) | change
    (directory / MANIFEST).write_bytes(encode_manifest(manifest))
    with pytest.raises(BadBackup, match="shape"):
        backupset.read(directory)


def test_no_manifest_leads_out_of_the_directory(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    manifest["partitions"][1]["file"] = "../../etc/passwd"
    (directory / MANIFEST).write_bytes(encode_manifest(manifest))
    with pytest.raises(BadBackup, match="shape"):
        backupset.read(directory)


def test_a_later_version_is_told_apart_from_damage(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes()) | {"ringkv_backup": 2}
    (directory / MANIFEST).write_bytes(encode_manifest(manifest))
    with pytest.raises(Failure, match="version 2; this kvcli reads version 1") as found:
        backupset.read(directory)
    assert found.value.exit_code == Exit.VERSION


def test_verify_names_file_and_offset_of_each_damage(directory: Path, capsysbinary: Capture) -> None:
    first, second, gone = (directory / file_name(number) for number in (0, 1, 3))
    data = bytearray(first.read_bytes())
    data[-100] ^= 0x10
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-30])
    gone.unlink()
    code, out, err = kvcli(capsysbinary, "-o", "json", "backup", "verify", str(directory))
    assert code == Exit.DEGRADED
    problems = {row["file"]: row for row in json.loads(out)["problems"]}
    assert set(problems) == {file_name(0), file_name(1), file_name(3)}
    assert 60 < problems[file_name(0)]["offset"] < len(data) - 100
    assert "checksum" in problems[file_name(0)]["problem"]
    assert "in the middle of" in problems[file_name(1)]["problem"]
    assert "No such file" in problems[file_name(3)]["problem"]
    assert b"3 of its files" in err


def test_verify_finds_a_sound_file_of_another_backup(
    directory: Path, tmp_path: Path, capsysbinary: Capture
) -> None:
    """Of the same cluster and cut: only the sums differ."""
    make(tmp_path / "other")
    name = file_name(2)
    cut = Cut(2, CLUSTER["id"], 102, 2, 1_700_000_000_000)
    writer = PartitionWriter(directory / name, cut)
    writer.add(False, b"\xc4\x01k\xc4\x01v\x01", 1)
    writer.finish()
    writer.close()
    code, out, _ = kvcli(capsysbinary, "backup", "verify", str(directory))
    assert code == Exit.DEGRADED
    assert name.encode() in out
    (directory / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert kvcli(capsysbinary, "backup", "verify", str(directory))[0] == Exit.OK


def test_a_directory_without_a_backup_is_said_to_be_none(tmp_path: Path, capsysbinary: Capture) -> None:
    code, _, err = kvcli(capsysbinary, "backup", "verify", str(tmp_path))
    assert code == Exit.USAGE
    assert b"there is no backup in it" in err
    (tmp_path / UNFINISHED).write_text("{}")
    code, _, err = kvcli(capsysbinary, "backup", "verify", str(tmp_path))
    assert code == Exit.USAGE
    assert b"--resume" in err


def test_ls_shows_what_there_is(directory: Path, tmp_path: Path, capsysbinary: Capture) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / UNFINISHED).write_text("{}")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST).write_text("{}")
    code, out, _ = kvcli(capsysbinary, "-o", "json", "backup", "ls", str(tmp_path))
    rows = {Path(row["name"]).name: row for row in json.loads(out)["backups"]}
    assert code == Exit.OK
    assert {name: row["state"] for name, row in rows.items()} == {
        "bad": "damaged",
        "half": "unfinished",
        "monday": "complete",
    }
    monday = rows["monday"]
    assert (monday["cluster"], monday["keys"], monday["partitions"]) == ("shop", 120, 4)
    assert monday["taken"] == "2023-11-14T22:13:25Z"
    _, out, _ = kvcli(capsysbinary, "-o", "plain", "backup", "ls", str(directory))
    assert out.startswith(str(directory).encode() + b"\tcomplete\tshop\t")
