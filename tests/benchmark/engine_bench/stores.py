"""The engines side by side, each as its own documentation says it is used fastest from Python.

All have a 64 MiB block cache unless told otherwise, 16 MiB write buffers and filters of 10 bits per key, a
log, and no sync per put unless asked for one. Everything else is the engine's own default. LMDB has neither
cache nor log nor filter: it maps its file, and unsynced it leaves writing to the kernel, which is what an
unsynced log does too.

`put` and `get` are the engine's own bound methods where there are such: no call of ours stands between.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module, metadata
from itertools import islice
from pathlib import Path
from typing import Any

MIB = 1 << 20
WRITE_BUFFER_BYTES = 16 * MIB
WRITE_BUFFERS = 4
"""Of ours and RocksDB's: one that is written to, three that wait for their flush. LevelDB has two."""
BITS_PER_KEY = 10
MAP_BYTES = 1 << 34
"""Address space that LMDB may use; the file is sparse."""

Get = Callable[[bytes], bytes | None]
MultiGet = Callable[[list[bytes]], Sequence[Any]]


class Store(ABC):
    """An open engine. One thread, but for `reader`, which another one may use while this one writes."""

    suffixes: tuple[str, ...]
    """Of the files that hold data (not logs)."""

    put: Callable[[bytes, bytes], object]
    get: Get
    multi_get: MultiGet | None = None

    @abstractmethod
    def __init__(self, directory: Path, cache_bytes: int, *, sync: bool, counts: bool) -> None:
        """Open, or make. `sync`: each write is durable on return. `counts`: keep statistics."""

    @classmethod
    @abstractmethod
    def about(cls) -> str:
        """Version and compression; ImportError if the engine is not installed."""

    @abstractmethod
    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """One batch."""

    @abstractmethod
    def pages(self, reverse: bool) -> Iterable[Iterable[tuple[bytes, bytes]]]:
        """All pairs, in as many pieces as the engine gives them in."""

    @abstractmethod
    def seek(self, keys: Iterable[bytes], count: int) -> None:
        """From each of `keys` on, fetch `count` pairs."""

    @abstractmethod
    def compact(self) -> None:
        """Everything into the shape that reads best; returns when it is."""

    @abstractmethod
    def settle(self) -> None:
        """Return when the background work that is due has been done."""

    @abstractmethod
    def bytes_written(self) -> int | None:
        """To tables, since opened; None if the engine does not tell."""

    @abstractmethod
    def close(self) -> None: ...

    def publish(self) -> None:  # noqa: B027 - most need nothing
        """What was written should be seen by `reader`s from now on."""

    def reader(self) -> Get:
        """A `get` for another thread, good for some hundred calls."""
        return self.get

    def data_bytes(self, directory: Path) -> int:
        """Disk space of the data files."""
        return sum(
            path.stat().st_blocks * 512 for path in directory.rglob("*") if path.suffix in self.suffixes
        )


class Ours(Store):
    suffixes = (".sst",)

    def __init__(self, directory: Path, cache_bytes: int, *, sync: bool, counts: bool) -> None:
        import storenode.engine

        self._shared = storenode.engine.Shared(
            str(directory), cache_bytes=cache_bytes, memtable_bytes=WRITE_BUFFERS * WRITE_BUFFER_BYTES
        )
        self._engine = storenode.engine.open(
            str(directory / "engine"),
            shared=self._shared,
            options=storenode.engine.Options(memtable_bytes=WRITE_BUFFER_BYTES, bits_per_key=BITS_PER_KEY),
        )
        engine, self._batch = self._engine, storenode.engine.WriteBatch
        self.put = (lambda key, value: engine.put(key, value, True)) if sync else engine.put
        self.get = engine.get
        self.multi_get = engine.multi_get

    @classmethod
    def about(cls) -> str:
        from storenode.engine import Options

        return f"ringkv {metadata.version('ringkv')}, compression {Options().compression}"

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        batch = self._batch()
        batch.put_many(zip(keys, values, strict=True))
        self._engine.write(batch)

    def pages(self, reverse: bool) -> Iterable[Iterable[tuple[bytes, bytes]]]:
        yield self._engine.iterate(reverse=reverse)

    def seek(self, keys: Iterable[bytes], count: int) -> None:
        with self._engine.snapshot() as snapshot:
            scan = snapshot.scan
            for key in keys:
                scan(key, None, count)

    def compact(self) -> None:
        self._engine.compact()

    def settle(self) -> None:
        self._engine.flush()

        def done() -> bool:
            stats = self._engine.stats()
            return all(level["score"] < 1 for level in stats["levels"])

        wait_quiet(lambda: (done(), self._engine.stats()["compactions"]), lambda state: bool(state[0]))

    def bytes_written(self) -> int | None:
        stats = self._engine.stats()
        return int(stats["flush_bytes"] + stats["compaction_bytes_written"])

    def publish(self) -> None:
        self._latest = self._engine.snapshot()

    def reader(self) -> Get:
        return self._latest.get

    def close(self) -> None:
        self._engine.close()
        self._shared.close()


