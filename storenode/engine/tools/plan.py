"""What a repair of one engine would do. Decides, changes nothing.

If the manifest's records of an engine are sound and no table proves them old, its tables keep their levels
and only what is damaged goes. Otherwise the state is made anew from the tables. Levels say which of two
tables is newer where both hold a key. Without them: a table that shares keys with no other goes to the last
level; tables whose sequences follow one another go to level 0, where the order is that of sequences; all
others are merged, version by version, which needs no order. An ingested table whose manifest record is lost
has lost its sequence: prepared.py says which one it gets, or that nobody knows; then it is taken out.

A replica's engine that loses anything loses its replica state with it: what is left is an engine to be read,
but no prefix of the replica's log, and open_replica refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from storenode.engine.deletions import RangeDeletion
from storenode.engine.manifest import State
from storenode.engine.options import LEVELS
from storenode.engine.tools.examine import Gap, TableReport, examine_levels, examine_table
from storenode.engine.tools.logplan import LogPlan, plan_logs
from storenode.engine.tools.places import Files, Place
from storenode.engine.tools.prepared import order_prepared
from storenode.engine.tools.records import EngineRecords, Manifest
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

LAST_LEVEL = LEVELS - 1


class Rewrite(NamedTuple):
    """New tables of one level from the readable versions of old ones; of a key the newest is kept."""

    sources: tuple[TableReport, ...]
    level: int


class Loss(NamedTuple):
    """What may be missing afterwards. `gap` None: not a range of keys of a table; `what` says it."""

    gap: Gap | None
    sequences: tuple[int, int] | None
    what: str


class Plan(NamedTuple):
    """`state` None: the engine has none and needs none. `tables`: kept as they are, at these levels.

    `taken_out`: (path, why). `is_rebuilt`: the manifest's records of the engine are not used.
    """

    place: Place
    state: State | None
    tables: tuple[TableMeta, ...]
    rewrites: tuple[Rewrite, ...]
    taken_out: tuple[tuple[str, str], ...]
    logs: LogPlan
    losses: tuple[Loss, ...]
    is_rebuilt: bool
    is_changed: bool
    unknown: str | None = None
    """What a rebuilt state may lack without a trace."""


def plan_engine(vfs: Vfs, place: Place, manifest: Manifest, *, salvage: bool) -> Plan:
    """The plan for one engine; a sound one's changes nothing."""
    files = place.files(vfs)
    records = manifest.of(place.engine_id)
    reports = {
        number: examine_table(vfs, place, number, path, records.tables.get(number))
        for number, path in sorted(files.tables.items())
    }
    if not _is_trusted(manifest, records) or (files.tables and not manifest.exists):
        return _rebuild(vfs, place, files, records, reports, salvage)
    state = records.state.state if records.state else State(1, 0, 0, 0)
    logs = plan_logs(vfs, place, files.logs, state.log_number, state.flushed_sequence, any_start=False)
    if records.state is None and logs.unused:
        return _rebuild(vfs, place, files, records, reports, salvage)  # logs before these are in tables
    if state.replica is not None:
        return _keep(place, files, records, reports, state, logs, salvage, replays=False)
    orphans = [report for number, report in reports.items() if number not in records.tables]
    if any(one.properties and one.properties.max_sequence > logs.last_sequence for one in orphans):
        return _rebuild(vfs, place, files, records, reports, salvage)
    again = _replay_again(vfs, place, files, records, reports, state)
    if again is not None:
        state, logs = again
    return _keep(place, files, records, reports, state, logs, salvage, replays=again is not None)


def _is_trusted(manifest: Manifest, records: EngineRecords) -> bool:
    """A manifest that is not there vouches for engines without tables."""
    if records.problems or (manifest.exists and manifest.problem):
        return False
    return not examine_levels(records.tables)


