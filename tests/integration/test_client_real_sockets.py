"""The real client on real sockets, against a router that the test scripts.

The peer speaks `kvclient.protocol` on a ROUTER socket in a thread of its own, with a dict behind it; it
executes a write once per (client id, sequence), as the stores do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
import zmq

import kvclient
from kvclient import errors, protocol
from kvclient.errors import Status
from tests.ports import free_ports

DROP = object()  # no answer, not executed
DROP_AFTER = object()  # executed, but no answer


class ScriptedRouter:
    """A router that speaks kvclient.protocol on a real ROUTER socket, with a dict behind it, in a thread of
    its own.

    `script` sees every request before it is executed: None executes it, DROP leaves it without an answer
    (executed or not: see DROP_AFTER), a (status, body) pair answers it as a whole, a list of results is the
    answer. Writes are executed once per (client id, sequence), as the stores do it.
    """

    def __init__(self, store=None, port=None, host="127.0.0.1"):
        self.store = {} if store is None else store
        self.script = lambda request: None
        self.requests = []
        self.executed = 0
        self.version = 0
        self.page_max = 10_000
        self._answers = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._bind(host, port)
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind("inproc://control")
        self._wake = self._context.socket(zmq.PAIR)
        self._wake.connect("inproc://control")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _bind(self, host, port):
        # Below the kernel's ephemeral range: a client that reconnects to a dead port above could meet itself.
        candidates = [port] if port else random.sample(range(20_000, 32_000), 50)
        for candidate in candidates:
            try:
                self._socket.bind(f"tcp://{host}:{candidate}")
                return candidate
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise
        raise RuntimeError("no free port")

    @property
    def url(self):
        return f"kv://127.0.0.1:{self.port}"

    def stop(self):
        if not self._wake.closed:
            self._wake.send(b"stop")
            self._thread.join()
        self._wake.close(0)
        self._context.term()

    def _serve(self):
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._control, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._control in ready:
                break
            for _ in range(512):
                try:
                    identity, frame = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                reply = self._answer(protocol.decode_request(frame))
                if reply is not None:
                    self._socket.send_multipart([identity, reply], zmq.NOBLOCK)
        self._socket.close(0)
        self._control.close(0)

    def _answer(self, request):
        self.requests.append(request)
        verdict = self.script(request)
        if verdict is DROP:
            return None
        if isinstance(verdict, tuple):
            return protocol.encode_response(request.kind, request.request_id, *verdict)
        body = b"".join(map(protocol.pack, verdict)) if isinstance(verdict, list) else self._execute(request)
        if verdict is DROP_AFTER:
            return None
        return protocol.encode_response(request.kind, request.request_id, 0, body)

    def _execute(self, request):
        if request.kind == protocol.Kind.PING:
            return protocol.pack(["router1", "1.2.3", 7])
        if request.kind == protocol.Kind.MAP:
            return protocol.pack({"epoch": 7})
        if request.kind == protocol.Kind.ADMIN:
            return protocol.pack({"command": protocol.unpack(request.body)})
        session = (request.client_id, request.sequence)
        if session in self._answers:
            return self._answers[session]
        self.executed += 1
        answer = b"".join(map(protocol.pack, map(self._op, protocol.decode_results(request.body))))
        if request.sequence:
            self._answers[session] = answer
        return answer

    def _op(self, op):
        code, key, *rest = op
        if code == protocol.Op.TXN:
            return self._transaction(key, *rest)
        known = self.store.get(key)
        if code == protocol.Op.SCAN:
            return self._scan(key, *rest)
        if code == protocol.Op.GET:
            return [1] if known is None else [0, *known]
        if code == protocol.Op.EXISTS:
            return [1] if known is None else [0, known[1]]
        condition = {protocol.Op.PUT: rest[2:], protocol.Op.DELETE: rest}.get(code)
        if condition and condition[0] is not None and not self._holds(condition[0], known):
            return [2, known[1] if known else 0]
        self.version = version = self.version + 1
        if code == protocol.Op.PUT:
            self.store[key] = (rest[0], version, *([rest[1]] if len(rest) > 1 and rest[1] else []))
            return [0, version]
        if code == protocol.Op.INCREMENT:
            try:
                number = int(known[0]) + rest[0] if known else rest[0]
            except ValueError:
                return [3, "not a number"]
            self.store[key] = (b"%d" % number, version)
            return [0, number, version]
        if known is None:
            return [1]
        if code == protocol.Op.DELETE:
            del self.store[key]
        else:
            self.store[key] = (known[0], version, *([rest[0]] if rest and rest[0] else []))
        return [0, version]

    def _transaction(self, compares, then, otherwise):
        held = all(self._holds(condition, self.store.get(key)) for key, condition in compares)
        return [0, int(held), list(map(self._op, then if held else otherwise))]

    @staticmethod
    def _holds(condition, known):
        code, *operand = condition
        return {
            1: known is None,
            2: known is not None,
            3: known is not None and [known[1]] == operand,
            4: known is not None and [known[0]] == operand,
        }[code]

    def _scan(self, start, stop, limit, flags):
        keys = sorted(k for k in self.store if k >= start and (stop is None or k < stop))
        if flags & protocol.SCAN_COUNT:
            return [0, len(keys), b""]
        if flags & protocol.SCAN_REVERSE:
            keys.reverse()
        page, rest = keys[: min(limit, self.page_max)], keys[min(limit, self.page_max) :]
        keys_only = flags & protocol.SCAN_KEYS_ONLY
        entries = b"".join(
            protocol.pack(part)
            for key in page
            for part in (key, None if keys_only else self.store[key][0], self.store[key][1])
        )
        if not rest:
            return [0, len(page), entries]
        return [0, len(page), entries, page[-1] if flags & protocol.SCAN_REVERSE else rest[0]]


@pytest.fixture
def router():
    peer = ScriptedRouter()
    yield peer
    peer.stop()


@pytest.fixture
def db(router):
    with kvclient.connect(router.url) as client:
        yield client


def of_kind(router, kind=protocol.Kind.OPS):
    return [request for request in router.requests if request.kind == kind]


def once(verdict, kind=protocol.Kind.OPS):
    """A script that gives its verdict on the first request of a kind."""
    left = [verdict]
    return lambda request: left.pop() if left and request.kind == kind else None


# One key


def test_put_get_delete(db):
    version = db.put("k", b"v")
    assert db.get("k") == b"v"
    assert db.entry(b"k") == (b"k", b"v", version, None)
    assert db.exists("k") is True
    assert db.delete("k") is True
    assert db.delete("k") is False
    assert db.get("k") is None
    assert db.get("k", 7) == 7
    assert db.exists("k") is False
    with pytest.raises(kvclient.KeyNotFound):
        db.entry("k")


def test_conditions(db):
    version = db.put("k", b"1", if_absent=True)
    with pytest.raises(kvclient.Conflict) as caught:
        db.put("k", b"2", if_absent=True)
    assert caught.value.current_version == version
    with pytest.raises(kvclient.Conflict) as caught:
        db.put("missing", b"2", if_present=True)
    assert caught.value.current_version == 0
    with pytest.raises(kvclient.Conflict):
        db.put("k", b"2", if_version=version + 1)
    with pytest.raises(kvclient.Conflict):
        db.delete("k", if_value=b"2")
    newer = db.put("k", b"2", if_value=b"1")
    assert newer > version
    assert db.delete("k", if_version=newer) is True
    with pytest.raises(kvclient.InvalidRequest, match="one of"):
        db.put("k", b"", if_absent=True, if_version=1)


def test_ttl_and_touch(db):
    db.put("k", b"v", ttl=1.5)
    assert db.entry("k").ttl == 1.5
    assert db.touch("k", 20) is True
    assert db.entry("k").ttl == 20
    assert db.touch("k", None) is True
    assert db.entry("k").ttl is None
    assert db.touch("missing", 1) is False
    for wrong in (0, -1, 1e12, float("nan")):
        with pytest.raises(kvclient.InvalidRequest, match="ttl"):
            db.put("k", b"v", ttl=wrong)


def test_increment(db):
    assert db.increment("n") == 1
    assert db.increment("n", -5) == -4
    db.put("n", b"many")
    with pytest.raises(kvclient.NotAnInteger):
        db.increment("n")


@pytest.mark.parametrize("key", [5, None, 1.5, ["k"]])
def test_keys_that_are_none_are_type_errors(db, key):
    with pytest.raises(TypeError, match="a key is bytes or str"):
        db.get(key)


def test_an_int_key_is_told_what_to_do(db):
    with pytest.raises(TypeError, match=r"str\(n\)"):
        db.put(5, b"")


def test_limits_are_checked_before_anything_is_sent(router, db):
    before = len(router.requests)
    with pytest.raises(errors.KeyTooLong) as caught:
        db.get(b"k" * 4097)
    assert (caught.value.limit, caught.value.size) == (4096, 4097)
    with pytest.raises(errors.ValueTooLarge) as caught:
        db.put("k", bytes((8 << 20) + 1))
    assert caught.value.limit == 8 << 20
    with pytest.raises(errors.InvalidRequest):
        db.get("")
    assert len(router.requests) == before


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_above_zero(db, timeout):
    with pytest.raises(kvclient.InvalidRequest, match="timeout"):
        db.get("k", timeout=timeout)


def test_an_endless_timeout_is_cut_to_what_the_wire_can_say(router, db):
    db.get("k", timeout=float("inf"))
    assert router.requests[-1].timeout_ms > 4_000_000_000


def test_read_modes_travel(router, db):
    for read, number in [(None, 0), ("lease", 1), ("stale:2s", 2000)]:
        db.get("k", read=read)
        assert router.requests[-1].read_mode == number


# Many keys


def test_many(router, db):
    items = {f"k{i:05}": b"%d" % i for i in range(3000)}
    result = db.put_many(items)
    assert (result.ok, result.errors) == (3000, [])
    assert max(len(protocol.decode_results(request.body)) for request in of_kind(router)) == 512
    asked = ["k00007", "missing", b"k00001", "k02999"]
    assert list(db.get_many(asked).items()) == [("k00007", b"7"), (b"k00001", b"1"), ("k02999", b"2999")]
    assert db.delete_many([*list(items)[:2000], "missing"]) == 2000
    assert db.count() == 1000


def test_large_values_go_in_requests_of_about_a_megabyte(router, db):
    db.put_many((f"k{i}", bytes(300_000)) for i in range(10))
    assert max(len(request.body) for request in of_kind(router)) <= 1 << 20
    assert len(router.store) == 10


def test_put_many_reports_each_bad_item_and_writes_the_others(db):
    result = db.put_many([("a", b"1"), ("", b"2"), ("c", b"3"), ("k" * 5000, b"4")])
    assert result.ok == 2
    assert [(index, type(error)) for index, error in result.errors] == [
        (1, errors.InvalidRequest),
        (3, errors.KeyTooLong),
    ]
    with pytest.raises(kvclient.BatchError) as caught:
        result.raise_for_errors()
    assert caught.value.errors == result.errors


def test_an_item_that_only_the_server_refuses_fails_alone(router, db):
    def refuse_the_large_one(request):
        if request.kind == protocol.Kind.OPS:
            for index, op in enumerate(protocol.decode_results(request.body)):
                if len(op) > 2 and len(op[2]) > 10:
                    return Status.VALUE_TOO_LARGE, protocol.encode_error(
                        "large", index=index, limit=10, size=len(op[2])
                    )
        return None

    router.script = refuse_the_large_one
    result = db.put_many([(f"k{i}", bytes(20) if i in (3, 5) else b"v") for i in range(9)])
    assert result.ok == 7
    assert [(index, type(error), error.size) for index, error in result.errors] == [
        (3, errors.ValueTooLarge, 20),
        (5, errors.ValueTooLarge, 20),
    ]


def test_a_batch_may_come_from_the_client_itself(db):
    db.put_many((f"a{i}", b"v") for i in range(2000))
    result = db.put_many((b"copy:" + entry.key, entry.value) for entry in db.scan("a", page=100))
    assert result.ok == 2000
    assert db.count("copy:a") == 2000


class Picky:
    """An application's own codec, with an exception of its own."""

    name = "picky"

    def encode(self, value):
        return value

    def decode(self, data):
        if data == b"bad":
            raise LookupError("not mine")
        return data


