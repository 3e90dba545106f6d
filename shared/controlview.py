"""What the controller says of the cluster (`show`, docs/control.md section 4), as far as others use it.

Owns the reading of that answer, and the word for a node's state. Must not know who asked, nor how. What a
controller says is checked as far as it is used: the rest is passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kvclient.errors import ProtocolError, Status
from kvclient.protocol import decode_error
from shared import frames, groups
from shared.clustermap import STATES, Node
from shared.messagefields import UINT16_MAX

Figures = Mapping[int, Mapping[str, Any]]
"""Figures by node, of those that have answered."""

FOREIGN: Final = "foreign"
"""The controller's word for a node that a store of another identity runs as; no map has it."""

_OF_A_NODE: Final = ("heard_ms", "share", "incarnation", "disk_free")


class View(NamedTuple):
    """What the controller says; without one that answers, `controller` is 0 and `text` says why."""

    controller: int
    text: str
    said: Mapping[str, Any]
    nodes: Mapping[int, Mapping[str, Any]]

    def figures(self, node: int) -> dict[str, Any]:
        """What it adds to a node's own figures."""
        said = self.nodes.get(node, {})
        return {name: said[name] for name in _OF_A_NODE if name in said}


NO_VIEW: Final = View(groups.NOBODY, "the controller did not answer in time", {}, {})


def read_view(status: int, body: bytes) -> View:
    """The answer to `show`, or why there is none."""
    try:
        if status != Status.OK:
            return NO_VIEW._replace(text=decode_error(body)["message"])
        said = frames.decode(body)
        nodes = {row["id"]: row for row in said["nodes"] if type(row["id"]) is int}
        controller, moves = said["controller"], said["moves"]
        if type(controller) is int and 0 < controller <= UINT16_MAX and type(moves) is tuple:
            return View(controller, "", said, nodes)
    except (ProtocolError, TypeError, KeyError, IndexError):
        pass
    return NO_VIEW._replace(text="what the controller answered is not understood")


def state(node: Node, figures: Figures, view: View) -> str:
    """The word for a node: the controller's, or `down` if nobody here can reach it and it is not meant to go
    anyway.
    """
    known = view.nodes.get(node.id, {}).get("state")
    said = known if known in (*STATES, FOREIGN) else node.state
    return said if node.id in figures or said == "draining" else "down"
