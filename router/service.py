"""The router's shell: the front socket, the timer, and the end of each turn. Decides nothing about requests.

Stopping: SIGTERM or SIGINT ends reading; what is under way is answered, for at most STOP_SECONDS, then the
loop ends.
"""

from __future__ import annotations

import signal
from importlib import metadata
from math import inf
from random import Random

import zmq

from kvclient.protocol import REQUEST_BYTES_MAX
from router import figures as figure
from router.backends import Backends
from router.config import RouterConfig
from router.events import Events
from router.requests import Budget
from router.routing import Router
from shared import logs, process, sockets
from shared.clock import Clock, SystemClock
from shared.fields import connectable
from shared.memory import Trimmer, settle
from shared.messages import encode_router_hello
from shared.opstream import Limits
from shared.reactor import Reactor
from shared.security import Guard, open_guard
from shared.timers import Timer
from shared.units import Endpoint

# Requests under way at SIGTERM have this long; most supervisors wait 10 s before they kill.
STOP_SECONDS = 3.0
# The last responses may take this long to leave the socket's queues.
LINGER_MS = 500
# Turns are at most a second apart (backends.CHECK_SECONDS); this long without one, the process was stopped or
# starved.
STALL_SECONDS = 2.0

_log = logs.get("router")


class Service:
    """One running router. Made, run and closed by one thread."""

    def __init__(
        self,
        config: RouterConfig,
        context: zmq.Context[zmq.Socket[bytes]],
        reactor: Reactor,
        guard: Guard | None = None,
    ) -> None:
        self._reactor = reactor
        self._clock: Clock = SystemClock()
        self.core = Router(
            name=config.router.name,
            version=metadata.version("ringkv"),
            seeds=config.stores,
            limits=Limits(config.limits.value_bytes),
            budget=Budget(config.limits.in_flight, config.limits.in_flight_bytes),
            clock=self._clock,
            random=Random(),
            certificate=None if guard is None else guard.certificate,
        )
        self._front = sockets.front_router(
            context,
            config.router.listen,
            request_bytes_max=REQUEST_BYTES_MAX,
            in_flight=config.limits.in_flight,
            insecure=config.insecure,
        )
        self.core.figures.process = process.figures
        self._backends = Backends(reactor, context, self.core, config.stores, self._hello(config))
        self._events = Events(reactor, context, self.core)
        self._stopping = False
        self._timer: Timer | None = None
        self._timer_due = inf
        self._awake_at = self._clock.monotonic()
        if guard is None:
            reactor.add_reader(self._front, self._on_requests)
        else:
            reactor.add_named_reader(self._front, self._on_named_requests)
        reactor.on_turn_end(self._end_turn)

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return sockets.bound_endpoint(self._front)

    def _hello(self, config: RouterConfig) -> bytes | None:
        """What stores are told, for whoever looks for routers; None: nobody could connect to any address
        that this router knows of itself.
        """
        router = config.router
        for front in (router.advertise, router.listen, self.endpoint):
            if front.startswith("tcp://") and connectable(Endpoint(front)):
                return encode_router_hello(router.name, front)
        return None

    def stop(self) -> None:
        """Take no more requests; end the loop when those under way are answered."""
        if not self._stopping:
            self._stopping = True
            self._reactor.remove_reader(self._front)
            self._reactor.call_later(STOP_SECONDS, self._reactor.stop)

    def close(self) -> None:
        """Give the sockets back."""
        self._events.close()
        self._backends.close()
        self._front.close(LINGER_MS)

    def _on_requests(self, messages: list[list[bytes]]) -> None:
        self._notice_stall()
        self.core.on_requests(messages)

    def _on_named_requests(self, messages: list[list[bytes]], names: list[str]) -> None:
        self._notice_stall()
        self.core.on_named_requests(messages, names)

    def _notice_stall(self) -> None:
        now = self._clock.monotonic()
        if now - self._awake_at > STALL_SECONDS:
            _log.warning("stalled", seconds=round(now - self._awake_at, 3))
            self.core.on_stall()
        self._awake_at = now

    def _end_turn(self) -> None:
        self._notice_stall()
        self._backends.flush()
        self._events.follow()
        self._send_responses()
        if self._stopping and not self.core.busy:
            self._reactor.stop()
        due = self.core.next_due()
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._reactor.call_later(max(0.0, due - self._clock.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_due = inf
        self.core.on_tick(self._clock.monotonic())

    def _send_responses(self) -> None:
        outbox = self.core.outbox_clients
        front, send = self._front, sockets.send_or_drop
        for response in outbox:
            dropped = send(front, response)
            if dropped is not None:
                index = figure.RESPONSES_CLIENT_FULL if dropped == "full" else figure.RESPONSES_CLIENT_GONE
                self.core.figures.counters.values[index] += 1
        if self.core.gate is not None:
            for client, _ in outbox:
                self.core.gate.answered(client)
        outbox.clear()


def run(config: RouterConfig) -> None:
    """Run a router until SIGTERM or SIGINT. ConfigError or sockets.ListenError when it cannot start."""
    logs.configure(config.log.level, config.log.format, router=config.router.name)
    guard = open_guard(config.security, config.router.name, "router")
    context = sockets.context()
    reactor = Reactor()
    try:
        if guard is not None:
            sockets.secure(context, guard).watch(reactor)
        service = Service(config, context, reactor, guard)
        for number in (signal.SIGTERM, signal.SIGINT):
            reactor.on_signal(number, service.stop)
        _log.info("router_started", listen=service.endpoint, stores=list(config.stores))
        Trimmer(reactor.call_later)
        settle()
        reactor.run()
        service.close()
        _log.info("router_stopped", **service.core.figures.snapshot())
    finally:
        reactor.close()
        context.destroy(0)
