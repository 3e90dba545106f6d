"""The first disk that was heard of under a node id is the one that is known, also after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from kvclient.errors import Status
from kvclient.protocol import decode_error
from storenode.registry import KNOWN, Registry

ME, CLUSTER = 1, 0xC1
MINE, A, B = "00" * 16, "aa" * 16, "bb" * 16


def registry(path: Path) -> Registry:
    return Registry(path, ME, MINE, CLUSTER)


def asked(known: Registry, node: object) -> str:
    status, body = known.answer(CLUSTER, msgpack.packb({"node": node}))
    assert status == Status.OK
    fields = msgpack.unpackb(body)
    assert fields["node"] == ME
    return str(fields["incarnation"])


def test_the_first_word_stands_and_survives_a_restart(tmp_path: Path) -> None:
    known = registry(tmp_path)
    assert asked(known, 2) == ""
    known.hear(2, A)
    known.hear(2, B)
    assert asked(known, 2) == A
    assert asked(registry(tmp_path), 2) == A


def test_it_knows_itself_from_its_own_identity(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.hear(ME, A)
    known.settle([(ME, B)])
    known.hear(2, B)
    assert asked(known, ME) == MINE
    assert str(ME) not in json.loads((tmp_path / KNOWN).read_text())["known"]


def test_the_control_state_corrects_what_was_heard(tmp_path: Path) -> None:
    known = registry(tmp_path)
    known.hear(2, A)
    known.settle([(2, B), (3, ""), (4, A)])
    again = registry(tmp_path)
    assert [asked(again, node) for node in (2, 3, 4)] == [B, "", A]


@pytest.mark.parametrize("incarnation", ["", "AA" * 16, "aa" * 15, "aa" * 17])
def test_what_is_no_incarnation_is_not_heard(tmp_path: Path, incarnation: str) -> None:
    known = registry(tmp_path)
    known.hear(2, incarnation)
    assert asked(known, 2) == ""
    assert not (tmp_path / KNOWN).exists()


def test_what_cannot_be_written_is_known_all_the_same_and_written_later(tmp_path: Path) -> None:
    known = registry(tmp_path)
    (tmp_path / (KNOWN + ".new")).mkdir()
    known.hear(2, A)
    assert asked(known, 2) == A
    (tmp_path / (KNOWN + ".new")).rmdir()
    known.hear(3, B)
    assert [asked(registry(tmp_path), node) for node in (2, 3)] == [A, B]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format": 2, "known": {}}', b'{"format": 1}', b'{"format": 1, "known": {"x": "y"}}'],
)
def test_a_damaged_file_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KNOWN).write_bytes(content)
    assert asked(registry(tmp_path), 2) == ""


@pytest.mark.parametrize(
    ("cluster", "arguments", "status"),
    [
        (CLUSTER + 1, msgpack.packb({"node": 2}), Status.CONDITION_FAILED),
        (CLUSTER, b"\xc1", Status.INVALID_REQUEST),
        (CLUSTER, b"", Status.INVALID_REQUEST),
        *[
            (CLUSTER, msgpack.packb(arguments), Status.INVALID_REQUEST)
            for arguments in ({}, {"node": "2"}, {"node": 0}, {"node": 65535}, {"node": True}, [2], 2)
        ],
    ],
)
def test_bad_questions_get_a_reason(tmp_path: Path, cluster: int, arguments: bytes, status: Status) -> None:
    answered, body = registry(tmp_path).answer(cluster, arguments)
    assert answered == status
    assert decode_error(body)["message"]


def test_the_disk_is_not_waited_for_and_what_comes_meanwhile_follows(tmp_path: Path) -> None:
    works: list[tuple[Callable[[], object], Callable[[Any], None]]] = []
    made = registry(tmp_path)
    made.write_beside(lambda work, done: works.append((work, done)))
    made.hear(7, "7" * 32)
    made.hear(8, "8" * 32)
    ((work, done),) = works
    assert made.incarnation(8) == "8" * 32
    done(work())
    assert len(works) == 2
    works[1][1](OSError(28, "No space left on device"))
    assert len(works) == 2, "not before the next news"
    made.hear(9, "9" * 32)
    work, done = works[-1]
    done(work())
    assert len(works) == 3
    again = registry(tmp_path)
    assert [again.incarnation(node) for node in (7, 8, 9)] == ["7" * 32, "8" * 32, "9" * 32]
