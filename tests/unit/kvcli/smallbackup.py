"""A small backup, as `kvcli backup create` would leave it."""

from __future__ import annotations

from pathlib import Path

import msgpack

from kvclient.cli import backupset
from kvclient.cli.backupfile import Cut, PartitionWriter
from kvclient.cli.backupset import Row, file_name

CLUSTER: Row = {"name": "shop", "id": "0123456789abcdef", "epoch": 3, "partitions": 4, "replicas": 3}


def make(directory: Path) -> Row:
    """A backup of four partitions, one of them empty; returns its manifest."""
    directory.mkdir(parents=True)
    rows = []
    for number in range(4):
        cut = Cut(number, CLUSTER["id"], 100 + number, 2, 1_700_000_000_000)
        writer = PartitionWriter(directory / file_name(number), cut)
        records = [(b"%d-%03d" % (number, at), b"value" * at, at + 1) for at in range(40 * (number != 2))]
        for begin in range(0, len(records), 20):
            some = records[begin : begin + 20]
            packed = b"".join(msgpack.packb(field) for record in some for field in record)
            writer.add(False, packed, len(some))
        digest = writer.finish()
        writer.close()
        rows.append(
            {
                "partition": number,
                "file": file_name(number),
                "node": "store1",
                "index": cut.index,
                "term": cut.term,
                "taken_ms": cut.taken_ms,
                "records": writer.records,
                "raw_bytes": writer.raw_bytes,
                "bytes": writer.size,
                "sha256": digest,
            }
        )
    manifest = {
        "ringkv_backup": 1,
        "cluster": CLUSTER,
        "software": "0.1.0",
        "began_ms": 1_700_000_000_000,
        "finished_ms": 1_700_000_005_000,
        "partitions": rows,
    }
    backupset.write_manifest(directory, manifest)
    return manifest
