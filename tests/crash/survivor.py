"""What a crash may leave of a file that was written since its last sync (rules: crashvfs.py)."""

from __future__ import annotations

import random


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
