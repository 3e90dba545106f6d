"""The pages of the documentation as tests read them: blocks of code, headings with their anchors, links, and
pieces of code in the text. Knows neither kvcli nor a cluster.

A block says in its first line what it is, and that decides who plays or reads it (`KINDS`).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

KINDS = {
    "python": "runs: tests/integration/test_readme.py and test_documents.py",
    "sh": "runs, there as well",
    "txn": "a transaction for kvcli txn, which executes it there",
    "sh elsewhere": "needs other machines, Docker or root: kvcli's command lines in it are parsed",
    "synopsis": "which commands and options there are: they are compared with kvcli",
    "inventory": "kvcli deploy reads it",
    "yaml": "a configuration that its process accepts",
    "yaml compose": "another Compose file beside the shipped one: tests/compose starts what is in it",
    "python signature": "how something is called, for readers",
    "hex": "bytes, with what they are beside them: they are decoded",
    "text": "a grammar, or a list of files: for readers only",
}

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A block of a page; `line` is that of its fence."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdin: str = "",
    code: int = 0,
    directory: Path = ROOT,
    seconds: float = 400,
) -> str:
    """What a command of a page says on its standard output; it must end with `code`."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == code, (
        f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def blocks(kind: str | None = None, page: Path | None = None) -> list[Block]:
    """All blocks, or those of a kind or a page, in the order of the pages."""
    found = []
    for path in PAGES if page is None else [page]:
        text = path.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(path.name, line, match[1], match[2]))
    return [block for block in found if kind in (None, block.kind)]


def prose(path: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", path.read_text())


def codes(path: Path) -> Iterator[str]:
    """What stands in backticks in the text of a page."""
    yield from _CODE.findall(prose(path))


def links(path: Path) -> list[str]:
    return _LINK.findall(prose(path))


def headings(path: Path) -> list[str]:
    return _HEADING.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """What can stand behind `#` in a link to the page, as GitHub makes it of headings."""
    made: set[str] = set()
    for heading in headings(path):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (unique := f"{anchor}-{number}" if number else anchor) in made:
            number += 1
        made.add(unique)
    return made
