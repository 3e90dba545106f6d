"""What a client asks for on real sockets: one key, many, pipelines, scans."""

from __future__ import annotations

import asyncio
import random

import pytest

import kvclient
from kvclient import errors, protocol
from kvclient.errors import Status
from tests.integration.client.scriptedrouter import DROP_AFTER, of_kind

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