def test_a_codec_that_fails_in_a_batch_fails_its_item_only(router, db):
    """Its exception went through the session: the answers behind it were lost, and in asyncio get_many told
    that the keys did not exist.
    """
    db.put_many({"a": b"1", "b": b"bad", "c": b"3"})
    with (
        kvclient.connect(router.url, codec=Picky()) as picky,
        pytest.raises(kvclient.BatchError) as caught,
    ):
        picky.get_many(["a", "b", "c"])
    assert caught.value.details["results"] == {"a": b"1", "c": b"3"}
    [(index, error)] = caught.value.errors
    assert (index, type(error), type(error.__cause__)) == (1, kvclient.CodecError, LookupError)

    async def main():
        async with await kvclient.aconnect(router.url, codec=Picky()) as picky:
            await picky.get_many(["a", "b", "c"], timeout=1)

    with pytest.raises(kvclient.BatchError):
        asyncio.run(main())


def test_get_many_that_failed_in_part_says_what_it_has(router, db):
    db.put_many({"a": b"1", "b": b"2"})
    router.script = lambda request: (
        [[0, b"1", 1], [40, "checksum"]] if request.kind == protocol.Kind.OPS else None
    )
    with pytest.raises(kvclient.BatchError) as caught:
        db.get_many(["a", "b"])
    assert [(index, type(error)) for index, error in caught.value.errors] == [(1, errors.Corruption)]
    assert caught.value.details["results"] == {"a": b"1"}
    router.script = lambda request: [[40, "checksum"]] if request.kind == protocol.Kind.OPS else None
    with pytest.raises(errors.Corruption):
        db.get_many(["a"])


