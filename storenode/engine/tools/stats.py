"""stats: what the manifest and the directory say of tables and logs, by partition and level."""

from __future__ import annotations

from collections.abc import Iterable

from storenode.engine.compaction import scores
from storenode.engine.options import LEVELS, Options
from storenode.engine.tools.places import Site
from storenode.engine.tools.printing import Printer
from storenode.engine.tools.records import read_manifest
from storenode.engine.version import TableMeta, Version
from storenode.engine.vfs import Vfs

ENGINE_COLUMNS = (
    "partition",
    "tables",
    "table_bytes",
    "entries",
    "deletions",
    "expiring",
    "logs",
    "log_bytes",
    "flushed_sequence",
    "log_number",
    "next_file",
    "orphans",
    "missing",
    "range_deletions",
)
LEVEL_COLUMNS = (
    "partition",
    "level",
    "tables",
    "bytes",
    "entries",
    "deletions",
    "expiring",
    "min_sequence",
    "max_sequence",
    "score_percent",
    "owes",
)


def stats(vfs: Vfs, site: Site, printer: Printer) -> bool:
    """True if the manifest was sound and all files of it are there; what compaction owes is by the default
    options."""
    manifest = read_manifest(vfs, site.manifest_directory)
    sound = not manifest.exists or not manifest.general_problems()
    levels: list[tuple[int | str, ...]] = []
    printer.section("engines", ENGINE_COLUMNS)
    for place in site.places:
        files = place.files(vfs)
        records = manifest.of(place.engine_id)
        tables = records.tables
        state = records.state.state if records.state else None
        missing = len(tables.keys() - files.tables.keys())
        lost = bool(files.tables) and not manifest.exists
        sound = sound and not lost and not missing and not records.problems
        printer.row(
            place.engine_id,
            len(tables),
            sum(table.size for table in tables.values()),
            sum(table.entries for table in tables.values()),
            sum(table.deletions for table in tables.values()),
            sum(table.expiring for table in tables.values()),
            len(files.logs),
            sum(vfs.size(path) for path in files.logs.values()),
            state.flushed_sequence if state else None,
            state.log_number if state else None,
            state.next_file if state else None,
            len(files.tables.keys() - tables.keys()),
            missing,
            len(records.range_deletions),
        )
        levels += _levels(place.engine_id, tables.values())
    printer.section("levels", LEVEL_COLUMNS)
    for row in levels:
        printer.row(*row)
    return sound


def _levels(engine_id: int, tables: Iterable[TableMeta]) -> Iterable[tuple[int | str, ...]]:
    # Not Version.of, which refuses levels that overlap: the figures are wanted all the same.
    by_level: list[list[TableMeta]] = [[] for _ in range(LEVELS)]
    for table in tables:
        if table.level < LEVELS:
            by_level[table.level].append(table)
    full = scores(Version(tuple(map(tuple, by_level))), Options())
    for level, members in enumerate(by_level):
        if members:
            yield (
                engine_id,
                level,
                len(members),
                sum(table.size for table in members),
                sum(table.entries for table in members),
                sum(table.deletions for table in members),
                sum(table.expiring for table in members),
                min(table.min_sequence for table in members),
                max(table.max_sequence for table in members),
                round(full[level] * 100),
                "compaction" if full[level] >= 1 else "-",
            )
