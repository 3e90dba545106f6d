"""A network that can be cut, for trying out faults on one machine: sockets that are kept from some endpoints.

Owns the one kind of socket that lets go of links, and the file that says which. Only contexts made here have
it, and a process makes one only if it is configured to (`dev.cuts`). Sockets' owners notice nothing: what
they connect while an endpoint is cut off is connected when it is not any more. As every link is made by one
of its two ends, two processes that have cut each other off say and hear nothing of each other. Unlike with a
network that loses packets, both ends see their links end at once.

The file has an endpoint in each line; none, or no file: nothing is cut. What is in force is repeated in
`FILE.taken`. One thread, the sockets'.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import zmq

from shared import logs, sockets

LOOK_S: Final = 0.1
"""Between two looks at the file: a person who cuts a network by hand does not notice."""

_log = logs.get("cuts")


class Cuts:
    """The endpoints that are cut off, and the links that the sockets of one context should have."""

    def __init__(self) -> None:
        self._cut: frozenset[str] = frozenset()
        self._wanted: WeakKeyDictionary[_Socket, set[str]] = WeakKeyDictionary()

    def context(self) -> sockets.Context:
        """A context whose sockets keep to these cuts."""
        made = _Context(io_threads=1)
        made.cuts = self
        return sockets.prepared(cast(sockets.Context, made))

    def set(self, endpoints: Iterable[str]) -> None:
        """Cut off exactly these: ends links, and begins those that were held back."""
        before, self._cut = self._cut, frozenset(endpoints)
        for socket, wanted in list(self._wanted.items()):
            if socket.closed:
                continue
            for endpoint in wanted & (self._cut - before):
                with contextlib.suppress(zmq.ZMQError):  # its session has ended already
                    socket.end(endpoint)
            for endpoint in wanted & (before - self._cut):
                socket.begin(endpoint)

    def connect(self, socket: _Socket, endpoint: str) -> None:
        """The socket's owner wants a link."""
        if endpoint not in self._cut:
            socket.begin(endpoint)
        self._wanted.setdefault(socket, set()).add(endpoint)

    def disconnect(self, socket: _Socket, endpoint: str) -> None:
        """The socket's owner wants none any more."""
        self._wanted.get(socket, set()).discard(endpoint)
        if endpoint not in self._cut:
            socket.end(endpoint)


class _Socket(zmq.Socket[bytes]):
    """One whose links are its context's cuts to decide."""

    def connect(self, addr: str) -> Any:
        """As of any socket; later if the endpoint is cut off."""
        cast(_Context, self.context).cuts.connect(self, addr)

    def disconnect(self, addr: str | bytes) -> None:
        """As of any socket."""
        cast(_Context, self.context).cuts.disconnect(self, os.fsdecode(addr))

    def begin(self, endpoint: str) -> None:
        """Seek the link."""
        sockets.aim(cast(sockets.Socket, self), endpoint)
        super().connect(endpoint)

    def end(self, endpoint: str) -> None:
        """End the link; ZMQError if there is none."""
        super().disconnect(endpoint)


class _Context(zmq.Context[_Socket]):
    cuts: Cuts
    _socket_class = _Socket


class CutFile:
    """Looks at the file at once and every LOOK_S, and does as it says. `call_later` is the reactor's."""

    def __init__(self, path: str, cuts: Cuts, call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._path = path
        self._cuts = cuts
        self._call_later = call_later
        self._text: str | None = None
        self._look()

    def _look(self) -> None:
        self._call_later(LOOK_S, self._look)
        try:
            with open(self._path) as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        except (OSError, ValueError) as error:  # what was in force stays
            _log.warning("cuts_unreadable", file=self._path, error=str(error))
            return
        if text != self._text:
            if text or self._text:
                _log.warning("network_cut", endpoints=text.split())
            self._text = text
            self._cuts.set(text.split())
            self._tell(text)

    def _tell(self, text: str) -> None:
        temporary = f"{self._path}.taken.tmp"
        try:
            with open(temporary, "w") as file:
                file.write(text)
            os.replace(temporary, f"{self._path}.taken")
        except OSError as error:
            _log.warning("cuts_not_told", file=self._path, error=str(error))
