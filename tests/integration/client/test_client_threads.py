"""One client used by threads, signal handlers and forked children, and its end, on real sockets."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

import kvclient
from kvclient import protocol
from tests.integration.client.scriptedrouter import DROP, of_kind, once


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
