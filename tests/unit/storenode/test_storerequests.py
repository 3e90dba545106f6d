"""storenode/storerequests.py over real sockets: another store is asked until it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared import messages, sockets
from shared.clock import SystemClock
from shared.groupmessages import GroupCommand, GroupRequest, encode_group_reply
from shared.reactor import Reactor
from storenode.storerequests import Reply, StoreRequests, refusal, to_host
from tests.unit.storenode.links import free_endpoint

CLUSTER = 0xC1
DEADLINE_S = 10.0


class Asked:
    """A node that asks, and a store that answers as the test says."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.context = sockets.context()
        self.requests = StoreRequests(self.reactor, self.context, SystemClock())
        self.outcomes: list[str | None] = []
        self.heard: list[GroupRequest] = []
        self.answer: Callable[[GroupRequest], bytes | None] = lambda request: encode_group_reply(
            request.token, Status.OK, b"\x80"
        )
        self._store: sockets.Socket | None = None

    def listen(self, endpoint: str = "tcp://127.0.0.1:0") -> str:
        store = self._store = sockets.store_router(self.context, endpoint, batch_bytes_max=1 << 20)
        self.reactor.add_reader(store, self._on_messages)
        return sockets.bound_endpoint(store)

    def _on_messages(self, batch: list[list[bytes]]) -> None:
        assert self._store is not None
        for peer, frame in batch:
            request = messages.decode_to_store(frame)
            assert isinstance(request, GroupRequest)
            self.heard.append(request)
            answer = self.answer(request)
            if answer is not None:
                sockets.send_or_drop(self._store, (peer, answer))

    def ask(self, endpoint: str, seconds: float = DEADLINE_S, *, once: bool = False) -> None:
        def done(reply: Reply | None) -> None:
            self.outcomes.append(refusal(reply))

        deadline = SystemClock().monotonic() + seconds
        self.requests.ask(endpoint, to_host(CLUSTER, 7, 4), deadline, done, once=once)

    def outcome(self) -> str | None:
        self.until(lambda: bool(self.outcomes))
        (only,) = self.outcomes
        return only

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            self.reactor.call_later(0.005, lambda: None)
            self.reactor._turn()
        assert not self.reactor.failures

    def close(self) -> None:
        self.requests.close()
        if self._store is not None:
            self.reactor.remove_reader(self._store)
            self._store.close(0)
        self.reactor.close()
        self.context.destroy(0)


@pytest.fixture
def asked() -> Iterator[Asked]:
    made = Asked()
    yield made
    made.close()


def test_a_store_that_hosts_says_so(asked: Asked) -> None:
    asked.ask(asked.listen())
    assert asked.outcome() is None
    first = asked.heard[0]
    assert (first.cluster, first.partition, first.command, first.node) == (CLUSTER, 7, GroupCommand.HOST, 4)


def test_a_refusal_is_told_with_its_reason(asked: Asked) -> None:
    asked.answer = lambda request: encode_group_reply(
        request.token, Status.UNAVAILABLE, encode_error("the disk is full")
    )
    asked.ask(asked.listen())
    assert asked.outcome() == "the disk is full"


def test_a_store_that_comes_late_is_still_asked(asked: Asked) -> None:
    endpoint = free_endpoint()
    asked.ask(endpoint)
    for _ in range(5):
        asked.reactor.call_later(0.01, lambda: None)
        asked.reactor._turn()
    asked.listen(endpoint)
    assert asked.outcome() is None


def test_an_answer_that_was_lost_is_asked_for_again(asked: Asked) -> None:
    good = asked.answer
    asked.answer = lambda request: None if len(asked.heard) < 3 else good(request)
    asked.ask(asked.listen())
    assert asked.outcome() is None
    assert len({request.token for request in asked.heard}) == 1


def test_nobody_there_ends_at_the_deadline(asked: Asked) -> None:
    asked.ask(free_endpoint(), seconds=0.3)
    assert asked.outcome() == "it did not answer in time"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\xc1", "MessagePack"),
        (messages.encode_fault("what is a GROUP?"), "what is a GROUP?"),
        (messages.encode_pong(0, 1, 1), "does not belong here"),
    ],
)
def test_an_older_or_broken_store_ends_it(asked: Asked, frame: bytes, reason: str) -> None:
    asked.answer = lambda request: frame
    asked.ask(asked.listen())
    assert reason in (asked.outcome() or "")


def test_a_refusal_without_a_reason_is_one(asked: Asked) -> None:
    asked.answer = lambda request: encode_group_reply(request.token, Status.INTERNAL, b"\xc1")
    asked.ask(asked.listen())
    assert asked.outcome() == "it refused with status 41 and gave no reason"


def test_answers_to_other_questions_are_not_taken(asked: Asked) -> None:
    asked.answer = lambda request: encode_group_reply(request.token + 1, Status.OK, b"\x80")
    asked.ask(asked.listen(), seconds=0.5)
    assert asked.outcome() == "it did not answer in time"
    assert asked.heard


def test_what_is_asked_once_waits_for_the_link_and_is_not_repeated(asked: Asked) -> None:
    endpoint = free_endpoint()
    asked.answer = lambda request: None
    asked.ask(endpoint, seconds=1.0, once=True)
    asked.listen(endpoint)
    assert asked.outcome() == "it did not answer in time"
    assert len(asked.heard) == 1


def test_an_address_that_is_none_is_told(asked: Asked) -> None:
    asked.ask("nowhere")
    assert "tcp://" in (asked.outcomes[0] or "")
