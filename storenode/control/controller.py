"""The controller: what is heard goes in, what shall be written and ordered comes out (docs/control.md).

Owns nothing that matters: whatever it remembers, a new one learns from the state and the reports. Must not
know how reports come, where the state is kept, how orders travel. `now` is in seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import NamedTuple

from storenode.control.reports import Report
from storenode.control.state import ControlState
from storenode.control.view import View


class Order(NamedTuple):
    """A GROUP command for the store of node `to`: `add-learner`, `transfer-leader`, `replace`, `promote`,
    `remove` (`to` leads the partition; `node` is whom it is about, `other` the source of `replace`, else 0) or
    `erase` (`node` is `to`, `other` the index of the configuration). Whatever is answered, reports decide.
    """

    to: int
    partition: int
    command: str
    node: int
    other: int


class Step(NamedTuple):
    """What to do now. `state`: to be written in place of the one that the controller has, None: nothing is.
    `orders`: to be sent, at most 16, also when the write fails.
    """

    state: ControlState | None
    orders: list[Order]


class Controller:
    """One life of a controller: made by who has won the control partition and read its state.

    `step` is called once a second, and 100 ms after a `hear` that said True; not while a write of its state is
    under way. `node` is the store on which it runs; its own reports are to be heard like those of others.
    """

    def __init__(self, node: int, state: ControlState, now: float) -> None:
        self.node = node
        self.state = state

    def hear(self, report: Report, now: float) -> bool:
        """Takes a report; whether it changes something that a step would look at. Never raises: what is of
        another cluster, of an unknown node, foreign or old is ignored and counted.
        """
        raise NotImplementedError

    def step(self, now: float) -> Step:
        """What follows from the state, the reports and the time. Remembers which orders it has given."""
        raise NotImplementedError

    def adopt(self, state: ControlState) -> None:
        """The state that is in force: after a write of it was committed, or after it was read again."""
        raise NotImplementedError

    def view(self, now: float) -> View:
        """The picture for people and commands."""
        raise NotImplementedError

    # def command(self, name: str, arguments: dict[str, Any], dry_run: bool, now: float) -> Outcome
    #     of storenode.control.commands: its state, if any, is to be written like a step's; Refused.
