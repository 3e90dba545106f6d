"""Frames of Raft messages (docs/raft.md section 3): made from a turn's messages, taken apart, and counted.

Owns the bytes of a frame, the numbers that show losses, and which fields a kind of message may use. Must not
know sockets, nor what a message means. Encoding trusts its caller; `decode` trusts nobody: a frame that is
not one raises ProtocolError and nothing else, and a row that does not fit its kind costs itself only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from storenode.raft.messages import EVERYBODY, NOBODY, Entry, EntryKind, Kind, Message

VERSION: Final = 1

FRAME_BYTES_MAX: Final = 4 << 20
"""A frame is cut here; only a single message that is larger makes a larger one. More would hold up the small
messages behind it: 4 MiB are 34 ms of a 1 Gbit/s link.
"""

ROW_BYTES: Final = 64
"""What a row counts beside its entries, at most 56 bytes and 10 values: the frame of FRAME_BYTES_MAX with the
most values stays within `frames.VALUES_MAX`.
"""

ENTRY_BYTES: Final = 32
"""What an entry counts beside its data, at most 16 bytes and 4 values; for the same reason."""

assert FRAME_BYTES_MAX // ROW_BYTES * 10 + 16 <= frames.VALUES_MAX
assert FRAME_BYTES_MAX // ENTRY_BYTES * 4 + 16 <= frames.VALUES_MAX

GROUP_MAX: Final = 4095
CONTROL: Final = 0xFFFF
"""The group of the control partition (docs/control.md)."""

_UINT64_MAX: Final = (1 << 64) - 1

_ROW_TYPES: Final = (int,) * 8 + (tuple,)
_ENTRY_TYPES: Final = (int, int, bytes)
_ENTRY_KIND_MAX: Final = max(EntryKind)

_Limits = tuple[int, int, int, int, int, bool]


def _fields(fields: str) -> _Limits:
    """The largest value of a, b, c, flag and context, and whether there may be entries; 0: not used."""
    a, b, c, context = (_UINT64_MAX if name in fields else 0 for name in "abcx")
    return a, b, c, int("f" in fields), context, "e" in fields


_LIMITS: Final[dict[int, _Limits]] = {
    Kind.APPEND: _fields("abc e"),
    Kind.APPEND_REPLY: _fields("abc f"),
    Kind.HEARTBEAT: _fields("ab x"),
    Kind.HEARTBEAT_REPLY: _fields("x"),
    Kind.PRE_VOTE: _fields("ab f"),
    Kind.PRE_VOTE_REPLY: _fields("ab f"),
    Kind.VOTE: _fields("ab f"),
    Kind.VOTE_REPLY: _fields("ab f"),
    Kind.SNAPSHOT: _fields("ab"),
    Kind.TIMEOUT_NOW: _fields(""),
    Kind.READ_INDEX: _fields("x"),
    Kind.READ_INDEX_REPLY: _fields("a x"),
}

_make_tuple = tuple.__new__  # the cheapest way to a NamedTuple from a tuple that was checked
_pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


class ForeignCluster(ProtocolError):
    """A frame of another cluster."""


class Incoming(NamedTuple):
    """A frame: (group, message) in the order of sending, and how many of its rows were dropped."""

    topic: int
    sender: int
    boot: int
    number: int
    rows: list[tuple[int, Message]]
    rows_dropped: int


def topic_bytes(topic: int) -> bytes:
    """What a frame for that node, or for EVERYBODY, begins with. All have the same length, for PUB/SUB
    matches by prefix."""
    return topic.to_bytes(2, "big")


class Outgoing:
    """Gathers the messages of one turn and numbers the frames they leave in."""

    def __init__(self, node: int, cluster: int, boot: int) -> None:
        self._head = (VERSION, cluster, node, boot)
        self._waiting: dict[int, list[tuple[int, Message]]] = {}
        self._numbers: dict[int, int] = {}

    def add(self, group: int, message: Message) -> None:
        """A message of `group` to `message.to`; it must not change until `take`. Its entries count as
        ENTRY_BYTES and their data: Raft keeps them below FRAME_BYTES_MAX, but for a single one.
        """
        rows = self._waiting.get(message[0])
        if rows is None:
            rows = self._waiting[message[0]] = []
        rows.append((group, message))

    def take(self) -> list[bytes]:
        """The frames of all that was added since, one per destination; several where it is more than
        FRAME_BYTES_MAX.
        """
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, {}
        made: list[bytes] = []
        for topic, rows in waiting.items():
            self._encode(topic, rows, made)
        return made

    def _encode(self, topic: int, rows: list[tuple[int, Message]], made: list[bytes]) -> None:
        frame: list[tuple[Any, ...]] = []
        size = 0
        for group, message in rows:
            cost = ROW_BYTES
            for entry in message[9]:
                cost += ENTRY_BYTES + len(entry[2])
            if size + cost > FRAME_BYTES_MAX and frame:
                made.append(self._frame(topic, frame))
                frame, size = [], 0
            size += cost
            frame.append((group, *message[2:]))
        made.append(self._frame(topic, frame))

    def _frame(self, topic: int, rows: list[tuple[Any, ...]]) -> bytes:
        number = self._numbers[topic] = self._numbers.get(topic, 0) + 1
        return topic_bytes(topic) + _pack((*self._head, number, rows))


def decode(frame: bytes, cluster: int) -> Incoming:
    """What a frame holds; messages are addressed to the frame's topic. ForeignCluster or ProtocolError."""
    topic = int.from_bytes(frame[:2], "big")
    if len(frame) < 2 or topic == NOBODY:
        raise ProtocolError("a frame begins with the id of a node, or with 0xFFFF")
    fields = frames.decode(frame[2:])
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise ProtocolError("a frame is an array that begins with a version")
    if fields[0] != VERSION:
        raise ProtocolError(f"version {fields[0]} of Raft's messages, this side speaks {VERSION}")
    if len(fields) != 6:
        raise ProtocolError(f"a frame is an array of 6, not {len(fields)}")
    _, theirs, sender, boot, number, rows = fields
    if type(theirs) is not int or theirs != cluster:
        raise ForeignCluster("the frame is of another cluster")
    if type(sender) is not int or not NOBODY < sender < EVERYBODY:
        raise ProtocolError("the sender of a frame is a node id")
    if type(boot) is not int or type(number) is not int or (boot | number) >> 64 or not number:
        raise ProtocolError("boot and number of a frame are unsigned integers of 64 bits, numbers from 1")
    if type(rows) is not tuple:
        raise ProtocolError("the rows of a frame are an array")
    found = [read for row in rows if (read := _row(row, topic, sender)) is not None]
    return Incoming(topic, sender, boot, number, found, len(rows) - len(found))


