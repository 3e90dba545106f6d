"""What a follower does with APPEND, HEARTBEAT and SNAPSHOT of the leader of its term.

Owns no state. The caller has settled term, role and timers. Anybody may hear a broadcast, also who is behind,
being restored or no member any more: the entry before must match, or nothing is taken (docs/raft.md section
3).
"""

from __future__ import annotations

from storenode.raft.messages import EVERYBODY, Kind, Message
from storenode.raft.state import GroupState


def take_append(state: GroupState, message: Message) -> None:
    """Take the entries if the one before them matches; what is committed here is never touched."""
    log = state.log
    previous, entries = message.a, message.entries
    if previous < log.commit:
        if previous + len(entries) <= log.commit:
            state.acknowledge(message.sender, log.commit)
            return
        entries = entries[log.commit - previous :]
        previous = log.commit
    elif not log.matches(previous, message.b):
        _reject(state, message)
        return
    log.merge(previous, entries)
    verified = previous + len(entries)
    log.commit = max(log.commit, min(message.c, verified))
    state.acknowledge(message.sender, verified)


def take_heartbeat(state: GroupState, message: Message) -> None:
    """Move the commit index if the leader's committed entry is here too, and answer the context."""
    learn_commit(state, message)
    state.messages.append(
        Message(message.sender, state.node, Kind.HEARTBEAT_REPLY, state.term, context=message.context)
    )


def learn_commit(state: GroupState, message: Message) -> None:
    """`a` is committed with term `b`, whoever says so: if it is here, all up to it is what was agreed on."""
    log = state.log
    if message.a > log.commit and message.b and log.matches(message.a, message.b):
        log.commit = message.a


def take_snapshot(state: GroupState, message: Message) -> None:
    """Want the snapshot, unless the log has its index already (etcd#10308)."""
    log = state.log
    index, term = message.a, message.b
    if index > log.commit and log.matches(index, term):
        log.commit = index
    if index <= log.commit:
        state.acknowledge(message.sender, log.commit)
    else:
        state.snapshot_wanted = message.sender, index, term


def _reject(state: GroupState, message: Message) -> None:
    """Say where the logs may meet: the last entry at or before the one asked for whose term is not higher. It
    skips a whole term of conflicting entries at a time (dissertation 5.3, by term).
    """
    if message.to == EVERYBODY:
        if state.rejected_this_tick:
            return
        state.rejected_this_tick = True
    log = state.log
    hint = log.last_at_or_below(message.b, log.commit + 1, min(message.a, log.last_index))
    state.pending_replies.append(
        Message(
            message.sender,
            state.node,
            Kind.APPEND_REPLY,
            state.term,
            message.a,
            hint,
            log.term(hint),
            flag=1,
        )
    )