# Pipelines


def test_pipeline_results(db):
    with db.pipeline() as pipe:
        a = pipe.put("a", b"1")
        b = pipe.get("a")
        c = pipe.get("none", b"default")
        d = pipe.increment("n", 5)
        e = pipe.exists("a")
        f = pipe.touch("a", 9)
        g = pipe.delete("none")
        h = pipe.put("a", b"2", if_absent=True)
    assert (b.result(), c.result(), d.result(), e.result(), f.result(), g.result()) == (
        b"1",
        b"default",
        5,
        True,
        True,
        False,
    )
    with pytest.raises(kvclient.Conflict) as caught:
        h.result()
    assert caught.value.current_version > a.result()


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_a_pipeline_keeps_the_order_of_each_key_whatever_is_retried(router, db, batch):
    refusals = random.Random(5)
    busy = Status.BUSY, protocol.encode_error("busy", retry_after_ms=1)
    router.script = lambda request: (
        busy if request.kind == protocol.Kind.OPS and refusals.random() < 0.3 else None
    )
    with db.pipeline(batch=batch) as pipe:
        reads = []
        for number in range(300):
            key = f"k{number % 10}"
            pipe.put(key, b"%d" % number)
            reads.append((number, pipe.get(key)))
    seen = [(number, int(read.result())) for number, read in reads]
    assert all(value >= number and value % 10 == number % 10 for number, value in seen), (
        "a read sees all earlier writes"
    )
    assert sorted(int(value[0]) for value in router.store.values()) == list(range(290, 300))


