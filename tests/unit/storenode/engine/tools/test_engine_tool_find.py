"""find: every version of a key, also where no manifest leads to and behind damage."""

from __future__ import annotations

import shutil
from pathlib import Path

from kvclient import protocol
from storenode import engine
from storenode.engine.tools.logfile import LogFile
from storenode.engine.vfs import Vfs
from tests.unit.storenode.engine.tools.bench import (
    DAMAGED,
    NOT_FOUND,
    USAGE,
    Bench,
    flip,
    logs,
    whats,
)


def test_find_tells_every_version_of_a_key(tmp_path: Path, bench: Bench) -> None:
    with engine.open(str(tmp_path)) as opened:
        opened.put(b"k", b"first")
        opened.put(b"other", b"x")
        opened.flush()
        opened.delete(b"k")
        opened.put(b"k", b"second", sync=True)
    found = bench("find", "--key=k", tmp_path)["versions"]
    told = [(Path(row["file"]).suffix, row["sequence"], row["kind"], row["value_size"]) for row in found]
    told.remove((".wal", 1, "put", 5))  # the first memtable's log is needed until a new one has begun
    assert told == [(".wal", 3, "delete", None), (".wal", 4, "put", 6), (".sst", 1, "put", 5)]
    assert [row["level"] for row in found][-2:] == [None, 0]
    assert bench("find", "--key=6b", "--encoding=hex", tmp_path)["versions"] == found
    assert bench("find", "--key=absent", tmp_path, code=NOT_FOUND)["versions"] == []
    bench("find", "--key=x", "--encoding=hex", tmp_path, code=USAGE)


def test_a_transaction_is_found_by_each_of_its_keys_and_counts_as_one_op(
    tmp_path: Path, bench: Bench
) -> None:
    txn = protocol.encode_txn(
        [(b"compared", protocol.absent())],
        [protocol.encode_put(b"then", b"v"), protocol.encode_get(b"then")],
        [protocol.encode_put(b"else", b"v")],
    )
    with engine.open(str(tmp_path)) as opened:
        opened.write(protocol.encode_put(b"k", b"1") + txn + protocol.encode_put(b"last", b"2"), sync=True)
    for key, sequence, kind in (
        ("compared", 2, "txn"),
        ("then", 2, "txn"),
        ("else", 2, "txn"),
        ("last", 3, "put"),
    ):
        found = bench("find", f"--key={key}", tmp_path)["versions"]
        assert [(row["sequence"], row["kind"]) for row in found] == [(sequence, kind)]
    assert bench("verify", tmp_path)["problems"] == []


def test_find_also_looks_into_tables_that_no_manifest_names_and_behind_damage(
    copy: Path, bench: Bench
) -> None:
    shutil.rmtree(copy / "manifest")
    log = logs(copy)[-1]
    reader = LogFile(Vfs(), str(log), int(log.stem), 0)
    entry = next(record for record in reader.records if b"log030" in record.ops)
    flip(log, reader.records[0].offset + 40)
    found = bench("find", "--key=log030", copy, code=DAMAGED)
    assert [(row["offset"], row["note"]) for row in found["versions"]] == [(entry.offset, "behind damage")]
    assert "damaged record" in whats(found)
    orphan = bench("find", "--key=key0001", copy, code=DAMAGED)["versions"]
    assert orphan
    assert {row["note"] for row in orphan} == {"not in the manifest"}
