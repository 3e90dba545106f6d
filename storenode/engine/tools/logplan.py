"""Which logs an engine can replay after a repair. Decides, changes nothing.

What is replayed is always a prefix of what was logged: an entry behind a hole would meet another state than
the one it was made for. A hole that lies wholly in what tables hold already is none.
"""

from __future__ import annotations

from typing import NamedTuple

from storenode.engine.tools.logfile import LogFile, torn_logs
from storenode.engine.tools.places import Place
from storenode.engine.tools.tablefile import Damage
from storenode.engine.vfs import Vfs

NEVER = 1 << 56
"""Above every sequence."""


class Cut(NamedTuple):
    """A log of which only the beginning is replayed."""

    path: str
    length: int


class LogPlan(NamedTuple):
    """`log_number`: the first log to replay, 0 without one. `replay_from`: the first sequence that replay
    brings, NEVER if none. `unused`: (path, why) of logs to take out; `lost`: what that costs, in words."""

    log_number: int
    cut: Cut | None
    unused: list[tuple[str, str]]
    lost: list[str]
    replay_from: int
    last_sequence: int
    now_ms: int


class _Chain:
    """The logs that join so far, without their contents."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.paths: list[str] = []
        self.end: tuple[int, int] | None = None
        """Number and length that the next log must follow; None: it cannot go on."""
        self.cut: Cut | None = None
        self.first: int | None = None
        self.last = 0

    def add(self, log: LogFile, flushed: int) -> None:
        self.numbers.append(log.number)
        self.paths.append(log.path)
        self.end = (log.number, log.sound_end) if log.damage is None else None
        self.last = max(self.last, log.last_sequence())
        for record in log.records:
            if self.first is None and record.first_sequence > flushed:
                self.first = record.first_sequence


def plan_logs(
    vfs: Vfs, place: Place, logs: dict[int, str], log_number: int, flushed: int, *, any_start: bool
) -> LogPlan:
    """`log_number`: where the manifest's state begins. `any_start`: nobody knows, the oldest log there is
    may begin."""
    chain = _Chain()
    unused: list[tuple[str, str]] = []
    lost: list[str] = []
    now_ms = 0
    needed = sorted(number for number in logs if number >= log_number)
    oldest = needed[0] if any_start and needed else log_number
    unproven = torn_logs(vfs, place.directory, place.engine_id, needed, oldest)
    for number in needed:
        if number in unproven.removed:
            continue  # opening removes it
        path = logs[number]
        log = _load(vfs, place, number, path)
        if isinstance(log, str):
            unused.append((path, log))
            lost.append(f"all entries of {path}")
            chain.end = None
            continue
        now_ms = max([now_ms, *(one.now_ms for one in log.records if 0 < one.first_sequence <= flushed)])
        torn = number in unproven.ends and log.is_torn()
        if log.previous is None and torn:
            continue  # opening removes it
        begins = not chain.numbers and not unused and (any_start or _is_first(log, log_number))
        first = log.first_sequence()
        if log.previous is not None and (begins or log.previous == chain.end):
            chain.add(log, flushed)
        elif log.previous is not None and first is not None and first <= flushed + 1:
            unused += [(earlier, "its entries are all in tables") for earlier in chain.paths]
            lost.clear()
            chain = _Chain()
            chain.add(log, flushed)
        else:
            why = (
                str(log.damage.what)
                if log.previous is None and log.damage
                else "the log before it ends early"
            )
            unused.append((path, why))
            lost += _lost_entries(log, log.records_end > 0)
            chain.end = None
            continue
        if log.damage is not None and not torn:
            chain.cut = Cut(path, log.sound_end)
            lost += _lost_behind(log)
    if not chain.numbers and log_number and not needed:
        lost.append(f"all entries of {place.directory}/{log_number:06d}.wal, which is missing")
    return LogPlan(
        chain.numbers[0] if chain.numbers else 0,
        chain.cut,
        unused,
        lost,
        NEVER if chain.first is None else chain.first,
        max(chain.last, flushed),
        now_ms,
    )


def _load(vfs: Vfs, place: Place, number: int, path: str) -> LogFile | str:
    try:
        return LogFile(vfs, path, number, place.engine_id)
    except Damage as damage:
        return damage.what
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _is_first(log: LogFile, log_number: int) -> bool:
    assert log.previous is not None or log.damage is not None
    if log_number:
        return log.number == log_number
    return log.previous is not None and log.previous[0] == 0


def _lost_entries(log: LogFile, has_records: bool) -> list[str]:
    first, last = log.first_sequence(), log.last_sequence()
    if first is None or not has_records:
        return [f"all entries of {log.path}"]
    return [f"entries of {log.path} with sequences {first} to {last}, and what follows them"]


def _lost_behind(log: LogFile) -> list[str]:
    behind = [record.first_sequence for record in log.records_behind() if record.first_sequence]
    last = log.last_sequence()
    begin = f"after sequence {last}" if last else "from the first on"
    there = f" ({len(behind)} sound ones from sequence {behind[0]} on)" if behind else ""
    return [f"entries of {log.path} {begin}{there}"]
