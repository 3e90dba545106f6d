"""Opening an engine: whose directory it is, with whom it shares, and under which id."""

from __future__ import annotations

from typing import TypeVar

from storenode.engine.lsm import Engine
from storenode.engine.options import Options
from storenode.engine.replica_engine import ReplicaEngine
from storenode.engine.shared import Shared
from storenode.engine.version import PREPARED_ID

Kind = TypeVar("Kind", Engine, ReplicaEngine)


def open(
    path: str, *, options: Options | None = None, shared: Shared | None = None, engine_id: int | None = None
) -> Engine:
    """Open the engine in `path`, making it if there is none, and recover what was logged.

    Without `shared` the engine has one of its own, in the same directory, closed with it. `engine_id` (below
    65535) names the engine in the shared manifest and never changes; it need not be given for an engine that
    has its directory for itself, as a checkpoint has, and is 0 for a new one. ValueError: the directory is of
    an engine with another id. Corruption: files are damaged or missing; nothing was changed.
    """
    return _open(Engine, path, options, shared, engine_id)


def open_replica(
    path: str, *, options: Options | None = None, shared: Shared | None = None, engine_id: int | None = None
) -> ReplicaEngine:
    """Open the engine of a replica in `path`, making it if there is none, with what its manifest recorded
    last: `state` tells what that is. Parameters and errors as of `open`. ValueError also if the engine was
    made with a log of its own, as `open` makes it; and `open` refuses one that a replica has."""
    return _open(ReplicaEngine, path, options, shared, engine_id)


def _open(
    kind: type[Kind], path: str, options: Options | None, shared: Shared | None, engine_id: int | None
) -> Kind:
    if engine_id is not None and not 0 <= engine_id < PREPARED_ID:
        raise ValueError(f"engine_id must be in 0..65534, not {engine_id}")
    if shared is not None:
        return _open_in(kind, path, options, shared, engine_id or 0, owned=False)
    used = Shared(path)
    try:
        return _open_in(kind, path, options, used, _engine_id_in(used, engine_id), owned=True)
    except BaseException:
        used.close()
        raise


def _open_in(
    kind: type[Kind], path: str, options: Options | None, shared: Shared, engine_id: int, *, owned: bool
) -> Kind:
    shared.claim(engine_id)
    try:
        return kind(path, options or Options(), shared, engine_id, owns_shared=owned)
    except BaseException:
        shared.release(engine_id)
        raise


def _engine_id_in(shared: Shared, engine_id: int | None) -> int:
    """The id of the engine that has a directory for itself."""
    known = shared.manifest.engines()
    if engine_id is None and len(known) < 2:
        return known[0] if known else 0
    if engine_id is None or (known and engine_id not in known):
        ids = ", ".join(map(str, known))
        raise ValueError(
            f"{shared.directory} has engines with engine_id {ids}, not {engine_id}: give one of these"
        )
    return engine_id
