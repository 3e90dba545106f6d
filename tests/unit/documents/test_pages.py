"""The pages are consistent with what they tell of: commands, options, files, configurations, and each other.

Blocks that run are run by tests/integration/test_readme.py and test_documents.py; here is what needs no
cluster.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgpack
import pytest

from kvclient import errors
from kvclient.cli import inventory
from monitor.config import MonitorConfig
from router.config import RouterConfig
from shared.config import load
from storenode.config import StoreConfig
from tests import commandlines, documents, metricspage
from tests.documents import PAGES, README, ROOT, Block, blocks

CONFIGS: dict[str, type[Any]] = {"store": StoreConfig, "router": RouterConfig, "monitor": MonitorConfig}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


def of_kind(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(kind), ids=str)


# -- blocks


@page
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = page.read_text().count("```")
    assert fences == 2 * len(blocks(page=page)), "a fence that is not closed, or does not begin its line"
    assert [str(block) for block in blocks(page=page) if block.kind not in documents.KINDS] == []


@of_kind("sh elsewhere")
def test_command_lines_that_no_test_runs_can_be_parsed(block: Block) -> None:
    lines = list(commandlines.lines_of(block.text))
    for line in lines:
        try:
            commandlines.parse(line)
        except click.UsageError as error:
            pytest.fail(f"{block}: kvcli {shlex.join(line)}: {error.format_message()}")
    assert len(lines) == len(re.findall(r"^[^#\n]*?(?:\bkvcli|--rm cli) ", block.text, re.MULTILINE))


@of_kind("synopsis")
def test_synopses_name_what_there_is(block: Block) -> None:
    assert "kvcli " in block.text
    assert commandlines.unknown(block.text) == []


@of_kind("inventory")
def test_inventories_are_read(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "inventory"
    path.write_text(block.text)
    assert inventory.read(path)


@of_kind("yaml")
def test_configurations_are_accepted(block: Block, tmp_path: Path) -> None:
    process = re.match(r"# /etc/ringkv/(\w+)\.yaml", block.text)
    assert process is not None, "its first line says whose it is"
    path = tmp_path / "config.yaml"
    path.write_text(block.text)
    load(CONFIGS[process[1]], path, {})


@of_kind("hex")
def test_bytes_are_values_of_messagepack(block: Block) -> None:
    """A line that is indented goes on with the value before; `<N bytes above>` are those of the first."""
    values: list[bytes] = []
    lengths: dict[int, int] = {}
    for line in block.text.splitlines():
        digits = re.split(r"\s{3,}", line.strip())[0]
        content = bytes.fromhex(re.sub(r"<.*>", values[0].hex() if values else "", digits))
        if line.startswith(" "):
            values[-1] += content
        else:
            values.append(content)
        said = re.search(r", (\d+) bytes", line)
        if said is not None:
            lengths[len(values) - 1] = int(said[1])
    assert {number: len(values[number]) for number in lengths} == lengths
    for value in values:
        msgpack.unpackb(value)


# -- the text


@page
def test_the_text_names_commands_and_options_that_there_are(page: Path) -> None:
    found = [problem for code in documents.codes(page) for problem in commandlines.unknown(code)]
    assert found == []


def strings(path: Path) -> Iterator[str]:
    """The texts in a module, with X for what is put into them; no docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else " X " for part in node.values
            )
            node.values.clear()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_what_alerts_and_messages_advise_can_be_typed() -> None:
    said = [rule["annotations"]["action"] for rule in metricspage.alerts()]
    for room in ("kvclient", "shared", "router", "storenode", "monitor"):
        for path in (ROOT / room).rglob("*.py"):
            said += strings(path)
    advice = [text for text in said if re.search(r"(?<!this )(?<!another )(?<!the )\bkvcli ", text)]
    assert len(advice) > 100
    assert [(text, problems) for text in advice if (problems := commandlines.unknown(text))] == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("kvcli node remove NAME --force", []),
        ("kvcli dev status | logs [NAME...] [-f] | stop NAME...|all", []),
        ("kvcli rebalance begin", ["rebalance has no begin"]),
        ("kvcli dev status | log NAME", ["dev has no log"]),
        ("kvcli check health|disks", ["check has no disks"]),
        ("kvcli -u URL --keys keys wait --healty", ["wait has no --healty"]),
    ],
)
def test_a_command_that_is_not_there_is_noticed(text: str, problems: list[str]) -> None:
    assert commandlines.unknown(text) == problems


@pytest.mark.parametrize(
    "line", ["node drian x", "node drain", "rebalance set --bandwith 1MiB", "wait --timeout x"]
)
def test_a_line_that_kvcli_refuses_is_noticed(line: str) -> None:
    (arguments,) = commandlines.lines_of(f"cd /tmp && kvcli {line} > /dev/null  # kvcli get")
    assert arguments == line.split()
    with pytest.raises(click.UsageError):
        commandlines.parse(arguments)


@page
def test_errors_that_the_text_names_are_there(page: Path) -> None:
    named = {
        name for code in documents.codes(page) for name in re.findall(r"\bkvclient\.errors\.(\w+)", code)
    }
    assert [name for name in named if not hasattr(errors, name)] == []


_ROOMS = "kvclient|shared|router|storenode|monitor|compose|scripts|tests|docs"
_PATH = re.compile(rf"(?<![\w./-])(?:{_ROOMS})/[\w./{{}},-]*\w}}?")


@page
def test_files_that_are_named_exist(page: Path) -> None:
    missing = []
    for name in _PATH.findall(page.read_text()):
        before, _, rest = name.partition("{")
        choices, _, after = rest.partition("}")
        for choice in choices.split(","):
            path = ROOT / f"{before}{choice}{after}"
            if not path.exists() and not path.with_suffix(".py").exists():
                missing.append(f"{path.relative_to(ROOT)}")
    assert missing == []


# -- one page and the next

_SECTION = re.compile(r"\b(\w+)\.md\)? sections? (\d+)")


@page
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in documents.links(page):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in documents.anchors(target)):
            lost.append(link)
    assert lost == []


@page
def test_sections_that_are_named_are_there(page: Path) -> None:
    lost = []
    for name, number in _SECTION.findall(page.read_text()):
        target = ROOT / "docs" / f"{name}.md"
        if not any(heading.startswith(f"{number}. ") for heading in documents.headings(target)):
            lost.append(f"{name}.md section {number}")
    assert lost == []


def test_the_readme_lists_every_page() -> None:
    listed = {link.partition("#")[0] for link in documents.links(README)}
    assert {str(path.relative_to(ROOT)) for path in PAGES} - {README.name} <= listed


def test_the_tree_of_the_architecture_names_every_module() -> None:
    """And no other."""
    trees = [block.text for block in blocks("text") if block.text.startswith("kvclient/")]
    (lines,) = (tree.splitlines() for tree in trees)
    room = ""
    named: dict[str, set[str]] = {}
    for line in lines:
        room = line.partition("/")[0] if line[0] != " " else room
        named.setdefault(room, set()).update(re.findall(r"\b\w+\.pyx?\b", line))
    assert named.keys() == set(_ROOMS.split("|")[:6])
    for room, names in named.items():
        modules = {path.name for path in (ROOT / room).glob("*.py*")} - {"__init__.py", "py.typed"}
        everywhere = {path.name for path in (ROOT / room).rglob("*.py*")}
        assert {name for name in modules if name.endswith((".py", ".pyx"))} <= names <= everywhere, room
