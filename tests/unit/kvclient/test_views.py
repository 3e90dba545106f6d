"""Views and scans over a real client whose sockets lead to a dict in the same thread."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient import protocol, url
from kvclient.calls import Calls
from kvclient.client import Client
from kvclient.codec import resolve
from kvclient.connection import Connections
from kvclient.errors import Conflict, InvalidRequest, KeyNotFound, KVTimeout, Unavailable
from kvclient.options import Options
from kvclient.scan import successor


class DictSockets:
    """In place of `transport.Sockets`: a frame is answered from a dict as soon as it is sent."""

    def __init__(self, page_max=10_000):
        self.store = {}
        self.version = 0
        self.page_max = page_max
        self.connected = [True]
        self.dirty = [0]
        self.before = lambda code, key: None
        self._answers = []

    def send(self, index, frame):
        request = protocol.decode_request(frame)
        body = b"".join(protocol.pack(self._op(*op)) for op in protocol.decode_results(request.body))
        self._answers.append(protocol.encode_response(request.kind, request.request_id, 0, body))
        return True

    def drain(self, index):
        answers, self._answers = self._answers, []
        return answers

    def close(self):
        self.store.clear()

    def _op(self, code, key, *rest):
        self.before(code, key)
        value, version = self.store.get(key, (None, 0))
        if code == protocol.Op.SCAN:
            return self._scan(key, *rest)
        if code == protocol.Op.GET:
            return [0, value, version] if version else [1]
        if code == protocol.Op.EXISTS:
            return [0, version] if version else [1]
        condition = rest[0] if code == protocol.Op.DELETE and rest else rest[2] if len(rest) > 2 else None
        if condition and not (version == 0 if condition[0] == 1 else [version] == condition[1:]):
            return [2, version]
        self.version += 1
        if code == protocol.Op.PUT:
            self.store[key] = (rest[0], self.version)
        elif not version:
            return [1]
        else:
            del self.store[key]
        return [0, self.version]

    def _scan(self, start, stop, limit, flags):
        keys = sorted(key for key in self.store if key >= start and (stop is None or key < stop))
        if flags & protocol.SCAN_COUNT:
            return [0, len(keys), b""]
        reverse, keys_only = flags & protocol.SCAN_REVERSE, flags & protocol.SCAN_KEYS_ONLY
        keys = keys[::-1] if reverse else keys
        size = min(limit, self.page_max)
        entries = b"".join(
            protocol.pack(part)
            for key in keys[:size]
            for part in (key, None if keys_only else self.store[key][0], self.store[key][1])
        )
        resume = [] if len(keys) <= size else [keys[size - 1] if reverse else keys[size]]
        return [0, len(keys[:size]), entries, *resume]


def client_on(sockets, codec="str"):
    connections = Connections(url.parse("kv://127.0.0.1:1"))
    connection = connections.current()
    connection.sockets.close()
    connection.sockets = sockets
    connection.session.connection(0, True, 0.0)
    return Client(connections, Calls(b"", resolve(codec)), Options(5.0, 0), owner=True)


@pytest.fixture
def sockets():
    return DictSockets(page_max=3)


@pytest.fixture
def db(sockets):
    with client_on(sockets) as client:
        yield client


@pytest.fixture
def users(db):
    db.put("user", "outside")
    db.put("user;", "outside")
    return db.map("user:")


def test_a_map_behaves_like_a_dict(users, sockets):
    users["1"] = "Ada"
    users["2"] = "Bob"
    assert sockets.store[b"user:1"][0] == b"Ada"
    assert users["1"] == "Ada"
    assert users.get("3") is None
    assert users.get("3", "nobody") == "nobody"
    assert "1" in users
    assert "3" not in users
    assert 1 not in users
    assert len(users) == 2
    assert list(users) == ["1", "2"]
    assert list(users.items()) == [("1", "Ada"), ("2", "Bob")]
    assert list(users.values()) == ["Ada", "Bob"]
    assert dict(users) == {"1": "Ada", "2": "Bob"}
    del users["1"]
    with pytest.raises(KeyNotFound):
        users["1"]
    with pytest.raises(KeyError):
        del users["1"]
    assert users.pop("2") == "Bob"
    assert users.pop("2", None) is None
    with pytest.raises(KeyNotFound):
        users.pop("2")


def test_a_map_in_bulk(users, db):
    users.update({f"{i:02}": "x" for i in range(20)}, last="y")
    users.update([("20", "z")])
    assert len(users) == 22
    assert users.setdefault("20", "other") == "z"
    assert users.setdefault("21", "new") == "new"
    users.clear()
    assert len(users) == 0
    assert not users
    assert db.count() == 2, "what is outside of the prefix stays"


def test_keys_that_are_not_text_survive_the_round_trip(users, sockets):
    sockets.store[b"user:\xff\x00"] = (b"odd", 99)
    (name,) = users
    assert users[name] == "odd"
    del users[name]
    assert b"user:\xff\x00" not in sockets.store


@pytest.mark.parametrize(
    "wrong", [lambda m: m == {}, lambda m: m != {}, lambda m: m.popitem(), hash, lambda m: m[5]]
)
def test_what_a_map_refuses(users, wrong):
    with pytest.raises(TypeError):
        wrong(users)


def test_pop_is_atomic(users, sockets):
    users["k"] = "0"
    writes = iter(range(1, 4))

    def race(code, key):
        if code == protocol.Op.DELETE and (number := next(writes, None)):
            sockets.version += 1
            sockets.store[key] = (b"%d" % number, sockets.version)

    sockets.before = race
    assert users.pop("k") == "3", "the value that was there when it was removed"


def test_setdefault_lets_one_writer_win(users, sockets):
    def race(code, key):
        if code == protocol.Op.PUT and key not in sockets.store:
            sockets.version += 1
            sockets.store[key] = (b"theirs", sockets.version)

    sockets.before = race
    assert users.setdefault("k", "mine") == "theirs"


def test_a_race_that_is_never_won_ends(users, sockets):
    users["k"] = "0"

    def race(code, key):
        if code == protocol.Op.DELETE:
            sockets.version += 1
            sockets.store[key] = (b"x", sockets.version)

    sockets.before = race
    with pytest.raises(Unavailable):
        users.pop("k")


def test_trouble_is_not_a_missing_key(users, db):
    def fail(pending):
        raise KVTimeout("no answer")

    db._connections.current().run = fail
    for attempt in (
        lambda: users["k"],
        lambda: "k" in users,
        lambda: users.pop("k"),
        lambda: users.get("k", "default"),
    ):
        with pytest.raises(KVTimeout):
            attempt()


def test_conflicts_are_told_to_whoever_set_the_condition(db):
    db.put("k", "v")
    with pytest.raises(Conflict):
        db.put("k", "w", if_absent=True)


@pytest.mark.parametrize(
    ("prefix", "after"),
    [
        (b"", None),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"\xff\xff", None),
        (b"a\x00", b"a\x01"),
        (b"\xfe\xff", b"\xff"),
    ],
)
def test_successor(prefix, after):
    assert successor(prefix) == after


keys = st.binary(min_size=1, max_size=3)
bounds = st.none() | st.binary(max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    stored=st.sets(keys, max_size=12),
    prefix=st.binary(max_size=2),
    start=bounds,
    stop=bounds,
    reverse=st.booleans(),
    limit=st.none() | st.integers(0, 8),
    page=st.integers(1, 4),
    taken=st.integers(0, 12),
)
def test_scans_against_a_sorted_list(stored, prefix, start, stop, reverse, limit, page, taken):
    with client_on(DictSockets(), "bytes") as db:
        db.put_many((key, key) for key in stored)
        whole = sorted(
            key
            for key in stored
            if key.startswith(prefix) and (start is None or key >= start) and (stop is None or key < stop)
        )
        whole = whole[::-1] if reverse else whole
        options = {"start": start, "stop": stop, "reverse": reverse, "page": page}
        scan = db.scan(prefix, limit=limit, **options)
        assert [entry.key for entry in scan] == whole[:limit]

        scan = db.scan(prefix, **options)
        first = [entry.key for entry in islice(scan, taken)]
        resume = scan.resume
        if resume is None:  # the end, or a scan from the very end that has not begun
            assert first == whole or (reverse and taken == 0)
        else:
            options["stop" if reverse else "start"] = resume
            assert first + [entry.key for entry in db.scan(prefix, **options)] == whole


def test_a_scan_resumes_behind_the_longest_keys(db):
    longest = [byte * 4096 for byte in (b"a", b"b", b"\xff")]
    db.put_many((key, "v") for key in [*longest, b"c"])
    scan = db.scan()
    assert next(scan).key == longest[0]
    assert [entry.key for entry in db.scan(start=scan.resume)] == [longest[1], b"c", longest[2]]


@pytest.mark.parametrize("options", [{"page": 0}, {"page": 10_001}, {"limit": -1}, {"start": b"x" * 5000}])
def test_scans_that_make_no_sense(db, options):
    with pytest.raises(InvalidRequest):
        db.scan(**options)
