"""What a store answers to routers, across stops and kills."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
import zmq

from kvclient import protocol
from kvclient.errors import Status
from shared import messages, reactor
from shared.clustermap import ClusterMap
from shared.hashing import partition_of
from shared.messages import BatchReply, Fault, MapReply, Pong
from tests.integration.store.storeprocess import (
    BITS,
    CLIENT,
    DEADLINE_S,
    Start,
    configuration,
    first_result,
    get,
    item,
    kernel_bytes,
    put,
)
from tests.ports import free_ports


def test_writes_and_reads_of_many_partitions_in_one_batch(start: Start) -> None:
    store = start()
    keys = [b"key%d" % number for number in range(200)]
    written = store.batch([put(token, key, b"value of " + key) for token, key in enumerate(keys)])
    assert {answer.status for answer in written.values()} == {Status.OK}
    read = store.batch([get(token, key) for token, key in enumerate(keys)])
    assert [first_result(read[token])[1] for token in range(200)] == [b"value of " + key for key in keys]


def test_map_status_and_ping(start: Start) -> None:
    store = start()
    store.socket.send(messages.encode_map_request(5))
    reply = store.receive()
    assert isinstance(reply, MapReply)
    cluster_map = ClusterMap.decode(reply.map)
    assert (reply.token, cluster_map.name, cluster_map.partition_count) == (5, "test", 16)
    store.socket.send(messages.encode_ping(6))
    assert store.receive() == Pong(6, 1, 1)
    store.batch([put(1, b"k", b"v"), get(2, b"k")])
    figures = store.status()
    assert figures["pid"] == store.process.pid
    assert figures["name"] == "store1"
    assert list(figures["partitions"]) == list(range(16))
    assert figures["requests"]["reads"] == 1
    assert figures["requests"]["writes"] == 1
    assert figures["answers"] == {"ok": 2}
    assert figures["memory_bytes"] < 100 << 20
    assert figures["disk_free_bytes"] > 0
    assert figures["failed"] == {}
    assert figures["log"]["syncs"] == figures["log_write_time"]["count"] > 0


def test_each_item_has_its_own_error(start: Start) -> None:
    store = start("--set", "limits.value_bytes=1KiB")
    answers = store.batch(
        [
            put(0, b"k", b"v"),
            put(1, b"k", bytes(1025)),
            item(2, b"\xc1 not an op", b"k"),
            item(3, b"", b"k"),
            item(4, protocol.encode_get(b"k"), b"k", timeout_ms=0),
            put(5, b"k", b"v", timeout_ms=0),
            item(6, protocol.encode_get(b"k"), b"k", partition=16),
            item(7, b"\x92\x0a\xc4\x01k", b"k"),
            get(8, b"k"),
            item(9, b"\x93\x09\xc4\x01a\xc4\x01z", b"a"),  # an engine's DELETE_RANGE
            get(10, b"k"),
        ]
    )
    assert [answers[token].status for token in range(11)] == [
        Status.OK,
        Status.VALUE_TOO_LARGE,
        Status.INVALID_REQUEST,
        Status.INVALID_REQUEST,
        Status.TIMEOUT,
        Status.TIMEOUT,
        Status.WRONG_REPLICA,
        Status.UNSUPPORTED,
        Status.OK,
        Status.UNSUPPORTED,
        Status.OK,
    ]
    details = protocol.decode_error(answers[1].body)
    assert (details["limit"], details["size"], details["index"]) == (1024, 1025, 0)
    assert "partition 16 is not on this store" in protocol.decode_error(answers[6].body)["message"]


def test_only_the_partitions_of_the_map_are_served(start: Start, tmp_path: Path) -> None:
    nodes = [
        {"id": number, "name": f"store{number}", "rpc": f"tcp://127.0.0.1:{port}"}
        for number, port in enumerate(free_ports(6)[::3], 1)
    ]
    store, other = (
        start(
            connect=False,
            node={"id": node["id"], "name": node["name"]},
            listen={"rpc": node["rpc"]},
            data={"dir": str(tmp_path / f"data{node['id']}")},
            cluster={"name": "two", "partitions": 16, "replicas": 1, "nodes": nodes},
        )
        for node in nodes
    )
    store.connect()
    other.connect()  # they have asked each other whether anybody was there before
    mine = set(store.status()["partitions"])
    assert 0 < len(mine) < 16
    assert set(other.status()["partitions"]) == set(range(16)) - mine
    answers = store.batch(
        [item(number, protocol.encode_get(b"k"), b"k", partition=number) for number in range(16)]
    )
    served = {number for number, answer in answers.items() if answer.status == Status.OK}
    assert served == mine
    assert {answers[number].status for number in set(range(16)) - mine} == {Status.WRONG_REPLICA}


def test_a_barrier_commits_an_empty_entry(start: Start) -> None:
    store = start()
    partition = str(partition_of(b"k", BITS))
    assert first_result(store.one(protocol.encode_put(b"k", b"v"), b"k"))[0] == 0  # it leads
    before = store.status()["groups"][partition]["applied"]
    answer = store.one(b"", b"k", flags=protocol.FLAG_BARRIER, client_id=CLIENT, sequence=1)
    assert (answer.status, answer.body) == (Status.OK, b"")
    assert store.status()["groups"][partition]["applied"] == before + 1
    assert first_result(store.one(protocol.encode_put(b"k", b"v"), b"k"))[0] == 0


def test_a_write_that_is_sent_again_is_applied_once(start: Start) -> None:
    store = start()
    session = {"client_id": CLIENT, "sequence": 1}
    ops = protocol.encode_increment(b"n", 1)
    both = store.batch([item(1, ops, b"n", **session), item(2, ops, b"n", flags=1, **session)])
    assert both[1].body == both[2].body
    assert store.one(ops, b"n", flags=1, **session).body == both[1].body
    assert first_result(store.one(protocol.encode_get(b"n"), b"n"))[1] == b"1"


def test_what_was_acknowledged_survives_kill_9(start: Start) -> None:
    store = start()
    tokens = iter(range(1_000_000))
    acknowledged: set[int] = set()
    sent: dict[int, bytes] = {}

    def send() -> None:
        items = []
        for _ in range(200):
            token = next(tokens)
            sent[token] = b"key%d" % token
            items.append(put(token, sent[token], b"value%d" % token))
        store.socket.send(messages.encode_batch(1, items))

    send()
    deadline = time.monotonic() + DEADLINE_S
    while len(acknowledged) < 3000:
        assert time.monotonic() < deadline
        send()
        reply = store.receive()
        assert isinstance(reply, BatchReply)
        assert {answer.status for answer in reply.answers} == {Status.OK}
        acknowledged |= {answer.token for answer in reply.answers}
    send()  # what is under way when it dies may be there or not
    store.process.kill()
    store.process.wait()

    again = start()
    read = again.batch([get(token, sent[token]) for token in acknowledged])
    lost = [token for token in acknowledged if first_result(read[token])[:2] != [0, b"value%d" % token]]
    assert not lost


def test_after_a_restart_a_retry_is_answered_as_the_first_attempt_was(start: Start) -> None:
    """The sessions are in the log and in the tables with the data."""
    ops = protocol.encode_increment(b"n", 1)
    store = start()
    first = store.one(ops, b"n", client_id=CLIENT, sequence=1)
    store.process.kill()
    store.process.wait()
    again = start()
    assert again.one(ops, b"n", client_id=CLIENT, sequence=1, flags=protocol.FLAG_RETRY) == first
    never_seen = again.one(ops, b"n", client_id=CLIENT, sequence=2, flags=protocol.FLAG_RETRY)
    assert first_result(never_seen)[1] == 2, "it certainly never ran"
    acknowledged = again.one(
        ops, b"n", client_id=CLIENT, sequence=1, acked_below=3, flags=protocol.FLAG_RETRY
    )
    assert acknowledged.status == Status.OK, "its results are still there"
    third = again.one(ops, b"n", client_id=CLIENT, sequence=3, acked_below=3)
    assert first_result(third)[1] == 3
    gone = again.one(ops, b"n", client_id=CLIENT, sequence=1, flags=protocol.FLAG_RETRY)
    assert gone.status == Status.OUTCOME_UNKNOWN, "the client has its answer, says the entry before"
    assert "retry_after_ms" not in protocol.decode_error(gone.body), "that is the table's own verdict"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_it_took_and_exits_cleanly(start: Start, number: signal.Signals) -> None:
    store = start()
    store.said("controller")
    store.batch([put(0, b"first", b"v")])
    for token in range(1, 301):
        store.socket.send(messages.encode_batch(1, [put(token, b"key%d" % token, b"v")]))
    begin = time.monotonic()
    assert store.stop(number) == 0
    assert time.monotonic() - begin < 5
    events = [event["event"] for event in store.events()]
    assert events == ["listening", "control_state_founded", "controller", "stopped"]
    acknowledged = set()
    while store.socket.poll(200):
        reply = messages.decode_to_router(store.socket.recv())
        assert isinstance(reply, BatchReply)
        assert {answer.status for answer in reply.answers} <= {Status.OK, Status.UNAVAILABLE}
        acknowledged |= {answer.token for answer in reply.answers if answer.status == Status.OK}
    again = start()
    read = again.batch([get(token, b"key%d" % token) for token in range(1, 301)])
    present = {token for token, answer in read.items() if first_result(answer)[0] == 0}
    assert present == acknowledged


def test_a_stop_refuses_the_writes_that_it_has_not_read_and_serves_the_reads(start: Start) -> None:
    """Unanswered, they were OUTCOME_UNKNOWN to their clients, though nothing had happened to them."""
    store = start()
    store.batch([put(0, b"k", b"v")])
    store.freeze()
    sent = 0
    for token in range(1, 1001):
        frame = messages.encode_batch(1, [put(token, b"new%d" % token, b"v"), get(100_000 + token, b"k")])
        store.socket.send(frame)
        sent += len(frame)
    deadline = time.monotonic() + DEADLINE_S
    while kernel_bytes(store.port) < sent:
        assert time.monotonic() < deadline, "the messages do not leave the sender"
        time.sleep(0.02)
    store.process.send_signal(signal.SIGTERM)
    store.process.send_signal(signal.SIGCONT)
    answers = store.answers(2000)
    assert store.process.wait(DEADLINE_S) == 0
    assert {answers[100_000 + token].status for token in range(1, 1001)} == {Status.OK}
    # What the turn that was stopped still read is written; the next one sees the signal first.
    statuses = [answers[token].status for token in range(1, 1001)]
    assert set(statuses) <= {Status.OK, Status.UNAVAILABLE}
    assert statuses.count(Status.OK) <= reactor.BUDGET
    again = start()
    read = again.batch([get(token, b"new%d" % token) for token in range(1, 1001)])
    there = {token for token, answer in read.items() if first_result(answer)[0] == Status.OK}
    assert there == {token for token in range(1, 1001) if answers[token].status == Status.OK}


def test_a_log_that_cannot_be_written_stops_no_store(tmp_path: Path) -> None:
    """Its own log on the disk that is full: saying so ended the process."""
    path = tmp_path / "store.yaml"
    port = free_ports(3)[0]
    path.write_text(yaml.safe_dump(configuration(tmp_path, listen={"rpc": f"tcp://127.0.0.1:{port}"})))
    command = [sys.executable, "-m", "storenode", "--config", str(path)]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stderr=full, stdin=subprocess.DEVNULL)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(messages.encode_ping(1))
        assert dealer.poll(int(DEADLINE_S * 1000))
        assert messages.decode_to_router(dealer.recv()) == Pong(1, 1, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        context.destroy(linger=0)


def test_noop_answers_results_of_the_right_shape_and_touches_no_disk(start: Start, tmp_path: Path) -> None:
    store = start("--noop")
    ops = protocol.encode_put(b"k", b"v") + protocol.encode_get(b"k") + protocol.encode_increment(b"n", 5)
    answer = store.one(ops, b"k", client_id=CLIENT, sequence=1)
    assert [len(result) for result in protocol.decode_results(answer.body)] == [2, 3, 3]
    assert first_result(store.one(protocol.encode_get(b"k"), b"k"))[0] == 0
    assert not (tmp_path / "data").exists()
    assert store.stop() == 0


def test_frames_that_are_no_messages_get_a_fault(start: Start) -> None:
    store = start()
    for frame in (b"", b"\xc1", b"hello", messages.encode_pong(1, 1, 1)):
        store.socket.send(frame)
        assert isinstance(store.receive(), Fault)
    store.socket.send_multipart([messages.encode_ping(1), b"second frame"])
    assert isinstance(store.receive(), Fault)
    store.socket.send(messages.encode_fault("I did not understand you"))
    store.socket.send(messages.encode_ping(7))
    assert store.receive() == Pong(7, 1, 1), "a FAULT is not answered with a FAULT"
    counted = store.status()["requests"]
    assert (counted["faults_sent"], counted["faults_received"]) == (5, 1)


def test_mutated_frames_leave_the_store_correct_and_small(start: Start) -> None:
    store = start()
    store.batch([put(0, b"untouched", b"value")])
    seed = random.getrandbits(32)
    print(f"replay with seed {seed}")
    dice = random.Random(seed)
    ops = [
        protocol.encode_get(b"k"),
        protocol.encode_put(b"k", bytes(50)),
        protocol.encode_scan(b"", None, 10),
    ]
    valid = [messages.encode_batch(1, [item(1, op, b"k", client_id=CLIENT, sequence=0)]) for op in ops]
    valid += [messages.encode_map_request(1), messages.encode_ping(1)]

    def flood(frames: int) -> int:
        answers = 0
        for _ in range(frames):
            frame = bytearray(dice.choice(valid))
            for _ in range(dice.randint(1, 4)):
                frame[dice.randrange(len(frame))] = dice.randrange(256)
            store.socket.send(bytes(frame[: dice.randint(0, len(frame))] if dice.random() < 0.3 else frame))
            while store.socket.poll(0):
                store.socket.recv()
                answers += 1
        while store.socket.poll(300):
            store.socket.recv()
            answers += 1
        return answers

    flood(5_000)
    before = store.status()["memory_bytes"]
    assert flood(30_000) > 20_000
    assert store.status()["memory_bytes"] - before < 8 << 20
    assert store.status()["requests"]["defects"] == 0
    assert first_result(store.one(protocol.encode_get(b"untouched"), b"untouched"))[1] == b"value"
