"""What a crash may leave of a file that was written since its last sync (rules: crashvfs.py)."""

from __future__ import annotations

import random

PAGE_BYTES = 4096
HEADER_PAGES = 2  # come first in LMDB's file; one of them is written last, in one sector


class Commit:
    """A commit of LMDB: under way until `after` is known."""

    def __init__(self, before: bytes, after: bytes | None = None) -> None:
        self.before = before
        self.after = after


def survivor(versions: list[bytes], kept: float, unit: int, dice: random.Random) -> bytes:
    """One content that a crash may leave of a file that had these since its last sync."""
    if len(versions) == 1:
        return versions[0]

    def one() -> bytes:
        return versions[-1] if dice.random() < kept else dice.choice(versions) if kept else versions[0]

    size = len(one())
    result = bytearray(size)
    for at in range(0, size, unit):
        piece = one()[at : min(at + unit, size)]
        result[at : at + len(piece)] = piece
    return bytes(result)


def survivor_of_commit(commit: Commit, dice: random.Random) -> bytes:
    """LMDB's file after a crash in the middle of a commit."""
    assert commit.after is not None, "the commit is still under way"
    outcome = dice.randrange(3)
    if outcome == 0:
        return commit.before
    if outcome == 1:
        return commit.after
    kept = dice.random()
    if not commit.before:  # the headers of a new file are written as they come, but for the one that commits
        return survivor([b"", commit.after[:PAGE_BYTES] + bytes(PAGE_BYTES)], kept, PAGE_BYTES, dice)
    result = bytearray(commit.before)
    for at in range(HEADER_PAGES * PAGE_BYTES, len(commit.after), PAGE_BYTES):
        if dice.random() < kept:
            result.extend(bytes(max(0, at + PAGE_BYTES - len(result))))
            result[at : at + PAGE_BYTES] = commit.after[at : at + PAGE_BYTES]
    return bytes(result)
