"""Faults of replication: Raft's rules, the order of durability, reads, sessions, snapshots. The simulation
(tests/simulation) has to find each of them.
"""

from __future__ import annotations

from typing import Final

from tests.faults.fault import Fault

SEEDS: Final = 1000
RAFT: Final = "storenode/raft"
REPLICA: Final = "storenode/replica"
LOG: Final = "storenode/raftlog"


def _fault(name: str, harm: str, file: str, text: str, replacement: str) -> Fault:
    return Fault(name, harm, file, text, replacement, seeds=SEEDS)


DURABILITY = (
    _fault(
        "raft-log-sync-skipped",
        "acknowledged writes are gone after a power cut of the whole cluster",
        f"{LOG}/writer.py",
        "        file.write_at(offset, data)\n        file.sync()\n        self.number = number\n",
        "        file.write_at(offset, data)\n        self.number = number\n",
    ),
    _fault(
        "acknowledged-before-durable",
        "a write counts as replicated on a node that forgets it in a power cut",
        f"{RAFT}/core.py",
        "        replies, self.pending_replies = self.pending_replies, []\n        self._writing = Unstable(",
        "        self._release(self.pending_replies)\n        replies, self.pending_replies = [], []\n"
        "        self._writing = Unstable(",
    ),
    _fault(
        "leader-counts-itself-before-durable",
        "a write is acknowledged that only one node of three has on its disk",
        f"{RAFT}/replication.py",
        "{node: member.match for node, member in self.progress.items()}\n",
        "{\n"
        "                node: member.match if node != self._state.node else self._state.log.last_index\n"
        "                for node, member in self.progress.items()\n"
        "            },\n",
    ),
    _fault(
        "vote-not-durable",
        "two leaders in one term after a restart, each acknowledges other writes",
        f"{RAFT}/core.py",
        "        hard = HardState(self.term, self.vote, self.log.commit)\n",
        "        hard = HardState(self.term, NOBODY, self.log.commit)\n",
    ),
    _fault(
        "term-not-restored",
        "a restarted node votes again in a term in which it has voted: two leaders",
        f"{RAFT}/state.py",
        "        self.term = hard.term\n",
        "        self.term = storage.term(storage.last_index)\n",
    ),
    _fault(
        "log-cut-before-data-is-durable",
        "after a restart writes are missing that were in neither the tables nor the log",
        "storenode/groups.py",
        "        index = replica.machine.durable().index\n",
        "        index = replica.machine.position.index\n",
    ),
)

ELECTIONS = (
    _fault(
        "votes-twice",
        "two leaders in one term, each acknowledges other writes",
        f"{RAFT}/election.py",
        "            state.vote == message.sender\n            or",
        "            not pre\n            or",
    ),
    _fault(
        "votes-for-the-longer-log",
        "a leader without acknowledged writes, which it then removes from the others",
        f"{RAFT}/election.py",
        "(message.b, message.a) >= (state.log.last_term, state.log.last_index)",
        "message.a >= state.log.last_index",
    ),
    _fault(
        "followers-are-not-loyal",
        "a new leader is elected while the old one still answers reads by its lease: they miss newer writes",
        f"{RAFT}/core.py",
        "        if not message.flag and (self._leadership or self._election.loyal):\n            return\n",
        "",
    ),
    _fault(
        "restarted-node-forgets-its-loyalty",
        "a node that restarts helps to elect a leader while the old one answers reads by its lease",
        f"{RAFT}/election.py",
        "self.heard = 0 if state.term else state.settings.election_ticks",
        "self.heard = state.settings.election_ticks",
    ),
)

