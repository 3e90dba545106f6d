"""News between stores, and for whoever else listens: cluster maps and reports over PUB/SUB (docs/control.md
section 3).

Owns both sockets and their counters. Must not know what follows from a map or a report: of a report it reads
the heading, of a map nothing. Sends never block; what is lost is said again a second later. One thread, the
reactor's.

Invariants:
- A message is one frame, `topic`, a zero byte, payload: libzmq 4.3.5 aborts the publisher's process when a
  subscriber leaves while the second frame of a message waits for it (fq.cpp asserts !_more).
- Reports of other clusters, of oneself, and of nodes that are no peers, are dropped and counted.
- A peer whose reports are missing for SILENT_S is connected to afresh, for the reason that bus.py tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvclient.errors import ProtocolError
from shared import logs, sockets
from shared.config import ConfigError
from shared.messages import FIGURES_TOPIC, MAP_TOPIC
from shared.metrics import Counters
from shared.reactor import Reactor
from shared.security import EVENTS
from storenode.control.reports import Heading, decode_heading

REPORT_TOPIC: Final = b"report\0"

FRAME_BYTES_MAX: Final = 1 << 20
"""Twice the report of a store that holds every partition; a map is smaller."""

SILENT_S: Final = 10.0
"""Ten reports."""

_COUNTERS: Final = (
    "maps_sent", "reports_sent", "send_failed", "maps_received", "reports_received", "bytes_received",
    "frames_bad", "reports_foreign", "reports_stranger", "figures_sent",
)  # fmt: skip
(
    MAPS_SENT, REPORTS_SENT, SEND_FAILED, MAPS_RECEIVED, REPORTS_RECEIVED, BYTES_RECEIVED, FRAMES_BAD,
    REPORTS_FOREIGN, REPORTS_STRANGER, FIGURES_SENT,
) = range(10)  # fmt: skip

_log = logs.get("events")

OnMap = Callable[[bytes], object]
"""Gets an encoded map of nobody knows whom; ProtocolError: it is none."""
OnReport = Callable[[Heading, bytes], object]
"""Gets a peer's report, of which the heading is sound; ProtocolError: the rest is not."""


class Events:
    """Those of one node. `cluster` is XXH64 of the cluster id. Listens on return, hears nobody before
    `set_peers`; ConfigError, ListenError.
    """

    def __init__(
        self,
        reactor: Reactor,
        context: sockets.Context,
        node: int,
        cluster: int,
        listen: str,
        on_map: OnMap,
        on_report: OnReport,
        *,
        insecure: bool = False,
    ) -> None:
        self.counters = Counters(_COUNTERS)
        self._reactor = reactor
        self._node = node
        self._cluster = cluster
        self._on_map = on_map
        self._on_report = on_report
        self._peers: dict[int, str] = {}
        self._heard: set[int] = set()
        self._publisher = sockets.bus_publisher(context, listen, insecure=insecure, domain=EVENTS)
        self._subscriber = sockets.bus_subscriber(context, (MAP_TOPIC, REPORT_TOPIC))
        reactor.add_reader(self._subscriber, self._on_frames)
        self._silence = reactor.call_later(SILENT_S, self._look_for_silence)

    @property
    def endpoint(self) -> str:
        """Where it listens, with the port that the kernel chose for port 0."""
        return sockets.bound_endpoint(self._publisher)

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Hear exactly these nodes, oneself left out. Links whose node and address stay are not touched.
        ConfigError: the address of one is none; the others are heard.
        """
        wanted = {node: endpoint for node, endpoint in peers.items() if node != self._node}
        for node, endpoint in list(self._peers.items()):
            if wanted.get(node) != endpoint:
                del self._peers[node]
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

    def say_map(self, encoded: bytes) -> None:
        """Tell everybody who listens."""
        self._say(MAP_TOPIC + encoded, MAPS_SENT)

    def say_report(self, encoded: bytes) -> None:
        """Tell everybody who listens."""
        self._say(REPORT_TOPIC + encoded, REPORTS_SENT)

    def say_figures(self, encoded: bytes) -> None:
        """Tell everybody who listens."""
        self._say(FIGURES_TOPIC + encoded, FIGURES_SENT)

    def close(self) -> None:
        """Stop listening and hearing; what waits is dropped."""
        self._silence.cancel()
        self._reactor.remove_reader(self._subscriber)
        self._subscriber.close(0)
        self._publisher.close(0)

    def _say(self, frame: bytes, counter: int) -> None:
        dropped = sockets.send_or_drop(self._publisher, (frame,))
        self.counters.values[counter if dropped is None else SEND_FAILED] += 1

    def _on_frames(self, batch: list[list[bytes]]) -> None:
        counted = self.counters.values
        for message in batch:
            frame = message[0]
            counted[BYTES_RECEIVED] += len(frame)
            try:
                if len(message) != 1 or len(frame) > FRAME_BYTES_MAX:
                    raise ProtocolError(f"an event is one frame of at most {FRAME_BYTES_MAX:,} bytes")
                self._take(frame)
            except ProtocolError as error:
                self._refused(FRAMES_BAD, error.message)
            except Exception as error:  # noqa: BLE001 - the others of this batch have their turn
                self._refused(FRAMES_BAD, f"{type(error).__name__}: {error}")

    def _take(self, frame: bytes) -> None:
        if frame.startswith(REPORT_TOPIC):
            self._take_report(frame[len(REPORT_TOPIC) :])
        elif frame.startswith(MAP_TOPIC):
            self._on_map(frame[len(MAP_TOPIC) :])
            self.counters.values[MAPS_RECEIVED] += 1
        else:
            raise ProtocolError("an event of another topic")

    def _take_report(self, payload: bytes) -> None:
        heading = decode_heading(payload)
        if heading.cluster != self._cluster:
            self._refused(REPORTS_FOREIGN, f"node {heading.node} is of another cluster")
        elif heading.node not in self._peers:
            self._refused(REPORTS_STRANGER, f"node {heading.node} is no peer")
        else:
            self._heard.add(heading.node)
            self._on_report(heading, payload)
            self.counters.values[REPORTS_RECEIVED] += 1

    def _refused(self, counter: int, reason: str) -> None:
        """Counts, and logs whenever the count has passed a power of two: peers can cause it at will."""
        count = self.counters.values[counter] = self.counters.values[counter] + 1
        if count.bit_count() == 1:
            _log.warning("events_" + _COUNTERS[counter], reason=reason[:200], count=count)

    def _look_for_silence(self) -> None:
        self._silence = self._reactor.call_later(SILENT_S, self._look_for_silence)
        for node in self._peers.keys() - self._heard:
            sockets.reconnect(self._subscriber, self._peers[node])
        self._heard.clear()
