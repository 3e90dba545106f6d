"""The yardstick of `path`: client -> router -> store -> router -> client with nothing but pyzmq.

Each peer drains its sockets and forwards frame for frame; nobody decodes, batches or tracks anything. Run as
processes, `bare_echo.py store RESPONSE_BYTES` and `bare_echo.py router STORE_ENDPOINT`; each prints the
endpoint it listens on.
"""

from __future__ import annotations

import sys
import time

import zmq


def drain(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    messages = []
    try:
        while len(messages) < 512:
            messages.append(socket.recv_multipart(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return messages


def listen(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind("tcp://127.0.0.1:*")
    print(socket.getsockopt(zmq.LAST_ENDPOINT).decode(), flush=True)
    return socket


def serve_store(response: bytes) -> None:
    socket = listen(zmq.Context())
    while True:
        socket.poll()
        for router, client, _request in drain(socket):
            socket.send_multipart((router, client, response), zmq.NOBLOCK)


def serve_router(store: str) -> None:
    context = zmq.Context()
    front = listen(context)
    back = context.socket(zmq.DEALER)
    back.setsockopt(zmq.SNDHWM, 0)
    back.setsockopt(zmq.RCVHWM, 0)
    back.connect(store)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        for socket, _event in poller.poll():
            out = back if socket is front else front
            for message in drain(socket):
                out.send_multipart(message, zmq.NOBLOCK)


def drive(router: str, request: bytes, in_flight: int, seconds: float) -> float:
    """Round trips per second with `in_flight` requests under way."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(router)
    for _ in range(in_flight):
        socket.send(request)
    done = 0
    begin = now = time.perf_counter()
    while now < begin + seconds:
        socket.poll()
        answered = len(drain(socket))
        for _ in range(answered):
            socket.send(request, zmq.NOBLOCK)
        done += answered
        now = time.perf_counter()
    context.destroy(linger=0)
    return done / (now - begin)


if __name__ == "__main__":
    role, argument = sys.argv[1], sys.argv[2]
    if role == "store":
        serve_store(bytes(int(argument)))
    else:
        serve_router(argument)