class LevelDb(Store):
    suffixes = (".ldb", ".sst")
    compression: str | None = "snappy"

    def __init__(self, directory: Path, cache_bytes: int, *, sync: bool, counts: bool) -> None:
        import plyvel

        self._db = db = plyvel.DB(
            str(directory),
            create_if_missing=True,
            write_buffer_size=WRITE_BUFFER_BYTES,
            lru_cache_size=cache_bytes,
            bloom_filter_bits=BITS_PER_KEY,
            compression=self.compression,
        )
        self.put = (lambda key, value: db.put(key, value, sync=True)) if sync else db.put
        self.get = db.get

    @classmethod
    def about(cls) -> str:
        import plyvel

        return f"LevelDB (plyvel {plyvel.__version__}), compression {cls.compression or 'none'}"

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        with self._db.write_batch() as batch:
            put = batch.put
            for key, value in zip(keys, values, strict=True):
                put(key, value)

    def pages(self, reverse: bool) -> Iterable[Iterable[tuple[bytes, bytes]]]:
        with self._db.iterator(reverse=reverse, fill_cache=False) as pairs:
            yield pairs

    def seek(self, keys: Iterable[bytes], count: int) -> None:
        with self._db.iterator() as pairs:
            for key in keys:
                pairs.seek(key)
                list(islice(pairs, count))

    def compact(self) -> None:
        self._db.compact_range()

    def settle(self) -> None:
        wait_quiet(lambda: self._db.get_property(b"leveldb.stats"))

    def bytes_written(self) -> int | None:
        """The last column, MB, of the levels' rows."""
        rows = self._db.get_property(b"leveldb.stats").decode().splitlines()[3:]
        return sum(int(float(row.split()[5]) * MIB) for row in rows)

    def close(self) -> None:
        self._db.close()


class LevelDbPlain(LevelDb):
    compression = None


class RocksDb(Store):
    suffixes = (".sst",)
    compression = "snappy"

    def __init__(self, directory: Path, cache_bytes: int, *, sync: bool, counts: bool) -> None:
        rocksdict: Any = import_module("rocksdict")  # Any: its types lack arguments that it takes
        options = rocksdict.Options(raw_mode=True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(WRITE_BUFFERS)
        options.increase_parallelism(os.cpu_count() or 1)
        options.set_compression_type(getattr(rocksdict.DBCompressionType, self.compression)())
        if counts:
            options.enable_statistics()
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(cache_bytes))
        blocks.set_bloom_filter(BITS_PER_KEY, False)
        options.set_block_based_table_factory(blocks)
        self._options = options
        self._batch = rocksdict.WriteBatch
        # Named for the column family too: else a store that exists is opened with the options in its files,
        # which have neither the filter nor the cache.
        self._db = rocksdict.Rdict(str(directory), options, {"default": options})
        assert self._db.property_int_value("rocksdb.block-cache-capacity") == cache_bytes
        if sync:
            durable = rocksdict.WriteOptions()
            durable.sync = True
            self._db.set_write_options(durable)
        self._scanning = rocksdict.ReadOptions()
        self._scanning.fill_cache(False)
        self._scanning.set_readahead_size(2 * MIB)
        self.put = self._db.put
        self.get = self._db.get
        self.multi_get = self._db.get

    @classmethod
    def about(cls) -> str:
        import rocksdict

        version = metadata.version(rocksdict.__name__)
        return f"RocksDB (rocksdict {version}, raw mode), compression {cls.compression}"

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        batch = self._batch(raw_mode=True)
        put = batch.put
        for key, value in zip(keys, values, strict=True):
            put(key, value)
        self._db.write(batch)

    def pages(self, reverse: bool) -> Iterable[Iterable[tuple[bytes, bytes]]]:
        yield self._db.items(backwards=reverse, read_opt=self._scanning)

    def seek(self, keys: Iterable[bytes], count: int) -> None:
        pairs = self._db.iter()
        seek, valid, key_of, value_of, step = pairs.seek, pairs.valid, pairs.key, pairs.value, pairs.next
        for key in keys:
            seek(key)
            found = []
            for _ in range(count):
                if not valid():
                    break
                found.append((key_of(), value_of()))
                step()

    def compact(self) -> None:
        self._db.flush()
        self._db.compact_range(None, None)

    def settle(self) -> None:
        self._db.flush()
        names = ("mem-table-flush-pending", "compaction-pending", "num-running-compactions")
        wait_quiet(
            lambda: [self._db.property_int_value(f"rocksdb.{name}") for name in names],
            lambda state: not any(state),
        )

    def bytes_written(self) -> int | None:
        text = self._options.get_statistics() or ""
        names = ("rocksdb.flush.write.bytes", "rocksdb.compact.write.bytes")
        counts = [int(line.split()[-1]) for line in text.splitlines() if line.split()[0] in names]
        return sum(counts) if counts else None

    def close(self) -> None:
        self._db.close()


