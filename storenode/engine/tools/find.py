"""find: every record of one key in every table and log, also in those that the manifest does not name."""

from __future__ import annotations

from collections.abc import Iterator

from storenode.engine.deletions import RangeDeletion, decode_delete_range
from storenode.engine.ranges import Ranges
from storenode.engine.tools import blocks
from storenode.engine.tools.logfile import LogFile, Record, operations
from storenode.engine.tools.places import Place, Site, partition_of
from storenode.engine.tools.printing import Cell, Printer
from storenode.engine.tools.records import read_manifest
from storenode.engine.tools.storelog import StoreLog
from storenode.engine.tools.tablefile import KINDS, Damage, DataBlock, TableFile
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

COLUMNS = (
    "partition",
    "file",
    "level",
    "offset",
    "sequence",
    "kind",
    "deadline_ms",
    "value_size",
    "note",
)


class Found:
    """What one search came to."""

    def __init__(self, printer: Printer) -> None:
        self.printer = printer
        self.versions = 0
        self.deleted_below = 0
        """The highest sequence of a range deletion that holds the key, in the engine that is searched."""
        self.problems: list[tuple[str, int | None, str]] = []

    def row(self, *cells: Cell) -> None:
        self.versions += 1
        self.printer.row(*cells)

    def deletion(self, place: Place, path: str, offset: int | None, one: RangeDeletion, key: bytes) -> None:
        """A range deletion that was found: a row if it holds the key."""
        if Ranges([one]).sequence_of(key):
            self.deleted_below = max(self.deleted_below, one.sequence)
            self.row(place.engine_id, path, None, offset, one.sequence, "delete_range", None, None, None)

    def problem(self, error: Damage | OSError) -> None:
        if isinstance(error, Damage):
            self.problems.append((error.path, error.offset, error.what))
        else:
            self.problems.append((str(error.filename), None, error.strerror or str(error)))


def find(
    vfs: Vfs, site: Site, key: bytes, printer: Printer, *, everywhere: bool, log: StoreLog | None = None
) -> tuple[bool, bool]:
    """(found, sound): whether there is a record of the key, and whether all that was looked at could be read.

    In a store's directory only the key's own partition is searched, unless `everywhere` or its number is not
    known.
    """
    manifest = read_manifest(vfs, site.manifest_directory)
    found = Found(printer)
    printer.section("versions", COLUMNS)
    for place in _places(site, key, everywhere):
        records = manifest.of(place.engine_id)
        known = records.tables
        found.deleted_below = 0
        if log is not None:
            state = records.state.state.replica if records.state else None
            _guarded(found, lambda: _search_store_log(log, place, key, state, found))  # noqa: B023
        files = place.files(vfs)
        for number, path in sorted(files.logs.items(), reverse=True):
            _guarded(found, lambda: _search_log(vfs, place, number, path, key, found))  # noqa: B023 - runs at once
        for one in reversed(records.range_deletions):
            found.deletion(place, manifest.path, None, one, key)
        for number, path in sorted(files.tables.items(), reverse=True):
            meta = known.get(number)
            _guarded(found, lambda: _search_table(vfs, place, number, path, meta, key, found))  # noqa: B023
    printer.section("problems", ("file", "offset", "what"))
    for problem in found.problems:
        printer.row(*problem)
    return found.versions > 0, not found.problems


def _places(site: Site, key: bytes, everywhere: bool) -> tuple[Place, ...]:
    if everywhere or site.partition_bits is None:
        return site.places
    place = site.place_of(partition_of(key, site.partition_bits))
    return () if place is None else (place,)


def _guarded(found: Found, search: object) -> None:
    assert callable(search)
    try:
        search()
    except (Damage, OSError) as error:
        found.problem(error)


def _search_store_log(log: StoreLog, place: Place, key: bytes, replica: bytes | None, found: Found) -> None:
    """Entries have no sequence there: what it is, is known when they are applied."""
    for one in log.find(place.engine_id, key, replica):
        found.row(place.engine_id, one.file, None, one.offset, None, one.name, None, one.value_size, one.note)


def _search_log(vfs: Vfs, place: Place, number: int, path: str, key: bytes, found: Found) -> None:
    log = LogFile(vfs, path, number, place.engine_id)
    if log.damage is not None and not log.is_torn():
        found.problem(log.damage)
    for record, note in _records(log):
        bounds = decode_delete_range(record.ops)
        if bounds is not None:
            found.deletion(place, path, record.offset, RangeDeletion(*bounds, record.first_sequence), key)
        if key not in record.ops or bounds is not None:
            continue
        for operation in operations(record)[0]:
            if operation.key == key:
                size = None if operation.value is None else len(operation.value)
                found.row(
                    place.engine_id,
                    path,
                    None,
                    record.offset,
                    operation.sequence,
                    operation.name,
                    None,
                    size,
                    note,
                )


def _records(log: LogFile) -> Iterator[tuple[Record, str | None]]:
    yield from ((record, None) for record in log.records)
    yield from ((record, "behind damage") for record in log.records_behind())


def _search_table(
    vfs: Vfs, place: Place, number: int, path: str, meta: TableMeta | None, key: bytes, found: Found
) -> None:
    level = meta.level if meta else None
    with TableFile(vfs, path, number, place.engine_id, meta) as table:
        knows = _filter_knows(table, key, found)
        for block in _blocks_for(table, key):
            if block.damage is not None:
                found.problem(block.damage)
            for version_key, sequence, kind, value, deadline in block.versions:
                if version_key == key:
                    note = "not in the manifest" if level is None else None
                    if 0 < sequence < found.deleted_below:  # an ingested one without a record has 0
                        note = f"range deletion {found.deleted_below} deletes it"
                    if not knows:
                        note = "the filter hides it"
                    found.row(
                        place.engine_id,
                        path,
                        level,
                        block.handle.offset,
                        sequence,
                        KINDS[kind],
                        deadline or None,
                        len(value),
                        note,
                    )


def _filter_knows(table: TableFile, key: bytes, found: Found) -> bool:
    try:
        return blocks.filter_knows(table.filter(), key)
    except Damage as damage:
        found.problem(damage)
        return True


def _blocks_for(table: TableFile, key: bytes) -> Iterator[DataBlock]:
    """The data blocks that may hold the key by the index; all there are if it is damaged."""
    try:
        index = table.index()
    except Damage:
        yield from table.data()
        return
    for block in index:
        if block.separator >= key:
            yield table.data_block(block)
            if block.separator > key:
                return
