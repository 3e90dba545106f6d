"""Which sequence an ingested table gets whose record in the manifest is lost: nothing else has it.

What is certain: tables and logs with a smaller number hold nothing that is newer, and logs with a larger
number nothing that is older (docs/formats.md section 5, ingestion). So it gets the sequence after the last
one of those with a smaller number, which is not above its true one. A table with a larger number may be a
flush of newer entries, or what a compaction made of older ones: if it shares keys and has sequences above
that, nobody can tell. Nor of a range deletion above that which holds some of the keys, and which only tables
with a larger number remember, or the manifest.
"""

from __future__ import annotations

from storenode.engine.deletions import RangeDeletion
from storenode.engine.ranges import Ranges
from storenode.engine.tools.examine import TableReport
from storenode.engine.tools.logfile import LogFile, operations
from storenode.engine.tools.places import Files, Place
from storenode.engine.tools.tablefile import Damage
from storenode.engine.version import TableMeta, is_prepared
from storenode.engine.vfs import Vfs


def order_prepared(
    vfs: Vfs,
    place: Place,
    files: Files,
    reports: dict[int, TableReport],
    deletions: tuple[RangeDeletion, ...],
) -> tuple[dict[int, TableReport], list[TableReport]]:
    """The reports with a sequence for each ingested table, without those, second, of which none is known.
    `deletions`: the range deletions that are left of the manifest."""
    unknown = [number for number, report in sorted(reports.items()) if _lacks_sequence(report)]
    logs = {number: _last_sequence(vfs, place, number, path) for number, path in files.logs.items()}
    ordered = {number: report for number, report in reports.items() if number not in unknown}
    left_out: list[TableReport] = []
    for number in unknown:
        report = reports[number]
        before = max((last for log, last in logs.items() if log < number), default=0)
        for other in ordered.values():
            if other.number < number and (other.number not in unknown or _share_keys(report, other)):
                before = max(before, _max_sequence(other), *(one.sequence for one in other.range_deletions))
        remembered = [*deletions, *(one for other in reports.values() for one in other.range_deletions)]
        newest_of_ingested = max(
            (_max_sequence(other) for one, other in ordered.items() if one in unknown), default=0
        )
        sequence = max(before + 1, newest_of_ingested)
        if any(
            other.number > number and _share_keys(report, other) and _max_sequence(other) > before
            for other in ordered.values()
        ) or any(one.sequence > before and _holds_keys_of(one, report) for one in remembered):
            left_out.append(report)
        else:
            ordered[number] = _with_sequence(report, sequence)
    return dict(sorted(ordered.items())), left_out


def _lacks_sequence(report: TableReport) -> bool:
    known = report.facts or report.properties
    return known is not None and is_prepared(known.file_id) and known.max_sequence == 0


def _with_sequence(report: TableReport, sequence: int) -> TableReport:
    def given(meta: TableMeta | None) -> TableMeta | None:
        return meta and meta._replace(min_sequence=sequence, max_sequence=sequence)

    return report._replace(properties=given(report.properties), facts=given(report.facts))


def _share_keys(one: TableReport, other: TableReport) -> bool:
    first, second = one.range(), other.range()
    return first is None or second is None or (first[0] <= second[1] and second[0] <= first[1])


def _holds_keys_of(deletion: RangeDeletion, report: TableReport) -> bool:
    known = report.range()
    return known is None or bool(Ranges([deletion]).overlapping(*known))


def _max_sequence(report: TableReport) -> int:
    known = report.properties or report.facts
    return known.max_sequence if known else 0


def _last_sequence(vfs: Vfs, place: Place, number: int, path: str) -> int:
    """Of the entries that took one: what was refused took none, and the ingestion may have its sequence."""
    try:
        records = LogFile(vfs, path, number, place.engine_id).records
    except (Damage, OSError):
        return 0
    for record in reversed(records):
        found, sound = operations(record)
        if record.first_sequence and sound and found:
            return found[-1].sequence
    return 0
