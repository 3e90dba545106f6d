"""Networks that are cut: links end, are not made, and come back, whoever owns the socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from shared import sockets
from shared.cuts import CutFile, Cuts

ANY_PORT = "tcp://127.0.0.1:0"
PATIENCE_MS = 10_000


@pytest.fixture
def cuts() -> Cuts:
    return Cuts()


@pytest.fixture
def context(cuts: Cuts) -> Iterator[sockets.Context]:
    made = cuts.context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def store(context: sockets.Context) -> Iterator[str]:
    """The endpoint of somebody who listens."""
    listening = sockets.store_router(context, ANY_PORT, batch_bytes_max=1000)
    yield sockets.bound_endpoint(listening)
    listening.close(0)


@pytest.fixture
def dealer(context: sockets.Context, store: str) -> Iterator[sockets.Socket]:
    """A socket that wants a link to it."""
    made = sockets.bulk_dealer(context, store)
    yield made
    made.close(0)


def linked(dealer: sockets.Socket) -> bool:
    return sockets.send_or_drop(dealer, (b"hello",)) is None


def ended(dealer: Any) -> None:
    """Its link is gone: the thread that ends it is libzmq's own."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while dealer.poll(0, zmq.POLLOUT):
        assert time.monotonic() < deadline, "it keeps its link"
        time.sleep(0.01)


def test_a_cut_ends_a_link_and_healing_makes_it_anew(cuts: Cuts, store: str, dealer: Any) -> None:
    assert dealer.poll(PATIENCE_MS, zmq.POLLOUT), "linked"
    cuts.set([store])
    ended(dealer)
    assert not linked(dealer)
    cuts.set([store, "tcp://127.0.0.1:1"])
    assert not linked(dealer)
    cuts.set([])
    assert dealer.poll(PATIENCE_MS, zmq.POLLOUT), "linked again"
    cuts.set(["tcp://127.0.0.1:1"])
    assert linked(dealer), "others do not matter"


def test_what_is_connected_during_a_cut_is_linked_after_it(cuts: Cuts, context: Any, store: str) -> None:
    cuts.set([store])
    with sockets.bulk_dealer(context, store) as late:
        assert not late.poll(200, zmq.POLLOUT), "it has a link"
        cuts.set([])
        assert late.poll(PATIENCE_MS, zmq.POLLOUT)


def test_who_gave_a_link_up_during_a_cut_gets_none_after_it(cuts: Cuts, store: str, dealer: Any) -> None:
    cuts.set([store])
    sockets.disconnect(dealer, store)
    cuts.set([])
    assert not dealer.poll(200, zmq.POLLOUT), "it has a link"
    sockets.reconnect(dealer, store)
    assert dealer.poll(PATIENCE_MS, zmq.POLLOUT)


def test_closed_sockets_are_nobodys_concern(cuts: Cuts, context: Any, store: str) -> None:
    sockets.bulk_dealer(context, store).close(0)
    cuts.set([store])
    cuts.set([])


def test_an_endpoint_that_is_none_is_refused_as_ever(context: Any) -> None:
    with pytest.raises(sockets.ConfigError):
        sockets.bulk_dealer(context, "tcp://nowhere")


class Noted(Cuts):
    """Cuts that only remember."""

    def set(self, endpoints: Any) -> None:
        self.endpoints = list(endpoints)


def test_the_file_says_what_is_cut(tmp_path: Path) -> None:
    path, taken, noted = tmp_path / "store1.cuts", tmp_path / "store1.cuts.taken", Noted()
    due: list[Callable[[], None]] = []
    CutFile(str(path), noted, lambda _, look: due.append(look))
    assert (noted.endpoints, taken.read_text()) == ([], "")
    path.write_text("tcp://h:1\ntcp://h:2\n")
    due.pop()()
    assert (noted.endpoints, taken.read_text()) == (["tcp://h:1", "tcp://h:2"], path.read_text())
    del noted.endpoints
    due.pop()()
    assert not hasattr(noted, "endpoints"), "nothing has changed"
    path.write_bytes(b"\xff")
    due.pop()()
    assert not hasattr(noted, "endpoints"), "what is no text changes nothing"
    path.unlink()
    due.pop()()
    assert (noted.endpoints, taken.read_text(), len(due)) == ([], "", 1)


def test_its_sockets_take_the_options_of_production(context: sockets.Context) -> None:
    assert context.get(zmq.BLOCKY) == 0
