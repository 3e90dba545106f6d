"""The map on the disk is there whole, or refused with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.clustermap import ClusterMap, Node
from storenode import mapfile
from storenode.mapfile import NAME, MapFileDamaged

MAP = ClusterMap.bootstrap("c", 4, 1, [Node(1, "store1", "tcp://127.0.0.1:7200")])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert mapfile.read(tmp_path) is None
    mapfile.write(tmp_path, MAP)
    assert mapfile.read(tmp_path) == MAP
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes()[:12] == b"ringmap2" + len(MAP.encode()).to_bytes(4, "little")


def test_every_byte_is_checked(tmp_path: Path) -> None:
    mapfile.write(tmp_path, MAP)
    content = (tmp_path / NAME).read_bytes()
    for wrong in [content[:end] for end in range(len(content))] + [content + b"x"]:
        (tmp_path / NAME).write_bytes(wrong)
        with pytest.raises(MapFileDamaged, match=NAME):
            mapfile.read(tmp_path)
    for at in range(len(content)):
        (tmp_path / NAME).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(MapFileDamaged, match=NAME):
            mapfile.read(tmp_path)


def test_another_format_is_refused_with_both_names(tmp_path: Path) -> None:
    mapfile.write(tmp_path, MAP)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(b"ringmap3" + content[8:])
    with pytest.raises(MapFileDamaged, match="begins with b'ringmap3', this software reads b'ringmap2'"):
        mapfile.read(tmp_path)