def _row(row: Any, topic: int, sender: int) -> tuple[int, Message] | None:
    if type(row) is not tuple or tuple(map(type, row)) != _ROW_TYPES:
        return None
    group, kind, term, a, b, c, flag, context, entries = row
    limits = _LIMITS.get(kind)
    # A negative number stays negative through | and >>, so one test finds what is below 0 or too large.
    if (
        limits is None
        or (term | a | b | c | flag | context) >> 64
        or not (0 <= group <= GROUP_MAX or group == CONTROL)
    ):
        return None
    a_max, b_max, c_max, flag_max, context_max, with_entries = limits
    if a > a_max or b > b_max or c > c_max or flag > flag_max or context > context_max:
        return None
    if entries:
        if not with_entries:
            return None
        entries = _entries(entries)
        if entries is None:
            return None
    message = (topic, sender, kind, term, a, b, c, flag, context, entries)
    return group, _make_tuple(Message, message)


def _entries(rows: tuple[Any, ...]) -> list[Entry] | None:
    entries = []
    for row in rows:
        if type(row) is not tuple or tuple(map(type, row)) != _ENTRY_TYPES:
            return None
        if not 0 <= row[0] <= _UINT64_MAX or not 0 <= row[1] <= _ENTRY_KIND_MAX:
            return None
        entries.append(_make_tuple(Entry, row))
    return entries


class Arrivals:
    """What the numbers of arriving frames tell: losses, restarts of senders, and what came late or twice.

    It only counts. Whether a message is old is for Raft to see, by its term and its index: a boot id is
    random, so that of two boots nobody can tell which is the later one.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.late = 0
        self.restarts = 0
        self._last: dict[tuple[int, int], tuple[int, int]] = {}

    def note(self, frame: Incoming) -> None:
        """Count a frame that arrived. The first one of a sender and topic proves no loss: it may have sent
        others before anybody listened.
        """
        key = (frame.sender, frame.topic)
        last = self._last.get(key)
        self._last[key] = (frame.boot, frame.number)
        if last is None:
            return
        boot, number = last
        if frame.boot != boot:
            self.restarts += 1
        elif frame.number > number:
            # Of 64 bits like any figure, whatever number a peer makes up.
            self.lost = min(self.lost + frame.number - number - 1, _UINT64_MAX)
        else:
            self.late += 1
            self._last[key] = last

    def forget(self, sender: int) -> None:
        """No frame of that node counts as the next one of those before."""
        self._last = {key: last for key, last in self._last.items() if key[0] != sender}
