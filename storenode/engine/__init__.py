"""ringkv's LSM engine: an ordered, durable key-value store for one partition, usable as a library of its own.

    import storenode.engine

    with storenode.engine.open("directory") as engine:
        engine.put(b"key", b"value", sync=True)
        engine.scan(b"a", b"z", limit=10)

A store logs first and applies later: `append` on a log thread, `apply` and `read` on the loop
(docs/architecture.md section 3). Under a replica, whose log is Raft's, the engine has none: `open_replica`.
Formats: docs/formats.md. Threads and time: lsm.py, replica_engine.py, base.py.
"""

from storenode.engine.batch import WriteBatch
from storenode.engine.checkpoint import checkpoint_files
from storenode.engine.errors import EngineClosed, EngineError, EngineFailed, EngineReadOnly
from storenode.engine.install import Examined
from storenode.engine.iterator import Iterator
from storenode.engine.lsm import Engine
from storenode.engine.opening import open, open_replica
from storenode.engine.options import Options
from storenode.engine.replica_engine import ReplicaEngine
from storenode.engine.shared import Shared
from storenode.engine.snapshot import Snapshot
from storenode.engine.table_writer import TableWriter

__all__ = [
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineFailed",
    "EngineReadOnly",
    "Examined",
    "Iterator",
    "Options",
    "ReplicaEngine",
    "Shared",
    "Snapshot",
    "TableWriter",
    "WriteBatch",
    "checkpoint_files",
    "open",
    "open_replica",
]