class RocksDbPlain(RocksDb):
    compression = "none"


class Lmdb(Store):
    suffixes = (".mdb",)

    def __init__(self, directory: Path, cache_bytes: int, *, sync: bool, counts: bool) -> None:
        import lmdb

        self._env = env = lmdb.open(
            str(directory),
            map_size=MAP_BYTES,
            sync=sync,
            metasync=sync,
            writemap=not sync,
            map_async=not sync,
        )
        self._reading: Any = None

        def put(key: bytes, value: bytes) -> None:
            with env.begin(write=True) as transaction:
                transaction.put(key, value)

        self.put = put

    @classmethod
    def about(cls) -> str:
        import lmdb

        version = ".".join(map(str, lmdb.version()))
        return f"LMDB {version} (py-lmdb {lmdb.__version__}), writemap and MDB_NOSYNC unless synced"

    @property
    def get(self) -> Get:  # type: ignore[override]
        return self._transaction().get  # type: ignore[no-any-return]

    def multi_get(self, keys: list[bytes]) -> Sequence[Any]:
        return self._transaction().cursor().getmulti(keys)  # type: ignore[no-any-return]

    def write(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        with self._env.begin(write=True) as transaction:
            transaction.cursor().putmulti(zip(keys, values, strict=True))

    def pages(self, reverse: bool) -> Iterable[Iterable[tuple[bytes, bytes]]]:
        cursor = self._transaction().cursor()
        yield cursor.iterprev() if reverse else cursor.iternext()

    def seek(self, keys: Iterable[bytes], count: int) -> None:
        cursor = self._transaction().cursor()
        for key in keys:
            if cursor.set_range(key):
                list(islice(cursor.iternext(), count))

    def compact(self) -> None:
        """It has one shape."""

    def settle(self) -> None:
        self._env.sync(True)

    def bytes_written(self) -> int | None:
        return None

    def reader(self) -> Get:
        self._end_reading()
        return self.get

    def close(self) -> None:
        self._end_reading()
        self._env.close()

    def _transaction(self) -> Any:
        """One for all reads: beginning one costs more than a read. None is open while there are only writes,
        it would keep every page that they replace."""
        if self._reading is None:
            self._reading = self._env.begin()
        return self._reading

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.abort()
            self._reading = None


STORES: dict[str, type[Store]] = {
    "ours": Ours,
    "leveldb": LevelDb,
    "rocksdb": RocksDb,
    "lmdb": Lmdb,
    "leveldb-plain": LevelDbPlain,
    "rocksdb-plain": RocksDbPlain,
}


def wait_quiet(state: Callable[[], Any], good: Callable[[Any], bool] = lambda _: True) -> None:
    """Until `state` is good and stays the same for a second; an engine needs minutes at the most."""
    deadline = time.monotonic() + 900
    last, since = state(), time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = state()
        if now != last or not good(now):
            last, since = now, time.monotonic()
        elif time.monotonic() - since >= 1:
            return
    raise TimeoutError("the engine's background work does not come to an end")
