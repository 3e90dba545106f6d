"""The loop on real sockets, fds, threads and signals. A lost wake-up fails at a deadline, never hangs."""

from __future__ import annotations

import os
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import zmq
from structlog.testing import capture_logs

from shared import reactor as reactor_module
from shared.reactor import BUDGET, FAILURES_LOGGED, FRAMES_KEPT, Reactor

DEADLINE_S = 10.0


Pair = Callable[..., tuple[Any, Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Makes a bound server socket and a DEALER connected to it; all of them are closed at the end."""
    context: zmq.Context[Any] = zmq.Context()
    made: list[Any] = []

    def make(kind: int = zmq.ROUTER, name: str = "a") -> tuple[Any, Any]:
        server, client = context.socket(kind), context.socket(zmq.DEALER)
        made.extend((server, client))
        for one in (server, client):
            one.set(zmq.SNDHWM, 0)
            one.set(zmq.RCVHWM, 0)
        server.bind(f"inproc://{name}")
        client.connect(f"inproc://{name}")
        return server, client

    yield make
    for one in made:
        one.close(0)
    context.term()


@pytest.fixture
def loop() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


def run(loop: Reactor, until: Callable[[], bool] | None = None) -> None:
    """Run until stopped, or until a condition holds at a turn's end; fail at the deadline."""
    overdue: list[bool] = []

    def give_up() -> None:
        overdue.append(True)
        loop.stop()

    timer = loop.call_later(DEADLINE_S, give_up)
    if until is not None:
        loop.on_turn_end(lambda: loop.stop() if until() else None)
    loop.run()
    timer.cancel()
    assert not overdue, "the loop did not get there in time"


# -- reading


def test_a_batch_holds_every_waiting_message_in_order(loop: Reactor, pair: Pair) -> None:
    server, client = pair()
    for number in range(100):
        client.send(b"%d" % number)
    batches: list[list[list[bytes]]] = []
    loop.add_reader(server, batches.append)
    run(loop, until=lambda: bool(batches))
    assert [message[1] for message in batches[0]] == [b"%d" % number for number in range(100)]
    assert len({message[0] for message in batches[0]}) == 1


def test_a_batch_ends_at_the_budget_and_the_rest_comes_in_the_next_turns_without_a_new_signal(
    loop: Reactor, pair: Pair
) -> None:
    server, client = pair()
    total = 3 * BUDGET + 7
    for _ in range(total):
        client.send(b"x")
    sizes: list[int] = []
    loop.add_reader(server, lambda messages: sizes.append(len(messages)))
    run(loop, until=lambda: sum(sizes) == total)
    assert sizes == [BUDGET, BUDGET, BUDGET, 7]


def test_a_batch_of_large_messages_ends_at_the_byte_budget(
    loop: Reactor, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor_module, "BUDGET_BYTES", 1000)
    for kind, name in ((zmq.ROUTER, "router"), (zmq.DEALER, "dealer")):
        server, client = pair(kind, name)
        for _ in range(7):
            client.send(bytes(400))
        batch = (reactor_module.drain_router if kind == zmq.ROUTER else reactor_module.drain_plain)(
            server.recv
        )
        assert len(batch) == 3


def test_timers_and_other_sockets_are_served_while_one_peer_floods(loop: Reactor, pair: Pair) -> None:
    flooded, flooder = pair(name="flood")
    quiet, other = pair(name="quiet")
    for _ in range(20 * BUDGET):
        flooder.send(b"x")
    other.send(b"y")
    turns: list[str] = []
    loop.add_reader(flooded, lambda messages: turns.append("flood"))
    loop.add_reader(quiet, lambda messages: turns.append("quiet"))
    loop.call_later(0, lambda: turns.append("timer"))
    run(loop, until=lambda: turns.count("flood") == 20)
    assert turns[:3] == ["flood", "quiet", "timer"]


def test_messages_that_arrive_while_sending_are_not_missed(loop: Reactor, pair: Pair) -> None:
    """Trap: with the edge-triggered FD a send swallows the signal of a message that arrives meanwhile."""
    server, client = pair()
    rounds = 2000
    seen: list[bytes] = []

    def echo(messages: list[list[bytes]]) -> None:
        for message in messages:
            server.send_multipart(message, zmq.NOBLOCK)

    def again(messages: list[list[bytes]]) -> None:
        for message in messages:
            seen.extend(message)
            if len(seen) < rounds:
                client.send(b"x", zmq.NOBLOCK)

    loop.add_reader(server, echo)
    loop.add_reader(client, again)
    for _ in range(3):
        client.send(b"x")
    run(loop, until=lambda: len(seen) >= rounds)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 40])