def _replay_again(
    vfs: Vfs,
    place: Place,
    files: Files,
    records: EngineRecords,
    reports: dict[int, TableReport],
    state: State,
) -> tuple[State, LogPlan] | None:
    """If only the newest tables are lost, and the logs that they were made of are still there: the state
    before these tables, and those logs."""
    kept = [meta for number, meta in records.tables.items() if number in reports and reports[number].is_sound]
    lost = [meta for meta in records.tables.values() if meta not in kept]
    before = max((meta.max_sequence for meta in kept), default=0)
    if not lost or min(meta.min_sequence for meta in lost) <= before:
        return None
    logs = plan_logs(vfs, place, files.logs, state.log_number, before, any_start=False)
    if logs.unused or logs.lost or logs.replay_from != before + 1:
        return None
    ranges = tuple(one for one in state.range_deletions if one.sequence <= before)
    return state._replace(flushed_sequence=before, now_ms=logs.now_ms, range_deletions=ranges), logs


def _keep(
    place: Place,
    files: Files,
    records: EngineRecords,
    reports: dict[int, TableReport],
    state: State,
    logs: LogPlan,
    salvage: bool,
    *,
    replays: bool,
) -> Plan:
    """`replays`: all that is lost with tables comes back from the logs."""
    kept: list[TableMeta] = []
    rewrites: list[Rewrite] = []
    taken_out: list[tuple[str, str]] = list(logs.unused)
    losses = [Loss(None, None, what) for what in logs.lost]
    for number, meta in sorted(records.tables.items()):
        report = reports.get(number)
        if report is None:
            what = f"{place.directory}/{number:06d}.sst is missing"
            losses += [] if replays else [_loss_of_all(meta, what)]
        elif report.is_sound:
            kept.append(meta)
        else:
            taken_out.append((report.path, report.problems[0].what))
            if salvage and not replays and report.facts is not None:
                rewrites.append(Rewrite((report,), meta.level))
            losses += [] if replays else _losses(report, meta, salvage)
    new_state = state._replace(
        replica=None if losses else state.replica,
        log_number=logs.log_number if state.log_number or logs.unused or logs.lost else 0,
        next_file=_next_file(state.next_file, files),
    )
    changed = bool(replays or taken_out or losses or logs.cut or new_state.log_number != state.log_number)
    has_state = records.state is not None or changed
    return Plan(
        place,
        (new_state if changed else state) if has_state else None,
        tuple(kept),
        tuple(rewrites),
        tuple(taken_out),
        logs,
        tuple(losses),
        False,
        changed,
    )


def _rebuild(
    vfs: Vfs,
    place: Place,
    files: Files,
    records: EngineRecords,
    reports: dict[int, TableReport],
    salvage: bool,
) -> Plan:
    state = records.state.state if records.state else State(1, 0, 0, 0)
    reports, unordered = order_prepared(vfs, place, files, reports, records.range_deletions)
    sound = [report for report in reports.values() if report.properties and _is_sound_itself(report)]
    damaged = [report for report in reports.values() if report not in sound]
    ranges = _range_deletions(records, reports.values())
    flushed = max([state.flushed_sequence, *ranges, *(_max_sequence(report) for report in sound)])
    logs = plan_logs(vfs, place, files.logs, state.log_number, flushed, any_start=True)
    burnt = max([flushed, *(_max_sequence(report) for report in damaged if report.properties)])
    if logs.replay_from > burnt:
        flushed = burnt  # a sequence that was used once is not given to another write
    taken_out: list[tuple[str, str]] = list(logs.unused)
    losses = [Loss(None, None, what) for what in logs.lost]
    for report in damaged:
        taken_out.append((report.path, report.problems[0].what))
        losses += _losses(report, report.properties, salvage)
    losses += [
        _loss_of_all(meta, f"{place.directory}/{number:06d}.sst is missing")
        for number, meta in records.tables.items()
        if number not in files.tables
    ]
    for report in unordered:
        taken_out.append((report.path, "an ingested table; whether it is newer than others is not known"))
        what = f"all of {report.path}; to have it newer than everything, ingest it again from the quarantine"
        losses.append(Loss(Gap(*(report.range() or (None, None))), None, what))
    saved = [report for report in damaged if salvage and report.facts is not None]
    tables, rewrites = _arrange(sound, saved, records)
    taken_out += [
        (source.path, "merged into new tables")
        for rewrite in rewrites
        for source in rewrite.sources
        if source in sound
    ]
    new_state = State(
        _next_file(state.next_file, files),
        logs.log_number,
        flushed,
        max(state.now_ms, logs.now_ms),
        tuple(ranges[sequence] for sequence in sorted(ranges)),
    )
    unknown = None
    if records.state is None and logs.replay_from > flushed + 1:
        unknown = f"range deletions after {flushed} that no table remembers: what they deleted is back"
    return Plan(
        place, new_state, tables, rewrites, tuple(taken_out), logs, tuple(losses), True, True, unknown
    )


