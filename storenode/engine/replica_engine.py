"""The engine under a replica: no log of its own; what it holds is a prefix of the replica's log, and it knows
which (docs/raft.md section 5).

It must not know what the replica state means: it takes it as bytes whenever a memtable ends, and makes it
durable in the same transaction as that memtable's tables. So what is found after a crash is always the
content that belongs to `state`, and everything later is applied again.

A memtable ends only between two entries, since the state of the middle of one does not exist: `apply` opens
the entry, `end_entry` closes it when all of its writes and the replica's own state are in.

Threads. One applies, ends entries, flushes, makes checkpoints, installs and closes: the same one for all
engines of a Shared. Any thread reads, takes snapshots, examines a checkpoint, and asks for `flushed_state`,
`stats` and `pressure`. Workers flush and compact, and call `on_flushed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from storenode.engine import install
from storenode.engine.background import FLUSH
from storenode.engine.base import EngineBase
from storenode.engine.errors import NO_ROOM, EngineFailed
from storenode.engine.install import Examined
from storenode.engine.options import Options
from storenode.engine.recovery import SEQUENCE_MAX, recover_replica
from storenode.engine.shared import Shared


def _nothing() -> None:
    pass


class ReplicaEngine(EngineBase):
    """See `open_replica` (opening.py). Closing it without a flush loses what was applied since the last one:
    the replica's log has it."""

    def __init__(
        self, path: str, options: Options, shared: Shared, engine_id: int, *, owns_shared: bool
    ) -> None:
        recovered = recover_replica(shared, os.path.abspath(path), engine_id)
        super().__init__(options, shared, recovered, owns_shared=owns_shared)
        self._in_entry = False
        self._checks_budget = False
        self.on_retire: Callable[[], bytes] = self._unchanged
        """Asked by the applying thread, between two entries, for the replica state that belongs to everything
        applied so far. Must be set before anything is applied."""
        self.on_flushed: Callable[[], None] = _nothing
        """Called by a worker when `flushed_state` has moved. Must be quick and not raise."""
        self.state = self.flushed_state
        """The state that was taken last; after opening and after `install` the one that belongs to the
        content. b"": there was none yet."""
        shared.register(self)
        shared.wake()

    @property
    def flushed_state(self) -> bytes:
        """The newest state that is durable together with all that belongs to it: from there on the log must
        be kept. Any thread."""
        state = self.tree.flushed_replica
        assert state is not None
        return state

    @property
    def out_of_room(self) -> OSError | None:
        """Why writes have to wait until the disk has room for tables; None if it is not for that, or if they
        need not.
        """
        failure = self.background.failures.get(FLUSH)
        if failure is None or self.pressure() < 2:
            return None
        error = failure.error
        return error if isinstance(error, OSError) and error.errno in NO_ROOM else None

    def apply(self, writes: list[bytes], first_sequence: int, now_ms: int) -> list[bytes]:
        """Execute writes of an entry, op streams, in their order; op i of all together gets sequence
        `first_sequence + i`, and `first_sequence` must be `next_sequence`. Returns the results of
        docs/protocol.md section 3, of each.

        InvalidRequest: a stream is malformed. Corruption: a block that a write needed
        is damaged, so this content is not the log's any more; nothing of it gets into tables, and only
        `install` goes on.
        """
        view = self._view()
        if self.applying:
            raise RuntimeError("two threads apply to one engine")
        if self._broken:
            raise EngineFailed(self._broken)
        if first_sequence != self.next_sequence or first_sequence > SEQUENCE_MAX - sum(map(len, writes)):
            raise ValueError(f"first_sequence is {first_sequence}, the next one is {self.next_sequence}")
        self._in_entry = True
        self.applying = True
        try:
            if now_ms < self.now_ms:
                now_ms = self.now_ms
            results, count, damage = self.tree.apply_all(writes, first_sequence, now_ms)
        except MemoryError:
            self._break("out of memory in the middle of an entry; open the engine anew")
            raise
        finally:
            self.applying = False
        if damage is not None:
            self._break(f"a write met damage: {damage}")
            self.damage = damage
            raise damage
        self.now_ms = now_ms
        self.next_sequence = first_sequence + count  # last: from here on others read what was applied
        if view.active.memory_bytes != self._active_bytes_seen:
            self._active_bytes_seen = view.active.memory_bytes
            self._checks_budget = True
        return results

    def end_entry(self) -> None:
        """All writes of the entry are applied, and `on_retire` would tell the state after it. May end
        memtables: this one by its size, one of the Shared's engines by the budget of all."""
        self._in_entry = False
        if self._checks_budget:
            self._checks_budget = False
            if self._active_bytes_seen >= self.options.memtable_bytes:
                self.retire_memtable()
            self.shared.enforce_memtable_budget()
        if self.tree.wants_flush:
            self.retire_memtable()

    def examine(self, directory: str, *, blocks: bool = True) -> Examined:
        """Check a checkpoint of this engine that came from another node: manifest, footers and properties;
        with `blocks` every block of every table. Takes as long as reading it; any thread.

        Corruption: it is damaged or not complete. ValueError: it is of another engine, or of no replica's.
        """
        return install.examine(self.shared, os.path.abspath(directory), self.engine_id, blocks=blocks)

    def install(self, checkpoint: str | Examined) -> None:
        """Replace everything by the content of a checkpoint, durably: all or nothing, also in a crash. Its
        files get second names (copies on another file system) and must not be changed any more; its
        directory may be removed afterwards. Then `state` is what belongs to it, and the replica must begin
        from there before anything else happens on this thread: what `on_retire` tells must be that, too.
        Snapshots and iterators go on with what they had.

        ValueError: it ends before the last sequence applied, or as of `examine`. RuntimeError: an entry is
        not at its end. EngineReadOnly: there is no room, nothing changed. EngineFailed: whether it is the old
        or the new shows when the engine is opened anew.
        """
        self._view()
        if self._in_entry and not self._broken:
            raise RuntimeError("nothing can be installed in the middle of an entry: call end_entry first")
        if self.background.broken:
            raise EngineFailed(self.background.broken)
        examined = self.examine(checkpoint) if isinstance(checkpoint, str) else checkpoint
        last = examined.state.flushed_sequence
        if examined.engine_id != self.engine_id or last < self.next_sequence - 1:
            raise ValueError(
                f"{examined.directory}: of engine {examined.engine_id} up to sequence {last}; "
                f"engine {self.engine_id} is at {self.next_sequence - 1}"
            )
        self.background.hold()
        try:
            with self._taking_in():
                install.take_in(self.tree, examined, lambda: self._entered(examined))
        finally:
            if not self._broken:
                self.background.go_on()
        self.counters.ingested_tables += len(examined.tables)
        self.counters.ingested_bytes += sum(table.size for table in examined.tables)

    def _entered(self, examined: Examined) -> None:
        """What was installed is the content from here on."""
        self.next_sequence, self.now_ms = examined.state.flushed_sequence + 1, examined.state.now_ms
        self.state = examined.replica
        self.damage = self._broken = None
        self._in_entry = self._checks_budget = False

    def put(self, key: bytes, value: bytes, sync: bool = False) -> NoReturn:
        """TypeError: what is written to a replica goes through its log, and comes here by `apply`."""
        raise TypeError(f"{self.directory}: the engine of a replica is written by apply alone")

    def retire_memtable(self) -> None:
        """End the memtable if it holds anything or the state has changed; not in the middle of an entry. Only
        the applying thread."""
        if self._in_entry or self._broken:
            return
        self.state = self.on_retire()
        if self.tree.retire(0, self.next_sequence - 1, self.now_ms, self.state):
            self.shared.wake()

    def _retire_for_flush(self) -> None:
        if self._broken:
            raise EngineFailed(self._broken)
        if self._in_entry:
            raise RuntimeError("nothing can be flushed in the middle of an entry: call end_entry first")
        self.retire_memtable()

    def _before_flush(self) -> None:
        """There is no log that must be durable first."""

    def _after_flush(self) -> None:
        self.on_flushed()

    def _unchanged(self) -> bytes:
        """The state as long as nobody applies anything."""
        if self.next_sequence - 1 != self.tree.flushed_sequence:
            raise RuntimeError("on_retire must be set before anything is applied")
        return self.state

    def _break(self, why: str) -> None:
        """Let nothing of what is applied into tables any more."""
        self._broken = why
        self.background.hold()