def test_single_op_requests_are_under_way_together(router, db):
    with db.pipeline(batch=1, max_in_flight=64) as pipe:
        handles = [pipe.increment(f"n{i % 100}") for i in range(1000)]
    assert len(of_kind(router)) == 1000
    assert [handle.result() for handle in handles[-100:]] == [10] * 100


def test_a_result_may_be_asked_for_inside_the_block(db):
    with db.pipeline() as pipe:
        assert pipe.increment("n").result() == 1
        assert pipe.increment("n").result() == 2


def test_an_exception_in_the_block_discards_what_was_not_sent(router, db):
    with pytest.raises(RuntimeError, match="mine"), db.pipeline() as pipe:  # noqa: PT012
        handle = pipe.put("k", b"v")
        raise RuntimeError("mine")
    with pytest.raises(kvclient.ClosedError):
        handle.result()
    assert db.get("k") is None


def test_an_exception_in_the_block_leaves_what_was_sent_in_doubt(router, db):
    router.script = lambda request: (
        DROP_AFTER if request.kind == protocol.Kind.OPS and request.sequence else None
    )
    with pytest.raises(RuntimeError), db.pipeline(batch=1) as pipe:  # noqa: PT012
        sent = pipe.put("k", b"v")
        held_back = pipe.get("k")
        raise RuntimeError
    with pytest.raises(kvclient.OutcomeUnknown):
        sent.result()
    with pytest.raises(kvclient.ClosedError):
        held_back.result()
    router.script = lambda request: None
    assert db.get("k") == b"v"


def test_leaving_the_block_raises_what_failed(router, db):
    router.script = lambda request: [[0, 1], [24, "disk full"]] if request.kind == protocol.Kind.OPS else None
    with pytest.raises(kvclient.BatchError) as caught, db.pipeline() as pipe:
        good, bad = pipe.put("a", b""), pipe.put("b", b"")
    assert [(index, type(error)) for index, error in caught.value.errors] == [(1, kvclient.ReadOnly)]
    assert good.result() == 1
    with pytest.raises(kvclient.ReadOnly, match="disk full"):
        bad.result()


