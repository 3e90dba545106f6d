"""Raft's messages over PUB/SUB: one bound PUB, one SUB connected to every peer (docs/raft.md section 3).

Owns both sockets and the bus's counters. Must not know what a message means. Sends never block and may be
lost, late or cut off: Raft repairs that, here it is counted. One thread, the reactor's.

Invariants:
- What was given to `send` leaves with the next `flush`, in order per destination, in as few frames as fit.
- Frames of other clusters, of oneself, and of nodes that are no peers, are dropped and counted.
- A peer that was silent for SILENT_S is connected to afresh. libzmq gives a link up for good after a protocol
  error (a stranger listened at that address for a while), and tells only a monitor; a peer that is well and
  has nothing to say loses nothing by it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Final

from kvclient.errors import ProtocolError
from shared import logs, sockets
from shared.config import ConfigError
from shared.metrics import Counters
from shared.reactor import Reactor
from storenode import raftframes
from storenode.raft.messages import EVERYBODY, Message

PRIORITY: Final = 1
"""Read before the rpc socket, whose readers have 0: what is committed frees work before more comes in, and
heartbeats do not wait for requests.
"""

SILENT_S: Final = 10.0
"""Far beyond any heartbeat interval, so that a link with traffic is never touched; and half of how long a
stranger at a peer's address can keep it off the bus after he has left.
"""

_COUNTERS: Final = (
    "frames_sent", "bytes_sent", "frames_received", "bytes_received", "frames_bad", "frames_foreign",
    "frames_stranger", "rows_bad", "send_failed",
)  # fmt: skip
(
    FRAMES_SENT, BYTES_SENT, FRAMES_RECEIVED, BYTES_RECEIVED, FRAMES_BAD, FRAMES_FOREIGN, FRAMES_STRANGER,
    ROWS_BAD, SEND_FAILED,
) = range(9)  # fmt: skip

_log = logs.get("bus")

OnMessages = Callable[[int, list[tuple[int, Message]]], object]


class Bus:
    """The bus of one node. `listen` and the values of `peers` are endpoints; `cluster` is XXH64 of the
    cluster id; `on_messages(sender, [(group, message), ...])` gets the rows of one frame. Listens on return;
    ConfigError, ListenError.
    """

    def __init__(
        self,
        reactor: Reactor,
        context: sockets.Context,
        node: int,
        cluster: int,
        listen: str,
        peers: Mapping[int, str],
        on_messages: OnMessages,
        *,
        insecure: bool = False,
    ) -> None:
        self.counters = Counters(_COUNTERS)
        self.arrivals = raftframes.Arrivals()
        self._reactor = reactor
        self._node = node
        self._cluster = cluster
        self._on_messages = on_messages
        self._peers: dict[int, str] = {}
        self._heard: set[int] = set()
        self._outgoing = raftframes.Outgoing(node, cluster, secrets.randbits(64))
        self.send = self._outgoing.add
        self._publisher = sockets.bus_publisher(context, listen, insecure=insecure)
        topics = [raftframes.topic_bytes(topic) for topic in (node, EVERYBODY)]
        self._subscriber = sockets.bus_subscriber(context, topics)
        try:
            self.set_peers(peers)
        except BaseException:
            self._publisher.close(0)
            self._subscriber.close(0)
            raise
        reactor.add_reader(self._subscriber, self._on_frames, PRIORITY)
        self._silence = reactor.call_later(SILENT_S, self._look_for_silence)

    @property
    def endpoint(self) -> str:
        """Where it listens, with the port that the kernel chose for port 0."""
        return sockets.bound_endpoint(self._publisher)

    def figures(self) -> dict[str, int]:
        """Counts since the start. Lost frames are those that were missing between two that came."""
        arrivals = self.arrivals
        return {
            **self.counters.snapshot(),
            "frames_lost": arrivals.lost,
            "frames_late": arrivals.late,
            "peer_restarts": arrivals.restarts,
        }

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Hear exactly these nodes, oneself left out. Links whose node and address stay are not touched.
        ConfigError: the address of one is none; the others are heard.
        """
        wanted = {node: endpoint for node, endpoint in peers.items() if node != self._node}
        for node, endpoint in list(self._peers.items()):
            if wanted.get(node) != endpoint:
                del self._peers[node]
                self.arrivals.forget(node)
                sockets.disconnect(self._subscriber, endpoint)
        refused: ConfigError | None = None
        for node, endpoint in wanted.items():
            if node not in self._peers:
                try:
                    sockets.connect(self._subscriber, endpoint)
                except ConfigError as error:
                    refused = error
                    continue
                self._peers[node] = endpoint
                self._heard.add(node)  # its time begins now
        if refused is not None:
            raise refused

    def flush(self) -> None:
        """Send what waits; call at the end of each turn."""
        frames = self._outgoing.take()
        if not frames:
            return
        counted = self.counters.values
        for frame in frames:
            # PUB takes everything; "full" would be a defect of the options, and is no reason to stop a turn.
            if sockets.send_or_drop(self._publisher, (frame,)) is None:
                counted[FRAMES_SENT] += 1
                counted[BYTES_SENT] += len(frame)
            else:
                counted[SEND_FAILED] += 1

    def close(self) -> None:
        """Stop listening and hearing; what waits is dropped."""
        self._silence.cancel()
        self._reactor.remove_reader(self._subscriber)
        self._subscriber.close(0)
        self._publisher.close(0)

    def _on_frames(self, batch: list[list[bytes]]) -> None:
        counted = self.counters.values
        for message in batch:
            frame = message[0]
            counted[FRAMES_RECEIVED] += 1
            counted[BYTES_RECEIVED] += len(frame)
            try:
                if len(message) != 1:
                    raise ProtocolError("a frame of the bus is a message of one part")
                incoming = raftframes.decode(frame, self._cluster)
            except raftframes.ForeignCluster as error:
                self._refused(FRAMES_FOREIGN, error)
                continue
            except ProtocolError as error:
                self._refused(FRAMES_BAD, error)
                continue
            if incoming.sender in self._peers:
                self._take(incoming)
            else:
                self._refused(FRAMES_STRANGER, ProtocolError(f"node {incoming.sender} is no peer"))

    def _take(self, incoming: raftframes.Incoming) -> None:
        self._heard.add(incoming.sender)
        self.arrivals.note(incoming)
        if incoming.rows_dropped:
            count = f"{incoming.rows_dropped} rows of node {incoming.sender} are none"
            self._refused(ROWS_BAD, ProtocolError(count), incoming.rows_dropped)
        if incoming.rows:
            self._on_messages(incoming.sender, incoming.rows)

    def _refused(self, counter: int, error: ProtocolError, amount: int = 1) -> None:
        """Counts, and logs whenever the count has passed a power of two: peers can cause it at will."""
        before = self.counters.values[counter]
        after = self.counters.values[counter] = before + amount
        if before.bit_length() != after.bit_length():
            _log.warning("bus_" + _COUNTERS[counter], reason=error.message, count=after)

    def _look_for_silence(self) -> None:
        self._silence = self._reactor.call_later(SILENT_S, self._look_for_silence)
        for node in self._peers.keys() - self._heard:
            sockets.reconnect(self._subscriber, self._peers[node])
        self._heard.clear()
