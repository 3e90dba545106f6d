"""Commands of operators for one group: show it, hand its leadership on, change its members (docs/raft.md
section 9).

Owns the commands between their arrival and their answer. Must not know sockets or the bytes of messages:
answers leave through `answer(peer, token, status, body)`. One thread, the loop's; `end_turn` follows what a
turn has brought about.

Invariants
- A command is answered once for each message that asked: refused with nothing done, or when what it asked for
  is in force, or NOT_LEADER once this node leads no more, or OUTCOME_UNKNOWN at the deadline.
- One command at a time for each partition. The same one asked again waits for the one under way.
- What is the case already is OK: whoever asks a second time, since an answer was lost, reads no refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from kvclient.errors import Status
from kvclient.protocol import encode_error
from shared import logs
from shared.clock import Clock
from shared.groupmessages import GroupCommand, GroupRequest
from shared.messagefields import DRY_RUN
from storenode.checksums import Checksums
from storenode.erasing import Erasing
from storenode.groups import Groups
from storenode.maps import Maps
from storenode.raft import ConfigurationRefused, Dropped, NotLeader, Role
from storenode.raft.messages import NOBODY, Change
from storenode.raftframes import CONTROL
from storenode.replica import membership
from storenode.replica.membership import Done, Refused
from storenode.replica.replica import Replica

ASKERS_MAX: Final = 8
"""Messages that wait for one command: attempts of one client through some routers."""

PASSING_RETRY_MS: Final = 50

Answer = Callable[[bytes, int, int, bytes], None]
AskHost = Callable[[int, int, float, Callable[[str | None], object]], None]
"""(node, partition, deadline, done): makes another store host the partition."""
Host = Callable[[int, Callable[[str | None], object]], None]
"""(partition, done): makes this store host it; None, or why not."""

_log = logs.get("groupcommands")


class _UnderWay:
    """A command that is not answered yet. `index` is 0 until a change is proposed, and for a transfer."""

    __slots__ = ("askers", "began", "command", "deadline", "index", "node", "other", "replica", "term")

    def __init__(self, replica: Replica, request: GroupRequest, began: float) -> None:
        self.replica = replica
        self.command = request.command
        self.node = request.node
        self.other = request.other
        self.askers: list[tuple[bytes, int]] = []
        self.term = replica.raft.term
        self.index = 0
        self.began = began
        self.deadline = began + request.timeout_ms / 1000


class GroupCommands:
    """Those of one node."""

    def __init__(
        self,
        node: int,
        cluster: int,
        maps: Maps,
        groups: Groups,
        clock: Clock,
        answer: Answer,
        ask_host: AskHost,
        host: Host,
        erasing: Erasing,
        checksums: Checksums,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._maps = maps
        self._groups = groups
        self._clock = clock
        self._answer = answer
        self._ask_host = ask_host
        self._host = host
        self._erasing = erasing
        self._checksums = checksums
        self._under_way: dict[int, _UnderWay] = {}

    def on_request(self, peer: bytes, request: GroupRequest) -> None:
        """Takes one command; whatever it says, it is answered."""
        asker = (peer, request.token)
        replica = self._groups.replicas.get(request.partition)
        if request.cluster != self._cluster:
            self._refuse(asker, Status.INVALID_REQUEST, "this store is of another cluster")
        elif request.partition >= self._maps.map.partition_count and request.partition != CONTROL:
            last = self._maps.map.partition_count - 1
            text = f"there is no partition {request.partition}: the last one is {last}"
            self._refuse(asker, Status.INVALID_REQUEST, text)
        elif request.command == GroupCommand.ERASE:
            self._erase(asker, request, replica)
        elif request.command == GroupCommand.HOST:
            self._be_host(asker, request, replica)
        elif request.command == GroupCommand.DIGEST:
            self._checksums.digest(asker, request)
        elif replica is None:
            text = f"partition {request.partition} is not on this store"
            self._refuse(asker, Status.WRONG_REPLICA, text)
        elif replica.failure is not None or replica.raft.role is not Role.LEADER:
            self._not_leader(asker, replica)
        elif request.command == GroupCommand.SHOW:
            now = self._clock.monotonic()
            self._give(asker, {"partition": request.partition, **membership.picture(replica.raft, now)})
        elif request.command == GroupCommand.CHECKSUM:
            self._checksums.compare(asker, request, replica)
        else:
            self._begin(asker, replica, request)

    def end_turn(self) -> None:
        """Answers what has come to its end."""
        self._checksums.end_turn()
        if self._under_way:
            now = self._clock.monotonic()
            for partition, command in list(self._under_way.items()):
                if self._look(partition, command, now):
                    del self._under_way[partition]

    # -- a command begins

    def _begin(self, asker: tuple[bytes, int], replica: Replica, request: GroupRequest) -> None:
        unknown = self._unknown(replica, request)
        if unknown is not None:
            known = ", ".join(f"{name} ({node})" for node, name in sorted(self._maps.names.items())[:16])
            text = f"there is no node {unknown} in this cluster; known: {known}"
            self._refuse(asker, Status.INVALID_REQUEST, text)
            return
        now = self._clock.monotonic()
        other = self._under_way.get(request.partition)
        dry = bool(request.flags & DRY_RUN)
        wanted = (request.command, request.node, request.other)
        if other is not None and (dry or (other.command, other.node, other.other) != wanted):
            self._refuse(
                asker, Status.CONDITION_FAILED, f"another command is under way: {self._what(other, now)}"
            )
            return
        if other is not None:
            self._join(asker, other)
            return
        try:
            change = self._plan(replica, request, now)
        except Done as done:
            self._nothing_to_do(asker, replica, request, str(done))
        except Refused as refused:
            self._refused(asker, refused)
        else:
            if dry:
                self._would(asker, replica, request, change)
                return
            command = _UnderWay(replica, request, now)
            command.askers.append(asker)
            self._under_way[request.partition] = command
            self._carry_out(request.partition, command, change)

    def _unknown(self, replica: Replica, request: GroupRequest) -> int | None:
        """The node of this request that neither cluster nor group have."""
        known = self._maps.names.keys() | replica.raft.configuration.members
        named = (request.node, request.other) if request.command == GroupCommand.REPLACE else (request.node,)
        return next((node for node in named if node not in known), None)

    def _plan(self, replica: Replica, request: GroupRequest, now: float) -> Change | None:
        """The change to propose, None for a transfer. Refused, Done."""
        raft, node, name = replica.raft, request.node, self._name
        if request.command == GroupCommand.TRANSFER_LEADER:
            membership.check_transfer(raft, node, name, now)
            return None
        if request.command == GroupCommand.ADD_LEARNER:
            return membership.add_learner(raft, node, name)
        if request.command == GroupCommand.PROMOTE:
            return membership.promote(raft, node, name, now)
        if request.command == GroupCommand.REPLACE:
            return membership.replace(raft, node, request.other, name, now)
        change = membership.remove(raft, node, name, now)
        if request.other not in (0, replica.machine.configured_at):
            raise Refused(
                f"it was meant for the members of entry {request.other:,}, "
                f"those in force are of entry {replica.machine.configured_at:,}"
            )
        return change

    def _join(self, asker: tuple[bytes, int], command: _UnderWay) -> None:
        if len(command.askers) < ASKERS_MAX:
            command.askers.append(asker)
        else:
            self._refuse(asker, Status.BUSY, "too many wait for this command already", PASSING_RETRY_MS)

    def _carry_out(self, partition: int, command: _UnderWay, change: Change | None) -> None:
        if command.command != GroupCommand.ADD_LEARNER:
            self._propose(partition, command, change)
            return

        def hosted(reason: str | None) -> None:
            if self._under_way.get(partition) is not command:
                return  # answered meanwhile: this node leads no more, or the time is over
            if reason is None:
                self._propose(partition, command, change)
            else:
                what = f"{self._name(command.node)} cannot host partition {partition}: {reason}"
                self._end(partition, command, Status.UNAVAILABLE, f"{what}; nothing was changed")

        self._ask_host(command.node, partition, command.deadline, hosted)

    def _propose(self, partition: int, command: _UnderWay, change: Change | None) -> None:
        raft = command.replica.raft
        self._groups.dirty(command.replica)
        try:
            if change is None:
                raft.transfer(command.node)
            else:
                command.index = raft.propose_change(change)
        except NotLeader:
            pass  # `end_turn` finds it
        except (Dropped, ConfigurationRefused) as refused:
            self._end(partition, command, Status.CONDITION_FAILED, str(refused))
            return
        _log.info(
            "group_command",
            partition=partition,
            command=command.command,
            member=command.node,
            index=command.index,
        )

    # -- a command ends

    def _look(self, partition: int, command: _UnderWay, now: float) -> bool:
        """Whether it has been answered."""
        replica = command.replica
        raft, leadership = replica.raft, replica.raft.leadership
        if replica.failure is not None or leadership is None or raft.term != command.term:
            hint = command.node if command.command == GroupCommand.TRANSFER_LEADER else NOBODY
            for asker in command.askers:
                self._not_leader(asker, replica, hint)
        elif command.command == GroupCommand.TRANSFER_LEADER and leadership.transferee != command.node:
            text = f"{self._name(command.node)} did not take over in time; {self._name(self._node)} leads on"
            self._end_all(command, Status.CONDITION_FAILED, text)
        elif command.index and raft.applied_index >= command.index and not raft.configuration.joint:
            self._changed(partition, command)
        elif now >= command.deadline and (command.index or command.command != GroupCommand.ADD_LEARNER):
            text = f"not done in time, and it goes on: {self._what(command, now)}"
            self._end_all(command, Status.OUTCOME_UNKNOWN, text)
        else:
            return False
        return True

    def _changed(self, partition: int, command: _UnderWay) -> None:
        answer = self._about(command.replica, partition, command)
        answer |= {"changed": True, "index": command.index}
        for asker in command.askers:
            self._give(asker, answer)

    def _nothing_to_do(
        self, asker: tuple[bytes, int], replica: Replica, request: GroupRequest, text: str
    ) -> None:
        answer = self._about(replica, request.partition, request)
        if request.command == GroupCommand.TRANSFER_LEADER and not request.flags & DRY_RUN:
            replica.kept_term = replica.raft.term  # a transfer ends so, too: asked for at the new leader
            self._give(asker, answer)
        else:
            self._give(asker, answer | {"changed": False, "text": text})

    def _would(
        self, asker: tuple[bytes, int], replica: Replica, request: GroupRequest, change: Change | None
    ) -> None:
        answer = self._about(replica, request.partition, request)
        if change is None:
            answer["leader"] = request.node
        else:
            planned = membership.after(replica.raft.configuration, change)
            answer |= {"voters": sorted(planned.voters), "learners": sorted(planned.learners)}
        self._give(asker, answer | {"changed": False, "dry_run": True})

    def _about(self, replica: Replica, partition: int, asked: GroupRequest | _UnderWay) -> dict[str, Any]:
        configuration = replica.raft.configuration
        return {
            "partition": partition,
            "command": str(asked.command),
            "node": asked.node,
            "leader": replica.raft.node,
            "voters": sorted(configuration.voters),
            "learners": sorted(configuration.learners),
        }

    def _end(self, partition: int, command: _UnderWay, status: Status, text: str) -> None:
        self._under_way.pop(partition, None)
        self._end_all(command, status, text)

    def _end_all(self, command: _UnderWay, status: Status, text: str) -> None:
        for asker in command.askers:
            self._refuse(asker, status, text)

    # -- this store as a host

    def _be_host(self, asker: tuple[bytes, int], request: GroupRequest, replica: Replica | None) -> None:
        def hosted(reason: str | None) -> None:
            if reason is None:
                self._give(asker, {"partition": request.partition})
            else:
                self._refuse(asker, Status.UNAVAILABLE, reason)

        if request.node != self._node:
            text = f"this is node {self._node}, not node {request.node}"
            self._refuse(asker, Status.INVALID_REQUEST, text)
        elif self._erasing.under_way(request.partition):
            text = "what was here of the partition is being erased"
            self._refuse(asker, Status.BUSY, text, PASSING_RETRY_MS)
        elif replica is None:
            self._host(request.partition, hosted)
        else:
            hosted(replica.failure)

    def _erase(self, asker: tuple[bytes, int], request: GroupRequest, replica: Replica | None) -> None:
        partition, dry = request.partition, bool(request.flags & DRY_RUN)
        answer = {"partition": partition, "command": str(request.command), "node": request.node}

        def erased(reason: str | None) -> None:
            if reason is None:
                self._give(asker, answer | {"changed": True})
            else:
                self._refuse(asker, Status.UNAVAILABLE, reason)

        if request.node != self._node:
            text = f"this is node {self._node}, not node {request.node}"
            self._refuse(asker, Status.INVALID_REQUEST, text)
        elif self._erasing.under_way(partition):
            self._erasing.join(partition, erased)
        elif replica is None:
            self._give(asker, answer | {"changed": False, "text": "there is no replica on this store"})
        elif self._groups.installing(replica):
            self._refuse(asker, Status.BUSY, "a snapshot is being installed", PASSING_RETRY_MS)
        else:
            try:
                membership.check_erase(replica.raft, request.other, self._name)
            except Refused as refused:
                self._refused(asker, refused)
                return
            if dry:
                self._give(asker, answer | {"changed": False, "dry_run": True})
            else:
                self._erasing.erase(replica, erased)

    # -- words and answers

    def _name(self, node: int) -> str:
        return f"{self._maps.names[node]} (node {node})" if node in self._maps.names else f"node {node}"

    def _what(self, command: _UnderWay, now: float) -> str:
        what = f"{command.command} {self._name(command.node)}"
        if command.command == GroupCommand.REPLACE:
            what += f" for {self._name(command.other)}"
        if command.index:
            what += f", entry {command.index:,}"
        return f"{what}, begun {now - command.began:.1f} s ago"

    def _not_leader(self, asker: tuple[bytes, int], replica: Replica, hint: int = NOBODY) -> None:
        if replica.failure is not None:
            body = encode_error(replica.failure)
        else:
            body = encode_error("this store does not lead the partition", leader=replica.raft.leader or hint)
        self._answer(*asker, Status.NOT_LEADER, body)

    def _refused(self, asker: tuple[bytes, int], refused: Refused) -> None:
        if refused.passing:
            self._refuse(asker, Status.BUSY, str(refused), PASSING_RETRY_MS)
        else:
            self._refuse(asker, Status.CONDITION_FAILED, str(refused))

    def _refuse(
        self, asker: tuple[bytes, int], status: Status, text: str, retry_after_ms: int | None = None
    ) -> None:
        self._answer(*asker, status, encode_error(text, retry_after_ms=retry_after_ms))

    def _give(self, asker: tuple[bytes, int], answer: dict[str, Any]) -> None:
        packed: bytes = msgpack.packb(answer)
        self._answer(*asker, Status.OK, packed)
