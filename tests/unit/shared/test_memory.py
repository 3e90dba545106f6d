"""Giving free memory back: real heap, real pages."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest

from shared.memory import GROWN_BYTES, LOOK_SECONDS, Trimmer, resident_bytes

_PIECE = 4000  # below where the C library gives each piece pages of its own
_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]


class Loop:
    """The one timer that is set, run by hand."""

    def __init__(self) -> None:
        self._callback: Callable[[], object] | None = None

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        assert seconds == LOOK_SECONDS
        assert self._callback is None
        self._callback = callback

    def look(self) -> None:
        callback, self._callback = self._callback, None
        assert callback is not None, "the looks end"
        callback()


class Heap:
    """Small pieces of touched memory; freed, they stay resident: the last piece is above them."""

    def __init__(self) -> None:
        self._pieces: list[int] = []

    def grow(self, size: int) -> None:
        for _ in range(size // _PIECE):
            piece = _libc.malloc(_PIECE)
            ctypes.memset(piece, 1, _PIECE)
            self._pieces.append(piece)

    def free(self, *, but: int = 0) -> None:
        kept = len(self._pieces) - but
        for piece in self._pieces[:kept]:
            _libc.free(piece)
        del self._pieces[:kept]


@pytest.fixture
def heap() -> Iterator[Heap]:
    made = Heap()
    _libc.malloc_trim(0)  # or it would grow into what earlier tests left
    yield made
    made.free()


def test_what_a_burst_took_and_freed_is_given_back(heap: Heap) -> None:
    loop = Loop()
    before = resident_bytes()
    Trimmer(loop.call_later)
    heap.grow(8 * GROWN_BYTES)
    loop.look()  # still growing
    heap.free(but=1)
    assert resident_bytes() - before > 7 * GROWN_BYTES, "the C library gave it back by itself"
    loop.look()
    assert resident_bytes() - before < GROWN_BYTES


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The trims of a Trimmer made afterwards; none is done."""

    class Library:
        def __init__(self, _name: None) -> None:
            self.malloc_trim = done.append

    done: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", Library)
    return done


def test_while_memory_grows_nothing_is_given_back(heap: Heap, trims: list[int]) -> None:
    loop = Loop()
    Trimmer(loop.call_later)
    for _ in range(3):
        heap.grow(2 * GROWN_BYTES)
        loop.look()
    assert trims == []
    loop.look()
    assert trims == [0]


def test_memory_in_use_is_not_trimmed_again_at_every_look(heap: Heap, trims: list[int]) -> None:
    loop = Loop()
    Trimmer(loop.call_later)
    heap.grow(4 * GROWN_BYTES)
    for _ in range(5):
        loop.look()
    assert trims == [0]
