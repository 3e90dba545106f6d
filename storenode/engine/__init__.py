"""ringkv's LSM engine: an ordered, durable key-value store for one partition, usable as a library of its own.

    import storenode.engine

    with storenode.engine.open("directory") as engine:
        engine.put(b"key", b"value", sync=True)
        engine.scan(b"a", b"z", limit=10)

A store logs first and applies later: `append` on a log thread, `apply` and `read` on the loop
(docs/architecture.md section 3). Formats: docs/formats.md. Threads and time: lsm.py.
"""

from storenode.engine.batch import WriteBatch
from storenode.engine.errors import EngineClosed, EngineError, EngineFailed, EngineReadOnly
from storenode.engine.iterator import Iterator
from storenode.engine.lsm import Engine
from storenode.engine.opening import open
from storenode.engine.options import Options
from storenode.engine.shared import Shared
from storenode.engine.snapshot import Snapshot
from storenode.engine.table_writer import TableWriter

__all__ = [
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineFailed",
    "EngineReadOnly",
    "Iterator",
    "Options",
    "Shared",
    "Snapshot",
    "TableWriter",
    "WriteBatch",
    "open",
]
