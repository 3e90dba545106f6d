"""Routers that are gone, lose answers or send nonsense, and what a client makes of it, on real sockets."""

from __future__ import annotations

import socket
import threading
import time

import pytest

import kvclient
from kvclient import errors, protocol
from tests.integration.client.scriptedrouter import DROP, DROP_AFTER, ScriptedRouter, of_kind, once
from tests.ports import free_ports


def test_connect_tells_why_nobody_answers():
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    refused, mute = free_ports(1)[0], silent.getsockname()[1]
    with silent, pytest.raises(kvclient.ConnectError) as caught:
        kvclient.connect(
            f"kv://127.0.0.1:{refused},127.0.0.1:{mute},no-such-host.invalid", connect_timeout=0.3
        )
    reasons = dict(caught.value.attempts)
    assert reasons[f"127.0.0.1:{refused}"] == "refused"
    assert "no answer" in reasons[f"127.0.0.1:{mute}"]
    assert "no-such-host.invalid:7100" in reasons
    assert "kvcli dev up" in caught.value.hint
    assert isinstance(caught.value, ConnectionError)


def test_a_call_without_any_router_is_a_connect_error(router, db):
    router.stop()
    with pytest.raises(kvclient.ConnectError) as caught:
        db.get("k", timeout=0.4)
    assert dict(caught.value.attempts)[f"127.0.0.1:{router.port}"] == "refused"


def test_a_write_whose_answer_is_lost_is_applied_once(router, db):
    router.script = once(DROP_AFTER)
    assert db.increment("n") == 1
    first, second = of_kind(router)
    assert second.flags == protocol.FLAG_RETRY
    assert (second.client_id, second.sequence, second.body) == (first.client_id, first.sequence, first.body)
    assert router.executed == 1


def test_a_transaction_whose_answer_is_lost_is_applied_once(router, db):
    router.script = once(DROP_AFTER)
    done = db.txn(
        compare=[kvclient.Compare.absent("k")],
        then=[kvclient.ops.put("k", b"v"), kvclient.ops.increment("k{k}")],
        else_=[kvclient.ops.get("k")],
    )
    assert done == (True, [1, 1])
    first, second = of_kind(router)
    assert second.flags == protocol.FLAG_RETRY
    assert (second.client_id, second.sequence, second.body) == (first.client_id, first.sequence, first.body)
    assert router.executed == 1


def test_a_write_without_any_answer_is_an_unknown_outcome(router, db):
    router.script = lambda request: DROP
    with pytest.raises(kvclient.OutcomeUnknown) as caught:
        db.put("k", b"v", timeout=0.4)
    assert caught.value.maybe_applied
    assert isinstance(caught.value, TimeoutError)


def test_a_read_without_any_answer_is_a_timeout(router, db):
    router.script = lambda request: DROP
    with pytest.raises(kvclient.KVTimeout):
        db.get("k", timeout=0.4)
    router.script = lambda request: None
    assert db.get("k") is None


def test_another_router_takes_over_at_once_when_one_dies(router):
    twin = ScriptedRouter(store=router.store)
    silent = threading.Event()
    for peer in (router, twin):
        peer.script = lambda request: (
            DROP if request.kind == protocol.Kind.OPS and not silent.is_set() else None
        )
    answers = []
    # One try takes an eighth of this: only the lost connection can tell the client earlier.
    with kvclient.connect(f"{router.url},127.0.0.1:{twin.port}", timeout=400) as client:
        thread = threading.Thread(target=lambda: answers.append(client.increment("n")))
        thread.start()
        deadline = time.monotonic() + 20
        while not of_kind(router) + of_kind(twin):
            assert time.monotonic() < deadline, "the request does not arrive"
            time.sleep(0.005)
        first, second = (router, twin) if of_kind(router) else (twin, router)
        silent.set()
        first.stop()
        thread.join(30)
        assert answers == [1]
        assert client.get("n") == b"1"
    (lost,) = of_kind(first)
    again, *_ = of_kind(second)
    assert (again.sequence, again.flags, again.body) == (lost.sequence, protocol.FLAG_RETRY, lost.body)
    second.stop()


def test_a_router_that_comes_back_is_found_again(router, db):
    db.put("k", b"1")
    router.stop()
    reborn = ScriptedRouter(store=router.store, port=router.port)
    try:
        assert db.get("k", timeout=20) == b"1"
    finally:
        reborn.stop()


def test_hostile_bytes_from_the_router_harm_nobody(router, db):
    answers = [b"", b"\xc1", b"\x00", b"\x92\x00\xc4"]
    router.script = lambda request: (0, answers[-1]) if request.kind == protocol.Kind.OPS else None
    while answers:
        with pytest.raises(errors.ProtocolError):
            db.get("k")
        answers.pop()
        router.script = router.script if answers else (lambda request: None)
    assert db.get("k") is None


@pytest.mark.parametrize("result", [[0], [0, "text", 1], [0, None, 1], [0, b"v"]])
def test_results_of_the_wrong_shape_are_protocol_errors(router, db, result):
    router.script = lambda request: [result] if request.kind == protocol.Kind.OPS else None
    with pytest.raises(errors.ProtocolError):
        db.get("k")
    with pytest.raises(errors.ProtocolError):
        list(db.scan())