# Scans


def test_scan(router, db):
    router.page_max = 7  # the router may give smaller pages than asked for
    db.put_many({f"u:{i:03}": b"%d" % i for i in range(50)} | {"t": b"", "v": b""})
    keys = [b"u:%03d" % i for i in range(50)]
    assert [entry.key for entry in db.scan("u:")] == keys
    assert [entry.key for entry in db.scan("u:", reverse=True)] == keys[::-1]
    assert [entry.key for entry in db.scan("u:", limit=9)] == keys[:9]
    assert [entry.key for entry in db.scan("u:", start="u:010", stop="u:020")] == keys[10:20]
    assert [entry.value for entry in db.scan("u:", keys_only=True, limit=1)] == [None]
    assert [len(page) for page in db.scan("u:", limit=20).pages()] == [7, 7, 6]
    assert list(db.scan("none")) == []
    assert list(db.scan(limit=0)) == []
    assert len(list(db.scan())) == db.count() == 52
    assert db.count("u:") == 50


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_resumes_where_it_was_left(router, db, reverse):
    router.page_max = 4
    db.put_many({f"u:{i:02}": b"" for i in range(20)})
    whole = [entry.key for entry in db.scan("u:", reverse=reverse)]
    for taken in range(21):
        scan = db.scan("u:", reverse=reverse)
        first = [next(scan).key for _ in range(taken)]
        bound = {"stop" if reverse else "start": scan.resume}
        rest = (
            [entry.key for entry in db.scan("u:", reverse=reverse, **bound)]
            if scan.resume is not None
            else []
        )
        assert first + rest == whole, taken


def test_prefixes_of_the_highest_bytes(db):
    db.put_many({b"\xff": b"", b"\xff\xff": b"", b"\xfe": b"", b"a\xff": b"", b"b": b""})
    assert [entry.key for entry in db.scan(b"\xff")] == [b"\xff", b"\xff\xff"]
    assert [entry.key for entry in db.scan(b"a\xff")] == [b"a\xff"]
    assert db.count(b"\xff") == 2


def test_namespaces(router, db):
    users = db.namespace("user:", codec="json")
    users.put("1", {"name": "Ada"})
    db.put("user", b"outside")
    assert router.store[b"user:1"][0] == b'{"name":"Ada"}'
    assert users.get("1") == {"name": "Ada"}
    assert users.entry("1").key == b"1"
    assert [tuple(entry[:2]) for entry in users.scan()] == [(b"1", {"name": "Ada"})]
    nested = users.namespace("x:", codec="str")
    nested.put("k", "5")
    assert router.store[b"user:x:k"][0] == b"5"
    assert [entry.key for entry in nested.scan()] == [b"k"]
    scan = users.scan()
    assert next(scan).key == b"1"
    assert [entry.key for entry in users.scan(start=scan.resume)] == [b"x:k"]
    users.close()
    assert users.count() == 2, "closing a view closes nothing"


def test_the_url_sets_namespace_and_codec(router):
    with kvclient.connect(f"{router.url}/app/?codec=str&timeout=3s") as client:
        client.put("k", "ä")
    assert router.store[b"app/k"][0] == "ä".encode()


# The cluster


def test_ping_admin_and_map(db):
    pong = db.ping()
    assert (pong.router, pong.version, pong.epoch) == ("router1", "1.2.3", 7)
    assert pong.round_trip > 0
    assert db.admin("route", b"k") == {"command": ["route", b"k"]}
    assert db.cluster_map() == {"epoch": 7}


# Trouble


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


# Threads, forks, closing


def test_threads_share_a_client_but_no_socket(router, db):
    failures = []

    def work(name):
        try:
            for number in range(50):
                db.put(f"{name}:{number}", b"%d" % number)
                assert db.get(f"{name}:{number}") == b"%d" % number
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert db.count() == 200
    assert len({request.client_id for request in of_kind(router)}) == 5


def test_the_connections_of_dead_threads_are_closed(db):
    for _ in range(5):
        thread = threading.Thread(target=db.get, args=("k",))
        thread.start()
        thread.join()
    assert len(db._connections._all) <= 2


