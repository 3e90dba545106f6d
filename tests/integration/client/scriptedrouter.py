"""The peer of a real client on real sockets: a router that the test scripts."""

from __future__ import annotations

import threading

import zmq

from kvclient import protocol
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
        self.port = port or free_ports(1)[0]
        self._socket.bind(f"tcp://{host}:{self.port}")
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind("inproc://control")
        self._wake = self._context.socket(zmq.PAIR)
        self._wake.connect("inproc://control")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

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


def of_kind(router, kind=protocol.Kind.OPS):
    return [request for request in router.requests if request.kind == kind]


def once(verdict, kind=protocol.Kind.OPS):
    """A script that gives its verdict on the first request of a kind."""
    left = [verdict]
    return lambda request: left.pop() if left and request.kind == kind else None
