"""The data-driven test files of etcd-io/raft, which lie beside the repository, not in it.

A block is a command line (`name key=value key=(a,b) ...`), input lines, `----`, and the expected output up to
an empty line. `#` begins a comment. Only what the files use is understood; anything else fails loudly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_ARGUMENT = re.compile(r"(\w+)=(\([^)]*\)|\S+)")


class Block(NamedTuple):
    """One command of a file, and what it has to answer."""

    line: int
    command: str
    arguments: dict[str, list[str]]
    input: list[str]
    expected: list[str]


def oracle_files(folder: str) -> list[Path]:
    """All files of shared/oracles/`folder`, looked for upwards from here; none if there is no such folder."""
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "oracles" / folder
        if found.is_dir():
            files = sorted(found.glob("*.txt"))
            assert files, f"{found}: there is nothing in it"
            return files
    return []


def parametrized(folder: str) -> pytest.MarkDecorator:
    """One test for each file of the folder; a single skipped one if the folder is not there."""
    missing = pytest.mark.skip(reason=f"no shared/oracles/{folder} beside the repository")
    parameters = [pytest.param(path, id=path.stem) for path in oracle_files(folder)]
    return pytest.mark.parametrize("path", parameters or [pytest.param(None, marks=missing, id="absent")])


def blocks(text: str) -> Iterator[Block]:
    lines = [line.rstrip() for line in text.splitlines()]
    at = 0
    while at < len(lines):
        if not lines[at] or lines[at].startswith("#"):
            at += 1
            continue
        divider = lines.index("----", at)
        end = lines.index("", divider) if "" in lines[divider:] else len(lines)
        yield _block(at + 1, lines[at:divider], lines[divider + 1 : end])
        at = end


def _block(line: int, head: list[str], expected: list[str]) -> Block:
    command, _, rest = head[0].partition(" ")
    leftover = _ARGUMENT.sub("", rest).strip()
    assert not leftover, f"line {line}: {leftover!r} is not understood"
    arguments = {
        key: [part.strip() for part in value.strip("()").split(",")] for key, value in _ARGUMENT.findall(rest)
    }
    return Block(line, command, arguments, head[1:], expected)
