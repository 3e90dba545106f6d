"""When a part is tried again, and what its client reads when it is not tried any more.

Pure rules over one part; the core carries them out. Must not know sockets or time sources.
"""

from __future__ import annotations

from random import Random

from kvclient.errors import Status
from kvclient.protocol import FLAG_RETRY, LEASE
from router.flight import NOT_SENT, Part, Refusal
from router.scatter import is_write
from router.topology import Topology

# Refusals that say "nothing was applied" and may pass: back-pressure, an election, a move, a store that is
# starting.
RETRYABLE = frozenset({Status.BUSY, Status.NOT_LEADER, Status.WRONG_REPLICA, Status.UNAVAILABLE})

BACK_OFF_SECONDS_FIRST = 0.010
BACK_OFF_SECONDS_MAX = 0.500
# While nobody leads: a round of votes takes some milliseconds once it begins, so the second question is worth
# asking after 20 ms at the earliest; and a new leader is found at most 200 ms after it was elected.
ELECTION_SECONDS_FIRST = 0.040
ELECTION_SECONDS_MAX = 0.200
_ATTEMPTS_TO_MAX = 6  # doublings from the first to the longest pause

# Attempts that go at once where a refusal points to; then a pause. One is enough in a settled group, two when
# the group has just changed its mind; more is two stores that name each other.
HOPS_MAX = 2


def delay_seconds(attempts: int, refusal: Refusal, random: Random) -> float:
    """The pause before the next attempt: exponential with jitter, or a little over what the store asked."""
    if refusal.retry_after_ms is not None:
        return refusal.retry_after_ms / 1000 * random.uniform(1.0, 1.25)
    if refusal.status == Status.NOT_LEADER:
        first, most = ELECTION_SECONDS_FIRST, ELECTION_SECONDS_MAX
    else:
        first, most = BACK_OFF_SECONDS_FIRST, BACK_OFF_SECONDS_MAX
    return min(most, first * (1 << min(attempts, _ATTEMPTS_TO_MAX))) * random.uniform(0.5, 1.0)


def reads_anywhere(part: Part) -> bool:
    """Whether any replica may serve the part: a read that may be stale, until a replica has refused it.

    Then it goes to the leader, which is never too far behind.
    """
    if part.item.read_mode <= LEASE or part.attempts or part.hops:
        return False
    return not is_write(part)


def prepare_resend(part: Part) -> bool:
    """Whether a part whose store went down with it, or lost sight of it, may be sent again: reads, and a
    session's writes.

    Such a write is marked: from now on an earlier attempt may have been applied.
    """
    if is_write(part):
        if not part.item.client_id or not part.item.sequence:
            return False
        part.item = part.item._replace(flags=part.item.flags | FLAG_RETRY)
        part.lost = True
    return True


def asks_again(part: Part, refusal: Refusal) -> bool:
    """Whether a store that lost sight of a write says that whoever leads now will know its outcome.

    It names a pause then. Without one, OUTCOME_UNKNOWN is the session table's own verdict, and final.
    """
    lost_sight = refusal.status == Status.OUTCOME_UNKNOWN and refusal.retry_after_ms is not None
    return lost_sight and prepare_resend(part)


def outcome_unknown(part: Part, topology: Topology) -> Refusal:
    """The store that had this write did not answer, and it must not be sent again."""
    return Refusal(
        Status.OUTCOME_UNKNOWN,
        f"{topology.describe(part.node)} did not answer; the write may or may not have been applied",
    )


def final(part: Part, refusal: Refusal) -> Refusal:
    """What a refusal that will not pass says of the whole part: the store speaks of the attempt that it has
    seen only, and of a pause to the router only.
    """
    if part.lost and refusal.status != Status.OUTCOME_UNKNOWN:
        return _in_doubt(refusal.message)
    return Refusal(refusal.status, refusal.message)


def _in_doubt(reason: str) -> Refusal:
    message = (
        f"an earlier attempt may or may not have been applied, and no store could tell in time: {reason}"
    )
    return Refusal(Status.OUTCOME_UNKNOWN, message)


def give_up(part: Part, topology: Topology) -> Refusal:
    """Why a part ends without an answer: its deadline is here, or there is no time for another attempt.

    It speaks of what this router did. What became of attempts that the client made before (RETRY), the client
    knows better: each of them has an answer of its own, or none.
    """
    if part.node != NOT_SENT:
        if is_write(part):
            return outcome_unknown(part, topology)
        return Refusal(Status.TIMEOUT, f"{topology.describe(part.node)} did not answer within the deadline")
    if part.lost:
        return _in_doubt(
            part.refusal.message if part.refusal else topology.why_unreachable(part.item.partition)
        )
    if part.refusal is None:
        message = f"{topology.why_unreachable(part.item.partition)}; nothing was applied"
        return Refusal(Status.UNAVAILABLE, message)
    if part.refusal.status == Status.BUSY:
        return part.refusal
    nobody_leads = part.refusal.status == Status.NOT_LEADER
    what = "has no leader that could be reached" if nobody_leads else "was not served"
    message = f"partition {part.item.partition} {what} in time; nothing was applied"
    return Refusal(Status.UNAVAILABLE, f"{message}: {part.refusal.message}", part.refusal.retry_after_ms)
