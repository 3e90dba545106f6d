"""The engines of a node's groups: where each lies, under which id, and how one is taken away.

Owns the directories below `partitions` and the ids in the manifest. Must not know logs or replicas. An
engine that is to go is first set aside, by a rename: what is left of it after a crash then says so, until
`remove` was at its end. `set_aside` and `remove` wait for the disk, and may be called on any thread.
"""

from __future__ import annotations

import os
from typing import Final

from kvclient.errors import Corruption
from storenode import engine
from storenode.raftframes import CONTROL
from storenode.snapshotfiles import remove_tree

ASIDE: Final = ".erased"

CONTROL_ENGINE: Final = 65534
"""The last id there is; that of a partition is its number."""


class Engines:
    """Of one node, in `directory`. `shared` is theirs."""

    def __init__(self, directory: str, options: engine.Options, shared: engine.Shared) -> None:
        self._directory = directory
        self._options = options
        self._shared = shared
        self.open_ones: dict[int, engine.ReplicaEngine] = {}

    def path(self, group: int) -> str:
        """Sorts like the numbers of partitions."""
        return os.path.join(self._directory, f"{group:04}")

    def exists(self, group: int) -> bool:
        return os.path.isdir(self.path(group))

    def open(self, group: int) -> engine.ReplicaEngine:
        """Makes it if there is none. Corruption, EngineError, OSError."""
        try:
            opened = engine.open_replica(
                self.path(group), options=self._options, shared=self._shared, engine_id=engine_id(group)
            )
        except ValueError as error:  # an engine of another kind: a repair that lost entries leaves one
            raise Corruption(
                f"{error}. It is no replica of partition {group} any more: give this store an empty "
                "data.dir under a new node id"
            ) from None
        self.open_ones[group] = opened
        return opened

    def end_jobs(self, group: int) -> None:
        """Return when nothing works for this engine any more: closing it takes no time then. Any thread."""
        opened = self.open_ones.get(group)
        if opened is not None:
            opened.end_jobs()

    def close(self, group: int) -> None:
        """Of one that is closed already, nothing."""
        opened = self.open_ones.pop(group, None)
        if opened is not None:
            opened.close()

    def close_all(self) -> None:
        for group in list(self.open_ones):
            self.close(group)

    # -- one goes

    def set_aside(self, group: int) -> None:
        """Of a closed engine, durably; of one that is set aside already, nothing. OSError."""
        vfs, path = self._shared.vfs, self.path(group)
        if self.exists(group):
            vfs.rename(path, path + ASIDE)
        vfs.sync_directory(self._directory)

    def bring_back(self, group: int) -> None:
        """Takes `set_aside` back, durably. OSError."""
        vfs, path = self._shared.vfs, self.path(group)
        vfs.rename(path + ASIDE, path)
        vfs.sync_directory(self._directory)

    def remove(self, group: int) -> None:
        """What was set aside, with its records in the manifest: a second time the same as once. OSError,
        EngineFailed.
        """
        vfs = self._shared.vfs
        self._shared.manifest.forget(engine_id(group))
        remove_tree(vfs, self.path(group) + ASIDE)
        vfs.sync_directory(self._directory)

    def groups_aside(self) -> list[int]:
        """Those that a process before has set aside and not removed."""
        if not os.path.isdir(self._directory):
            return []
        stems = [
            name.removesuffix(ASIDE)
            for name in self._shared.vfs.listdir(self._directory)
            if name.endswith(ASIDE)
        ]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def engine_id(group: int) -> int:
    """In the manifest that all engines of a node share."""
    return CONTROL_ENGINE if group == CONTROL else group


def group_of(engine: int) -> int:
    """Whose engine has this id."""
    return CONTROL if engine == CONTROL_ENGINE else engine
