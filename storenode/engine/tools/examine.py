"""What is wrong with one table, one engine's levels, one engine's logs: the checks behind verify and repair.

Every check goes on behind what it finds. A *problem* is damage: an engine would refuse or answer wrongly. A
*note* is what a crash may leave and opening clears up: orphans, a torn tail.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from storenode.engine.deletions import RangeDeletion
from storenode.engine.manifest import State
from storenode.engine.options import LEVELS
from storenode.engine.tools import blocks
from storenode.engine.tools.logfile import LogFile, operations, torn_logs
from storenode.engine.tools.places import Place
from storenode.engine.tools.printing import shown
from storenode.engine.tools.tablefile import NUMBERS, Damage, DataBlock, TableFile
from storenode.engine.version import TableMeta
from storenode.engine.vfs import Vfs

DELETE, PUT_DEADLINE = 0, 2


class Gap(NamedTuple):
    """Keys that cannot be read: above `after` (None: from the first on), up to `until` (None: the
    last)."""

    after: bytes | None
    until: bytes | None


class TableReport(NamedTuple):
    """One table, read as a whole. `facts`: what its readable versions come to, None if there are none."""

    number: int
    path: str
    size: int
    properties: TableMeta | None
    facts: TableMeta | None
    problems: list[Damage]
    gaps: list[Gap]
    blocks: int
    entries: int
    range_deletions: tuple[RangeDeletion, ...] = ()
    """That it remembers."""

    @property
    def is_sound(self) -> bool:
        return not self.problems

    def range(self) -> tuple[bytes, bytes] | None:
        """Smallest and largest key, as far as anything tells."""
        known = self.properties or self.facts
        return None if known is None else (known.smallest, known.largest)


class _Scan:
    """Goes through a table's versions in order and adds up."""

    def __init__(self, path: str, known: bytes | None) -> None:
        self.path = path
        self.filter = known
        self.problems: list[Damage] = []
        self.gaps: list[Gap] = []
        self.last: tuple[bytes, int] | None = None
        self.last_separator: bytes | None = None
        self.gap_begins: bytes | None = None
        self.in_gap = False
        self.blocks = 0
        self.smallest: bytes | None = None
        self.entries = self.deletions = self.expiring = self.key_bytes = self.value_bytes = 0
        self.min_sequence, self.max_sequence = (1 << 64) - 1, 0

    def block(self, block: DataBlock) -> None:
        if block.damage is not None:
            self.problems.append(block.damage)
            if block.handle.size:
                self._open_gap()
        for version in block.versions:
            self._version(block, *version)
        if block.damage is not None and block.separator is not None:
            self.gaps.append(Gap(self.gap_begins, block.separator))
            self.in_gap = False
        self.last_separator = block.separator
        self.blocks += block.handle.size > 0

    def end(self, *, is_whole: bool) -> None:
        """`is_whole`: there is nothing behind what was read."""
        if self.in_gap:
            self.gaps.append(Gap(self.gap_begins, None))
        elif not self.gaps and self.problems and not is_whole:
            self.gaps.append(Gap(self.last[0] if self.last else None, None))

    def _open_gap(self) -> None:
        if not self.in_gap:
            self.in_gap, self.gap_begins = True, self.last[0] if self.last else None

    def _version(
        self, block: DataBlock, key: bytes, sequence: int, kind: int, value: bytes, deadline: int
    ) -> None:
        if self.in_gap and block.damage is None:
            self.gaps.append(Gap(self.gap_begins, key))
            self.in_gap = False
        if self.last is not None and (key, -sequence) <= (self.last[0], -self.last[1]):
            self._wrong(block, f"key {shown(key)} is out of order")
        if block.separator is not None and key > block.separator:
            self._wrong(block, f"key {shown(key)} is above what the index says of its block")
        if self.last_separator is not None and key < self.last_separator:
            self._wrong(block, f"key {shown(key)} belongs to the block before, by the index")
        if self.filter is not None and not blocks.filter_knows(self.filter, key):
            self._wrong(block, f"the filter hides key {shown(key)}")
        self.smallest = key if self.smallest is None else self.smallest
        self.last = key, sequence
        self.entries += 1
        self.deletions += kind == DELETE
        self.expiring += kind == PUT_DEADLINE
        self.key_bytes += len(key) + 8
        self.value_bytes += len(value)
        self.min_sequence = min(self.min_sequence, sequence)
        self.max_sequence = max(self.max_sequence, sequence)

    def _wrong(self, block: DataBlock, what: str) -> None:
        self.problems.append(Damage(self.path, block.handle.offset, what))

    def facts(self, number: int, file_id: int, size: int, created_ms: int) -> TableMeta | None:
        if self.smallest is None or self.last is None:
            return None
        return TableMeta(
            number,
            0,
            file_id,
            size,
            self.entries,
            self.deletions,
            self.expiring,
            self.min_sequence,
            self.max_sequence,
            self.key_bytes,
            self.value_bytes,
            created_ms,
            self.smallest,
            self.last[0],
        )


