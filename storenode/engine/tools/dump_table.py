"""dump-table: properties, footer, index, and on demand the versions of one table. What is damaged is told and
skipped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from storenode.engine.tools.printing import Cell, Printer
from storenode.engine.tools.tablefile import KINDS, RANGES, Damage, DataBlock, TableFile, show_file_id

ENTRY_COLUMNS = ("block", "key", "sequence", "kind", "deadline_ms", "value")


def dump_table(table: TableFile, printer: Printer, *, entries: bool, limit: int | None) -> bool:
    """True if all that was read is sound; blocks of data are read with `entries` only."""
    damages: list[Damage] = []
    printer.section("footer", ("name", "offset", "size"))
    try:
        footer = table.footer()
        printer.row("filter", *footer.filter_block)
        printer.row("index", *footer.index_block)
        printer.row("properties", *footer.properties_block)
    except Damage as error:
        damages.append(error)
    printer.section("properties", ("name", "value"))
    for name, value in _properties(table, damages):
        printer.row(name, value)
    printer.section("range_deletions", ("sequence", "start", "stop"))
    try:
        for start, stop, sequence in table.range_deletions():
            printer.row(sequence, start, stop)
    except Damage as error:
        _note(damages, error)
    printer.section("index", ("offset", "size", "separator"))
    try:
        for block in table.index():
            printer.row(*block.handle, block.separator)
    except Damage as error:
        _note(damages, error)
    try:
        table.filter()
    except Damage as error:
        _note(damages, error)
    if entries:
        printer.section("entries", ENTRY_COLUMNS)
        for cells in itertools.islice(_entries(table, damages), limit):
            printer.row(*cells)
    printer.section("problems", ("file", "offset", "what"))
    for damage in damages:
        printer.row(damage.path, damage.offset, damage.what)
    return not damages


def _properties(table: TableFile, damages: list[Damage]) -> Iterator[tuple[str, Cell]]:
    try:
        found = sorted(table.properties().items())
    except Damage as damage:
        _note(damages, damage)
        return
    yield "file_id", show_file_id(table.file_id)
    yield "size", table.size
    yield from ((name, value) for name, value in found if name != RANGES)


def _entries(table: TableFile, damages: list[Damage]) -> Iterator[tuple[Cell, ...]]:
    for block in table.data():
        if block.damage is not None:
            _note(damages, block.damage)
        yield from block_cells(block)


def block_cells(block: DataBlock) -> Iterator[tuple[Cell, ...]]:
    for key, sequence, kind, value, deadline in block.versions:
        yield block.handle.offset, key, sequence, KINDS[kind], deadline or None, value


def _note(damages: list[Damage], damage: Damage) -> None:
    """A footer that is damaged is met by every question; it is told once."""
    if str(damage) not in map(str, damages):
        damages.append(damage)
