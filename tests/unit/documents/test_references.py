"""The reference pages are what docs/make.py writes now, and leave nothing out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import kvclient
from docs import make
from kvclient.cli.main import cli
from tests import documents
from tests.documents import ROOT


@pytest.mark.parametrize("path", make.PAGES, ids=lambda path: path.stem)
def test_the_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == make.PAGES[path](), "run: python docs/make.py"


def commands(group: click.Group, path: str) -> Iterator[str]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield f"{path} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def test_every_command_is_there() -> None:
    headings = documents.headings(ROOT / "docs" / "cli-reference.md")
    assert [heading for heading in headings if heading.startswith("kvcli ")] == list(commands(cli, "kvcli"))


def test_every_public_name_is_there() -> None:
    page = ROOT / "docs" / "sdk-reference.md"
    told = {heading.partition(".")[0] for heading in documents.headings(page)}
    assert [
        name
        for name in kvclient.__all__
        if name not in told | {"errors"} and f"`kvclient.{name}`" not in page.read_text()
    ] == []
