"""Point lookups in tables: by fences, without putting keys together; by the index where these cannot tell."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import storenode.engine
from storenode.engine import Options, WriteBatch

OPTIONS = [
    Options(block_bytes=64, restart_interval=1, table_bytes=4096),
    Options(block_bytes=200, restart_interval=16, table_bytes=1 << 20),
    Options(block_bytes=4096, restart_interval=5),
]


def key_sets() -> dict[str, list[bytes]]:
    source = random.Random(6)
    # Of bytes that trailers are made of (kind, sequence): a key may go on as the trailer of its prefix does.
    trailer_like = [bytes(source.choices(b"\0\1\2\5", k=source.randrange(1, 14))) for _ in range(4000)]
    return {
        "prefixes of each other": [b"k" * size + end for size in range(1, 300) for end in (b"", b"\1", b"l")],
        "like trailers": trailer_like,
        "equal beyond the fence": [b"shared prefix " + b"\x00" * 8 + b"%05d" % n for n in range(2000)],
        "highest bytes": [b"\xff" * size + bytes([last]) for size in range(40) for last in range(200, 256)],
        "one key": [b"alone"],
    }


@pytest.mark.parametrize("name", list(key_sets()))
@pytest.mark.parametrize("options", OPTIONS, ids=["tiny blocks", "small blocks", "usual blocks"])
def test_every_key_is_found_and_no_other(tmp_path: Path, name: str, options: Options) -> None:
    source = random.Random(name)
    keys = sorted(set(key_sets()[name]))
    there = {key: b"value of " + key for key in keys if source.random() < 0.6 or len(keys) == 1}
    batch = WriteBatch()
    batch.put_many(source.sample(sorted(there.items()), len(there)))
    asked = keys + [key[:-1] for key in keys if len(key) > 1] + [key + b"\x00" for key in keys]
    with storenode.engine.open(str(tmp_path), options=options) as engine:
        engine.write(batch)
        for prepare in (engine.flush, engine.compact):
            prepare()
            assert engine.multi_get(asked) == [there.get(key) for key in asked]
            assert all(engine.get(key) == there.get(key) for key in asked)


def test_lookups_without_room_for_index_and_fences_find_the_same(tmp_path: Path) -> None:
    keys = [b"%06d" % number for number in range(0, 6000, 2)]
    shared = storenode.engine.Shared(str(tmp_path), cache_bytes=8192)
    with storenode.engine.open(str(tmp_path / "engine"), options=OPTIONS[0], shared=shared) as engine:
        batch = WriteBatch()
        batch.put_many((key, key * 2) for key in keys)
        engine.write(batch)
        engine.compact()
        assert [engine.get(key) for key in keys] == [key * 2 for key in keys]
        assert engine.multi_get(b"%06d" % number for number in range(1, 6000, 2)) == [None] * 3000
        assert shared.cache.stats()["pinned_bytes"] <= 4096
    shared.close()