def examine_table(vfs: Vfs, place: Place, number: int, path: str, meta: TableMeta | None) -> TableReport:
    """Read all of a table and compare it with itself, and with its manifest record if there is one."""
    problems: list[Damage] = []
    try:
        table = TableFile(vfs, path, number, place.engine_id, meta)
    except OSError as error:
        unreadable = Damage(path, 0, f"cannot be read: {error.strerror}")
        return TableReport(number, path, 0, None, None, [unreadable], [Gap(None, None)], 0, 0)
    with table:
        try:
            known = _filter(table, problems)
            properties = _properties(table, problems)
            range_deletions = _range_deletions(table, problems)
            _layout(table, problems)
            scan = _Scan(path, known)
            for block in table.data():
                scan.block(block)
            is_whole = table.search_ended or (properties is not None and properties.entries == scan.entries)
            scan.end(is_whole=is_whole)
        except OSError as error:
            unreadable = Damage(path, 0, f"cannot be read: {error.strerror}")
            return TableReport(number, path, table.size, None, None, [unreadable], [Gap(None, None)], 0, 0)
        problems += scan.problems
        created_ms = properties.created_ms if properties else 0
        facts = scan.facts(number, table.file_id, table.size, created_ms)
        gaps = scan.gaps or ([Gap(None, None)] if facts is None else [])
        if facts is None and not problems:
            problems.append(Damage(path, 0, "a table without entries"))
        if not scan.problems and facts is not None and properties is not None:
            offset = table.footer().properties_block.offset
            problems += _differences(path, offset, "the properties say", properties, facts)
        if properties is not None and meta is not None:
            said = meta._replace(level=0, cleaned_sequence=0)
            problems += _differences(path, 0, "the manifest says", said, properties)
        unique = list({str(problem): problem for problem in problems}.values())
        return TableReport(
            number,
            path,
            table.size,
            properties,
            facts,
            unique,
            gaps,
            scan.blocks,
            scan.entries,
            range_deletions,
        )


def _filter(table: TableFile, problems: list[Damage]) -> bytes | None:
    try:
        return table.filter()
    except Damage as damage:
        problems.append(damage)
        return None


def _range_deletions(table: TableFile, problems: list[Damage]) -> tuple[RangeDeletion, ...]:
    try:
        return table.range_deletions()
    except Damage as damage:
        problems.append(damage)
        return ()


def _properties(table: TableFile, problems: list[Damage]) -> TableMeta | None:
    """What the table says of itself, as a level 0 record."""
    try:
        found = table.properties()
    except Damage as damage:
        problems.append(damage)
        return None
    numbers = {name: value for name in NUMBERS if isinstance(value := found[name], int)}
    smallest, largest = found["smallest"], found["largest"]
    assert isinstance(smallest, bytes)
    assert isinstance(largest, bytes)
    return TableMeta(
        number=table.number,
        level=0,
        file_id=table.file_id,
        size=table.size,
        smallest=smallest,
        largest=largest,
        **numbers,
    )


def _layout(table: TableFile, problems: list[Damage]) -> None:
    """The sections follow one another without a gap, so that nothing hides between them."""
    try:
        footer, index = table.footer(), table.index()
    except Damage as damage:
        problems.append(damage)
        return
    ends = [block.handle for block in index[-1:]]
    ends += [footer.filter_block, footer.index_block, footer.properties_block]
    for left, right in pairwise(ends):
        if left.offset + left.size + 5 != right.offset:
            what = f"the block at {left.offset} does not end where the next one begins, {right.offset}"
            problems.append(Damage(table.path, left.offset, what))
    last = footer.properties_block
    if last.offset + last.size + 5 + 64 != table.size:
        problems.append(Damage(table.path, last.offset, f"the file of {table.size} bytes is too long"))


