"""The manifest: golden bytes of docs/formats.md section 5, damage, growth, and what a reader is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvclient.errors import Corruption
from storenode.engine import codec, manifest
from storenode.engine.deletions import RangeDeletion
from storenode.engine.errors import EngineClosed
from storenode.engine.manifest import Manifest, State
from storenode.engine.version import TableMeta

TABLE = TableMeta(9, 6, 4 << 48 | 9, 1000, 10, 2, 1, 5, 50, 300, 400, 1234567, b"aa", b"zzz", 45)


def stored(directory: Path) -> dict[bytes, bytes]:
    env = lmdb.open(str(directory), readonly=True)
    try:
        with env.begin() as transaction, transaction.cursor() as cursor:
            return {bytes(key): bytes(value) for key, value in cursor}
    finally:
        env.close()


def store(directory: Path, key: bytes, value: bytes | None) -> None:
    env = lmdb.open(str(directory))
    try:
        with env.begin(write=True) as transaction:
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)
    finally:
        env.close()


def load(directory: Path, engine_id: int = 4) -> tuple[State | None, list[TableMeta]]:
    opened = Manifest(str(directory))
    try:
        return opened.load(engine_id)
    finally:
        opened.close()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    opened = Manifest(str(tmp_path))
    assert opened.load(4) == (None, [])
    opened.commit(4, State(10, 7, 50, 777), [TABLE], [])
    opened.close()
    return tmp_path


def sealed(key: bytes, payload: bytes) -> bytes:
    return payload + codec.masked_crc32c(key + payload).to_bytes(4, "little")


def test_records_have_the_documented_bytes(written: Path) -> None:
    def numbers(*values: int) -> bytes:
        return b"".join(value.to_bytes(8, "little") for value in values)

    one = (1).to_bytes(4, "little")
    format_key = b"\xff\xff\xff\xff\x00" + bytes(8)
    table_key = bytes.fromhex("00000004020000000000000009")
    state_key = bytes.fromhex("00000004010000000000000000")
    payload = one + b"\x06" + numbers(4 << 48 | 9, 1000, 10, 2, 1, 5, 50, 300, 400, 1234567, 45)
    payload += (2).to_bytes(4, "little") + b"aa" + (3).to_bytes(4, "little") + b"zzz"
    table_value = sealed(table_key, payload)
    digest = codec.hash64(table_key + table_value)
    assert stored(written) == {
        format_key: sealed(format_key, one),
        table_key: table_value,
        state_key: sealed(state_key, one + numbers(10, 7, 50, 777, 1, digest)),
    }


def test_range_deletions_have_the_documented_bytes_and_count_as_records(written: Path) -> None:
    one = (1).to_bytes(4, "little")
    opened = Manifest(str(written))
    opened.load(4)
    ranges = (RangeDeletion(b"", None, 20), RangeDeletion(b"a", b"bcd", 40))
    opened.commit(4, State(10, 7, 50, 777, ranges), [], [])
    opened.close()
    assert load(written) == (State(10, 7, 50, 777, ranges), [TABLE])
    records = stored(written)
    first, second = bytes.fromhex("00000004030000000000000014"), bytes.fromhex("00000004030000000000000028")
    assert records[first] == sealed(first, one + bytes(9))
    lengths = [size.to_bytes(4, "little") for size in (1, 3)]
    assert records[second] == sealed(second, one + b"\x01" + lengths[0] + b"a" + lengths[1] + b"bcd")
    digest = sum(codec.hash64(key + value) for key, value in records.items() if key[:5] > first[:4] + b"\x01")
    digest -= sum(codec.hash64(key + value) for key, value in records.items() if key[0] == 0xFF)
    state = records[bytes.fromhex("00000004010000000000000000")]
    assert state[36:52] == (3).to_bytes(8, "little") + (digest % (1 << 64)).to_bytes(8, "little")
    store(written, first, None)
    with pytest.raises(Corruption, match="missing or foreign"):
        load(written)
    store(written, first, records[first])
    opened = Manifest(str(written))
    opened.load(4)
    opened.commit(4, State(10, 7, 50, 777, ranges[1:]), [], [9])
    opened.close()
    assert load(written) == (State(10, 7, 50, 777, ranges[1:]), [])
    assert first not in stored(written)


def test_a_replica_state_has_the_documented_bytes_and_counts_as_a_record(written: Path) -> None:
    one = (1).to_bytes(4, "little")
    key = bytes.fromhex("00000004040000000000000000")
    opened = Manifest(str(written))
    opened.load(4)
    opened.commit(4, State(10, 0, 50, 777, (), b""), [], [])
    assert stored_by(opened)[-2] == key
    opened.commit(4, State(10, 0, 51, 778, (), b"applied"), [], [])
    opened.close()
    assert load(written) == (State(10, 0, 51, 778, (), b"applied"), [TABLE])
    records = stored(written)
    assert records[key] == sealed(key, one + b"applied")
    others = (bytes.fromhex("00000004020000000000000009"), key)
    digest = sum(codec.hash64(other + records[other]) for other in others) % (1 << 64)
    state = records[bytes.fromhex("00000004010000000000000000")]
    assert state[36:52] == (2).to_bytes(8, "little") + digest.to_bytes(8, "little")
    store(written, key, None)
    with pytest.raises(Corruption, match="missing or foreign"):
        load(written)
    store(written, key, sealed(key, b"\x02\x00\x00\x00applied"))
    with pytest.raises(Corruption, match="replica state version 2, known is 1"):
        load(written)


def test_a_replica_state_is_written_only_when_it_changes_and_goes_when_there_is_none(written: Path) -> None:
    key = bytes.fromhex("00000004040000000000000000")
    opened = Manifest(str(written))
    opened.load(4)
    opened.commit(4, State(10, 0, 50, 777, (), b"large" * 100_000), [], [])
    pages = opened.stats()["used_bytes"]
    for sequence in range(51, 60):
        opened.commit(4, State(10, 0, sequence, 777, (), b"large" * 100_000), [], [])
    assert opened.stats()["used_bytes"] - pages < 500_000
    opened.close()
    opened = Manifest(str(written))
    opened.load(4)
    opened.commit(4, State(10, 7, 61, 777), [], [])
    opened.close()
    assert key not in stored(written)
    assert load(written) == (State(10, 7, 61, 777), [TABLE])


def test_what_was_committed_is_loaded(written: Path) -> None:
    assert load(written) == (State(10, 7, 50, 777), [TABLE])
    assert load(written, 5) == (None, [])
    assert load(written, 3) == (None, [])


def test_tables_move_come_and_go_in_one_commit(written: Path) -> None:
    opened = Manifest(str(written))
    opened.load(4)
    second = TABLE._replace(number=11, smallest=b"", largest=b"\xff" * 4096)
    opened.commit(4, State(12, 8, 60, 800), [second], [])
    opened.commit(4, State(13, 9, 70, 900), [second._replace(level=5)], [9])
    opened.close()
    assert load(written) == (State(13, 9, 70, 900), [second._replace(level=5)])


def test_a_flipped_bit_of_a_value_is_found(written: Path) -> None:
    for key, value in stored(written).items():
        for offset in range(0, len(value), 5):
            damaged = bytearray(value)
            damaged[offset] ^= 0x80
            store(written, key, bytes(damaged))
            with pytest.raises(Corruption, match="checksum mismatch in record"):
                load(written)
        store(written, key, value)
    assert load(written)[0] is not None


def test_a_record_that_is_missing_foreign_or_from_elsewhere_is_found(written: Path) -> None:
    records = stored(written)
    table_key = next(key for key in records if key[4] == 2)
    state_key = next(key for key in records if key[4] == 1)
    store(written, table_key, None)
    with pytest.raises(Corruption, match="missing or foreign"):
        load(written)
    store(written, table_key[:-1] + b"\x0a", records[table_key])
    with pytest.raises(Corruption, match="checksum mismatch"):
        load(written)
    store(written, table_key[:-1] + b"\x0a", None)
    store(written, table_key, records[table_key])
    store(written, state_key, None)
    with pytest.raises(Corruption, match="records but no state"):
        load(written)


def test_a_commit_after_a_failed_load_does_not_vouch_for_what_is_left(tmp_path: Path) -> None:
    opened = Manifest(str(tmp_path))
    opened.load(4)
    opened.commit(4, State(10, 7, 50, 777), [TABLE], [])
    table_key = next(key for key in stored_by(opened) if key[4] == 2)
    opened._run(lambda: _remove(opened, table_key))
    with pytest.raises(Corruption, match="missing or foreign"):
        opened.load(4)
    opened.commit(4, State(12, 7, 60, 777), [TABLE._replace(number=11)], [])
    with pytest.raises(Corruption, match="missing or foreign"):
        opened.load(4)
    opened.close()


def stored_by(opened: Manifest) -> list[bytes]:
    def keys() -> list[bytes]:
        with opened._env.begin() as transaction, transaction.cursor() as cursor:
            return [bytes(key) for key, _ in cursor]

    return opened._run(keys)


def _remove(opened: Manifest, key: bytes) -> None:
    with opened._env.begin(write=True) as transaction:
        transaction.delete(key)


def test_an_unknown_version_is_refused(written: Path) -> None:
    key = b"\xff\xff\xff\xff\x00" + bytes(8)
    store(written, key, sealed(key, b"\x02\x00\x00\x00"))
    with pytest.raises(Corruption, match="manifest version 2, this software reads 1"):
        load(written)


def test_a_file_that_is_no_manifest_is_corruption(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a manifest" * 1000)
    with pytest.raises(Corruption, match=r"data\.mdb"):
        Manifest(str(tmp_path))


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAP_BYTES_FIRST", 1 << 16)
    opened = Manifest(str(tmp_path))
    tables = [
        TABLE._replace(number=number, smallest=b"s" * 4096, largest=b"t" * 4096) for number in range(200)
    ]
    opened.commit(4, State(1, 1, 1, 1), tables, [])
    assert opened.stats()["map_bytes"] > 1 << 20
    opened.close()
    assert load(tmp_path) == (State(1, 1, 1, 1), tables)


def test_a_closed_manifest_says_so(written: Path) -> None:
    opened = Manifest(str(written))
    opened.close()
    opened.close()
    with pytest.raises(EngineClosed):
        opened.load(4)


def test_what_a_killed_process_left_to_the_page_cache_is_synced_before_it_is_used(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call stood behind a raise once, and was never made."""
    calls: list[str] = []
    really_open = lmdb.open

    class Recorded:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._env = really_open(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(self._env, name)

    monkeypatch.setattr(lmdb, "open", Recorded)
    opened = Manifest(str(written))
    opening = list(calls)
    opened.close()
    assert "sync" in opening


def test_lmdb_syncs_pages_and_header_at_each_commit(written: Path) -> None:
    """It does so in native code; whether it does is what it says of its environment."""
    opened = Manifest(str(written))
    flags = opened._env.flags()
    opened.close()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
