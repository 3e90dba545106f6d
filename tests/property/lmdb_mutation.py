"""LMDB files changed in their structure, and what a manifest makes of them. Run as a program with a
directory, a seed, seconds, and a number of cases: prints how many ended in which way.

Each case is a file that was sound, with some of its page numbers, flags, bounds, offsets and sizes replaced.
A process of its own opens it, loads, commits, and opens it again: it may refuse the file; it must not die,
nor find what never was committed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

from kvclient.errors import Corruption
from storenode.engine.manifest import Manifest, State
from storenode.engine.version import TableMeta

SECONDS_MAX = 20
"""A process that is not done by then hangs; it takes some milliseconds."""

PAGE_BYTES = 4096
OTHER_ENGINE = 7
REFUSED, RIGHT, RAISED = 3, 4, 5

Found = tuple[State | None, frozenset[TableMeta]]


class Field(NamedTuple):
    """A number in a file."""

    at: int
    size: int


class Specimen(NamedTuple):
    """A file, and all that was ever committed to it."""

    content: bytes
    states: list[Found]


def table(number: int, dice: random.Random) -> TableMeta:
    """Some have keys that need pages of their own."""
    largest = b"key-%06d" % number + b"x" * dice.choice((0, 9, 30, 30, 2500, 9000))
    return TableMeta(number, 6, number, 4096, 1, 0, 0, number, number, 1, 1, 1, b"key-%06d" % number, largest)


def load(manifest: Manifest, engine_id: int) -> Found:
    state, tables = manifest.load(engine_id)
    return state, frozenset(tables)


def change(manifest: Manifest, found: Found, dice: random.Random) -> Found:
    """Commit one change of engine 0: some tables go, others come."""
    tables = found[1]
    first = max((one.number for one in tables), default=0) + 1
    gone = frozenset(dice.sample(sorted(tables), min(len(tables), dice.choice((0, 1, 3, 12)))))
    come = frozenset(table(number, dice) for number in range(first, first + dice.choice((1, 2, 12))))
    state = State(first, first, first, first)
    manifest.commit(0, state, come, {one.number for one in gone})
    return state, tables - gone | come


def specimen(directory: Path, tables: int, commits: int) -> Specimen:
    dice = random.Random(f"{tables} {commits}")
    directory.mkdir()
    manifest = Manifest(str(directory))
    manifest.commit(OTHER_ENGINE, State(1, 1, 1, 1), (), ())
    states = [load(manifest, 0)]
    added = frozenset(table(number, dice) for number in range(1, tables + 1))
    manifest.commit(0, State(1, 1, 1, 1), added, ())
    states.append((State(1, 1, 1, 1), added))
    for _ in range(commits):
        states.append(change(manifest, states[-1], dice))
    used = manifest.stats()["used_bytes"]
    manifest.close()
    return Specimen((directory / "data.mdb").read_bytes()[:used], states)


def fields(content: bytes) -> list[list[Field]]:
    """The numbers that LMDB follows, page by page."""
    found = []
    for page in range(len(content) // PAGE_BYTES):
        at = page * PAGE_BYTES
        of_page = [Field(at, 8), *(Field(at + offset, 2) for offset in (8, 10, 12, 14)), Field(at + 12, 4)]
        _, _, flags, lower, _ = struct.unpack_from("<QHHHH", content, at)
        if flags == 8:
            of_page += [Field(at + 16 + offset, 8) for offset in range(0, 136, 8)]
            of_page += [Field(at + 16 + offset, 2) for offset in range(0, 136, 2)]
        elif flags in (1, 2):
            for slot in range(min((lower - 16) // 2, 200)):
                (offset,) = struct.unpack_from("<H", content, at + 16 + 2 * slot)
                of_page.append(Field(at + 16 + 2 * slot, 2))
                of_page += [Field(at + offset + 2 * part, 2) for part in range(4)]
                (key_size,) = struct.unpack_from("<H", content, at + offset + 6)
                of_page.append(
                    Field(at + offset + 8 + key_size, 8)
                )  # the list of free pages, or a large value's page
                of_page.append(Field(at + offset + 16 + key_size, 8))
        found.append([field for field in of_page if field.at + field.size <= len(content)])
    return found


def other_value(dice: random.Random, content: bytearray, field: Field, all_fields: list[list[Field]]) -> int:
    here = int.from_bytes(content[field.at : field.at + field.size], "little")
    pages = len(content) // PAGE_BYTES
    kind = dice.randrange(5)
    if kind == 0:
        return here + dice.choice((-8, -2, -1, 1, 2, 8))
    if kind == 1:
        return here ^ 1 << dice.randrange(8 * field.size)
    if kind == 2:
        return dice.choice(
            (0, 1, 2, 4, 8, 14, 16, 18, 4080, 4088, 4094, 4096, 4098, 0x7FFF, 0xFFFF, (1 << 64) - 1)
        )
    if kind == 3:
        return dice.choice((dice.randrange(pages + 2), pages - 1, pages))
    other = dice.choice([one for one in dice.choice(all_fields) if one.size == field.size])
    return int.from_bytes(content[other.at : other.at + field.size], "little")


def mutated(dice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    pages = len(content) // PAGE_BYTES
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        all_fields = fields(content)
        page, other = dice.randrange(pages), dice.randrange(pages)
        here, there = (slice(one * PAGE_BYTES, (one + 1) * PAGE_BYTES) for one in (page, other))
        kind = dice.random()
        if kind < 0.85:
            field = dice.choice(all_fields[dice.choice((page, page, page, 0, 1))])
            value = other_value(dice, changed, field, all_fields) & (1 << 8 * field.size) - 1
            changed[field.at : field.at + field.size] = value.to_bytes(field.size, "little")
        elif kind < 0.89:
            changed[here] = content[there]
        elif kind < 0.93:  # the right number on the wrong page
            changed[here] = content[here][:8] + content[there][8:]
        elif kind < 0.96:
            changed[here] = bytes(PAGE_BYTES)
        else:
            del changed[dice.randrange(len(changed) + 1) :]
            changed = changed.ljust(2 * PAGE_BYTES, b"\0")
            changed = changed.ljust(len(content), b"\0") if dice.random() < 0.5 else changed
            return bytes(changed)
    return bytes(changed)


def examine(directory: str, states: list[Found], dice: random.Random) -> int:
    """Corruption when it is loaded, too, is a refusal."""
    try:
        manifest = Manifest(directory)
    except Corruption:
        return REFUSED
    try:
        found = load(manifest, 0)
        manifest.load(OTHER_ENGINE)
    except Corruption:
        return REFUSED
    assert found in states, "what is loaded was never committed"
    for _ in range(8):
        found = change(manifest, found, dice)
    manifest.close()
    again = Manifest(directory)
    assert load(again, 0) == found, "what was committed is not there"
    again.close()
    return RIGHT


def outcome_of(run: Callable[[], int]) -> str:
    """Run in a process of its own."""
    child = os.fork()
    if child == 0:
        code = RAISED
        try:
            signal.alarm(SECONDS_MAX)
            code = run()
        except BaseException:  # noqa: BLE001 - whatever it is, it is an outcome
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {REFUSED: "refused", RIGHT: "right"}.get(os.waitstatus_to_exitcode(status), "raised")


def main() -> None:
    directory, seed = Path(sys.argv[1]), sys.argv[2]
    deadline, most = time.monotonic() + float(sys.argv[3]), int(sys.argv[4])
    shapes = ((1, 0), (8, 4), (60, 30), (400, 12))
    specimens = [specimen(directory / f"sound-{tables}", tables, commits) for tables, commits in shapes]
    outcomes: Counter[str] = Counter()
    for number in count():
        if number == most or time.monotonic() > deadline:
            break
        dice = random.Random(f"{seed}/{number}")
        sound = dice.choice(specimens)
        work = directory / "work"
        work.mkdir()
        (work / "data.mdb").write_bytes(mutated(dice, sound.content))
        outcome = outcome_of(lambda: examine(str(work), sound.states, dice))  # noqa: B023 - runs at once
        outcomes[outcome] += 1
        if outcome not in ("refused", "right"):
            print(f"case {seed}/{number}: {outcome}")
            sys.exit(1)
        shutil.rmtree(work)
    print(dict(sorted(outcomes.items())))


if __name__ == "__main__":
    main()
