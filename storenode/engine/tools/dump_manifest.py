"""dump-manifest: every record, decoded, with the state of its checksum."""

from __future__ import annotations

from storenode.engine.deletions import RangeDeletion
from storenode.engine.tools.places import Site
from storenode.engine.tools.printing import Printer
from storenode.engine.tools.records import Manifest, Record, StateRecord, read_manifest
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

STATE_COLUMNS = ("engine", "next_file", "log_number", "flushed_sequence", "now_ms", "records", "digest")
TABLE_COLUMNS = (
    "engine",
    "number",
    "level",
    "size",
    "entries",
    "deletions",
    "expiring",
    "min_sequence",
    "max_sequence",
    "created_ms",
    "cleaned_sequence",
    "smallest",
    "largest",
)
RANGE_COLUMNS = ("engine", "sequence", "start", "stop")
RECORD_COLUMNS = ("engine", "kind", "key", "bytes", "problem")


def dump_manifest(vfs: Vfs, site: Site, printer: Printer) -> bool:
    """True if all records are sound and agree with one another."""
    manifest = read_manifest(vfs, site.manifest_directory)
    printer.section("states", STATE_COLUMNS)
    for record in manifest.records:
        if isinstance(record.content, StateRecord):
            state = record.content
            printer.row(record.engine_id, *state.state[:4], state.records, f"{state.digest:016x}")
    printer.section("tables", TABLE_COLUMNS)
    for record in manifest.records:
        if isinstance(record.content, TableMeta):
            printer.row(record.engine_id, *_table_cells(record.content))
    printer.section("range_deletions", RANGE_COLUMNS)
    for record in manifest.records:
        if isinstance(record.content, RangeDeletion):
            start, stop, sequence = record.content
            printer.row(record.engine_id, sequence, start, stop)
    printer.section("records", RECORD_COLUMNS)
    for record in manifest.records:
        printer.row(*_record_cells(record))
    problems = problems_of(manifest)
    printer.section("problems", ("file", "engine", "what"))
    for engine_id, what in problems:
        printer.row(manifest.path, engine_id, what)
    return not problems


def problems_of(manifest: Manifest) -> list[tuple[int | None, str]]:
    """Everything wrong in the manifest by itself: (engine, what)."""
    found: list[tuple[int | None, str]] = [(None, what) for what in manifest.general_problems()]
    for engine_id in manifest.engines():
        found += [(engine_id, what) for what in manifest.of(engine_id).problems]
    return found


def _table_cells(table: TableMeta) -> tuple[int | bytes, ...]:
    return (
        table.number,
        table.level,
        table.size,
        table.entries,
        table.deletions,
        table.expiring,
        table.min_sequence,
        table.max_sequence,
        table.created_ms,
        table.cleaned_sequence,
        table.smallest,
        table.largest,
    )


def _record_cells(record: Record) -> tuple[int | str | None, ...]:
    return record.engine_id, record.kind, record.key.hex(), len(record.value), record.problem or "ok"