COMMIT = (
    _fault(
        "commits-older-terms-by-counting",
        "an acknowledged write is replaced by another leader's (Raft, figure 8)",
        f"{RAFT}/leadership.py",
        "        if index <= log.commit or index < self._first_index:\n",
        "        if index <= log.commit:\n",
    ),
    _fault(
        "append-commits-beyond-what-it-compared",
        "a replica applies writes that were never agreed on",
        f"{RAFT}/following.py",
        "min(message.c, verified))",
        "min(message.c, log.last_index))",
    ),
    _fault(
        "old-append-shortens-the-log",
        "a late message removes entries that count as replicated: acknowledged writes are lost",
        f"{RAFT}/log_view.py",
        "        for skipped, entry in enumerate(entries):\n",
        "        if entries:\n            self._truncate(previous + 1)\n"
        "        for skipped, entry in enumerate(entries):\n",
    ),
    _fault(
        "heartbeat-commits-what-was-not-compared",
        "a replica applies writes that were never agreed on",
        f"{RAFT}/following.py",
        "    if message.a > log.commit and message.b and log.matches(message.a, message.b):\n"
        "        log.commit = message.a\n",
        "    log.commit = max(log.commit, min(message.a, log.last_index))\n",
    ),
    _fault(
        "hint-counts-as-acknowledged",
        "a write is acknowledged that no majority has",
        f"{RAFT}/replication.py",
        "_take_rejection(member, message)\n            return False\n",
        "_take_rejection(member, message)\n            return member.acknowledge(message.b)\n",
    ),
    _fault(
        "conflicting-entries-kept",
        "replicas hold different data for ever",
        f"{RAFT}/log_view.py",
        "            if index > self.last_index or self.term(index) != entry[0]:\n",
        "            if index > self.last_index:\n",
    ),
)

READS = (
    _fault(
        "old-answer-confirms-new-reads",
        "a deposed leader answers reads from before the newest writes",
        f"{RAFT}/leadership.py",
        "            member.acked_context = message.context\n",
        "            member.acked_context = self._reads.context\n",
    ),
    _fault(
        "reads-before-the-term-has-begun",
        "a new leader answers reads before it knows what its predecessor has acknowledged",
        f"{RAFT}/leadership.py",
        "        return self._state.log.commit >= self._first_index\n",
        "        return True\n",
    ),
    _fault(
        "lease-counts-from-the-answer",
        "a leader that stood still answers reads by a lease that has ended: they miss newer writes",
        f"{RAFT}/leadership.py",
        "        for index, tokens in self._reads.confirm(context):\n",
        "        confirmed = self._reads.confirm(context)\n        self._reads.lease_start = state.now\n"
        "        for index, tokens in confirmed:\n",
    ),
    _fault(
        "lease-kept-while-handing-over",
        "the old leader answers reads by its lease while the new one takes writes",
        f"{RAFT}/leadership.py",
        "        if self.transferee or self._lease_given_up or not self.established:\n",
        "        if not self.established:\n",
    ),
    _fault(
        "lease-as-long-as-the-longest-election",
        "a leader that is cut off answers reads by its lease while another one takes writes",
        "storenode/founding.py",
        "lease_seconds=(_ELECTION_TICKS - 1) * TICK_S * (1 - CLOCK_DRIFT)",
        "lease_seconds=2 * _ELECTION_TICKS * TICK_S",
    ),
)

