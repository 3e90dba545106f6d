"""What an engine consists of at a moment: memtables, tables, and the view over them; and how one state
becomes the next.

The applying thread retires memtables, workers install what they flushed or compacted, the log's thread takes
file numbers: so everything here that changes is changed under a lock, and readers take `view`, which is
replaced and never changed. Order of a change (docs/formats.md section 5): tables durable, manifest committed,
view replaced, only then the inputs given up.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import msgpack

from kvclient.errors import Corruption
from storenode.engine import codec
from storenode.engine.compaction import Proposal, Reserved, level_for
from storenode.engine.deletions import CODE, RangeDeletion, decode_delete_range
from storenode.engine.manifest import State
from storenode.engine.memtable import Memtable
from storenode.engine.options import Options
from storenode.engine.ranges import Ranges
from storenode.engine.reads import Reads
from storenode.engine.shared import Shared
from storenode.engine.table import Table
from storenode.engine.version import TableMeta, Version, key_range, unapplied
from storenode.engine.vfs import Vfs
from storenode.engine.view import View

FOOTER_BYTES = 64
MAGIC = b"rkv-sst\n"

RANGES_FLUSH = 1024
"""A memtable ends with so many range deletions, as it does with so many bytes: none goes before it is in the
manifest."""

_CODE = bytes([CODE])
RANGES_SLOW = 2048
RANGES_STOP = 4096
"""Range deletions in force: a search among so many takes as long as one in a table, and each further one
copies them all. Compactions get there first unless they come faster than tables are rewritten."""


class Retired(NamedTuple):
    """A memtable that nobody adds to any more, the last sequence it covers, the engine's time then, and the
    replica state then (None: the engine has a log of its own)."""

    memtable: Memtable
    last_sequence: int
    now_ms: int
    replica: bytes | None


class Settled(NamedTuple):
    """The range deletions that a job may act upon: those up to a sequence that is in tables or, like them, in
    the manifest. One that is only in the log may still be lost, and what a job dropped for it would be
    missing then."""

    sequence: int
    ranges: Ranges


def table_path(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:06d}.sst")


class Tree:
    """Memtables and tables of one engine. `view` is None once it was closed."""

    def __init__(
        self,
        shared: Shared,
        directory: str,
        engine_id: int,
        state: State,
        version: Version,
        tables: dict[int, Table],
    ) -> None:
        self.shared = shared
        self.directory = directory
        self.engine_id = engine_id
        self.version = version
        self.flushed_sequence = state.flushed_sequence
        self.flushed_now_ms = state.now_ms
        self.flushed_replica = state.replica
        self.log_number = state.log_number
        self.retired: tuple[Retired, ...] = ()
        """Newest first."""
        self.reads = Reads()
        self._tables = tables
        self._next_file = state.next_file
        self._lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._names_lost: tuple[int | None, str | None] | None = None
        self.active = Memtable(state.log_number)
        self._reserved: Reserved | None = None
        self._covered = (state.flushed_sequence, state.now_ms, state.replica)  # by what comes before `active`
        self.active_range_deletions = 0
        """How many range deletions came since the memtable before this one was retired."""
        self.wants_flush = False
        """Whether it should be retired for their sake."""
        self._ranges = Ranges(state.range_deletions)
        self.settled = Settled(state.flushed_sequence, self._ranges)
        self.view: View | None = None
        self._make_view()

    def sync_directory(self) -> None:
        """Make the names of all files of the engine durable. Any thread.

        A failure is for good, whoever's file it was: the disk tells only one of those who sync that it lost
        names, and others' may be among them.
        """
        with self._sync_lock:
            if self._names_lost is not None:
                raise OSError(*self._names_lost, self.directory)
            try:
                self.shared.vfs.sync_directory(self.directory)
            except OSError as error:
                self._names_lost = (error.errno, error.strerror)
                raise

    def take_number(self) -> int:
        """A file number that was never used before. Any thread."""
        with self._lock:
            number = self._next_file
            self._next_file += 1
            return number

    def skip_numbers(self, following: int) -> None:
        """Give out no number below this one any more."""
        with self._lock:
            self._next_file = max(self._next_file, following)

    def apply(self, ops: bytes, first_sequence: int, now_ms: int) -> tuple[bytes, int, Corruption | None]:
        """View.apply, and the one op that it does not know: a range deletion, which is a stream of its own.

        That makes a new view. So a view has no range deletion newer than what its readers may see: whoever
        took the view before has an older sequence (Core.moment), and this one's number is the last that was
        given out.
        """
        if len(ops) > 1 and ops[1] == CODE:
            bounds = decode_delete_range(ops)
            if bounds is not None:
                self._delete_range(RangeDeletion(*bounds, first_sequence))
                results: bytes = msgpack.packb([0, first_sequence])
                return results, 1, None
        assert self.view is not None
        return self.view.apply(ops, first_sequence, now_ms)

    def apply_all(
        self, writes: list[bytes], first_sequence: int, now_ms: int
    ) -> tuple[list[bytes], int, Corruption | None]:
        """Several streams in their order: the results of each, the number of all ops, the first damage.
        Together, unless one is a range deletion; InvalidRequest, with nothing executed, if then one is
        malformed.
        """
        if not any(ops[1:2] == _CODE for ops in writes):
            assert self.view is not None
            return self.view.apply_all(writes, first_sequence, now_ms)
        all_results, sequence, damage = [], first_sequence, None
        for ops in writes:
            results, count, met = self.apply(ops, sequence, now_ms)
            all_results.append(results)
            sequence += count
            damage = damage or met
        return all_results, sequence - first_sequence, damage

    def _delete_range(self, deletion: RangeDeletion) -> None:
        with self._lock:
            if self._covers_a_table(deletion) or self.active_range_deletions + 1 >= RANGES_FLUSH:
                self.wants_flush = True
            self._ranges = self._ranges.plus(deletion)
            self.active_range_deletions += 1
            self._make_view()

    def _covers_a_table(self, deletion: RangeDeletion) -> bool:
        """Whether a flush makes a table droppable that was not before."""
        return any(
            table.smallest >= deletion.start
            and (deletion.stop is None or table.largest < deletion.stop)
            and self._ranges.lowest_over(table.smallest, table.largest) <= table.max_sequence
            for table in self.version.tables()
        )

    @property
    def range_deletions(self) -> tuple[RangeDeletion, ...]:
        """In the order of their sequences, each until no table holds anything that it deletes."""
        return self._ranges.deletions

    def ranges_until(self, sequence: int) -> Ranges:
        """The range deletions up to a sequence."""
        return Ranges(one for one in self.range_deletions if one.sequence <= sequence)

    def retire(self, first_wal: int, last_sequence: int, now_ms: int, replica: bytes | None = None) -> bool:
        """Begin a new memtable, whose first entry will be in log `first_wal`. False if the old one is just
        dropped.

        An empty one is kept if entries were applied to it: they changed nothing, but they took sequences,
        moved time or changed the replica state, which its flush records before their log may go.
        """
        with self._lock:
            kept = self.active.count > 0 or self._covered != (last_sequence, now_ms, replica)
            if kept:
                self.retired = (Retired(self.active, last_sequence, now_ms, replica), *self.retired)
                self._covered = (last_sequence, now_ms, replica)
            self.active = Memtable(first_wal)
            self.active_range_deletions = 0
            self.wants_flush = False
            self._make_view()
            return kept

    def install(
        self,
        added: Sequence[TableMeta],
        removed: Collection[int],
        *,
        flushed: Retired | None = None,
    ) -> None:
        """Make a finished job's result the engine's state, durably. A table in `added` that exists already
        only moves.

        OSError: nothing changed. EngineFailed: whether it changed is unknown, and the engine must not go on.
        """
        with self._commit_lock:
            if flushed:
                state = State(0, self._log_number_without(flushed), flushed.last_sequence, flushed.now_ms)
                state = state._replace(replica=flushed.replica)
            else:
                state = State(0, self.log_number, self.flushed_sequence, self.flushed_now_ms)
                state = state._replace(replica=self.flushed_replica)
            self._commit(added, removed, state, flushed)

    def ingest(self, tables: Sequence[TableMeta], now_ms: int, options: Options) -> None:
        """Make prepared tables, durable under their numbers, part of the state; their sequence is newer than
        all there is, and everything before it is flushed. Errors as of `install`. Only the applying thread.
        """
        sequence = tables[0].given_sequence
        with self._commit_lock:
            placed = [
                table._replace(level=level_for(self.version, options, table, self._reserved))
                for table in tables
            ]
            self._commit(placed, (), State(0, self.log_number, sequence, now_ms), None)
            with self._lock:
                self._covered = (sequence, now_ms, None)

    def replace(self, tables: Sequence[TableMeta], state: State, entered: Callable[[], None]) -> None:
        """Put these tables, durable under their numbers, and their state into the place of everything,
        memtables too. `entered`: called when that is durable, before it is seen. No job may run. Errors as of
        `install`. Only the applying thread."""
        with self._commit_lock:
            opened = {table.number: self.open_table(table) for table in tables}
            version = Version.of(tables)
            removed = [table.number for table in self.version.tables()]
            state = state._replace(next_file=self._next_file, log_number=self.log_number)
            self.shared.manifest.commit(self.engine_id, state, tables, removed)
            with self._lock:
                gone, self._tables = list(self._tables.values()), opened
                self.version = version
                self.retired, self.active = (), Memtable(self.log_number)
                self._covered = (state.flushed_sequence, state.now_ms, state.replica)
                self.active_range_deletions, self.wants_flush = 0, False
                self._ranges = Ranges(state.range_deletions)
                self._enter(state, state.range_deletions, entered)
            self._give_up(gone)

    def reserve(self, choose: Callable[[Version, Ranges], Proposal | None]) -> Proposal | None:
        """Choose a compaction by the tables and the settled range deletions; until `release` no ingested
        table gets between the keys of its output."""
        with self._commit_lock:
            proposal = choose(self.version, self.settled.ranges)
            if proposal is not None:
                inputs = (*proposal.upper, *proposal.lower)
                self._reserved = (proposal.output_level, *key_range(inputs))
            return proposal

    def release(self) -> None:
        """The compaction that was chosen last is done, or given up."""
        with self._commit_lock:
            self._reserved = None

    def freeze(self) -> tuple[State, tuple[TableMeta, ...], View | None]:
        """The state in the manifest, the tables of this moment, and a view that keeps them on the disk."""
        with self._lock:
            state = State(
                self._next_file,
                self.log_number,
                self.flushed_sequence,
                self.flushed_now_ms,
                self.settled.ranges.deletions,
                self.flushed_replica,
            )
            return state, tuple(self.version.tables()), self.view

    def open_table(self, meta: TableMeta) -> Table:
        """The table as the manifest describes it. Corruption if the file is another one, or missing."""
        return open_table(self.shared, self.directory, meta)

    def tables_of(self, metas: Sequence[TableMeta]) -> tuple[Table, ...]:
        with self._lock:
            return tuple(self._tables[meta.number] for meta in metas)

    def check_manifest(self) -> None:
        """Corruption if the manifest is not what it was made to be."""
        with self._commit_lock:
            state, tables = self.shared.manifest.load(self.engine_id)
            if set(tables) != set(self.version.tables()):
                raise Corruption(f"{self.directory}: the manifest names other tables than are in use")
            settled = tuple(one for one in self.range_deletions if one.sequence <= self.flushed_sequence)
            in_use = self.log_number, self.flushed_sequence, settled, self.flushed_replica
            if state and (state.log_number, state.flushed_sequence, *state[4:]) != in_use:
                raise Corruption(f"{self.directory}: the manifest is not at the state in use")

    def verify(self, view: View) -> list[str]:
        """See Engine.verify."""
        problems: list[str] = []
        for check in (self.check_manifest, *(table.verify for run in view.runs for table in run)):
            try:
                check()
            except (Corruption, OSError) as error:
                problems.append(str(error))
        return problems

    def memtable_bytes(self) -> int:
        return self.active.memory_bytes + sum(one.memtable.memory_bytes for one in self.retired)

    def close(self) -> None:
        """Give everything up; snapshots keep what they hold, and its files open: who opens the directory next
        may remove them."""
        with self._lock:
            tables = [weakref.ref(table) for table in self._tables.values()]
            self.view = None
            self._tables = {}
            self.retired = ()
            self.active = Memtable()
        for reference in tables:
            table = reference()
            if table is not None:
                with contextlib.suppress(OSError):
                    table.pin()

    def _commit(
        self,
        added: Sequence[TableMeta],
        removed: Collection[int],
        state: State,
        flushed: Retired | None,
    ) -> None:
        """`state`: but for the next file number and the range deletions, which are those of now. The commit
        lock is held."""
        moved = {table.number for table in added if table.number in self._tables}
        opened = {table.number: self.open_table(table) for table in added if table.number not in moved}
        version = self.version.change(added, {*removed, *moved})
        kept = self._range_deletions_until(state.flushed_sequence, version)
        state = state._replace(next_file=self._next_file, range_deletions=kept)
        self.shared.manifest.commit(self.engine_id, state, added, removed)
        with self._lock:
            self.version = version
            self._tables.update(opened)
            gone = [self._tables.pop(number) for number in removed]
            self.retired = tuple(one for one in self.retired if one is not flushed)
            self._enter(state, kept)
        self._give_up(gone)

    def _enter(
        self, state: State, kept: tuple[RangeDeletion, ...], entered: Callable[[], None] | None = None
    ) -> None:
        """What the manifest has now is the state; the lock is held."""
        self.flushed_sequence, self.flushed_now_ms = state.flushed_sequence, state.now_ms
        self.flushed_replica = state.replica
        self.log_number = state.log_number
        self._settle(kept)
        if entered is not None:
            entered()
        self._make_view()

    def _give_up(self, gone: list[Table]) -> None:
        """The engine has these tables no more: each goes when nobody reads it."""
        while gone:  # one after the other: those that only this held go without staying open together
            table = gone.pop()
            table.discard = partial(self.shared.discard, table.path)
            with contextlib.suppress(OSError):  # by name it can be opened as long as this engine is
                table.pin()

    def _log_number_without(self, flushed: Retired) -> int:
        with self._lock:
            kept = [one.memtable for one in self.retired if one is not flushed]
            return min(memtable.first_wal for memtable in (self.active, *kept))

    def _range_deletions_until(self, sequence: int, version: Version) -> tuple[RangeDeletion, ...]:
        """Those up to a sequence below which everything is in tables, without those that no table of this
        version needs any more, because it was written after them or because newer ones say the same."""
        found = tuple(one for one in self.range_deletions if one.sequence <= sequence)
        if not found:
            return ()
        needed = set[int]().union(*unapplied(Ranges(found), version.tables()).values())
        return tuple(one for one in found if one.sequence in needed)

    def _settle(self, kept: tuple[RangeDeletion, ...]) -> None:
        """These are what the manifest has; newer ones stay."""
        later = tuple(one for one in self.range_deletions if one.sequence > self.flushed_sequence)
        if (*kept, *later) != self.range_deletions:
            self._ranges = Ranges((*kept, *later))
        self.settled = Settled(self.flushed_sequence, Ranges(kept) if later else self._ranges)

    def _make_view(self) -> None:
        memtables = (self.active, *(one.memtable for one in self.retired))
        level0, *levels = self.version.levels
        runs: list[tuple[TableMeta, ...]] = [(table,) for table in level0]
        runs.extend(level for level in levels if level)
        tables = tuple(tuple(self._tables[meta.number] for meta in run) for run in runs)
        self.view = View(self.shared.cache, self.directory, memtables, tables, self.reads, self._ranges)


def stored_file_id(vfs: Vfs, path: str) -> int:
    """The file id in a table's footer. Corruption: it has none that is whole."""
    with contextlib.closing(vfs.open(path)) as file:
        size = vfs.size(path)
        footer = os.pread(file.fd, FOOTER_BYTES, max(0, size - FOOTER_BYTES))
    checksum = int.from_bytes(footer[52:56], "little")
    if footer[56:] != MAGIC or codec.masked_crc32c(footer[:52]) != checksum:
        raise Corruption(f"{path}: no whole table footer (offset {max(0, size - FOOTER_BYTES)})")
    return int.from_bytes(footer[36:44], "little")


def open_table(shared: Shared, directory: str, meta: TableMeta) -> Table:
    """Open a table file; see Tree.open_table."""
    file = shared.files.open(table_path(directory, meta.number))
    try:
        return Table(
            shared.cache,
            file,
            meta.number,
            meta.file_id,
            meta.size,
            meta.smallest,
            meta.largest,
            shared.files,
            meta.max_sequence,
            meta.given_sequence,
        )
    except BaseException:
        file.close()
        raise