def _differences(path: str, offset: int, who: str, said: TableMeta, found: TableMeta) -> list[Damage]:
    wrong: list[Damage] = []
    for name, want, have in zip(TableMeta._fields, said, found, strict=True):
        if want != have:
            texts = [shown(one) if isinstance(one, bytes) else str(one) for one in (want, have)]
            wrong.append(Damage(path, offset, f"{name} is {texts[1]}, {who} {texts[0]}"))
    return wrong


def examine_levels(tables: dict[int, TableMeta]) -> list[str]:
    """What is wrong with tables as levels, by the manifest alone."""
    wrong: list[str] = []
    for table in tables.values():
        if table.level >= LEVELS:
            wrong.append(f"table {table.number} is in level {table.level}, there are {LEVELS}")
        if table.smallest > table.largest or table.min_sequence > table.max_sequence:
            wrong.append(f"table {table.number} ends before it begins")
    for level in range(1, LEVELS):
        members = sorted(
            (table for table in tables.values() if table.level == level), key=lambda table: table.smallest
        )
        wrong += [
            f"tables {left.number} and {right.number} overlap in level {level}"
            for left, right in pairwise(members)
            if left.largest >= right.smallest
        ]
    return wrong


def examine_ranges(state: State) -> list[str]:
    """What is wrong with an engine's range deletions: one that is not in the logs any more must be in the
    manifest, and the other way round."""
    return [
        f"range deletion {one.sequence}: {state.flushed_sequence} is the last sequence in tables"
        for one in state.range_deletions
        if one.sequence > state.flushed_sequence
    ]


class LogsReport(NamedTuple):
    """An engine's logs; `last_sequence` is what an engine would have after replaying them."""

    problems: list[Damage]
    notes: list[Damage]
    records: int
    last_sequence: int


def examine_logs(
    vfs: Vfs, place: Place, logs: dict[int, str], log_number: int, flushed_sequence: int
) -> LogsReport:
    """Read every log; one that is below `log_number` only yields notes."""
    problems: list[Damage] = []
    notes: list[Damage] = []
    records, last_sequence = 0, flushed_sequence
    before: LogFile | None = None
    needed = sorted(number for number in logs if number >= log_number)
    unproven = torn_logs(vfs, place.directory, place.engine_id, needed, log_number)
    if log_number and log_number not in logs:
        problems.append(Damage(f"{place.directory}/{log_number:06d}.wal", 0, "the log is missing"))
    for number, path in sorted(logs.items()):
        try:
            log = LogFile(vfs, path, number, place.engine_id)
        except OSError as error:
            problems.append(Damage(path, 0, f"cannot be read: {error.strerror}"))
            continue
        except Damage as damage:
            problems.append(damage)
            continue
        records += len(log.records)
        if number < log_number:
            notes.append(Damage(path, 0, "is not needed any more; opening removes it"))
            if log.damage is not None:
                notes.append(log.damage)
            continue
        if number in unproven.removed:
            notes.append(Damage(path, 0, "follows a torn end, never durable; opening removes it"))
            continue
        if log.damage is not None:
            torn = number in unproven.ends and log.is_torn()
            (notes if torn else problems).append(_torn(log.damage) if torn else log.damage)
        problems += _chain(place, log, before, log_number)
        last_sequence = _sequences(log, flushed_sequence, last_sequence, problems)
        if log.previous is not None:
            before = log
    return LogsReport(problems, notes, records, last_sequence)


def _torn(damage: Damage) -> Damage:
    return Damage(
        damage.path, damage.offset, f"{damage.what}: a torn tail, never durable; opening cuts it off"
    )


def _chain(place: Place, log: LogFile, before: LogFile | None, log_number: int) -> list[Damage]:
    if log.previous is None:
        return []
    number, length = log.previous
    if before is None and number >= max(log_number, 1):
        return [Damage(f"{place.directory}/{number:06d}.wal", 0, "the log is missing")]
    if before is not None and (number, length) != (before.number, before.sound_end):
        there = f"{before.number}, sound up to {before.sound_end}"
        what = f"follows log {number} of {length} bytes, but there is {there}"
        return [Damage(log.path, 24, what)]
    return []


def _sequences(log: LogFile, flushed: int, last: int, problems: list[Damage]) -> int:
    """The last sequence after the log; entries must count on."""
    for record in log.records:
        if not record.first_sequence or record.first_sequence <= flushed:
            continue
        if record.first_sequence <= last:
            what = f"sequence {record.first_sequence} comes after {last}"
            problems.append(Damage(log.path, record.offset, what))
        found, sound = operations(record)
        if sound:
            last = max(last, found[-1].sequence if found else record.first_sequence - 1)
    return last
