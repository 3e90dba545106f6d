"""What each client may do, and how much: in front of everything else that becomes of a request, when clients
have keys (docs/security.md section 7).

Owns an account for each name that has asked anything. Sans-I/O: names come from the handshake, certificates
are looked up, time is handed in. Must not know sockets, partitions or stores. What is refused is answered
here; what may pass goes on as it came. Bounded: by the certificates that there are.

The straight line: the canonical beginning of a request tells its kind, and whoever may read and write
everything, without limits, is let through by that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from kvclient.errors import Busy, KVError, PermissionDenied, ProtocolError, Status
from kvclient.protocol import VERSION, Kind, Request
from router import figures as figure
from router.admin import decode_command
from router.figures import Figures
from router.permissions import changes_nothing, require
from router.requests import decode
from router.responses import Responses
from shared.opstream import Limits, inspect
from shared.security import Certificate, Grants
from shared.security import Limits as Rates

EVERYTHING: Final = (b"",)

BURST_S: Final = 1.0
"""What a client did not use of its rates in this time it may use at once."""

RETRY_MS_MAX: Final = 1000

_HEAD: Final = len(b"\x9a\x01\x01")
_OPS_HEAD: Final = bytes((0x9A, VERSION, Kind.OPS))
"""The array of ten fields, and the first two of them, in the form that writers of MessagePack give them; any
other form goes the longer way.
"""

Lookup = Callable[[str], Certificate | None]


class Rate:
    """A bucket that fills by `per_second`; 0: no limit. What is larger than the bucket passes when that is
    full, and is paid for afterwards.
    """

    __slots__ = ("_at", "_left", "per_second")

    def __init__(self, per_second: int, now: float) -> None:
        self.per_second = per_second
        self._left = per_second * BURST_S
        self._at = now

    def wait_s(self, amount: int, now: float) -> float:
        """For how long this has to wait; 0: it may pass now."""
        if not self.per_second:
            return 0.0
        full = self.per_second * BURST_S
        self._left = min(full, self._left + (now - self._at) * self.per_second)
        self._at = now
        return max(0.0, (min(amount, full) - self._left) / self.per_second)

    def take(self, amount: int) -> None:
        """It passes."""
        self._left -= amount


class Account:
    """What one client has under way and has sent lately, by its certificate."""

    __slots__ = (
        "_certificate",
        "admin",
        "byte_rate",
        "free",
        "grants",
        "in_flight",
        "in_flight_max",
        "op_rate",
    )

    def __init__(self, certificate: Certificate, now: float) -> None:
        self.in_flight = 0
        self.follow(certificate, now)

    def follow(self, certificate: Certificate, now: float) -> None:
        """Judge by this one from now on."""
        self._certificate = certificate
        grants, rates = certificate.grants, certificate.limits
        if certificate.role == "admin":
            grants = Grants(EVERYTHING, EVERYTHING, True)
        everything = b"" in grants.read and b"" in grants.write
        self.grants = grants
        self.admin = grants.admin
        self.free = everything and rates == Rates()
        self.in_flight_max = rates.in_flight
        self.op_rate, self.byte_rate = Rate(rates.ops_per_second, now), Rate(rates.bytes_per_second, now)

    def is_by(self, certificate: Certificate) -> bool:
        """Whether it judges by this very certificate."""
        return self._certificate is certificate


class Client(bytes):
    """The routing id of a client whose requests under way are counted: one object for each request, which
    comes back with its answer.
    """

    account: Account


class Gate:
    """Of one router."""

    def __init__(self, lookup: Lookup, limits: Limits, responses: Responses, figures: Figures) -> None:
        self._lookup = lookup
        self._limits = limits
        self._responses = responses
        self._counters = figures.counters.values
        self._accounts: dict[str, Account] = {}

    def passed(self, messages: Iterable[list[bytes]], names: Iterable[str], now: float) -> list[list[bytes]]:
        """Those that may go on; the others are answered."""
        taken = []
        for message, name in zip(messages, names, strict=True):
            account = self._account(name, now)
            straight = account is not None and account.free and message[1][:_HEAD] == _OPS_HEAD
            if straight or self._judge(message, name, account, now):
                taken.append(message)
        return taken

    def answered(self, client: bytes) -> None:
        """An answer to this client leaves."""
        if type(client) is Client:
            client.account.in_flight -= 1

    def _account(self, name: str, now: float) -> Account | None:
        certificate = self._lookup(name)
        account = self._accounts.get(name)
        if certificate is None:  # revoked; its connection is about to end
            self._accounts.pop(name, None)
            return None
        if account is None:
            account = self._accounts[name] = Account(certificate, now)
        elif not account.is_by(certificate):
            account.follow(certificate, now)
        return account

    def _judge(self, message: list[bytes], name: str, account: Account | None, now: float) -> bool:
        """Whether it may go on; if not, it has been answered. What is no request goes on, to be refused in
        words.
        """
        try:
            request = decode(message)
        except ProtocolError:
            return account is not None
        try:
            if account is None:
                raise PermissionDenied(f"the key {name} has been revoked")
            if request.kind == Kind.OPS:
                self._admit_ops(message, request, name, account, now)
            elif request.kind == Kind.ADMIN and not (account.admin or _only_looks(request)):
                raise PermissionDenied(f"{name} may not give commands that change the cluster")
        except KVError as error:
            busy = error.status == Status.BUSY
            self._counters[figure.REQUESTS_BUSY if busy else figure.REQUESTS_REFUSED] += 1
            self._refuse(message[0], request, error)
            return False
        except Exception:  # noqa: BLE001 - a defect of ours must not cost the others of the batch
            self._responses.defect(message[0], request.kind, request.request_id)
            return False
        return True

    def _refuse(self, client: bytes, request: Request, error: KVError) -> None:
        if error.status == Status.BUSY:
            pause = error.retry_after_ms
            self._responses.refuse(
                client, request.kind, request.request_id, error.status, error.message, pause
            )
        else:
            self._responses.refuse_for(client, request.kind, request.request_id, error.status, error)

    def _admit_ops(
        self, message: list[bytes], request: Request, name: str, account: Account, now: float
    ) -> None:
        if not account.free:
            shape = inspect(request.body, self._limits)
            if account.grants.read != EVERYTHING or account.grants.write != EVERYTHING:
                require(name, request.body, account.grants)
            self._spend(account, name, max(1, shape.count), len(message[1]), now)
            if account.in_flight_max:
                client = Client(message[0])
                client.account = account
                message[0] = client
                account.in_flight += 1

    def _spend(self, account: Account, name: str, ops: int, size: int, now: float) -> None:
        if account.in_flight_max and account.in_flight >= account.in_flight_max:
            text = f"{name} has {account.in_flight} requests under way here, as many as its limit"
            raise Busy(text, retry_after_ms=50)
        wait = max(account.op_rate.wait_s(ops, now), account.byte_rate.wait_s(size, now))
        if wait > 0:
            text = f"{name} is over its limit of ops or bytes per second"
            raise Busy(text, retry_after_ms=min(RETRY_MS_MAX, int(wait * 1000) + 1))
        account.op_rate.take(ops)
        account.byte_rate.take(size)


def _only_looks(request: Request) -> bool:
    return changes_nothing(decode_command(request.body))