@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER])
def test_messages_are_read_to_their_last_frame(loop: Reactor, pair: Pair, kind: int, frames: int) -> None:
    """Trap: reading a fixed number of frames lets a peer forge the identity of the next message."""
    server, client = pair(kind)
    long = [b"frame %d" % number for number in range(frames)]
    for _ in range(3):
        client.send_multipart(long)
        client.send(b"next")
    got: list[list[bytes]] = []
    loop.add_reader(server, got.extend)
    run(loop, until=lambda: len(got) == 6)
    identity = got[0][:1] if kind == zmq.ROUTER else []
    assert got == [[*identity, *long][:FRAMES_KEPT], [*identity, b"next"]] * 3


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER])
def test_messages_of_many_frames_do_not_hold_up_the_loop(loop: Reactor, pair: Pair, kind: int) -> None:
    """512 messages of 20 000 empty frames weigh nothing in bytes, and were 15 s of reading in one turn."""
    server, client = pair(kind)
    for _ in range(20):
        client.send_multipart([b""] * 2 * BUDGET)
    client.send(b"last")
    batches: list[int] = []
    got: list[list[bytes]] = []

    def read(messages: list[list[bytes]]) -> None:
        batches.append(len(messages))
        got.extend(messages)

    loop.add_reader(server, read)
    run(loop, until=lambda: len(got) == 21)
    assert max(batches) == 1
    assert got[-1][-1] == b"last"


def test_empty_frames_are_messages_too(loop: Reactor, pair: Pair) -> None:
    server, client = pair(zmq.DEALER)
    client.send(b"")
    client.send_multipart([b"", b""])
    got: list[list[bytes]] = []
    loop.add_reader(server, got.extend)
    run(loop, until=lambda: len(got) == 2)
    assert got == [[b""], [b"", b""]]


def test_higher_priority_is_served_first_whatever_the_order_of_registration(
    loop: Reactor, pair: Pair
) -> None:
    order: list[str] = []
    for name, priority in (("front", 0), ("back", 2), ("middle", 1), ("front2", 0)):
        server, client = pair(name=name)
        client.send(b"x")
        loop.add_reader(server, lambda messages, name=name: order.append(name), priority)
    run(loop, until=lambda: len(order) == 4)
    assert order == ["back", "middle", "front", "front2"]


def test_a_reader_may_remove_itself_and_others_within_a_turn(loop: Reactor, pair: Pair) -> None:
    first, first_client = pair(name="first")
    second, second_client = pair(name="second")
    for client in (first_client, second_client):
        client.send(b"x")
    served: list[str] = []

    def drop_both(messages: list[list[bytes]]) -> None:
        served.append("first")
        for one in (first, second):
            loop.remove_reader(one)
            one.close(0)

    loop.add_reader(first, drop_both, priority=1)
    loop.add_reader(second, lambda messages: served.append("second"))
    loop.call_later(0.05, loop.stop)
    run(loop)
    assert served == ["first"]
    assert loop.failures == 0
    loop.remove_reader(first)  # twice is no error


# -- failing handlers


def test_a_raising_handler_is_logged_and_counted_and_ends_nothing(loop: Reactor, pair: Pair) -> None:
    server, client = pair()
    for _ in range(2 * BUDGET):
        client.send(b"x")
    calls: list[int] = []
    ends: list[int] = []

    def on_batch(messages: list[list[bytes]]) -> None:
        calls.append(len(messages))
        raise RuntimeError("a defect")

    loop.add_reader(server, on_batch)
    loop.on_turn_end(lambda: ends.append(1))
    with capture_logs() as lines:
        run(loop, until=lambda: len(calls) == 2)
    assert calls == [BUDGET, BUDGET]
    assert loop.failures == 2
    assert len(ends) == loop.turns
    assert [line["event"] for line in lines] == ["handler_failed"] * 2
    assert lines[0]["handler"].endswith("on_batch")
    assert lines[0]["exc_info"]


