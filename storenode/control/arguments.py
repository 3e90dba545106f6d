"""What a command was given, read strictly; and the ways in which one is refused.

Owns the words about wrong arguments. Must not know what any command does.
"""

from __future__ import annotations

from typing import Any, ClassVar

from kvclient.errors import Status
from shared.clustermap import Node
from shared.fields import connectable, name_like
from shared.ring import WEIGHT_MAX
from shared.shapes import integer, text
from shared.units import Endpoint
from storenode.control.state import ControlState, check_incarnation


class Refused(Exception):
    """The command is refused, nothing has changed. `details` are further fields of the error body."""

    status: ClassVar[Status] = Status.CONDITION_FAILED

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Invalid(Refused):
    """The arguments are wrong: it would be refused at any time."""

    status = Status.INVALID_REQUEST


class Busy(Refused):
    """The controller cannot tell yet; asked again in a moment, it can."""

    status = Status.BUSY

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_ms=500)


class Arguments:
    """The arguments of one command. Each is taken once; `end` refuses those that nobody took."""

    def __init__(self, command: str, given: object) -> None:
        if not isinstance(given, dict) or not all(type(key) is str for key in given):
            raise Invalid(f"{command}: arguments must be a map from names to values")
        self._command = command
        self._given: dict[str, object] = dict(given)

    def end(self) -> None:
        if self._given:
            unknown = ", ".join(f"{name!r:.40}" for name in sorted(self._given)[:3])
            raise Invalid(f"{self._command}: unknown argument {unknown}")

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        value = self._take(name, default)
        self._check(integer, value, least, most, name)
        return value  # type: ignore[no-any-return]

    def weight(self, default: int | None = None) -> int:
        return self.integer("weight", 0, WEIGHT_MAX, default)

    def flag(self, name: str) -> bool:
        value = self._take(name, False)
        if type(value) is not bool:
            raise Invalid(f"{self._command}: {name} must be true or false, not {value!r:.40}")
        return value

    def zone(self) -> str:
        value = self._take("zone", "")
        self._check(text, value, False, "zone")
        return value  # type: ignore[no-any-return]

    def name(self) -> str:
        """A name for a node."""
        value = self._take("name")
        self._check(text, value, True, "name")
        self._check(name_like, None, None, value)
        return value  # type: ignore[no-any-return]

    def endpoint(self, name: str) -> str:
        """An endpoint that others can connect to."""
        value = self._take(name)
        self._check(text, value, True, name)
        try:
            if not connectable(Endpoint(value)):
                raise ValueError(f"{value} is no address to connect to: name host and port")
        except ValueError as error:
            raise Invalid(f"{self._command}: {name}: {error}") from None
        return value  # type: ignore[no-any-return]

    def incarnation(self) -> str:
        value = self._take("incarnation")
        self._check(check_incarnation, value, "incarnation")
        if not value:
            raise Invalid(f"{self._command}: incarnation must not be empty")
        return value  # type: ignore[no-any-return]

    def node(self, state: ControlState) -> Node:
        """The node that is named, by its name or its id. Refused if there is none."""
        value = self._take("node")
        if type(value) is str:
            for node in state.map.nodes:
                if node.name == value:
                    return node
            value = int(value) if value.isascii() and value.isdigit() and len(value) < 6 else value
        elif type(value) is not int:
            raise Invalid(f"{self._command}: node must be a name or an id, not {value!r:.40}")
        for node in state.map.nodes:
            if node.id == value:
                return node
        names = ", ".join(node.name for node in state.map.nodes[:10])
        more = ", ..." if len(state.map.nodes) > 10 else ""
        raise Refused(f"there is no node {value!r:.80}; there are: {names}{more}")

    def _take(self, name: str, default: object = None) -> Any:
        value = self._given.pop(name, None)
        if value is None:
            value = default
        if value is None:
            raise Invalid(f"{self._command}: {name} is missing")
        return value

    def _check(self, check: Any, *arguments: Any) -> None:
        try:
            check(*arguments)
        except ValueError as error:
            raise Invalid(f"{self._command}: {error}") from None