def test_close_ends_calls_of_other_threads(router, db):
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None
    caught = []

    def wait():
        try:
            db.get("k", timeout=60)
        except kvclient.ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while not of_kind(router):
        assert time.monotonic() < deadline, "the request does not arrive"
        time.sleep(0.005)
    db.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1
    db.close()
    with pytest.raises(kvclient.ClosedError):
        db.get("k")


@pytest.mark.parametrize("how", ["put", "close"])
def test_a_signal_handler_that_uses_the_interrupted_client_does_not_hang(router, how):
    """It waited for the lock that its own thread held."""
    raised = []

    def handle(*_):
        try:
            db.close() if how == "close" else db.put("bye", b"1")
        except RuntimeError as error:
            raised.append(error)

    before = len(os.listdir("/proc/self/fd"))
    db = kvclient.connect(router.url)
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None
    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(kvclient.ClosedError if how == "close" else kvclient.KVTimeout):
            db.get("k", timeout=1)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(raised) == (how == "put")
    db.close()
    deadline = time.monotonic() + 10  # the other end of the link is in this process, too
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_interrupted_call_leaves_the_client_usable(router, db):
    router.script = once(DROP)
    connection = db._connections.current()
    turn = connection.turn

    def interrupted():
        connection.turn = turn
        raise KeyboardInterrupt

    connection.turn = interrupted
    with pytest.raises(KeyboardInterrupt):
        db.put("k", b"v")
    assert db.get("k") is None
    assert connection.session.live == []


FORK = """
import os, sys, warnings
warnings.simplefilter("error")
import kvclient
db = kvclient.connect(sys.argv[1], codec="str")
db.put("parent", "1")
child = os.fork()
if child == 0:
    try:
        assert db.get("parent") == "1"
        db.put("child", "2")
        db.close()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert db.get("child") == "2"
db.increment("after")
db.close()
print("fine")
"""


