"""storenode/outbox.py: one reply per router and turn, and never too much memory."""

from __future__ import annotations

from kvclient.errors import Status
from shared import messages
from shared.frames import ITEMS_MAX
from shared.messages import Answer, BatchReply
from storenode.outbox import REPLY_BYTES_MAX, Outbox


def collect() -> tuple[Outbox, list[tuple[bytes, BatchReply, int]]]:
    sent: list[tuple[bytes, BatchReply, int]] = []

    def send(router: bytes, frame: bytes) -> None:
        reply = messages.decode_to_router(frame)
        assert isinstance(reply, BatchReply)
        sent.append((router, reply, len(frame)))

    return Outbox(7, send), sent


def test_one_reply_per_router_in_the_order_of_the_answers() -> None:
    outbox, sent = collect()
    outbox.add(b"a", 1, Status.OK, b"one")
    outbox.add(b"b", 2, Status.OK, b"two")
    outbox.add(b"a", 3, Status.BUSY, b"three")
    assert sent == []
    outbox.flush()
    assert [(router, reply) for router, reply, _ in sent] == [
        (b"a", BatchReply(7, [Answer(1, 0, b"one"), Answer(3, Status.BUSY, b"three")])),
        (b"b", BatchReply(7, [Answer(2, 0, b"two")])),
    ]
    outbox.flush()
    assert len(sent) == 2


def test_many_bytes_leave_before_the_turn_ends() -> None:
    outbox, sent = collect()
    for token in range(30):
        outbox.add(b"a", token, Status.OK, bytes(1 << 20))
    assert len(sent) == 7
    outbox.flush()
    assert [answer.token for _, reply, _ in sent for answer in reply.answers] == list(range(30))
    assert max(size for _, _, size in sent) <= REPLY_BYTES_MAX + 1024


def test_many_small_answers_are_never_more_than_a_router_decodes() -> None:
    outbox, sent = collect()
    for token in range(3 * ITEMS_MAX):
        outbox.add(b"a", token, Status.OK, b"")
    outbox.flush()
    assert [answer.token for _, reply, _ in sent for answer in reply.answers] == list(range(3 * ITEMS_MAX))
    assert max(len(reply.answers) for _, reply, _ in sent) <= ITEMS_MAX


def test_answers_are_counted_by_status() -> None:
    outbox, _ = collect()
    for status in (Status.OK, Status.OK, Status.OUTCOME_UNKNOWN, Status.COMPACTED):
        outbox.add(b"a", 1, status, b"")
    assert outbox.answered() == {"ok": 2, "outcome_unknown": 1, "compacted": 1}
