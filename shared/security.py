"""Whom this process trusts, and as whom it speaks: its key directory, loaded, judged by, and looked at again
(docs/security.md).

Owns the table of roles and sockets, and what changes with a directory. Must not know sockets: `shared.curve`
puts keys on them, `shared.zap` asks here. `judge` may be called by any thread, the rest by the loop's.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

import attrs

from kvclient.keys import CERTIFICATES, PRIVATE, Keys, KeysError, Pair, Role, load
from kvclient.keys import Certificate as Certificate
from kvclient.keys import Grants as Grants
from kvclient.keys import Limits as Limits
from shared import logs
from shared.config import ConfigError, Problem

_log = logs.get("security")


class Domain(NamedTuple):
    """A kind of bound socket: which roles may speak to it. `tells`: whether a refused key hears that it is,
    and gives up; otherwise the other side tries again until it is let in.
    """

    name: str
    roles: frozenset[Role]
    tells: bool = False


FRONT: Final = Domain("front", frozenset({"client", "admin", "monitor"}), tells=True)
RPC: Final = Domain("rpc", frozenset({"router", "node", "monitor"}))
BUS: Final = Domain("bus", frozenset({"node"}))
EVENTS: Final = Domain("events", frozenset({"node", "router", "monitor"}))
DOMAINS: Final = {domain.name: domain for domain in (FRONT, RPC, BUS, EVENTS)}

_CONNECTS_TO: Final[dict[Role, tuple[Role, ...]]] = {
    "router": ("node",),
    "node": ("node",),
    "monitor": ("node", "router"),
}


@attrs.frozen
class SecuritySection:
    """Keys of this process: the directory, and which key is its own unless that has the process's name."""

    keys: str = ""
    name: str = ""


class Verdict(NamedTuple):
    """Of a key: whose it is ("": nobody's that is known), and why it is refused ("": it is not)."""

    name: str
    refusal: str


class Guard:
    """Judges by what was loaded last. ConfigError: the directory cannot be used, or has no key for `name` in
    `role`.
    """

    def __init__(self, directory: Path, name: str, role: Role) -> None:
        self.name = name
        self.role = role
        self._directory = directory
        self._lock = threading.Lock()
        self._seen: set[tuple[str, str]] = set()
        """Domain and public key of who was let in and has not been thrown out since: as many as there are
        certificates, for each domain, and those that went since a socket was last begun anew.
        """
        self._signature = _signature(directory)
        try:
            self._take(*self._load())
        except KeysError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise ConfigError(
                [Problem("", "security.keys", text + hint) for text in error.problems]
            ) from None

    def _load(self) -> tuple[Keys, Pair]:
        keys = load(self._directory)
        pair = keys.pair(self.name)
        mine = keys.certificates[self.name]
        if mine.role != self.role:
            text = f"the key {self.name} has role {mine.role}, this process needs one of role {self.role}"
            raise KeysError([text])
        return keys, pair

    def _take(self, keys: Keys, pair: Pair) -> None:
        owners = {one.public_key: one for one in keys.certificates.values()}
        with self._lock:
            self.keys, self.pair, self._owners = keys, pair, owners

    def judge(self, domain: str, public_key: str) -> Verdict:
        """Whether somebody who has this key may speak to such a socket."""
        with self._lock:
            owner = self._owners.get(public_key)
            refusal = _refusal(domain, owner)
            if not refusal:
                self._seen.add((domain, public_key))
        return Verdict("" if owner is None else owner.name, refusal)

    def certificate(self, name: str) -> Certificate | None:
        """Of somebody whose name a handshake has proven; None: it has been revoked since."""
        return self.keys.certificates.get(name)

    def is_member(self, name: str) -> bool:
        """Whether this is a store or a router of the cluster, rather than somebody who may only look."""
        certificate = self.keys.certificates.get(name)
        return certificate is not None and certificate.role in ("node", "router")

    def thrown_out(self, domain: str) -> bool:
        """Whether anybody was let in there who would not be now; says so once."""
        with self._lock:
            gone = {
                (where, key)
                for where, key in self._seen
                if where == domain and _refusal(domain, self._owners.get(key))
            }
            self._seen -= gone
        return bool(gone)

    def expected(self, endpoint: str) -> Certificate | None:
        """Who must be at an endpoint that this process connects to."""
        return self.keys.server(endpoint.removeprefix("tcp://"), *_CONNECTS_TO[self.role])

    def look(self) -> bool:
        """Load the directory again if it has changed; whether that was so. An error changes nothing but the
        log.
        """
        signature = _signature(self._directory)
        if signature == self._signature:
            return False
        self._signature = signature
        try:
            self._take(*self._load())
        except KeysError as error:
            _log.error("keys_refused", directory=str(self._directory), problems=list(error.problems))
            return False
        _log.info("keys_loaded", directory=str(self._directory), certificates=len(self.keys.certificates))
        return True


def open_guard(section: SecuritySection, process: str, role: Role) -> Guard | None:
    """The guard that a process's configuration asks for; None: it has no keys. ConfigError."""
    if not section.keys:
        return None
    return Guard(Path(section.keys), section.name or process, role)


def _refusal(domain: str, owner: Certificate | None) -> str:
    if owner is None:
        return "no certificate has this key"
    if domain not in DOMAINS or owner.role not in DOMAINS[domain].roles:
        return f"a key of role {owner.role} may not speak here"
    return ""


def _signature(directory: Path) -> object:
    """Differs when a file came, went or was written."""
    found: list[tuple[str, int, int, int]] = []
    for name in (CERTIFICATES, PRIVATE):
        try:
            for entry in os.scandir(directory / name):
                status = entry.stat()
                found.append((entry.name, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:  # gone between two calls, or not there: `load` says what is wrong
            continue
    return sorted(found)