def _range_deletions(records: EngineRecords, reports: Iterable[TableReport]) -> dict[int, RangeDeletion]:
    """All that tables remember and the manifest has, by sequence. One that had done its work does none."""
    found = {one.sequence: one for report in reports for one in report.range_deletions}
    return found | {one.sequence: one for one in records.range_deletions}


def _is_sound_itself(report: TableReport) -> bool:
    """Sound but for what a manifest that is not trusted says of it."""
    return all("the manifest says" in problem.what for problem in report.problems)


def _arrange(
    sound: list[TableReport], saved: list[TableReport], records: EngineRecords
) -> tuple[tuple[TableMeta, ...], tuple[Rewrite, ...]]:
    """Where tables go that nobody vouches for: see the head of this file."""
    known = {report.number: records.tables.get(report.number) for report in sound}
    levels = {number: meta for number, meta in known.items() if meta is not None}
    vouched_for = len(levels) == len(sound) and all(report.is_sound for report in sound)
    if vouched_for and not saved and not examine_levels(levels):
        return tuple(levels.values()), ()
    tables: list[TableMeta] = []
    rewrites: list[Rewrite] = []
    for group in _groups([*sound, *saved]):
        metas = [report.properties for report in group if report.properties]
        if any(report in saved for report in group):
            rewrites.append(Rewrite(tuple(group), LAST_LEVEL))
        elif len(group) == 1:
            tables.append(metas[0]._replace(level=LAST_LEVEL))
        elif _follow_one_another(metas):
            tables += metas
        else:
            rewrites.append(Rewrite(tuple(group), LAST_LEVEL))
    return tuple(tables), tuple(rewrites)


def _groups(reports: list[TableReport]) -> Iterable[list[TableReport]]:
    """Tables that share keys, directly or through others."""
    ranged = sorted(
        ((ends, report) for report in reports if (ends := _readable_range(report)) is not None),
        key=lambda pair: (pair[0], pair[1].number),
    )
    group: list[TableReport] = []
    end = b""
    for (smallest, largest), report in ranged:
        if group and smallest > end:
            yield group
            group = []
        end = max(end, largest) if group else largest
        group.append(report)
    if group:
        yield group


def _readable_range(report: TableReport) -> tuple[bytes, bytes] | None:
    facts = report.facts
    return None if facts is None else (facts.smallest, facts.largest)


def _follow_one_another(metas: list[TableMeta]) -> bool:
    ordered = sorted(metas, key=lambda meta: meta.max_sequence)
    return all(older.max_sequence < newer.min_sequence for older, newer in pairwise(ordered))


def _losses(report: TableReport, known: TableMeta | None, salvage: bool) -> list[Loss]:
    """What is missing of a table that is taken out."""
    sequences = None if known is None else (known.min_sequence, known.max_sequence)
    if not salvage or report.facts is None:
        gap = Gap(known.smallest, known.largest) if known else Gap(None, None)
        what = f"all of {report.path}" + ("" if known else ", unless it never was finished")
        if not salvage and report.entries:
            what += f" ({report.entries} entries of it could be kept: --salvage)"
        return [Loss(gap, sequences, what)]
    return [Loss(gap, sequences, f"a part of {report.path}") for gap in report.gaps]


def _loss_of_all(meta: TableMeta, what: str) -> Loss:
    return Loss(Gap(meta.smallest, meta.largest), (meta.min_sequence, meta.max_sequence), what)


def _max_sequence(report: TableReport) -> int:
    return report.properties.max_sequence if report.properties else 0


def _next_file(known: int, files: Files) -> int:
    return max([known, *(number + 1 for number in (*files.tables, *files.logs))])