WRITES = (
    _fault(
        "sessions-left-out-of-the-state",
        "a retried write runs a second time after a restart, or on a node that got a snapshot",
        f"{REPLICA}/statemachine.py",
        "self.stamp_ms, self.session_ms, self.sessions.dump()))",
        "self.stamp_ms, self.session_ms, SessionTable().dump()))",
    ),
    _fault(
        "sessions-judged-by-the-leader-only",
        "a write that was retried at another leader runs twice",
        f"{REPLICA}/statemachine.py",
        "                    outcome = int(Status.OK), verdict\n",
        "                    names.add(name)\n",
    ),
    _fault(
        "state-one-entry-ahead",
        "the first entry after a restart is never applied: this replica differs for ever",
        f"{REPLICA}/statemachine.py",
        "_HEAD.pack(STATE_VERSION, self.position.index, self.position.term)",
        "_HEAD.pack(STATE_VERSION, self.position.index + 1, self.position.term)",
    ),
    _fault(
        "state-one-entry-behind",
        "a restarted replica forgets entries that count as replicated",
        f"{REPLICA}/statemachine.py",
        "_HEAD.pack(STATE_VERSION, self.position.index, self.position.term)",
        "_HEAD.pack(STATE_VERSION, self.position.index - 1, self.position.term)",
    ),
    _fault(
        "answers-of-one-entry-shifted",
        "a client is told what another one's write has done",
        f"{REPLICA}/replica.py",
        "            for status, body in outcomes:\n",
        "            for status, body in outcomes[1:] + outcomes[:1]:\n",
    ),
    _fault(
        "answered-by-another-leaders-entry",
        "a write is acknowledged that was replaced by another leader's entry",
        f"{REPLICA}/replica.py",
        "        if self._logged and raft.role is not Role.LEADER:\n            self._lose_sight()\n",
        "        if raft.role is not Role.LEADER:\n            self._logged = {\n"
        "                index: (raft.term, waiting) for index, (_, waiting) in self._logged.items()\n"
        "            }\n",
    ),
    _fault(
        "lost-write-said-to-be-refused",
        "a client is told that nothing was applied, and the write is there",
        f"{REPLICA}/replica.py",
        "                self._cancel(proposal, Status.OUTCOME_UNKNOWN, refusals.LOST)\n",
        "                self._cancel(proposal, Status.TIMEOUT, refusals.TIMEOUT)\n",
    ),
    _fault(
        "session-clock-begins-anew",
        "after a change of leaders the session table forgets in the wrong order: a retried write runs twice",
        f"{REPLICA}/replica.py",
        "            self._session_base = self.machine.session_ms\n",
        "            self._session_base = 0\n",
    ),
    _fault(
        "snapshot-put-in-without-its-sessions",
        "a retried write runs a second time at a node that got a snapshot",
        f"{REPLICA}/statemachine.py",
        "        self._become(found)\n\n    # -- the replica state\n",
        "        self._become(found._replace(sessions=self.sessions))\n\n    # -- the replica state\n",
    ),
    _fault(
        "snapshot-acknowledged-when-offered",
        "a write counts as replicated on a node that only knows that there is a snapshot with it",
        f"{RAFT}/following.py",
        "        state.snapshot_wanted = message.sender, index, term\n",
        "        state.snapshot_wanted = message.sender, index, term\n"
        "        state.acknowledge(message.sender, index)\n",
    ),
    _fault(
        "log-not-cut-behind-a-snapshot",
        "a node that got a snapshot goes on with its old, conflicting entries",
        "storenode/groups.py",
        "None, (at.index, at.term), at.index + 1, []))\n            self._installing",
        "None, None, at.index + 1, []))\n            self._installing",
    ),
)

CONFIGURATION = (
    _fault(
        "new-voters-commit-alone",
        "while voters are replaced old and new ones decide apart: an acknowledged write is lost",
        f"{RAFT}/quorum.py",
        "        return min(index, committed_index(configuration.outgoing, match))\n",
        "        return index\n",
    ),
    _fault(
        "new-voters-elect-alone",
        "while voters are replaced old and new ones elect a leader each",
        f"{RAFT}/quorum.py",
        "    if not configuration.outgoing:\n        return result\n",
        "    if configuration.voters:\n        return result\n",
    ),
    _fault(
        "voters-replaced-in-one-step",
        "old and new voters decide apart: an acknowledged write is lost",
        f"{RAFT}/configuration.py",
        "enter_joint(configuration, change.operations, change.transition != Transition.EXPLICIT)\n",
        "_apply(configuration, change.operations)\n",
    ),
)

LIVENESS = (
    _fault(
        "leader-does-not-check-its-quorum",
        "a leader that hears nobody keeps all others from going on without it",
        f"{RAFT}/leadership.py",
        "            if not self._quorum_active():\n                return False\n",
        "",
    ),
)

FAULTS = (*DURABILITY, *ELECTIONS, *COMMIT, *READS, *WRITES, *CONFIGURATION, *LIVENESS)
