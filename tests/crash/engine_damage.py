"""What an engine makes of damaged files. Run as a program with two directories: a specimen, and one to work
in that does not exist yet.

Reads a damage a line (JSON) and answers each with an outcome (JSON). A damage is done to a copy, which a
process of its own opens, reads, changes and opens again: so a death by signal or a process that does not end
is an outcome like others. Right is only what engine_specimen.py says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import storenode.engine as engine_package
from kvclient.errors import Corruption
from storenode.engine import Engine, EngineError
from tests.crash.engine_specimen import OPTIONS, Content, apply_entry, content_after, entries_of

SECONDS_MAX = 60
"""A process that is not done by then hangs; it takes a tenth of a second."""


class Damage(NamedTuple):
    """Done to `file`: `flip` a bit, `zero` a range, `cut` at an offset, `paste` a range of `other` (from
    `source`) over one, `replace` it by `other`, or `swap` the two."""

    file: str
    kind: str
    offset: int = 0
    size: int = 0
    bit: int = 0
    other: str = ""
    source: int = 0


class Outcome(NamedTuple):
    """`right`: everything read is as it was after `entries` entries. `found`: the damage was reported.
    `wrong`, `killed`, `hangs`, `raised`: what must not be."""

    verdict: str
    entries: int
    said: list[str]


def damaged(directory: Path, damage: Damage) -> bytes:
    content = bytearray((directory / damage.file).read_bytes())
    end = damage.offset + damage.size
    if damage.kind == "flip":
        content[damage.offset] ^= 1 << damage.bit
    elif damage.kind == "zero":
        content[damage.offset : end] = bytes(len(content[damage.offset : end]))
    elif damage.kind == "cut":
        del content[damage.offset :]
    else:
        other = (directory / damage.other).read_bytes()
        if damage.kind == "paste":
            piece = other[damage.source :][: len(content[damage.offset : end])]
            content[damage.offset : damage.offset + len(piece)] = piece
        else:
            content[:] = other
    return bytes(content)


class Examination:
    """One engine looked at in all ways; collects what it reports."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.said: list[str] = []
        self.entries = 0

    def run(self) -> None:
        """AssertionError: a wrong answer."""
        self._opened(self._read_and_change)
        self._opened(self._read_again)

    def _opened(self, use: Any) -> None:
        try:
            with engine_package.open(self._directory, options=OPTIONS) as engine:
                use(engine)
        except (Corruption, EngineError) as error:
            self.said.append(str(error))

    def _report(self, what: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return what(*arguments, **options)
        except (Corruption, EngineError) as error:
            self.said.append(str(error))
            return None

    def _compare(self, engine: Engine, expected: Content) -> None:
        pairs = sorted(expected.items())
        for reverse in (False, True):
            found = self._report(engine.scan, reverse=reverse)
            assert found is None or found == (pairs[::-1] if reverse else pairs), "a scan is wrong"
        for number in range(500):
            key = b"key-%04d" % number
            before = len(self.said)
            value = self._report(engine.get, key)
            assert len(self.said) > before or value == expected.get(key), f"{key!r} is {value!r}"
        found = self._report(engine.multi_get, list(expected))
        assert found is None or found == list(expected.values()), "multi_get is wrong"

    def _read_and_change(self, engine: Engine) -> None:
        self.entries = entries_of(engine)
        self._compare(engine, content_after(self.entries))
        self.said += engine.verify()
        apply_entry(engine, self.entries + 1)
        damage = engine.stats()["damage"]
        if damage:  # then a write op answered that, and changed nothing
            self.said.append(str(damage))
            return
        for change in (engine.flush, engine.compact):
            self._report(change)
            self._compare(engine, content_after(self.entries + 1))

    def _read_again(self, engine: Engine) -> None:
        if self.said:
            return
        assert entries_of(engine) == self.entries + 1, "what was written afterwards is not there"
        self._compare(engine, content_after(self.entries + 1))
        self.said += engine.verify()


def examine(directory: str) -> Outcome:
    examination = Examination(directory)
    try:
        examination.run()
    except AssertionError as error:
        return Outcome("wrong", examination.entries, [str(error), *examination.said])
    except BaseException:  # noqa: BLE001 - whatever it is, it is an outcome
        return Outcome("raised", examination.entries, [traceback.format_exc(), *examination.said])
    said = sorted(set(examination.said))
    return Outcome("found" if said else "right", examination.entries, said)


def outcome_of(directory: str) -> Outcome:
    """Examine in a process of its own."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        signal.alarm(SECONDS_MAX)
        with os.fdopen(there, "w") as answer:
            json.dump(examine(directory), answer)
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Outcome("hangs" if name == "SIGALRM" else "killed", 0, [name])
    return Outcome(*json.loads(text))


def main() -> None:
    specimen, work = Path(sys.argv[1]), Path(sys.argv[2])
    for line in sys.stdin:
        damage = Damage(*json.loads(line))
        shutil.copytree(specimen, work)
        (work / damage.file).write_bytes(damaged(specimen, damage))
        if damage.kind == "swap":
            shutil.copyfile(specimen / damage.file, work / damage.other)
        print(json.dumps(outcome_of(str(work))), flush=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