def test_a_forked_child_opens_its_own_connection(router):
    done = subprocess.run(
        [sys.executable, "-c", FORK, router.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
    writers = {}
    for request in of_kind(router):
        if request.sequence:
            writers.setdefault(request.client_id, []).append(request.sequence)
    assert sorted(writers.values()) == [[1], [1, 2]], "the child has a session of its own"


FORK_ASYNC = """
import asyncio, os, sys
import kvclient
async def main():
    async with await kvclient.aconnect(sys.argv[1]) as db:
        await db.put("k", b"1")
        child = os.fork()
        if child == 0:
            try:
                await db.get("k")
            except kvclient.ForkedError as error:
                os._exit(42)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 42, status
        assert await db.get("k") == b"1"
asyncio.run(main())
print("fine")
"""


def test_an_async_client_refuses_to_work_in_a_forked_child(router):
    done = subprocess.run(
        # Python 3.12 and later warn of any fork of a process with threads, and libzmq has its own.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORK_ASYNC, router.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_forgotten_client_warns(router):
    kvclient.connect(router.url).close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = kvclient.connect(router.url)
        connections = client._connections
        del client
        gc.collect()
        assert caught == [], "views may still use it"
        connection = connections.current()
        with connection.lock:
            connection.sockets.close()
        connections._context.term()
        del connections, connection
        gc.collect()
    assert [str(warning.message) for warning in caught if "kvclient.Client" in str(warning.message)]
    assert all(warning.category is ResourceWarning for warning in caught)


def test_closing_frees_all_descriptors(router):
    kvclient.connect(router.url).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with kvclient.connect(router.url) as client:
            client.get("k")
    deadline = time.monotonic() + 10  # the router, in the same process, notices a little later
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


# asyncio


def run(router, scenario, **options):
    async def main():
        async with await kvclient.aconnect(router.url, **options) as client:
            return await asyncio.wait_for(scenario(client), 30)

    return asyncio.run(main())


def test_async_one_and_many(router):
    async def scenario(db):
        assert await db.put("k", "v") == 1
        assert await db.get("k") == "v"
        assert (await db.entry("k")).version == 1
        assert await db.exists("k") is True
        assert await db.touch("k", 5) is True
        assert await db.delete("k") is True
        assert await db.increment("n") == 1
        assert (await db.put_many((f"k{i:04}", "x") for i in range(3000))).ok == 3000
        assert await db.count("k") == 3000
        assert await db.get_many(["k0001", "no"]) == {"k0001": "x"}
        assert await db.delete_many(["k0001", "no"]) == 1
        assert [entry.key async for entry in db.scan("k", limit=2)] == [b"k0000", b"k0002"]
        assert [len(page) async for page in db.scan("k", page=1000).pages()] == [1000, 1000, 999]
        assert (await db.ping()).router == "router1"
        assert await db.admin("ready") == {"command": ["ready"]}
        assert await db.cluster_map() == {"epoch": 7}
        assert await db.namespace("k").get("0000") == "x"

    run(router, scenario, codec="str")


def test_async_calls_are_under_way_together(router):
    async def scenario(db):
        results = await asyncio.gather(*(db.increment(f"n{i % 50}") for i in range(2000)))
        assert sum(result == 40 for result in results) == 50

    run(router, scenario, timeout=100)
    assert len(of_kind(router)) == 2000, "nothing was overlooked and sent again"


@pytest.mark.parametrize("batch", [1, 512])
def test_async_pipeline(router, batch):
    async def scenario(db):
        async with db.pipeline(batch=batch, max_in_flight=16) as pipe:
            handles = [await pipe.increment("n") for _ in range(200)]
            assert await handles[3].result() == 4
        assert [await handle.result() for handle in handles] == list(range(1, 201))
        with pytest.raises(RuntimeError):  # noqa: PT012
            async with db.pipeline() as pipe:
                handle = await pipe.put("k", b"v")
                raise RuntimeError
        with pytest.raises(kvclient.ClosedError):
            await handle.result()
        assert await db.get("k") is None

    run(router, scenario)


def test_async_retry_and_exactly_once(router):
    router.script = once(DROP_AFTER)

    async def scenario(db):
        assert await db.increment("n") == 1

    run(router, scenario)
    assert router.executed == 1
    assert [request.flags for request in of_kind(router)] == [0, protocol.FLAG_RETRY]


def test_a_cancelled_call_is_forgotten_and_the_client_goes_on(router):
    router.script = once(DROP)

    async def scenario(db):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(db.put("k", b"1"), 0.05)
        assert db._connection.session.live == []
        assert await db.put("k", b"2") > 0
        assert await db.get("k") == b"2"

    run(router, scenario)


def test_async_deadlines_end_without_traffic(router):
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None

    async def scenario(db):
        with pytest.raises(kvclient.OutcomeUnknown):
            await db.put("k", b"1", timeout=0.3)
        with pytest.raises(kvclient.KVTimeout):
            await db.get("k", timeout=0.3)

    run(router, scenario)


def test_async_connect_error():
    async def main():
        with pytest.raises(kvclient.ConnectError) as caught:
            await kvclient.aconnect(f"kv://127.0.0.1:{free_ports(1)[0]}", connect_timeout=0.2)
        assert "refused" in str(caught.value)

    asyncio.run(main())


def test_async_failover_to_a_router_that_comes_back(router):
    async def scenario(db):
        await db.put("k", b"1")
        await asyncio.to_thread(router.stop)
        waiting = asyncio.create_task(db.get("k", timeout=20))
        await asyncio.sleep(0)
        reborn = await asyncio.to_thread(ScriptedRouter, router.store, router.port)
        try:
            assert await waiting == b"1"
        finally:
            await asyncio.to_thread(reborn.stop)

    run(router, scenario)


def test_an_async_client_belongs_to_its_loop(router):
    async def opened():
        return await kvclient.aconnect(router.url)

    with asyncio.Runner() as first:
        client = first.run(opened())

        async def elsewhere():
            with pytest.raises(kvclient.ForkedError, match="event loop"):
                await client.get("k")

        with asyncio.Runner() as second:
            second.run(elsewhere())
        first.run(client.close())


def test_closing_an_async_client_ends_its_calls(router):
    router.script = lambda request: DROP if request.kind == protocol.Kind.OPS else None

    async def main():
        client = await kvclient.aconnect(router.url)
        calls = [asyncio.create_task(client.get("k", timeout=60)) for _ in range(3)]
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [kvclient.ClosedError] * 3

    asyncio.run(main())


def test_a_forgotten_async_client_warns(router):
    async def main():
        client = await kvclient.aconnect(router.url)
        connection = client._connection
        with pytest.warns(ResourceWarning, match="kvclient.AsyncClient"):  # noqa: PT031
            del client
            gc.collect()
        connection.close()

    asyncio.run(main())
