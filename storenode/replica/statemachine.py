"""The state machine of one partition: what committed entries do to the engine and the session table.

Deterministic: the same entries leave the same data, versions, sessions and results on every replica, whenever
and however often they are applied after a restart. So it reads no clock; time comes with the entries.

Owns the engine's content, the session table, and the replica state, which the engine records with each flush
(docs/raft.md section 5). Knows neither Raft nor who waits for results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol

import attrs
import msgpack

from kvclient.errors import Corruption, Status
from kvclient.protocol import FLAG_RETRY, encode_error
from storenode.raft.configuration import decode_configuration, encode_configuration
from storenode.raft.messages import Configuration
from storenode.replica import commands
from storenode.replica.sessions import SessionTable, Verdict

STATE_VERSION: Final = 1

_HEAD: Final = Struct("<IQQ")
"""Version, index, term: in front, for `durable` looks at nothing else."""

Outcome = tuple[int, bytes]
"""(status, body) of a write."""

_VERDICTS: Final = {
    verdict: (
        int(Status.OUTCOME_UNKNOWN),
        encode_error(f"this write may or may not have been applied: {verdict.value}"),
    )
    for verdict in (Verdict.ACKNOWLEDGED, Verdict.UNKNOWN)
}


_DUE: Final[Outcome] = (-1, b"")
"""Stands for what is not executed yet."""


class EngineFace(Protocol):
    """What a replica needs of a `storenode.engine.replica_engine.ReplicaEngine`."""

    on_retire: Callable[[], bytes]

    @property
    def state(self) -> bytes: ...
    @property
    def flushed_state(self) -> bytes: ...
    @property
    def out_of_room(self) -> OSError | None: ...
    @property
    def next_sequence(self) -> int: ...
    def apply(self, writes: list[bytes], first_sequence: int, now_ms: int) -> list[bytes]: ...
    def end_entry(self) -> None: ...
    def read(self, ops: bytes, now_ms: int) -> bytes: ...
    def pressure(self) -> int: ...
    def flush(self, wait: bool = True) -> None: ...
    def examine(self, directory: str) -> Any: ...
    def install(self, checkpoint: Any) -> None: ...
    def checkpoint(self, directory: str) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def snapshot(self) -> Snapshot: ...


@attrs.frozen
class Position:
    """How far the state machine is: the entry applied last, and its term."""

    index: int
    term: int


FOUNDED: Final = Position(1, 0)
"""Where a group begins: its first configuration is state, not an entry (storenode/raft/__init__.py)."""

JOINING: Final = Position(0, 0)
"""Where a replica is that knows nothing of its group yet: a snapshot brings it in."""


class Snapshot(Protocol):
    """What is needed of a `storenode.engine.snapshot.Snapshot`; any thread."""

    now_ms: int

    def read(self, ops: bytes) -> bytes: ...
    def at(self, now_ms: int) -> Snapshot: ...
    def close(self) -> None: ...


class Cut(NamedTuple):
    """What a replica held when it had applied everything up to entry `at`."""

    at: int
    snapshot: Snapshot


class StateMachine:
    """One partition's state. One thread."""

    def __init__(self, engine: EngineFace, founders: Configuration) -> None:
        """`founders`: the configuration of a partition in which nothing ever happened; without voters on a
        node that did not found it.
        """
        self.engine = engine
        self.sessions = SessionTable()
        self._origin = FOUNDED if founders.voters else JOINING
        self.position = self._origin
        self.configuration = founders
        self.configured_at = self._origin.index
        """The entry that led to the configuration; of one that came with a state, the entry that the state is
        of, which is no earlier.
        """
        self.session_ms = 0
        self.stamp_ms = 0
        self.cut: Cut | None = None
        """The newest that an entry has asked for, until somebody takes it."""
        if engine.state:
            self._become(_decode(engine.state))
        engine.on_retire = self.dump

    def apply(self, index: int, term: int, data: bytes) -> list[Outcome]:
        """Applies a NORMAL entry; one outcome for each of its writes. Corruption: this copy of the data is
        damaged, or the log is. InvalidRequest: the leader took in what this software does not know; others
        may have executed it. After any exception nothing must be applied any more.
        """
        outcomes: list[Outcome] = []
        if data:
            command = commands.decode(data)
            self.stamp_ms, self.session_ms = command.stamp_ms, command.session_ms
            outcomes = self._execute(command.writes)
            if commands.asks_for_cut(command):
                self.cut = Cut(index, self.engine.snapshot())
        self.position = Position(index, term)
        self.engine.end_entry()
        return outcomes

    def _execute(self, writes: Sequence[commands.Write]) -> list[Outcome]:
        """Those that the sessions let through are executed together, which costs a fraction."""
        outcomes: list[Outcome] = []
        due: dict[int, commands.Write] = {}
        names: set[tuple[int, int]] = set()
        for place, write in enumerate(writes):
            client_id, sequence, acked_below, flags, _ = write
            outcome = _DUE
            if client_id and sequence:
                name = client_id, sequence
                if name in names:  # the same write twice: the table must know of the first
                    self._run(due, outcomes)
                    names.clear()
                verdict = self.sessions.judge(*name, acked_below, flags & FLAG_RETRY != 0, self.session_ms)
                if isinstance(verdict, bytes):
                    outcome = int(Status.OK), verdict
                elif verdict is Verdict.EXECUTE:
                    names.add(name)
                else:
                    outcome = _VERDICTS[verdict]
            outcomes.append(outcome)
            if outcome is _DUE:
                due[place] = write
        self._run(due, outcomes)
        return outcomes

    def _run(self, due: dict[int, commands.Write], outcomes: list[Outcome]) -> None:
        """Executes writes and keeps their results, here and in the session table."""
        if not due:
            return
        engine = self.engine
        streams = [write[4] for write in due.values()]
        all_results = engine.apply(streams, engine.next_sequence, self.stamp_ms)
        for (place, write), results in zip(due.items(), all_results, strict=True):
            client_id, sequence, acked_below, _, _ = write
            outcomes[place] = int(Status.OK), results
            if client_id and sequence:
                self.sessions.record(client_id, sequence, acked_below, results, self.session_ms)
        due.clear()

    def configure(self, index: int, term: int, configuration: Configuration) -> None:
        """Applies a CONFIGURATION entry, which led to `configuration`."""
        self.configuration = configuration
        self.configured_at = index
        self.position = Position(index, term)
        self.engine.end_entry()

    def durable(self) -> Position:
        """What the engine's tables hold: what the log need not keep for this replica."""
        recorded = self.engine.flushed_state
        return position_of(recorded) if recorded else self._origin

    def install(self, examined: Any) -> None:
        """Becomes what a checkpoint of another replica holds, which `engine.examine` has looked at.

        ValueError: it is not newer than this. Corruption: it has no state that this software knows. Then, and
        with all errors of `engine.install` but EngineFailed, nothing has changed.
        """
        state = examined.replica
        found = _decode(state)
        if found.position.index <= self.position.index:
            raise ValueError(
                f"a snapshot of entry {found.position.index} is not newer than entry {self.position.index},"
                " which is applied"
            )
        self.engine.install(examined)
        self._become(found)

    # -- the replica state

    def dump(self) -> bytes:
        """The replica state of now."""
        configuration = encode_configuration(self.configuration)
        rest: bytes = msgpack.packb((configuration, self.stamp_ms, self.session_ms, self.sessions.dump()))
        return _HEAD.pack(STATE_VERSION, self.position.index, self.position.term) + rest

    def _become(self, state: _State) -> None:
        self.position, self.configuration = state.position, state.configuration
        self.configured_at = state.position.index
        self.stamp_ms, self.session_ms = state.stamp_ms, state.session_ms
        self.sessions = state.sessions


class _State(NamedTuple):
    """A replica state, decoded."""

    position: Position
    configuration: Configuration
    stamp_ms: int
    session_ms: int
    sessions: SessionTable


def _decode(state: bytes) -> _State:
    position = position_of(state)
    try:
        configuration, stamp_ms, session_ms, dumped = msgpack.unpackb(state[_HEAD.size :], use_list=False)
        sessions = SessionTable()
        sessions.load(dumped)
        return _State(position, decode_configuration(configuration), stamp_ms, session_ms, sessions)
    except Exception as error:
        raise Corruption(f"a replica state that this software does not know: {error}") from error


def position_of(state: bytes) -> Position:
    """How far the content is that a replica state belongs to. Corruption if it is none."""
    if len(state) < _HEAD.size:
        raise Corruption(f"a replica state of {len(state)} bytes: it has {_HEAD.size} at least")
    version, index, term = _HEAD.unpack_from(state)
    if version != STATE_VERSION:
        raise Corruption(
            f"replica state version {version} is not understood, this software knows {STATE_VERSION}"
        )
    return Position(index, term)
