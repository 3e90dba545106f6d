"""The stores as this router reaches them: one DEALER each, with its monitor and its liveness.

Owns those sockets, the questions PING, MAP and STATUS, and who is up. Must not know requests: items go out as
the core queued them, answers go to the core as they came. A store is up when its link stands, it has said
PONG with the id that the map has for this address since the link stands, and it was not silent for SILENT_MAX
checks in a row.

Invariants:
- A store of the map has a DEALER from the end of the turn in which the map came.
- One that left the map keeps its DEALER until it has answered what it had, or is down.
- The configured endpoints are sought while no store of the map is up, so that a router which slept while the
  cluster moved away from under its map finds it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import zmq

from kvclient.errors import ProtocolError
from router import figures as figure
from router.routing import Router
from shared import logs, messages, sockets
from shared.backupmessages import BackupReply, encode_backup_request
from shared.config import ConfigError
from shared.controlmessages import ControlReply, encode_control_request
from shared.groupmessages import GroupReply, encode_group_request
from shared.messages import Item
from shared.reactor import Reactor, drain_plain
from shared.versions import SPOKEN, mismatch

CHECK_SECONDS = 1.0
SILENT_MAX = 3
GREET_EVERY = 5  # checks: stores forget a router after three times as long
# A frame that takes longer to transfer than a heartbeat timeout would cut its own link; larger single items
# travel alone.
BATCH_BYTES_MAX = 4 << 20
# Bytes of an item beside its ops, at most.
ITEM_OVERHEAD = 64
# Stores are read before the front: work in progress leaves before more comes in.
_PRIORITY = 1

_NO_VERSIONS = "the message is an array of 3, not 4"
"""What a store of the software version before says of a PING that has versions."""

_log = logs.get("backends")


class Backend:
    """One store: its sockets and what is known of its health. `node` is 0 until a map names the address."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.endpoint = endpoint
        self.node = 0
        self.linked = False
        self.up = False
        self.heard = False
        self.silent = 0
        self.broken = False
        self.hears_routers = False
        """It takes ROUTER."""
        self.terse = False
        """It runs the software version before: a PING must not say which versions this router speaks."""
        self.socket = sockets.backend_dealer(context, endpoint)
        self.monitor = sockets.monitor_events(self.socket)
        self.monitor_fd = self.monitor.socket.fileno()

    def send(self, frame: bytes) -> bool:
        """Whether the socket took it."""
        return sockets.send_or_drop(self.socket, (frame,)) is None

    def close(self) -> None:
        """Give the sockets back; the reactor must have let go of them."""
        self.monitor.close()
        self.socket.close(0)


