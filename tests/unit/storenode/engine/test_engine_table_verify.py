"""What Table.verify finds behind right checksums: keys out of order, or where neither index nor manifest lead
to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvclient.errors import Corruption
from storenode.engine.job import Job
from storenode.engine.memtable import Memtable
from storenode.engine.table import Cache, Table
from storenode.engine.tools import blocks
from storenode.engine.vfs import Vfs
from tests.property.engine_mutation import FILE_ID, Parts, put_together, take_apart

KEYS = [b"key-%04d" % number for number in range(400)]
VALUE = b"value" * 10

Change = Callable[[Parts], Parts | None]


def written(directory: Path, keys: list[bytes], block_bytes: int) -> Path:
    """A table as a flush writes it."""
    memtable = Memtable()
    for sequence, key in enumerate(keys, start=1):
        memtable.add(key, sequence, 1, VALUE)
    job = Job(
        str(directory),
        (memtable,),
        (),
        (),
        (),
        now_ms=0,
        table_bytes=1 << 30,
        overlap_bytes_max=1 << 30,
        block_bytes=block_bytes,
        bits_per_key=10,
    )
    path = directory / "000000.sst"
    assert job.step() == 1
    file = Vfs().create(str(path))
    job.open_table(file.fd, 0, FILE_ID, 1)
    assert job.step() == 2
    file.close()
    return path


def verify(path: Path, smallest: bytes = KEYS[0], largest: bytes = KEYS[-1], **limit: int) -> int:
    file = Vfs().open(str(path))
    size = path.stat().st_size
    return Table(Cache(1 << 20), file, 0, FILE_ID, size, smallest, largest, **limit).verify()


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return take_apart(written(tmp_path, KEYS, 1024).read_bytes())


@pytest.mark.parametrize("block_bytes", [1, 64, 1024, 4096])
def test_a_sound_table_is_sound(tmp_path: Path, block_bytes: int) -> None:
    assert verify(written(tmp_path, KEYS, block_bytes)) == len(KEYS)


def test_a_version_above_the_newest_is_found(tmp_path: Path) -> None:
    """Scans pass what a range deletion hides by what the manifest says is the newest."""
    path = written(tmp_path, KEYS, 1024)
    assert verify(path, max_sequence=len(KEYS)) == len(KEYS)
    with pytest.raises(Corruption, match="a version newer than the manifest says of the table"):
        verify(path, max_sequence=len(KEYS) - 1)


def test_separators_of_keys_that_follow_each_other_closely_divide_the_blocks(tmp_path: Path) -> None:
    """One block for each key, and each key the next one's beginning, or but one below it."""
    numbers = (0, 1, 2, 3, 254, 255)
    keys = sorted({bytes((one, other))[:size] for one in numbers for other in numbers for size in (1, 2)})
    path = written(tmp_path, keys, 1)
    assert len(take_apart(path.read_bytes()).data) == len(keys)
    assert verify(path, keys[0], keys[-1]) == len(keys)


def test_a_key_whose_versions_lie_in_many_blocks_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "000000.sst"
    file = Vfs().create(str(path))
    writer = blocks.TableWriter(file, 0, FILE_ID, 1)
    for sequence in range(400, 0, -1):
        writer.add(b"one key", sequence, 1, bytes(100), 0)
    writer.finish()
    file.close()
    assert len(take_apart(path.read_bytes()).data) > 5
    assert verify(path, b"one key", b"one key") == 400


def separator(position: int, change: Callable[[Parts], bytes]) -> Change:
    def changed(parts: Parts) -> None:
        parts.data[position] = (change(parts), parts.data[position][1])

    return changed


def exchange(parts: Parts) -> None:
    parts.data[2], parts.data[3] = parts.data[3], parts.data[2]


def exchange_below_their_separators(parts: Parts) -> None:
    """Only the order is wrong."""
    (first, one), (second, other) = parts.data[2:4]
    parts.data[2], parts.data[3] = (second, other), (second, one)
    assert first < second


def repeat(parts: Parts) -> None:
    parts.data.insert(2, parts.data[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (exchange, "keys out of order"),
        (exchange_below_their_separators, "keys out of order"),
        (repeat, "keys out of order"),
        (separator(2, lambda parts: parts.data[1][0]), "a key above what the index says of its block"),
        (separator(2, lambda parts: b""), "a key above what the index says of its block"),
        (separator(2, lambda parts: parts.data[3][0]), "a key that the index says is in the block before"),
        (separator(2, lambda parts: KEYS[-1]), "a key that the index says is in the block before"),
        (separator(-1, lambda parts: KEYS[-2]), "a key above what the index says of its block"),
    ],
)
def test_keys_out_of_order_and_wrong_separators_are_found(
    tmp_path: Path, parts: Parts, change: Change, said: str
) -> None:
    path = tmp_path / "000000.sst"
    path.write_bytes(put_together(parts))
    assert verify(path) == len(KEYS)
    change(parts)
    path.write_bytes(put_together(parts))
    with pytest.raises(Corruption, match=rf"000000\.sst: ({said}) \(offset \d+\)"):
        verify(path)


def test_what_readers_keep_of_a_table_hides_no_damage_of_its_index(tmp_path: Path, parts: Parts) -> None:
    path = tmp_path / "000000.sst"
    parts.data[2] = (KEYS[-1], parts.data[2][1])
    path.write_bytes(put_together(parts))
    file, cache = Vfs().open(str(path)), Cache(1 << 20)
    table = Table(cache, file, 0, FILE_ID, path.stat().st_size, KEYS[0], KEYS[-1])
    assert len(table.entries()) == len(KEYS)
    assert cache.stats()["pinned_bytes"] > 0
    with pytest.raises(Corruption, match="in the block before"):
        table.verify()


def test_a_separator_that_is_the_next_blocks_first_key_is_found(tmp_path: Path, parts: Parts) -> None:
    path = tmp_path / "000000.sst"
    head = parts.data[3][1].content
    first = head[3 : 3 + head[1] - 8]
    assert first in KEYS
    parts.data[2] = (first, parts.data[2][1])
    path.write_bytes(put_together(parts))
    with pytest.raises(Corruption, match="in the block before"):
        verify(path)


def test_keys_outside_of_the_manifests_bounds_are_found(tmp_path: Path) -> None:
    path = written(tmp_path, KEYS, 1024)
    with pytest.raises(Corruption, match="a key below the table's smallest"):
        verify(path, smallest=KEYS[1])
    with pytest.raises(Corruption, match="a key above the table's largest"):
        verify(path, largest=KEYS[-2])
