"""The key directory: who has which key, in which role, and may do what (docs/security.md section 3).

Owns the format of its files, and how a directory is read: as a whole, with everything that is wrong in it
told at once. Servers read it by this file too. Must not know sockets. Nothing here writes; private keys are
read only when they are asked for.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from kvclient.errors import InvalidRequest

Role = Literal["client", "router", "node", "monitor", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
LISTENING: Final[tuple[Role, ...]] = ("router", "node")
"""Roles whose processes others connect to."""

CERTIFICATES: Final = "certificates"
PRIVATE: Final = "private"
VERSION: Final = 1

FILE_BYTES_MAX: Final = 64 << 10
"""A thousand prefixes have room."""
CERTIFICATES_MAX: Final = 10_000
"""Far beyond any cluster's clients; a directory with more is the wrong one."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+)(:[0-9]{1,5})?")
_NUMBER_MAX: Final = (1 << 53) - 1


class KeysError(InvalidRequest):
    """A key directory that cannot be used; `problems` has each thing that is wrong, str() a line for each."""

    def __init__(self, problems: Sequence[str], hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = tuple(problems)


class Grants(NamedTuple):
    """What a client may do: read and write keys with one of these prefixes, and whether it may give
    operators' commands.
    """

    read: tuple[bytes, ...] = ()
    write: tuple[bytes, ...] = ()
    admin: bool = False


class Limits(NamedTuple):
    """What a client may have under way and send at most, at each router; 0: no limit of its own."""

    in_flight: int = 0
    ops_per_second: int = 0
    bytes_per_second: int = 0


class Certificate(NamedTuple):
    """The public half of a key: whose it is, and what for. Addresses are lower case, without `tcp://`."""

    name: str
    role: Role
    public_key: str
    addresses: tuple[str, ...] = ()
    grants: Grants = Grants()
    limits: Limits = Limits()


class Pair(NamedTuple):
    """A key pair in Z85."""

    public_key: str
    secret_key: str


# -- one file


def is_name(name: str) -> bool:
    """Whether a key may be called so."""
    return _NAME.fullmatch(name) is not None


def is_address(text: str) -> bool:
    """Whether a certificate may name it: `host:port` or `host`, IPv6 in brackets."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and int((match[2] or ":1")[1:]) in range(1, 65536)


def encode_certificate(certificate: Certificate) -> bytes:
    """The file of a certificate."""
    fields: dict[str, Any] = {
        "version": VERSION,
        "role": certificate.role,
        "public_key": certificate.public_key,
    }
    if certificate.role in LISTENING:
        fields["addresses"] = certificate.addresses
    if certificate.role == "client":
        grants, limits = certificate.grants, certificate.limits
        fields["grants"] = {
            "read": [prefix.decode() for prefix in grants.read],
            "write": [prefix.decode() for prefix in grants.write],
            "admin": grants.admin,
        }
        fields["limits"] = limits._asdict()
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"


def encode_pair(pair: Pair) -> bytes:
    """The file of a private key."""
    return json.dumps({"version": VERSION, **pair._asdict()}, indent=2).encode() + b"\n"


def decode_certificate(name: str, content: bytes) -> Certificate:
    """KeysError has everything that is wrong in the file."""
    fields = _Fields(content)
    role = fields.take("role", lambda value: value in ROLES, f"one of {', '.join(ROLES)}", "client")
    key = fields.take("public_key", _is_key, "a key: 40 characters of Z85", "")
    addresses: list[str] = []
    if role in LISTENING:
        addresses = fields.take("addresses", _is_list_of(is_address), "a list of host:port or host", [])
    grants, limits = Grants(), Limits()
    if role == "client":
        inner = fields.section("grants")
        read, write = (inner.take(what, _is_list_of(_is_text), "a list of prefixes", []) for what in _WAYS)
        admin = inner.take("admin", lambda value: isinstance(value, bool), "true or false", False)
        grants = Grants(tuple(map(str.encode, read)), tuple(map(str.encode, write)), admin)
        inner = fields.section("limits")
        limits = Limits(*(inner.take(what, _is_count, "a number, 0 for none", 0) for what in Limits._fields))
    fields.finish()
    return Certificate(name, role, key, tuple(map(str.lower, addresses)), grants, limits)


_WAYS: Final = ("read", "write")


def decode_pair(content: bytes) -> Pair:
    """KeysError has everything that is wrong in the file; whether the halves fit, ZeroMQ knows."""
    fields = _Fields(content)
    pair = Pair(*(fields.take(half, _is_key, "a key: 40 characters of Z85", "") for half in Pair._fields))
    fields.finish()
    return pair


class _Fields:
    """A JSON object whose members are taken one by one; what is wrong is gathered."""

    def __init__(self, content: bytes) -> None:
        self._problems: list[str] = []
        self._path = ""
        self._inner: list[_Fields] = []
        try:
            self._left: dict[str, Any] = dict(json.loads(content))
        except (ValueError, TypeError, RecursionError):
            raise KeysError(["is no JSON object"]) from None
        if self._left.pop("version", None) != VERSION:
            raise KeysError([f"has another version than {VERSION}, the one that this software knows"])

    def take(self, name: str, is_sound: Callable[[Any], bool], expected: str, default: Any) -> Any:
        value = self._left.pop(name, default)
        if is_sound(value):
            return value
        self._problems.append(f"{self._path}{name} must be {expected}")
        return default

    def section(self, name: str) -> _Fields:
        value = self.take(name, lambda value: isinstance(value, dict), "an object", {})
        inner = _Fields(b'{"version": %d}' % VERSION)
        inner._left, inner._path, inner._problems = dict(value), f"{name}.", self._problems
        self._inner.append(inner)
        return inner

    def finish(self) -> None:
        for fields in (self, *self._inner):
            self._problems += [f"has an unknown member {fields._path}{name}"[:200] for name in fields._left]
        if self._problems:
            raise KeysError(self._problems)


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _NUMBER_MAX


def _is_list_of(is_sound: Callable[[Any], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) and is_sound(item) for item in value)

    return check


# -- the directory


class Keys:
    """A directory as it was read. `certificates` by name."""

    def __init__(self, directory: Path, certificates: Mapping[str, Certificate]) -> None:
        self.directory = directory
        self.certificates = certificates
        self._servers: dict[tuple[Role, str], Certificate] = {}
        for one in certificates.values():
            for address in one.addresses or ("",):
                if one.role in LISTENING:
                    self._servers[one.role, address] = one

    def server(self, address: str, *roles: Role) -> Certificate | None:
        """Who of these roles is expected at `host:port`."""
        address = address.lower()
        for known in (address, address.rpartition(":")[0], ""):
            for role in roles:
                found = self._servers.get((role, known))
                if found is not None:
                    return found
        return None

    def private_names(self) -> list[str]:
        """Whose private keys are here."""
        return sorted(path.stem for path in _files(self.directory / PRIVATE, ".key"))

    def pair(self, name: str) -> Pair:
        """The key pair of one that has a certificate; KeysError."""
        path = self.directory / PRIVATE / f"{name}.key"
        pair: Pair = _decoded(path, decode_pair)
        certificate = self.certificates.get(name)
        if certificate is None:
            raise KeysError([f"{self.directory / CERTIFICATES} has no certificate {name}.json"], _ADD)
        if certificate.public_key != pair.public_key:
            raise KeysError([f"{path} is not the key of {CERTIFICATES}/{name}.json: copy both anew"])
        return pair


_ADD: Final = "make it with `kvcli keys add` on the operator's machine, then copy the directory again"


def load(directory: Path) -> Keys:
    """Read and check a whole key directory; KeysError has everything that is wrong in it."""
    if not (directory / CERTIFICATES).is_dir():
        raise KeysError([f"{directory} is no key directory"], f"make one:  kvcli keys init {directory}")
    problems: list[str] = []
    certificates: dict[str, Certificate] = {}
    paths = _files(directory / CERTIFICATES, ".json")
    if len(paths) > CERTIFICATES_MAX:
        raise KeysError([f"{directory} has over {CERTIFICATES_MAX:,} certificates"])
    for path in paths:
        try:
            certificates[path.stem] = _decoded(path, partial(decode_certificate, path.stem))
        except KeysError as error:
            problems += error.problems
    problems += _conflicts(certificates.values())
    for path in paths:
        problems += _exposed(path, 0o022, "change it. chmod go-w")
    for path in _files(directory / PRIVATE, ".key"):
        problems += _exposed(path, 0o077, "read or change it. chmod 600")
    if problems:
        raise KeysError(problems)
    return Keys(directory, certificates)


def _files(directory: Path, suffix: str) -> list[Path]:
    """Those of a directory, by name; none if it is not there. What begins with a dot is being written."""
    try:
        return sorted(
            path for path in directory.iterdir() if path.suffix == suffix and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeysError([f"{directory} cannot be read: {error.strerror}"]) from None


def _decoded(path: Path, decode: Callable[[bytes], Any]) -> Any:
    """What a file holds; KeysError with its path in front of every problem."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if not is_name(path.stem):
            raise KeysError(["is not called like a key: letters, digits, '-', '_' and '.', 63 at most"])
        if len(content) > FILE_BYTES_MAX:
            raise KeysError([f"is over {FILE_BYTES_MAX} bytes"])
        return decode(content)
    except OSError as error:
        raise KeysError([f"{path} cannot be read: {error.strerror}"]) from None
    except KeysError as error:
        raise KeysError([f"{path} {problem}" for problem in error.problems]) from None


def _conflicts(certificates: Iterable[Certificate]) -> Iterator[str]:
    """The same key, or the same address in one role, twice."""
    keys: dict[str, str] = {}
    places: dict[tuple[Role, str], str] = {}
    for one in certificates:
        other = keys.setdefault(one.public_key, one.name)
        if other != one.name:
            yield f"{other} and {one.name} have the same public key: replace one of them"
        for address in (one.addresses or ("",)) if one.role in LISTENING else ():
            other = places.setdefault((one.role, address), one.name)
            if other != one.name:
                what = f"the address {address}" if address else "no address, as only one may"
                yield f"{other} and {one.name}, role {one.role}, both have {what}"


def _exposed(path: Path, forbidden: int, what: str) -> Iterator[str]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield f"{path} cannot be read: {error.strerror}"
        return
    if mode & forbidden:
        yield f"{path} has mode {mode:04o}: others may {what} {path}"


# -- a client


class ClientKeys(NamedTuple):
    """What a client connects with."""

    keys: Keys
    name: str
    pair: Pair

    def router(self, address: str) -> Certificate | None:
        """Of the router at `host:port`."""
        return self.keys.server(address, "router")

    def require_routers(self, addresses: Iterable[str]) -> None:
        """KeysError unless it is known which routers to expect there."""
        unknown = [address for address in addresses if self.router(address) is None]
        if unknown:
            add = f"kvcli keys add {self.keys.directory} NAME --role router --address {unknown[0]}"
            place = self.keys.directory / CERTIFICATES
            raise KeysError([f"{place} has no certificate of a router at {' nor '.join(unknown)}"], hint=add)


def load_client(place: str) -> ClientKeys:
    """The keys of a client, from its directory or from the file of its private key; KeysError."""
    path = Path(place).expanduser().absolute()
    chosen = path.stem if path.suffix == ".key" and path.parent.name == PRIVATE else None
    keys = load(path.parent.parent if chosen else path)
    name = chosen or _only_client(keys)
    return ClientKeys(keys, name, keys.pair(name))


def _only_client(keys: Keys) -> str:
    owners = [keys.certificates[name] for name in keys.private_names() if name in keys.certificates]
    clients = [one.name for one in owners if one.role in ("client", "admin", "monitor")]
    admins = [one.name for one in owners if one.role == "admin"]
    for found in (clients, admins):
        if len(found) == 1:
            return found[0]
    place = keys.directory / PRIVATE
    if not clients:
        raise KeysError(
            [f"{place} has no private key of a client"], f"make one:  kvcli keys add {keys.directory} NAME"
        )
    raise KeysError([f"{place} has several keys of clients"], f"name one: {place}/NAME.key")
