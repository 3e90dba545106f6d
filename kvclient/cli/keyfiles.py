"""Writing a key directory (docs/security.md section 3): pairs are made here, files replaced as a whole.

Owns the order of writes: a private key is there before its certificate, and goes after it. So a crash leaves
no certificate that nobody can use, and what runs meanwhile sees either the old pair or the new one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kvclient.cli.failure import Failure
from kvclient.errors import Exit
from kvclient.keys import (
    CERTIFICATES,
    PRIVATE,
    Certificate,
    Keys,
    Pair,
    encode_certificate,
    encode_pair,
    load,
)

ADMIN: Final = "admin"
"""The operator's key."""


def init(directory: Path) -> None:
    """Make a directory with the operator's key; Failure if one is there."""
    if (directory / CERTIFICATES).exists():
        text = f"{directory} is a key directory already. See what is in it:  kvcli keys ls {directory}"
        raise Failure(Exit.CONFLICT, text, "EXISTS")
    (directory / PRIVATE).mkdir(mode=0o700, parents=True, exist_ok=True)
    for private in (directory, directory / PRIVATE):
        private.chmod(0o700)
    (directory / CERTIFICATES).mkdir()
    add(directory, Certificate(ADMIN, "admin", ""))


def add(directory: Path, certificate: Certificate) -> Certificate:
    """Make a pair for `certificate`, and write both, also in the place of what has this name."""
    pair = _new_pair()
    certificate = certificate._replace(public_key=pair.public_key)
    _write(_private(directory, certificate.name), encode_pair(pair), 0o600)
    _write(_public(directory, certificate.name), encode_certificate(certificate), 0o644)
    return certificate


def revoke(directory: Path, name: str) -> None:
    """Delete a certificate, then its private key, if it is here."""
    _public(directory, name).unlink(missing_ok=True)
    _private(directory, name).unlink(missing_ok=True)


def clash(keys: Keys, certificate: Certificate) -> str | None:
    """Why a certificate cannot stand beside the others; None if it can."""
    for address in certificate.addresses or ("",):
        for one in keys.certificates.values():
            another = one.role == certificate.role and one.name != certificate.name
            if another and address in (one.addresses or ("",)):
                what = f"the address {address}" if address else "no address, as only one may"
                return f"{one.name} has {what}, and role {one.role}"
    return None


def ensure(directory: Path, wanted: list[Certificate]) -> None:
    """Make what is missing of a directory and of these keys; what is there stays."""
    if not (directory / CERTIFICATES).is_dir():
        init(directory)
    there = load(directory).certificates
    for certificate in wanted:
        if certificate.name not in there:
            add(directory, certificate)


def _public(directory: Path, name: str) -> Path:
    return directory / CERTIFICATES / f"{name}.json"


def _private(directory: Path, name: str) -> Path:
    return directory / PRIVATE / f"{name}.key"


def _new_pair() -> Pair:
    import zmq  # `kvcli keys ls` does without

    public, secret = zmq.curve_keypair()
    return Pair(public.decode(), secret.decode())


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file; nobody sees half of it, nor a private key with another mode."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
