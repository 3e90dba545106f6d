"""What the tests of the offline tools share: running one, an engine's files, and damage to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import pytest

from storenode import engine
from storenode.engine.manifest import Manifest
from storenode.engine.tools import blocks
from storenode.engine.tools.__main__ import run
from storenode.engine.tools.tablefile import TableFile
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

OK, ERROR, USAGE, NOT_FOUND, UNAVAILABLE, PARTIAL, DAMAGED = 0, 1, 2, 3, 8, 10, 11


Content = dict[bytes, bytes]


class Bench:
    """Runs tools and looks at what they print."""

    def __init__(self, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capsysbinary
        self.errors = ""

    def __call__(self, *arguments: object, code: int = OK) -> dict[str, Any]:
        """The json document that a tool prints; its exit code must be `code`."""
        got = run([*map(str, arguments), "--format=json", "--traceback"])
        out, err = self._capture.readouterr()
        self.errors = err.decode()
        assert "Traceback" not in self.errors
        assert got == code, (got, out, err)
        return json.loads(out) if out else {}  # type: ignore[no-any-return]

    def text(self, *arguments: object, code: int = OK) -> bytes:
        assert run([*map(str, arguments)]) == code
        return self._capture.readouterr().out


OPTIONS = engine.Options(memtable_bytes=32 << 10, table_bytes=16 << 10, level0_trigger=12)


def content(directory: Path) -> Content:
    with engine.open(str(directory)) as opened:
        return dict(opened.scan())


def tables(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.sst"))


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.wal"))


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x10
    path.write_bytes(raw)


def sections(path: Path) -> dict[str, int]:
    """An offset inside each part of a table."""
    with TableFile(Vfs(), str(path), int(path.stem), 0) as table:
        footer, index = table.footer(), table.index()
    return {
        "data": index[len(index) // 2].handle.offset + 20,
        "filter": footer.filter_block.offset + 3,
        "index": footer.index_block.offset + 3,
        "properties": footer.properties_block.offset + 3,
        "footer": path.stat().st_size - 20,
    }


def whats(document: dict[str, Any]) -> str:
    return " | ".join(f"{row['file']} {row['what']}" for row in document["problems"])


def levels(directory: Path) -> dict[int, int]:
    """Level by table number."""
    made = Manifest(str(directory / "manifest"))
    try:
        return {table.number: table.level for table in made.load(0)[1]}
    finally:
        made.close()


def make_table(directory: Path, number: int, versions: list[tuple[bytes, int, int, bytes]]) -> TableMeta:
    file = Vfs().create(str(directory / f"{number:06d}.sst"))
    writer = blocks.TableWriter(file, number, number, 1)
    for key, sequence, kind, value in versions:
        writer.add(key, sequence, kind, value, 0)
    finished = writer.finish()
    file.close()
    return TableMeta(level=0, **finished)


def tamper(directory: Path, tag: int) -> None:
    """Flip a bit in the value of a record with this tag."""
    with lmdb.open(str(directory)) as env, env.begin(write=True) as transaction:
        key, value = next((k, bytes(v)) for k, v in transaction.cursor() if k[4] == tag and k[0] == 0)
        transaction.put(key, value[:9] + bytes([value[9] ^ 1]) + value[10:])