def test_failures_of_timers_wakeups_fds_and_turn_ends_end_nothing(loop: Reactor) -> None:
    def fail() -> None:
        raise ValueError("a defect")

    ends: list[int] = []
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def fail_fd() -> None:
        os.read(reader, 1)
        fail()

    loop.add_fd(reader, fail_fd)
    loop.wakeup().notify(fail)
    loop.call_later(0, fail)
    loop.on_turn_end(fail)
    loop.on_turn_end(lambda: ends.append(1))
    with capture_logs():
        run(loop, until=lambda: loop.failures >= 4)
    assert ends
    loop.remove_fd(reader)
    os.close(reader)
    os.close(writer)


def test_a_storm_of_failures_is_counted_whole_and_logged_within_bounds(loop: Reactor) -> None:
    def fail() -> None:
        raise ValueError("a defect")

    for _ in range(1000):
        loop.wakeup().notify(fail)
    with capture_logs() as lines:
        run(loop, until=lambda: loop.failures == 1000)
    assert FAILURES_LOGGED <= len(lines) <= 3 * FAILURES_LOGGED  # it may run over the end of a second or two


# -- turn ends and timers


def test_turn_end_callbacks_run_once_per_turn_after_all_handlers_in_order(loop: Reactor, pair: Pair) -> None:
    trace: list[str] = []
    for name in ("one", "two"):
        server, client = pair(name=name)
        client.send(b"x")
        loop.add_reader(server, lambda messages: trace.append("handler"))
    loop.call_later(0, lambda: trace.append("timer"))
    loop.on_turn_end(lambda: trace.append("flush"))
    loop.on_turn_end(lambda: trace.append("after"))
    run(loop, until=lambda: trace.count("handler") == 2)
    assert trace[:5] == ["handler", "handler", "timer", "flush", "after"]
    assert trace.count("flush") == loop.turns


def test_timers_run_in_the_order_they_are_due_and_not_before(loop: Reactor) -> None:
    ran: list[tuple[str, float]] = []
    start = time.monotonic()
    for name, delay in (("late", 0.06), ("early", 0.02), ("middle", 0.04)):
        loop.call_later(delay, lambda name=name: ran.append((name, time.monotonic() - start)))
    run(loop, until=lambda: len(ran) == 3)
    assert [name for name, _ in ran] == ["early", "middle", "late"]
    assert all(at >= delay for (_, at), delay in zip(ran, (0.02, 0.04, 0.06), strict=True))


def test_a_waiting_loop_does_not_spin(loop: Reactor) -> None:
    loop.call_later(0.2, loop.stop)
    run(loop)
    assert loop.turns <= 3


def test_a_timer_that_sets_itself_anew_lets_the_turn_end(loop: Reactor) -> None:
    ends: list[int] = []
    runs: list[int] = []

    def again() -> None:
        runs.append(1)
        loop.call_later(0, again)

    again()
    loop.on_turn_end(lambda: ends.append(1))
    run(loop, until=lambda: len(ends) == 5)
    assert len(runs) <= 6


def test_a_cancelled_timer_never_runs_even_when_its_neighbour_cancels_it(loop: Reactor) -> None:
    ran: list[str] = []
    loop.call_later(0, lambda: victim.cancel())
    victim = loop.call_later(0, lambda: ran.append("victim"))
    loop.call_later(0.01, lambda: ran.append("last"))
    run(loop, until=lambda: "last" in ran)
    assert ran == ["last"]


# -- threads


def test_a_thread_wakes_a_loop_that_waits_for_nothing_else(loop: Reactor) -> None:
    wakeup = loop.wakeup()
    where: list[int] = []

    def report() -> None:
        where.append(threading.get_ident())
        loop.stop()

    thread = threading.Timer(0.05, wakeup.notify, [report])
    thread.start()
    run(loop)
    thread.join()
    assert where == [threading.get_ident()]


