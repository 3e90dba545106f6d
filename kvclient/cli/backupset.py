"""A backup's directory: its manifest, and what can be told and checked without a cluster (docs/formats.md
section 7).

Owns the manifest's encoding. Knows no click.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from kvclient.cli.backupfile import BadBackup, Block, Cut, PartitionReader
from kvclient.cli.failure import Failure
from kvclient.cli.resume import replace_file
from kvclient.errors import Exit

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
UNFINISHED: Final = "unfinished.json"

MANIFEST_BYTES_MAX: Final = 4 << 20
"""4096 partitions take 1.5 MiB."""

Row = dict[str, Any]

_ROW: Final = {
    "partition": int,
    "file": str,
    "node": str,
    "index": int,
    "term": int,
    "taken_ms": int,
    "records": int,
    "raw_bytes": int,
    "bytes": int,
    "sha256": str,
}
_CLUSTER: Final = {"name": str, "id": str, "epoch": int, "partitions": int, "replicas": int}


def file_name(partition: int) -> str:
    """Of a partition's file."""
    return f"partition-{partition:04}.rkb"


def encode_manifest(manifest: Row) -> bytes:
    """The bytes of manifest.json, the checksum added."""
    said = {name: value for name, value in manifest.items() if name != "checksum"}
    return _encode(said | {"checksum": hashlib.sha256(_encode(said)).hexdigest()})


def _encode(said: Row) -> bytes:
    return json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"


def write_manifest(directory: Path, manifest: Row) -> None:
    """Complete a backup, durably."""
    replace_file(directory / MANIFEST, encode_manifest(manifest))


class Backup:
    """A complete backup. Made by `read`."""

    def __init__(self, directory: Path, manifest: Row) -> None:
        self.directory = directory
        self.manifest = manifest
        self.cluster: Row = manifest["cluster"]
        self.partitions: list[Row] = manifest["partitions"]
        self.records = sum(row["records"] for row in self.partitions)
        self.size = sum(row["bytes"] for row in self.partitions)

    def reader(self, row: Row) -> PartitionReader:
        """Of one partition's file."""
        cut = Cut(row["partition"], self.cluster["id"], row["index"], row["term"], row["taken_ms"])
        return PartitionReader(self.directory / row["file"], cut, row["bytes"])

    def check(self, row: Row, on_block: Callable[[Block], object]) -> None:
        """Read a partition's file to its end. BadBackup: the first thing that is wrong; OSError."""
        path = self.directory / row["file"]
        reader = self.reader(row)
        records = 0
        for block in reader.blocks():
            records += len(block.records)
            on_block(block)
        if records != row["records"]:
            raise BadBackup(path, 0, f"{records} records, the manifest says {row['records']}")
        if reader.digest.hexdigest() != row["sha256"]:
            raise BadBackup(path, 0, "another file than the manifest's: its SHA-256 differs")


def read(directory: Path) -> Backup:
    """The backup in `directory`. BadBackup: its manifest is damaged; Failure: it has none, or one of another
    version.
    """
    path = directory / MANIFEST
    try:
        with open(path, "rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(Exit.USAGE, _no_backup(directory), "NO_BACKUP") from None
    try:
        manifest = json.loads(data)
        sound = isinstance(manifest, dict) and encode_manifest(manifest) == data
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise BadBackup(path, 0, "the manifest fails its checksum")
    if manifest.get("ringkv_backup") != FORMAT:
        version = manifest.get("ringkv_backup")
        what = f"{path} is of backup version {version!r}; this kvcli reads version {FORMAT}"
        raise Failure(Exit.VERSION, what)
    if not _is_shaped(manifest):
        raise BadBackup(path, 0, "the manifest is not of this shape")
    return Backup(directory, manifest)


def _no_backup(directory: Path) -> str:
    if (directory / UNFINISHED).exists():
        return (
            f"{directory} has a backup that is not finished: kvcli backup create {directory} --resume goes on"
        )
    return f"{directory} has no {MANIFEST}: there is no backup in it"


def _is_shaped(manifest: Row) -> bool:
    cluster, rows = manifest.get("cluster"), manifest.get("partitions")
    if not _has(cluster, _CLUSTER) or not isinstance(rows, list) or not all(_has(row, _ROW) for row in rows):
        return False
    if [(row["partition"], row["file"]) for row in rows] != [
        (number, file_name(number)) for number in range(len(rows))
    ]:
        return False
    return len(rows) == manifest["cluster"]["partitions"] and _has(
        manifest, {"software": str, "began_ms": int, "finished_ms": int}
    )


def _has(value: object, fields: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is kind for name, kind in fields.items())


def found_in(directory: Path) -> Iterator[Path]:
    """The directory itself and those in it that hold a backup, finished or not, by name."""
    inside = sorted(path for path in directory.iterdir() if path.is_dir())
    for path in (directory, *inside):
        if (path / MANIFEST).exists() or (path / UNFINISHED).exists():
            yield path
