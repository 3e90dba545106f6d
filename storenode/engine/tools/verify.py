"""verify: every checksum and every promise of docs/formats.md, for all engines of a directory."""

from __future__ import annotations

from typing import NamedTuple

from storenode.engine.recovery import SEQUENCE_MAX
from storenode.engine.tools.dump_manifest import problems_of
from storenode.engine.tools.examine import examine_levels, examine_logs, examine_ranges, examine_table
from storenode.engine.tools.places import Place, Site
from storenode.engine.tools.printing import Printer
from storenode.engine.tools.records import EngineRecords, Manifest, read_manifest
from storenode.engine.tools.storelog import COLUMNS as LOG_COLUMNS
from storenode.engine.tools.storelog import StoreLog
from storenode.engine.tools.tablefile import Damage
from storenode.engine.vfs import Vfs

COLUMNS = ("partition", "file", "offset", "what")


class Finding(NamedTuple):
    engine_id: int | None
    file: str
    offset: int | None
    what: str


class Checked(NamedTuple):
    """How much one engine's check has read."""

    engine_id: int
    tables: int
    blocks: int
    entries: int
    logs: int
    records: int
    problems: int


def verify(vfs: Vfs, site: Site, printer: Printer, log: StoreLog | None = None) -> bool:
    """Print what is wrong as it is found; True if nothing is. `log`: the one that all engines share."""
    manifest = read_manifest(vfs, site.manifest_directory)
    notes: list[Finding] = []
    checked: list[Checked] = []
    printer.section("problems", COLUMNS)
    general = _manifest_findings(site, manifest, has_tables=_has_tables(vfs, site))
    for finding in general:
        printer.row(*finding)
    for place in site.places:
        found: list[Finding] = []
        try:
            counts = _verify_engine(vfs, place, manifest, found, notes)
        except OSError as error:
            found.append(Finding(place.engine_id, place.directory, None, f"cannot be read: {error.strerror}"))
            counts = (0, 0, 0, 0, 0)
        for finding in found:
            printer.row(*finding)
        checked.append(Checked(place.engine_id, *counts, len(found)))
    report = None if log is None else log.check(_states(site, manifest))
    if report is not None:
        for partition, damage in report.problems:
            printer.row(partition, damage.path, damage.offset, damage.what)
        notes += [Finding(number, note.path, note.offset, note.what) for number, note in report.notes]
    printer.section("notes", COLUMNS)
    for note in notes:
        printer.row(*note)
    printer.section("checked", ("partition", *Checked._fields[1:]))
    for engine in checked:
        printer.row(*engine)
    if report is not None:
        printer.section("log", LOG_COLUMNS)
        if report.counts is not None:
            printer.row(*report.counts)
    sound = not general and not any(engine.problems for engine in checked)
    return sound and (report is None or not report.problems)


def replica_states(vfs: Vfs, site: Site) -> dict[int, bytes | None]:
    """The replica state of each engine; None of one that is no replica's."""
    return _states(site, read_manifest(vfs, site.manifest_directory))


def _states(site: Site, manifest: Manifest) -> dict[int, bytes | None]:
    states = {place.engine_id: manifest.of(place.engine_id).state for place in site.places}
    return {number: state.state.replica if state else None for number, state in states.items()}


def _has_tables(vfs: Vfs, site: Site) -> bool:
    return any(files.tables for files in (place.files(vfs) for place in site.places))


def _manifest_findings(site: Site, manifest: Manifest, *, has_tables: bool) -> list[Finding]:
    """Of the manifest by itself. One that is missing where nothing was ever written is as it should be."""
    if not manifest.exists and not has_tables:
        return []
    found = [Finding(engine_id, manifest.path, None, what) for engine_id, what in problems_of(manifest)]
    found += [
        Finding(engine_id, manifest.path, None, f"has records of engine {engine_id}, which has no directory")
        for engine_id in manifest.engines()
        if site.place_of(engine_id) is None
    ]
    return found


def _verify_engine(
    vfs: Vfs, place: Place, manifest: Manifest, found: list[Finding], notes: list[Finding]
) -> tuple[int, int, int, int, int]:
    files = place.files(vfs)
    records = manifest.of(place.engine_id)
    state = records.state.state if records.state else None
    log_number, flushed = (state.log_number, state.flushed_sequence) if state else (0, 0)
    for what in [*examine_levels(records.tables), *(examine_ranges(state) if state else [])]:
        found.append(Finding(place.engine_id, manifest.path, None, what))
    logs = examine_logs(vfs, place, files.logs, log_number, flushed)
    found += _findings(place, logs.problems)
    notes += _findings(place, logs.notes)
    blocks = entries = 0
    for number, meta in sorted(records.tables.items()):
        path = files.tables.get(number)
        if path is None:
            path = f"{place.directory}/{number:06d}.sst"
            found.append(Finding(place.engine_id, path, None, "the table is missing"))
            continue
        report = examine_table(vfs, place, number, path, meta)
        blocks, entries = blocks + report.blocks, entries + report.entries
        found += _findings(place, report.problems)
        if report.properties and state and report.properties.max_sequence > flushed:
            what = f"holds sequence {report.properties.max_sequence}, the state says {flushed} is the last"
            found.append(Finding(place.engine_id, path, None, what))
    is_replica = state is not None and state.replica is not None
    last_sequence = SEQUENCE_MAX if is_replica else logs.last_sequence  # its log is elsewhere
    _orphans(vfs, place, files.tables, records, last_sequence, found, notes)
    for name in files.foreign:
        notes.append(Finding(place.engine_id, f"{place.directory}/{name}", None, "is not an engine's file"))
    return len(records.tables), blocks, entries, len(files.logs), logs.records


def _orphans(
    vfs: Vfs,
    place: Place,
    tables: dict[int, str],
    records: EngineRecords,
    last_sequence: int,
    found: list[Finding],
    notes: list[Finding],
) -> None:
    """Tables that the manifest does not name: left by a crash, or proof that the manifest is not the
    newest."""
    for number, path in sorted(tables.items()):
        if number in records.tables:
            continue
        report = examine_table(vfs, place, number, path, None)
        if report.properties is not None and report.properties.max_sequence > last_sequence:
            what = (
                f"holds sequence {report.properties.max_sequence}, manifest and logs end at {last_sequence}: "
                "the manifest is not the newest"
            )
            found.append(Finding(place.engine_id, path, None, what))
        else:
            what = "the manifest does not name it: left by a crash, opening removes it"
            notes.append(Finding(place.engine_id, path, None, what))


def _findings(place: Place, damages: list[Damage]) -> list[Finding]:
    return [Finding(place.engine_id, damage.path, damage.offset, damage.what) for damage in damages]