def test_no_notification_is_lost_between_threads_and_each_threads_order_is_kept(loop: Reactor) -> None:
    wakeup = loop.wakeup()
    per_thread, got = 3000, {number: [] for number in range(3)}  # type: dict[int, list[int]]

    def work(number: int) -> None:
        for count in range(per_thread):
            wakeup.notify(partial(got[number].append, count))
            if count % 100 == 0:
                time.sleep(0)  # let the loop go to sleep in between now and then

    threads = [threading.Thread(target=work, args=(number,)) for number in got]
    for thread in threads:
        thread.start()
    run(loop, until=lambda: sum(map(len, got.values())) == 3 * per_thread)
    for thread in threads:
        thread.join()
    assert all(counts == list(range(per_thread)) for counts in got.values())


def test_many_notifications_before_a_turn_cost_one_turn(loop: Reactor) -> None:
    ran: list[int] = []
    for number in range(1000):
        loop.wakeup().notify(lambda number=number: ran.append(number))
    run(loop, until=lambda: len(ran) == 1000)
    assert ran == list(range(1000))
    assert loop.turns == 1


def test_a_callback_that_notifies_again_does_not_hold_the_turn(loop: Reactor) -> None:
    turns: list[int] = []

    def again() -> None:
        turns.append(loop.turns)
        loop.wakeup().notify(again)

    loop.wakeup().notify(again)
    run(loop, until=lambda: len(turns) == 4)
    assert turns == [1, 2, 3, 4]


def test_stop_from_another_thread_ends_a_sleeping_loop(loop: Reactor) -> None:
    thread = threading.Timer(0.05, loop.stop)
    thread.start()
    run(loop)
    thread.join()


def test_stop_before_run_and_twice_is_stop(loop: Reactor) -> None:
    loop.stop()
    loop.stop()
    run(loop)
    assert loop.turns == 0


def test_what_the_last_turn_answered_is_flushed(loop: Reactor) -> None:
    flushed: list[bool] = []
    loop.wakeup().notify(loop.stop)
    loop.on_turn_end(lambda: flushed.append(True))
    run(loop)
    assert flushed == [True]


def test_notifying_a_closed_loop_is_harmless() -> None:
    loop = Reactor()
    wakeup = loop.wakeup()
    loop.close()
    reader, writer = os.pipe()  # these reuse the closed loop's fd numbers
    wakeup.notify(lambda: None)
    loop.stop()
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    os.close(reader)
    os.close(writer)


def test_a_closed_loop_gives_back_its_fds() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        loop = Reactor()
        loop.on_signal(signal.SIGUSR1, lambda: None)
        loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- fds


def test_an_fd_is_served_while_readable_and_not_after_removal(loop: Reactor) -> None:
    ours, theirs = sockets.socketpair()
    with ours, theirs:
        theirs.sendall(b"abc")
        got: list[bytes] = []

        def read_one() -> None:
            got.append(ours.recv(1))
            if len(got) == 2:
                loop.remove_fd(ours.fileno())
                loop.call_later(0.02, loop.stop)

        loop.add_fd(ours.fileno(), read_one)
        run(loop)
        assert got == [b"a", b"b"]
        loop.remove_fd(ours.fileno())  # twice is no error


# -- signals


def test_a_signal_runs_its_callback_on_the_loop_and_close_restores_the_handler() -> None:
    before = signal.getsignal(signal.SIGHUP), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before[1])
    loop = Reactor()
    reloads: list[int] = []
    loop.on_signal(signal.SIGHUP, lambda: reloads.append(1))
    loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        run(loop, until=lambda: bool(reloads))
    finally:
        loop.close()
    assert reloads == [1]
    after = signal.getsignal(signal.SIGHUP), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(after[1])
    assert after == before


def test_a_signal_that_arrives_before_the_loop_waits_is_not_lost() -> None:
    loop = Reactor()
    loop.stop_on_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        run(loop)
    finally:
        loop.close()


SERVER = """
import sys, zmq
from shared.reactor import Reactor
loop = Reactor()
loop.stop_on_signals()
loop.call_later(20, lambda: sys.exit(99))
loop.on_turn_end(lambda: None)
loop.wakeup().notify(lambda: print("ready", flush=True))
loop.run()
loop.close()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_sleeps_in_the_loop_ends_cleanly_on(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE_S)[0] == "stopped\n"
        assert process.returncode == 0
