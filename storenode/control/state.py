"""The control state: what the cluster should look like (docs/control.md section 2).

Owns the state's validity and its bytes. A state that exists is consistent: the constructors refuse any other.
Immutable; a change is a new state. Must not know who changes it or where it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import attrs
import msgpack

from kvclient.errors import ProtocolError
from shared import frames
from shared.clustermap import (
    BYTES_PER_SECOND,
    BYTES_PER_SECOND_MAX,
    BYTES_PER_SECOND_MIN,
    NODE_ID_MAX,
    ClusterMap,
    Node,
)
from shared.ring import PARTITIONS_MAX
from shared.shapes import array, first_twice, integer

FORMAT: Final = 1

CONTROL: Final = 0xFFFF
"""The number of the control partition."""

REASONS: Final = ("rebalance", "drain", "replace", "control")

MOVES_MAX: Final = 4 * PARTITIONS_MAX
"""Every replica of the largest cluster at factor 3, and some: more are planned when these are made."""

MOVE_ID_MAX: Final = (1 << 63) - 1

REPLACE_AFTER_MS_MIN: Final = 1_000
REPLACE_AFTER_MS_MAX: Final = 30 * 24 * 3_600_000
"""Longer than anybody would wait for a machine to come back."""

TRANSFERS_MAX: Final = 64
"""Snapshots at once, of a node: each needs memory and disk of its own on both sides."""

_INCARNATION: Final = re.compile("(?:[0-9a-f]{32})?")


def check_incarnation(value: object, what: str) -> None:
    """ValueError unless it is 32 hexadecimal digits, or "" for a store that was not heard yet."""
    if type(value) is not str or _INCARNATION.fullmatch(value) is None:
        raise ValueError(f"{what} must be 32 hexadecimal digits or empty, not {value!r:.40}")


@attrs.frozen
class Member:
    """What the control state knows of a node, beside the map. `since_epoch`: of the map in which the node got
    the state that it has there. `removing`: it leaves the map as soon as it holds nothing.
    """

    node: int
    incarnation: str
    since_epoch: int
    removing: bool = False

    def __attrs_post_init__(self) -> None:
        """ValueError names the field that is wrong."""
        integer(self.node, 1, NODE_ID_MAX, "a member's node")
        check_incarnation(self.incarnation, f"member {self.node}: incarnation")
        integer(self.since_epoch, 1, (1 << 64) - 1, f"member {self.node}: epoch of its state")
        if type(self.removing) is not bool:
            raise ValueError(f"member {self.node}: removing must be true or false, not {self.removing!r:.40}")


@attrs.frozen
class Move:
    """One replica of a partition goes from `source` to `target`; 0: it is only added, or only removed."""

    id: int
    partition: int
    source: int
    target: int
    reason: str

    def __attrs_post_init__(self) -> None:
        """ValueError names the field that is wrong."""
        integer(self.id, 1, MOVE_ID_MAX, "a move's id")
        integer(self.partition, 0, CONTROL, f"move {self.id}: partition")
        integer(self.source, 0, NODE_ID_MAX, f"move {self.id}: source")
        integer(self.target, 0, NODE_ID_MAX, f"move {self.id}: target")
        if self.source == self.target:
            raise ValueError(f"move {self.id}: it goes from {self.source} to {self.target}")
        if self.reason not in REASONS:
            raise ValueError(
                f"move {self.id}: reason must be one of {', '.join(REASONS)}, not {self.reason!r:.40}"
            )


@attrs.frozen
class Settings:
    """What an operator may set while the cluster runs."""

    replace_after_ms: int = 1_800_000
    transfers_per_node: int = 2
    bytes_per_second: int = BYTES_PER_SECOND

    def __attrs_post_init__(self) -> None:
        """ValueError names the setting that is wrong."""
        integer(self.replace_after_ms, REPLACE_AFTER_MS_MIN, REPLACE_AFTER_MS_MAX, "replace_after_ms")
        integer(self.transfers_per_node, 1, TRANSFERS_MAX, "transfers_per_node")
        integer(self.bytes_per_second, BYTES_PER_SECOND_MIN, BYTES_PER_SECOND_MAX, "bytes_per_second")


@attrs.frozen
class ControlState:
    """The whole. `members` are one for each node of the map, ascending; `moves` in the order to make them."""

    map: ClusterMap
    members: tuple[Member, ...]
    moves: tuple[Move, ...]
    next_move: int
    next_node: int
    paused: bool
    settings: Settings
    _by_id: dict[int, Member] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """ValueError names the first rule that is broken."""
        self._check_members()
        self._check_moves()
        if type(self.paused) is not bool:
            raise ValueError(f"paused must be true or false, not {self.paused!r:.40}")
        object.__setattr__(self, "_by_id", {member.node: member for member in self.members})

    def _check_members(self) -> None:
        nodes = sorted(node.id for node in self.map.nodes)
        if [member.node for member in self.members] != nodes:
            raise ValueError("its members are not the map's nodes, ascending")
        twice = first_twice(member.incarnation for member in self.members if member.incarnation)
        if twice is not None:
            raise ValueError(f"two members have the same incarnation {twice}")
        for member in self.members:
            if member.since_epoch > self.map.epoch:
                raise ValueError(
                    f"member {member.node}: its state is of epoch {member.since_epoch}, "
                    f"the map of epoch {self.map.epoch}"
                )
        integer(self.next_node, nodes[-1] + 1, NODE_ID_MAX + 1, "the next node's id")

    def _check_moves(self) -> None:
        if len(self.moves) > MOVES_MAX:
            raise ValueError(f"{len(self.moves)} moves, at most {MOVES_MAX} can be queued")
        twice = first_twice(move.id for move in self.moves)
        if twice is not None:
            raise ValueError(f"two moves have the id {twice}")
        integer(self.next_move, 1, MOVE_ID_MAX, "the next move's id")
        for move in self.moves:
            if move.id >= self.next_move:
                raise ValueError(f"move {move.id}: the next id is {self.next_move}")
            if not (move.partition < self.map.partition_count or move.partition == CONTROL):
                raise ValueError(f"move {move.id}: there is no partition {move.partition}")
            if max(move.source, move.target) >= self.next_node:
                raise ValueError(f"move {move.id}: the next node's id is {self.next_node}")

    @classmethod
    def first(cls, cluster_map: ClusterMap) -> ControlState:
        """The state that a cluster begins with: the founders of this map, none of them heard yet."""
        nodes = sorted(node.id for node in cluster_map.nodes)
        members = tuple(Member(node, "", cluster_map.epoch) for node in nodes)
        return cls(cluster_map, members, (), 1, nodes[-1] + 1, False, Settings())

    def member(self, node: int) -> Member:
        """KeyError if the map has no such node."""
        return self._by_id[node]

    def remap(
        self,
        *,
        nodes: tuple[Node, ...] | None = None,
        replicas: tuple[tuple[int, ...], ...] | None = None,
        control: tuple[int, ...] | None = None,
        **changes: Any,
    ) -> ControlState:
        """The state with another map, one epoch on, and other `changes` of its own fields. The map says what
        the settings say of `bytes_per_second`: so the stores hear of it.

        Members follow the nodes: who has gone is left out, a new node is a member without an incarnation, who
        has got another state has it since the new epoch. `members` among the changes is taken instead.
        """
        old = self.map
        new = attrs.evolve(
            old,
            epoch=old.epoch + 1,
            nodes=old.nodes if nodes is None else nodes,
            replicas=old.replicas if replicas is None else replicas,
            control=old.control if control is None else control,
            bytes_per_second=changes.get("settings", self.settings).bytes_per_second,
        )
        if nodes is not None and "members" not in changes:
            changes["members"] = tuple(
                self._member_of(node, new.epoch) for node in sorted(nodes, key=lambda node: node.id)
            )
        return attrs.evolve(self, map=new, **changes)

    def _member_of(self, node: Node, epoch: int) -> Member:
        member = self._by_id.get(node.id)
        if member is None:
            return Member(node.id, "", epoch)
        if self.map.node(node.id).state == node.state:
            return member
        return attrs.evolve(member, since_epoch=epoch)

    def queue(self, moves: Iterable[tuple[int, int, int, str]]) -> ControlState:
        """The state with these moves, each (partition, source, target, reason), at the end of its queue."""
        first = self.next_move
        new = tuple(Move(first + place, *move) for place, move in enumerate(moves))
        return attrs.evolve(self, moves=self.moves + new, next_move=first + len(new))

    def encode(self) -> bytes:
        """The state's bytes; equal states have equal bytes."""
        return msgpack.packb(  # type: ignore[no-any-return]
            (
                FORMAT,
                self.map.encode(),
                self.members,
                self.moves,
                self.next_move,
                self.next_node,
                self.paused,
                self.settings,
            ),
            default=attrs.astuple,
        )

    @classmethod
    def decode(cls, encoded: bytes) -> ControlState:
        """The state with these bytes; ProtocolError names what is wrong with any others."""
        try:
            fields = frames.decode(encoded)
        except ProtocolError as error:
            raise ProtocolError(f"control state: {error.message}") from None
        try:
            array(fields, None, "it")
            if not fields or type(fields[0]) is not int or fields[0] != FORMAT:
                known = fields[0] if fields else None
                raise ValueError(f"format {known!r:.40} is not understood, this side knows {FORMAT}")
            array(fields, 8, "it")
            if type(fields[1]) is not bytes:
                raise ValueError("its map must be bytes")
            cluster_map = ClusterMap.decode(fields[1])
            members = tuple(
                Member(*array(member, 4, "each member")) for member in array(fields[2], None, "its members")
            )
            moves = tuple(Move(*array(move, 5, "each move")) for move in array(fields[3], None, "its moves"))
            settings = Settings(*array(fields[7], 3, "its settings"))
            return cls(cluster_map, members, moves, fields[4], fields[5], fields[6], settings)
        except ProtocolError as error:
            raise ProtocolError(f"control state: {error.message}") from None
        except ValueError as error:
            raise ProtocolError(f"control state: {error}") from None