class Backends:
    """All stores of the map, those that are leaving it, and while none of them is up the configured ones."""

    def __init__(
        self,
        reactor: Reactor,
        context: zmq.Context[zmq.Socket[bytes]],
        core: Router,
        endpoints: Iterable[str],
        hello: bytes | None = None,
    ) -> None:
        self._reactor = reactor
        self._context = context
        self._core = core
        self._counters = core.figures.counters.values
        self._seeds = tuple(endpoints)
        self._backends: dict[str, Backend] = {}  # by endpoint
        self._by_node: dict[int, Backend] = {}  # those of the map
        self._leaving: list[Backend] = []
        self._epoch = 0
        self._asked = 0
        self._hello = hello  # a ROUTER message; None: this router has no address to tell
        self._checks = 0
        self._check()

    # -- the end of a turn

    def flush(self) -> None:
        """Send what the core has for the stores."""
        core = self._core
        if core.topology.epoch != self._epoch:
            self._follow_map()
        for node, items in core.outbox_stores.items():
            if items:
                core.outbox_stores[node] = []
                self._send_items(node, items)
        for node, token in core.outbox_status:
            if node in core.outbox_stores:
                self._by_node[node].send(messages.encode_status_request(token))
        core.outbox_status.clear()
        for node, request in core.outbox_groups:
            frame = encode_group_request(request)
            if node not in core.outbox_stores or not self._by_node[node].send(frame):
                core.on_group_unsent(node, request.token)
        core.outbox_groups.clear()
        for node, command in core.outbox_control:
            frame = encode_control_request(command)
            if node not in core.outbox_stores or not self._by_node[node].send(frame):
                core.on_control_unsent(node, command.token)
        core.outbox_control.clear()
        for node, reading in core.outbox_backups:
            frame = encode_backup_request(reading)
            if node not in core.outbox_stores or not self._by_node[node].send(frame):
                core.on_backup_unsent(node, reading.token)
        core.outbox_backups.clear()
        if core.should_ask_map():
            self._ask_map()

    def _send_items(self, node: int, items: list[Item]) -> None:
        backend, epoch = self._by_node[node], self._core.topology.epoch
        for batch in cut(items):
            if not backend.send(messages.encode_batch(epoch, batch)):
                self._core.on_unsent(node, batch)

    def _ask_map(self) -> None:
        """Put the question to the store that has a newer map, or else to one linked store after the other."""
        linked = [backend for backend in self._backends.values() if backend.linked]
        if linked:
            self._asked += 1
            informant = self._by_node.get(self._core.topology.take_informant())
            asked = informant if informant in linked else linked[self._asked % len(linked)]
            asked.send(messages.encode_map_request(self._asked))

    # -- sockets

    def _open(self, endpoint: str) -> Backend:
        backend = Backend(self._context, endpoint)
        self._backends[endpoint] = backend
        self._reactor.add_reader(
            backend.socket, lambda batch: self._on_messages(backend, batch), priority=_PRIORITY
        )
        self._reactor.add_fd(backend.monitor_fd, lambda: self._on_link(backend))
        self._on_link(backend)
        return backend

    def _close(self, backend: Backend) -> None:
        self._set_up(backend, False)
        self._reactor.remove_reader(backend.socket)
        self._reactor.remove_fd(backend.monitor_fd)
        backend.close()

    def close(self) -> None:
        """Give all sockets back."""
        for backend in [*self._backends.values(), *self._leaving]:
            backend.node = 0  # that it goes down is no news any more
            self._close(backend)

    def _follow_map(self) -> None:
        """Make the sockets those of the map's nodes, keeping the links that fit."""
        known = self._core.topology.map
        assert known is not None
        self._epoch = known.epoch
        nodes = {node.rpc: node.id for node in known.nodes}
        for backend in [*self._backends.values(), *self._leaving]:
            if backend.node and nodes.get(backend.endpoint) != backend.node:
                self._part_with(backend, self._core.topology.knows(backend.node) or backend.endpoint in nodes)
        self._by_node = {}
        for endpoint, node in nodes.items():
            try:
                backend = self._backends.get(endpoint) or self._open(endpoint)
            except ConfigError as error:
                _log.warning("store_endpoint_refused", node=node, reason=str(error))
                continue
            self._by_node[node] = backend
            if backend.node != node:
                backend.node = node
                self._ping(backend)
        _log.info("map_installed", epoch=known.epoch, nodes=len(nodes))

    def _part_with(self, backend: Backend, at_once: bool) -> None:
        """The store is not at this address any more. When it, or another one, is somewhere else or here now,
        nothing can be answered by this link.
        """
        if self._backends.get(backend.endpoint) is backend:
            del self._backends[backend.endpoint]
            self._leaving.append(backend)
        if at_once:
            self._leaving.remove(backend)
            self._close(backend)

    def _let_go(self) -> None:
        for backend in list(self._leaving):
            if not backend.up or not self._core.is_with(backend.node):
                self._leaving.remove(backend)
                self._close(backend)

    def _seek(self) -> None:
        """The configured endpoints, while they are needed."""
        if not any(backend.up for backend in self._by_node.values()):
            for endpoint in self._seeds:
                if endpoint not in self._backends:
                    self._open(endpoint)
            return
        for backend in list(self._backends.values()):
            if not backend.node:
                del self._backends[backend.endpoint]
                self._close(backend)

    # -- what stores say

    def _on_messages(self, backend: Backend, batch: list[list[bytes]]) -> None:
        backend.heard |= bool(batch)
        for frames in batch:
            try:
                message = messages.decode_to_router(frames[0])
                if type(message) is messages.BatchReply:
                    self._core.on_batch_reply(backend.node, message.epoch, message.answers)
                else:
                    self._on_message(backend, message)
            except ProtocolError as error:
                self._counters[figure.STORE_FRAMES_BAD] += 1
                count = self._counters[figure.STORE_FRAMES_BAD]
                if figure.worth_logging(count):
                    _log.warning(
                        "store_frame_refused", store=backend.endpoint, reason=error.message, count=count
                    )

    def _on_message(self, backend: Backend, message: messages.ToRouter) -> None:
        match message:
            case messages.Pong():
                self._on_pong(backend, message)
            case messages.MapReply():
                self._core.on_map(message.map)
            case messages.StatusReply():
                self._core.on_status_reply(backend.node, message.token, message.figures)
            case GroupReply():
                self._core.on_group_reply(backend.node, message.token, message.status, message.body)
            case ControlReply():
                self._core.on_control_reply(backend.node, message.token, message.status, message.body)
            case BackupReply():
                self._core.on_backup_reply(backend.node, message.token, message.status, message.body)
            case messages.Fault():
                backend.terse |= message.message == _NO_VERSIONS
                raise ProtocolError(f"the store refused a frame of ours: {message.message[:200]}")

    def _on_pong(self, backend: Backend, pong: messages.Pong) -> None:
        reason = None if pong.versions is None else mismatch(pong.versions)
        if reason is not None:
            self._set_up(backend, False)
            raise ProtocolError(reason)
        self._core.on_epoch(pong.epoch, backend.node)
        if not backend.node:  # no map yet, or none that has this address
            return
        if pong.node_id != backend.node:
            self._set_up(backend, False)
            raise ProtocolError(f"node {pong.node_id} answers where the map has node {backend.node}")
        backend.hears_routers = pong.versions is not None and "router" in pong.versions
        if backend.linked:  # else it was said before the link went, and answers may be behind it
            self._set_up(backend, True)

    # -- health

    def _on_link(self, backend: Backend) -> None:
        """Read the monitor. The poller has its fd, not its socket: that saves system calls in every turn.

        The fd signals only what comes after the queue was found empty, so read until it is.
        """
        while batch := drain_plain(backend.monitor.socket.recv):
            for event in backend.monitor.events(batch):
                backend.linked = event.up
                backend.terse = False
                backend.broken = event.final
                if event.up:
                    self._ping(backend)
                else:
                    # What it said before it went must be heard first, or it counts as never said.
                    while said := drain_plain(backend.socket.recv):
                        self._on_messages(backend, said)
                    self._set_up(backend, False, event.reason)

    def _ping(self, backend: Backend) -> None:
        if backend.linked:
            backend.send(messages.encode_ping(0, None if backend.terse else SPOKEN))

    def _greet(self, backend: Backend) -> None:
        if self._hello is not None and backend.up and backend.hears_routers:
            backend.send(self._hello)

    def _check(self) -> None:
        """Ask those that said nothing or are not up; give up on the silent; start broken links afresh."""
        self._reactor.call_later(CHECK_SECONDS, self._check)  # first: whatever fails below, the checks go on
        for backend in [*self._backends.values(), *self._leaving]:
            if backend.broken:
                backend.broken = False
                sockets.reconnect(backend.socket, backend.endpoint)
            if backend.heard:
                backend.silent = 0
            else:
                backend.silent += 1
                if backend.silent >= SILENT_MAX:
                    self._set_up(backend, False, "silent")
            if not backend.heard or not backend.up:
                self._ping(backend)
            backend.heard = False
            if self._checks % GREET_EVERY == 0:
                self._greet(backend)
        self._checks += 1
        self._let_go()
        self._seek()

    def _set_up(self, backend: Backend, up: bool, reason: str = "") -> None:
        if backend.up == up or not backend.node:
            return
        backend.up = up
        if up:
            _log.info("store_up", store=backend.endpoint, node=backend.node)
            self._greet(backend)
        else:
            _log.warning("store_down", store=backend.endpoint, node=backend.node, reason=reason)
        self._core.on_backend(backend.node, up)


def cut(items: list[Item]) -> Iterable[list[Item]]:
    """The items in order, in batches of at most BATCH_BYTES_MAX; a larger item is a batch of its own."""
    size = sum(len(item.ops) + ITEM_OVERHEAD for item in items)
    if size <= BATCH_BYTES_MAX:
        return [items]
    batches: list[list[Item]] = [[]]
    size = 0
    for item in items:
        size += len(item.ops) + ITEM_OVERHEAD
        if size > BATCH_BYTES_MAX and batches[-1]:
            batches.append([])
            size = len(item.ops) + ITEM_OVERHEAD
        batches[-1].append(item)
    return batches
