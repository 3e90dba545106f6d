"""The life of a part: towards its leader, refused, lost, late, and in the end served or not.

Owns the decision what happens next to a part. Must not know request frames or sockets. `now` is handed in,
monotonic seconds.

Invariants:
- A live part is tracked in `flight`, and is exactly one of: with a store, parked until something changes,
  waiting for its next attempt.
- The bytes of a request are given back to the budget exactly when it is answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from kvclient.errors import ProtocolError, Status
from kvclient.protocol import Kind, decode_error, encode_error, encode_response
from router import figures as figure
from router.figures import Figures
from router.flight import NOT_SENT, Flight, Part, Refusal
from router.responses import Responses
from router.retries import (
    HOPS_MAX,
    RETRYABLE,
    asks_again,
    delay_seconds,
    final,
    give_up,
    outcome_unknown,
    prepare_resend,
    reads_anywhere,
)
from router.scatter import Gather, Response, refusal_results
from router.topology import Topology
from shared.messages import Item

make_tuple = tuple.__new__  # the cheapest way to a NamedTuple


class Dispatch:
    """What happens to parts."""

    def __init__(
        self, topology: Topology, flight: Flight, responses: Responses, figures: Figures, random: Random
    ) -> None:
        self._topology = topology
        self._flight = flight
        self._responses = responses
        self._figures = figures
        self._counters = figures.counters.values
        self._random = random

    # -- on the way to a store

    def place(self, part: Part, now: float) -> None:
        """A part that is with nobody: towards its leader, or parked until one can be reached."""
        self._flight.track(part)
        self._send_or_park(part, now)

    def place_parked(self, now: float) -> None:
        """Something changed: look again at the parts that could not be sent."""
        for part in self._flight.take_parked():
            self._send_or_park(part, now)

    def place_due(self, now: float) -> None:
        """The next attempts of parts whose pause is over."""
        for part in self._flight.due_retries(now):
            self._send_or_park(part, now)

    def _send_or_park(self, part: Part, now: float) -> None:
        item, topology = part.item, self._topology
        if reads_anywhere(part):
            node = topology.any_replica(item.partition)
        else:
            node = topology.reachable_leader(item.partition)
        if node == NOT_SENT:
            part.refusal = None  # that nobody is there says more than what somebody said before
            self._flight.park(part)
            return
        left = max(1, round((part.deadline - now) * 1000))  # the sweep, not a store, ends what is late
        part.item = make_tuple(Item, (part.token, item[1], left, *item[3:]))
        part.node = node
        topology.queues[node].append(part.item)

    # -- what may go wrong; the part is not tracked when these are called

    def refused(self, part: Part, status: int, body: bytes, now: float) -> None:
        """The store that had the part answered that it was not served."""
        refusal = _decode_refusal(status, body)
        if status not in RETRYABLE:
            if asks_again(part, refusal):
                self._topology.not_leading(part.item.partition, part.node)
                self._try_later(part, refusal, now)
            else:
                self._finish(part, final(part, refusal), now)
            return
        if status == Status.WRONG_REPLICA:
            self._topology.suspect(now)
            self._topology.not_leading(part.item.partition, part.node)
        elif status == Status.NOT_LEADER and self._hop(part, refusal, now):
            return
        self._try_later(part, refusal, now)

    def _hop(self, part: Part, refusal: Refusal, now: float) -> bool:
        """Go at once to the node that is known to lead; False if none is, or enough such turns were in vain.

        Then what the store names is not followed but the next replica asked: two stores that name each other
        must not keep the third from being found.
        """
        at_once = part.hops < HOPS_MAX and now < part.deadline
        named = refusal.leader if at_once else NOT_SENT
        if named != NOT_SENT and not self._topology.knows(named):
            self._topology.suspect(now, part.node)
        known = self._topology.not_leading(part.item.partition, part.node, named)
        if not (known and at_once):
            return False
        self._counters[figure.PARTS_REDIRECTED] += 1
        part.hops += 1
        part.refusal = refusal
        self.place(part, now)
        return True

    def unsent(self, node: int, items: Iterable[Item], now: float) -> None:
        """Nobody has these items: the socket did not take them, or the node went down before that."""
        reason = f"the link to {self._topology.describe(node)} takes nothing"
        for item in items:
            part = self._flight.parts.pop(item.token, None)
            if part is not None:
                self._counters[figure.PARTS_UNSENT] += 1
                self._try_later(part, Refusal(Status.UNAVAILABLE, reason), now)

    def elsewhere(self, items: Iterable[Item], now: float) -> None:
        """The node of these items has left the map before they went out: towards whoever leads by the new
        one.
        """
        for item in items:
            part = self._flight.parts.pop(item.token, None)
            if part is not None:
                self.place(part, now)

    def lost(self, node: int, now: float) -> None:
        """The node went down with what it had: again what may be sent again, the rest is OUTCOME_UNKNOWN."""
        for part in self._flight.take_from(node):
            self._counters[figure.PARTS_LOST] += 1
            if prepare_resend(part):
                self.place(part, now)
            else:
                self._finish(part, outcome_unknown(part, self._topology), now)

    def expire(self, now: float) -> None:
        """End the parts whose deadline has passed."""
        for part in self._flight.expire(now):
            self._counters[figure.PARTS_EXPIRED] += 1
            self._finish(part, give_up(part, self._topology), now)

    def _try_later(self, part: Part, refusal: Refusal, now: float) -> None:
        part.refusal = refusal
        part.node = NOT_SENT
        when = now + delay_seconds(part.attempts, refusal, self._random)
        part.attempts += 1
        part.hops = 0
        if when < part.deadline:
            self._counters[figure.PARTS_RETRIED] += 1
            self._flight.track(part)
            self._flight.retry_at(part, when)
        else:
            self._finish(part, give_up(part, self._topology), now)

    # -- the end

    def results(self, part: Part, gather: Gather, results: bytes, now: float) -> None:
        """A store answered one part of a scattered request: its partition was served, or has more to say."""
        if not gather.remaining:
            return  # another part's refusal was the answer
        gather.size += len(results)
        self._flight.bytes_held += len(results)
        try:
            rest = gather.rest(part, results)
            if rest is not None:
                part.item = part.item._replace(ops=rest)
                self.place(part, now)
                return
            response = gather.accept(part, results)
        except ProtocolError as error:
            response = self._nonsense(gather, error)
        self._end_gather(gather, response, now)

    def _finish(self, part: Part, refusal: Refusal, now: float) -> None:
        """The part will not be served."""
        self._figures.count_status(refusal.status)
        if part.gather is not None:
            self._refuse_part(part, part.gather, refusal, now)
            return
        self._flight.bytes_held -= part.size
        self._figures.observe(part.op, now - part.arrived, status=refusal.status)
        results = refusal_results(part, refusal)
        self._responses.outbox.append(
            (part.client, encode_response(Kind.OPS, part.request_id, Status.OK, results))
        )

    def _refuse_part(self, part: Part, gather: Gather, refusal: Refusal, now: float) -> None:
        if gather.remaining:
            gather.worst = max(gather.worst, refusal.status)
            try:
                response = gather.refuse(part, refusal)
            except ProtocolError as error:
                response = self._nonsense(gather, error)
            self._end_gather(gather, response, now)

    def _nonsense(self, gather: Gather, error: ProtocolError) -> Response:
        """Some store's results make no answer; which one's may not be known."""
        gather.remaining = 0
        self._counters[figure.STORE_FRAMES_BAD] += 1
        body = encode_error(f"the stores' results do not fit together: {error.message}")
        return Response(Status.INTERNAL, body)

    def _end_gather(self, gather: Gather, response: Response | None, now: float) -> None:
        if response is not None:
            self._flight.bytes_held -= gather.size
            status = max(gather.worst, response.status)
            self._figures.observe(gather.op, now - gather.arrived, status=status)
            self._responses.finish(gather.client, gather.kind, gather.request_id, *response)


def _decode_refusal(status: int, body: bytes) -> Refusal:
    try:
        details = decode_error(body)
    except ProtocolError:
        return Refusal(status, "refused by the store, which gave no reason")
    retry_after_ms = details.get("retry_after_ms")
    if type(retry_after_ms) is not int or retry_after_ms < 0:
        retry_after_ms = None
    return Refusal(status, details["message"], retry_after_ms, details.get("leader", NOT_SENT))
